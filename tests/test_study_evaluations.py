"""The evaluations of a study, on agents that were not trained."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_laplace import LaplaceRecurrentPPO, make_vec_env, posterior_trace
from sb3_laplace.studies import evaluations
from sb3_laplace.studies.evaluate import trained_agent
from sb3_laplace.studies.evaluations import EVALUATIONS, Measured, TrainedAgent, metric_of
from sb3_laplace.studies.execution import Worker
from sb3_laplace.studies.runs import write_json
from sb3_laplace.zoo.configurations import make_playing_env, write_hyperparams
from tests.study_helpers import HYPERPARAMS, make_study

BANDIT, REGRESSION = "sb3_laplace/DirichletBandit-v0", "sb3_laplace/FourierRegression-v0"
SMALL: dict[str, Any] = {"lstm_hidden_size": 8, "latent_dim": 4, "net_arch": [8]}
SETTINGS: dict[str, dict[str, Any]] = {
    "return": {"n_trials": 12},
    "diagnosis": {"n_trials": 40},
    "belief": {"n_trials": 40},
    "regression": {"n_functions": 2, "n_test_inputs": 20, "n_posterior_samples": 2},
    "posthoc": {"n_trials": 4, "prior_stds": [0.1, 1.0]},
}


def make_agent(env_id: str, **policy_kwargs: Any) -> TrainedAgent:
    def load() -> LaplaceRecurrentPPO:
        env = make_vec_env(env_id, n_envs=1, seed=0)
        return LaplaceRecurrentPPO("LaplaceLstmPolicy", env, seed=0, policy_kwargs={**SMALL, **policy_kwargs})

    def make_env(n_trials: int, seed: int) -> VecEnv:
        return make_vec_env(env_id, n_envs=n_trials, seed=seed)

    return TrainedAgent(load, make_env, env_id, {})


def measure(name: str, agent: TrainedAgent) -> Measured:
    measured = EVALUATIONS[name].measure(agent, {**EVALUATIONS[name].defaults, **SETTINGS[name]})
    # JSON has no NaN
    json.dumps([measured.numbers, measured.details], allow_nan=False)
    assert all(value is None or math.isfinite(value) for value in measured.numbers.values())
    return measured


@pytest.mark.parametrize("posterior", ["laplace", "point"])
@pytest.mark.parametrize("name", ["return", "diagnosis", "belief", "posthoc"])
def test_evaluations_on_the_bandit(name: str, posterior: str) -> None:
    agent = make_agent(BANDIT, posterior=posterior)
    numbers = measure(name, agent).numbers
    expected = {
        "return": {"return", "return_mode", "regret", "regret_mode"},
        "diagnosis": {"policy_calibration.gap"},
        "belief": {"r2", "exact_from_latent", "claimed_ratio", "coverage_90", "lost", "lost_by_mean", "lost_by_width"},
        "posthoc": {"prior_std", "return", "return_unsampled", "gain"},
    }
    assert expected[name] <= set(numbers)
    # Fixed trials, and nothing else that is drawn differs
    assert measure(name, make_agent(BANDIT, posterior=posterior)).numbers == numbers
    if name == "return":
        assert numbers["regret"] == pytest.approx(25.0, abs=10.0)
    if name == "belief":
        assert (numbers["claimed_ratio"] is None) == (posterior == "point")
    if name == "posthoc":
        assert numbers["gain"] == pytest.approx(numbers["return"] - numbers["return_unsampled"])  # type: ignore[operator]


def test_what_was_played_is_not_played_again(monkeypatch: pytest.MonkeyPatch) -> None:
    played = []

    def trace(*args: Any, **kwargs: Any) -> Any:
        played.append(args[3])
        return posterior_trace(*args, **kwargs)

    monkeypatch.setattr(evaluations, "posterior_trace", trace)
    agent = make_agent(BANDIT)
    settings = {"n_trials": 40, "seed": 3}
    alone = EVALUATIONS["diagnosis"].measure(agent, settings).numbers
    EVALUATIONS["return"].measure(agent, settings)
    # Sampled, which both take, and by the mode
    assert played == [False, True]
    EVALUATIONS["return"].measure(agent, {**settings, "seed": 4})
    assert played == [False, True] * 2
    assert EVALUATIONS["diagnosis"].measure(agent, settings).numbers == alone


def test_returns_of_the_episodes_of_a_trial() -> None:
    agent = make_agent("sb3_laplace/PointRobot-v0")
    numbers = measure("return", agent).numbers
    for suffix in ("", "_mode"):
        by_episode = [numbers[f"return_episode_{i}{suffix}"] for i in (1, 2, 3)]
        assert sum(by_episode) == pytest.approx(numbers[f"return{suffix}"])  # type: ignore[arg-type]
        # About the distance to goals that are 1 away, a hundred times
        assert by_episode == pytest.approx([-100.0] * 3, abs=40.0)
    assert "return_episode_4" not in numbers


def test_regression() -> None:
    measured = measure("regression", make_agent(REGRESSION))
    assert measured.numbers["mse.train.10"] is not None
    assert measured.numbers["nll_mixture.test.30"] is not None
    assert "target" not in measure("return", make_agent(REGRESSION)).numbers
    assert set(measured.details) == {"train", "test"}


def test_a_normalized_agent_has_no_exact_belief() -> None:
    agent = make_agent(BANDIT)
    normalized = TrainedAgent(agent.load, lambda n, seed: VecNormalize(agent.make_env(n, seed)), BANDIT, {})
    with pytest.raises(ValueError, match="belief: the oracle watches observations as they are"):
        measure("belief", normalized)


def test_metrics() -> None:
    assert metric_of(BANDIT) == ("regret", -1)
    assert metric_of("CartPole-v1") == ("return", 1)


def test_recurrent_ppo_is_evaluated_as_the_point_that_it_is(tmp_path: Path) -> None:
    agents = {"rppo": {"algorithm": "ppo_lstm", "config": "hyperparams.yml"}}
    (folder, *_) = make_study(tmp_path, agents=agents).folders.values()
    env = make_vec_env("tests/Gated-v0", n_envs=1)
    RecurrentPPO("MlpLstmPolicy", env, policy_kwargs={"lstm_hidden_size": 8}).save(folder.path / "agent.zip")
    write_json(folder.agent_file, {"model": "agent.zip", "steps": 0})
    write_hyperparams(folder.path / "config.yml", "tests/Gated-v0", {**HYPERPARAMS, "policy": "MlpLstmPolicy"})
    agent = trained_agent(folder, folder)
    assert agent.load().policy.latent_layer.is_point
    numbers = EVALUATIONS["return"].measure(agent, {"n_trials": 4, "seed": 1}).numbers
    assert set(numbers) == {"return", "return_mode"}


def test_environments_are_those_of_training(tmp_path: Path) -> None:
    """Normalized with the statistics of the end of training, which playing does not change."""
    env_id = "CartPoleNoVel-v1"
    config, model = tmp_path / "config.yml", tmp_path / "run" / f"{env_id}.zip"
    hyperparams = {"n_envs": 2, "n_timesteps": 10, "policy": "LaplaceLstmPolicy", "normalize": True}
    write_hyperparams(config, env_id, hyperparams)
    trained = VecNormalize(make_vec_env(env_id, n_envs=1))
    trained.obs_rms.mean[:] = 3.0  # type: ignore[union-attr]
    (tmp_path / "run" / env_id).mkdir(parents=True)
    trained.save(str(tmp_path / "run" / env_id / "vecnormalize.pkl"))
    LaplaceRecurrentPPO("LaplaceLstmPolicy", trained, policy_kwargs=SMALL).save(model)
    env = make_playing_env("laplace_ppo_lstm", env_id, config, model, n_trials=20, seed=0)
    assert isinstance(env, VecNormalize)
    assert env.num_envs == 10
    assert not env.training
    assert set(env.obs_rms.mean) == {3.0}  # type: ignore[union-attr]


def test_slurm_queues_the_same_worker_again() -> None:
    worker = Worker("folder", "invocation", waits=False)
    assert worker.checkpoint().function is worker
