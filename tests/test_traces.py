"""Traces: every array against a naive loop over single environments, and what ends up in files."""

import csv
import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_laplace import GymnasiumVecEnv, LaplaceRecurrentPPO, make_vec_env
from sb3_laplace.evaluation import trial_store
from sb3_laplace.evaluation.trace_recorder import COLUMNS, TASK_COLUMNS
from sb3_laplace.evaluation.traces import PosteriorTrace, posterior_trace
from sb3_laplace.posteriors.gaussian import Gaussian
from tests.helpers import RandomEnv, randomize

BANDIT = "sb3_laplace/DirichletBandit-v0"
POSTERIORS: dict[str, dict[str, Any]] = {
    "identity-diagonal": {},
    "projected-full": {"latent_dim": 3, "posterior_kwargs": {"covariance": "full"}},
    "stationary-full": {"posterior_kwargs": {"covariance": "full", "factorization": "stationary"}},
    "summed-means": {"latent_dim": 3, "posterior_kwargs": {"sum_means": True}},
    "variational-full": {"posterior": "variational", "posterior_kwargs": {"covariance": "full"}},
    "gru-two-layers": {"rnn_type": "gru", "n_lstm_layers": 2, "latent_dim": 3},
    "gtrxl": {"rnn_type": "gtrxl", "n_lstm_layers": 2, "latent_dim": 3, "lstm_kwargs": {"n_heads": 1}},
    "mingru-two-layers": {"rnn_type": "mingru", "n_lstm_layers": 2, "latent_dim": 3},
}


def random_env(n_envs: int = 3, seed: int = 0, **kwargs: Any) -> DummyVecEnv:
    env = DummyVecEnv([lambda: Monitor(RandomEnv(**kwargs)) for _ in range(n_envs)])
    env.seed(seed)
    return env


def small_model(env: Any, **policy_kwargs: Any) -> LaplaceRecurrentPPO:
    policy_kwargs = {"lstm_hidden_size": 5, "net_arch": [8], **policy_kwargs}
    model = LaplaceRecurrentPPO("LaplaceLstmPolicy", env, policy_kwargs=policy_kwargs, seed=0, device="cpu")
    randomize(model.policy)
    return model


class InterruptedEnv(RandomEnv):
    """Ctrl-C after some steps, trials of four steps."""

    def __init__(self, after: int) -> None:
        super().__init__(end_rate=0.0)
        self.after, self.n_steps = after, 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        if self.n_steps == self.after:
            raise KeyboardInterrupt
        self.n_steps += 1
        obs, reward, *_ = super().step(action)
        return obs, reward, False, self.n_steps % 4 == 0, {}


def torch_gaussian(gaussian: Gaussian) -> th.distributions.MultivariateNormal:
    return th.distributions.MultivariateNormal(gaussian.mean[0].double(), gaussian.covariance[0].double())


def naive_trials(model: LaplaceRecurrentPPO, env: VecEnv, n_trials: int) -> list[dict[str, list[float]]]:
    """Trials of a single environment, step by step through predict()."""
    trials = []
    obs = env.reset()
    policy = model.policy
    for _ in range(n_trials):
        steps: dict[str, list[float]] = {name: [] for name in (*COLUMNS, "covariance_trace")}
        state, done = None, False
        previous = policy.latent_layer.prior(1)
        while not done:
            start = np.array([state is None])
            tensors = policy.initial_states(1).pi if state is None else policy._restore_state(state)
            with th.no_grad():
                distribution, _ = policy.get_distribution(
                    th.as_tensor(obs), tensors, th.as_tensor(start).float(), deterministic=True
                )
            action, state = model.predict(obs, state, episode_start=start, deterministic=True)
            q = policy.posterior(state)
            ours, prior = torch_gaussian(q), torch_gaussian(previous)
            move = (q.mean - previous.mean)[0].double()
            # Without the means' difference there is only the covariance part
            centred = th.distributions.MultivariateNormal(prior.mean, ours.covariance_matrix)
            kl_covariance = float(th.distributions.kl_divergence(centred, prior))
            steps["entropy"].append(float(ours.entropy()))
            steps["kl_mean"].append(float(th.distributions.kl_divergence(ours, prior)) - kl_covariance)
            steps["kl_covariance"].append(kl_covariance)
            steps["mean_step"].append(float(move.norm()))
            trace = (prior.precision_matrix @ ours.covariance_matrix).diagonal().sum()
            steps["expected_move"].append(1.0 - float(trace) / q.dim)
            steps["action_entropy"].append(float(distribution.entropy()))
            steps["covariance_trace"].append(float(ours.covariance_matrix.diagonal().sum()))
            obs, reward, dones, _ = env.step(action)
            steps["reward"].append(float(reward[0]))
            previous, done = q, bool(dones[0])
        trials.append(steps)
    return trials


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_equals_a_naive_loop_over_environments(posterior: str) -> None:
    n_envs, n_trials = 3, 7
    env = random_env(n_envs)
    # With the default prior, what a step changes would be below the tolerances
    kwargs = {"prior_std": 1.0, **POSTERIORS[posterior].get("posterior_kwargs", {})}
    model = small_model(env, **{**POSTERIORS[posterior], "posterior_kwargs": kwargs})
    trace = posterior_trace(model, env, n_trials, deterministic=True, n_examples=2)
    assert min(np.nanmax(trace.kl_covariance), np.nanmax(trace.expected_move)) > 0.01
    # 7 trials on 3 environments: 2, 2 and 3, whatever their lengths
    expected = [
        trial for i, share in enumerate((2, 2, 3)) for trial in naive_trials(model, random_env(1, seed=i), share)
    ]
    assert trace.n_trials == n_trials
    assert trace.lengths.tolist() == [len(trial["reward"]) for trial in expected]
    assert trace.complete.all()
    assert trace.n_steps == trace.lengths.max()
    assert len(set(trace.lengths.tolist())) > 2
    for name in ("entropy", "kl_mean", "kl_covariance", "mean_step", "expected_move", "action_entropy", "reward"):
        array = getattr(trace, name)
        assert np.isnan(array[np.arange(trace.n_steps) >= trace.lengths[:, None]]).all()
        for row, trial in zip(array, expected, strict=True):
            np.testing.assert_allclose(
                row[: len(trial[name])], trial[name], rtol=2e-4, atol=2e-5, err_msg=f"{posterior} {name}"
            )
    np.testing.assert_allclose(trace.move, 2 * trace.kl_mean / trace.latent_dim)
    np.testing.assert_allclose(trace.returns, [sum(trial["reward"]) for trial in expected], rtol=1e-5)
    # The first trials of the first two environments
    assert trace.examples is not None
    assert trace.examples.trials.tolist() == [0, 2]
    for i, trial in enumerate(trace.examples.trials):
        inside = np.flatnonzero(trace.examples.steps < trace.lengths[trial])
        traces = trace.examples.covariances[i, inside].trace(axis1=1, axis2=2)
        steps = trace.examples.steps[inside]
        np.testing.assert_allclose(traces, np.array(expected[trial]["covariance_trace"])[steps], rtol=1e-4)
        assert np.isfinite(trace.examples.means[i]).all(-1).sum() == trace.lengths[trial]


@pytest.mark.parametrize(
    "policy_kwargs",
    [{}, {"latent_dim": 3}, {"rnn_type": "gru", "latent_dim": 3}, {"rnn_type": "mingru"}, POSTERIORS["gtrxl"]],
)
def test_norm_of_the_jacobian(policy_kwargs: dict[str, Any]) -> None:
    """Markov: J J^T is what the precision grows by."""
    env = random_env(2)
    model = small_model(env, posterior_kwargs={"covariance": "full", "prior_std": 1.0}, **policy_kwargs)
    trace = posterior_trace(model, env, 2, deterministic=True)
    state, obs = None, random_env(1).reset()
    model.predict(obs)
    _, state = model.predict(obs, state, deterministic=True)
    curvature = model.policy.posterior(state).precision[0] - th.eye(trace.latent_dim)
    assert trace.jacobian_norm[0, 0] == pytest.approx(float(curvature.trace()) ** 0.5, rel=1e-3)


def test_batched_environment_and_info_dicts_report_the_same() -> None:
    batched = make_vec_env(BANDIT, n_envs=4, seed=3, env_kwargs={"trial_length": 6})
    single = make_vec_env(BANDIT, n_envs=4, seed=3, env_kwargs={"trial_length": 6}, vec_env_cls=DummyVecEnv)
    model = small_model(batched)
    batched.seed(3)  # The model has seeded it
    a, b = (posterior_trace(model, env, 8, deterministic=True) for env in (batched, single))
    assert a.regret is not None
    assert b.regret is not None
    assert a.regret.shape == (8, 6)
    np.testing.assert_allclose(a.regret, b.regret, rtol=1e-5)
    np.testing.assert_allclose(a.reward, b.reward)
    np.testing.assert_allclose(a.value, b.value, rtol=1e-5)
    assert a.settings["env"] == BANDIT
    assert a.settings["env_kwargs"] == {"trial_length": 6}


def test_a_point_has_no_entropy() -> None:
    env = random_env(2)
    trace = posterior_trace(small_model(env, posterior="point"), env, 3)
    for name in ("entropy", "kl_mean", "kl_covariance", "expected_move"):
        assert np.isnan(getattr(trace, name)).all(), name
    inside = np.arange(trace.n_steps) < trace.lengths[:, None]
    for name in ("mean_step", "jacobian_norm", "action_entropy", "value", "confidence"):
        assert np.isfinite(getattr(trace, name)[inside]).all(), name


def test_confidence_is_the_probability_over_draws() -> None:
    """A posterior so narrow that all draws agree: the probability at the mean. Deterministic: the largest."""
    env = random_env(2)
    model = small_model(env, posterior_kwargs={"prior_std": 1e-6})
    trace = posterior_trace(model, env, 4, deterministic=True)
    inside = np.arange(trace.n_steps) < trace.lengths[:, None]
    obs = random_env(1).reset()
    with th.no_grad():
        distribution, _ = model.policy.get_distribution(
            th.as_tensor(obs), model.policy.initial_states(1).pi, th.ones(1), deterministic=True
        )
    assert trace.confidence[0, 0] == pytest.approx(float(distribution.distribution.probs.max()), rel=1e-3)
    assert (trace.confidence[inside] >= 1 / 3 - 1e-6).all()


class NoisyTargets(gym.Env):
    """Targets with a given spread, which no observation tells anything about."""

    def __init__(self, std: float) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Box(-10.0, 10.0, (1,), np.float32)
        self.action_scale, self.std = 2.0, std

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.step_count = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.step_count += 1
        target = 2.0 * self.std * self.np_random.normal()
        return np.zeros(2, np.float32), 0.0, False, self.step_count == 10, {"target": target}


@pytest.mark.parametrize("std", [1.0, 3.0])
def test_quantiles_of_targets(std: float) -> None:
    """A policy that predicts N(0, 1), in units of action_scale: uniform quantiles if the targets have that spread."""
    env = DummyVecEnv([lambda: Monitor(NoisyTargets(std)) for _ in range(5)])
    env.seed(0)
    model = small_model(env)
    with th.no_grad():
        model.policy.action_net.weight.zero_()
        model.policy.action_net.bias.zero_()
        model.policy.log_std.zero_()
    quantiles = posterior_trace(model, env, 200).target_quantile
    assert quantiles.shape == (200, 10)
    assert quantiles.mean() == pytest.approx(0.5, abs=0.03)
    # Beyond all of 16 predictions, or the outermost of them
    rng = np.random.default_rng(0)
    below = (rng.normal(size=(100_000, 16)) < std * rng.normal(size=(100_000, 1))).sum(1)
    expected = np.mean(np.abs((below + rng.random(100_000)) / 17 - 0.5) > 0.45)
    assert expected == pytest.approx(0.1 if std == 1.0 else 0.48, abs=0.01)
    assert (np.abs(quantiles - 0.5) > 0.45).mean() == pytest.approx(expected, abs=0.03)


def test_vec_normalize_is_left_as_it_is() -> None:
    env = VecNormalize(random_env(2))
    model = small_model(env)
    model.learn(256)
    mean = env.obs_rms.mean.copy()
    posterior_trace(model, env, 5, deterministic=True)
    np.testing.assert_array_equal(env.obs_rms.mean, mean)
    assert env.training
    # Rewards are the environment's own
    raw = VecNormalize(random_env(2), training=False, norm_reward=False)
    raw.obs_rms = env.obs_rms
    for one in (env, raw):
        one.seed(11)
    normalized, expected = (posterior_trace(model, one, 5, deterministic=True) for one in (env, raw))
    np.testing.assert_array_equal(normalized.reward, expected.reward)
    assert normalized.returns.std() > 0


@pytest.mark.filterwarnings("ignore:.*resets an environment in the step after")
def test_steps_spent_on_a_reset_are_no_trials() -> None:
    env = GymnasiumVecEnv(SyncVectorEnv([lambda: gym.make("CartPole-v1", max_episode_steps=4)] * 2))
    env.seed(0)
    trace = posterior_trace(small_model(env), env, 6)
    assert trace.lengths.tolist() == [4] * 6
    np.testing.assert_array_equal(trace.reward, 1.0)


def test_metrics_named_like_a_column_and_masked_ones() -> None:
    class Reporting(RandomEnv):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            *step, _ = super().step(action)
            infos = {"value": 7.0, "text": "no number"}
            if step[1] > 0:
                infos["sometimes"] = 1
            return (*step, infos)  # type: ignore[return-value]

    env = DummyVecEnv([Reporting for _ in range(2)])
    trace = posterior_trace(small_model(env), env, 6)
    inside = np.arange(trace.n_steps) < trace.lengths[:, None]
    assert set(trace.metrics) == {"value", "sometimes"}
    assert (trace.metrics["value"][inside] == 7.0).all()
    np.testing.assert_array_equal(trace.metrics["sometimes"][inside] == 1, trace.reward[inside] > 0)
    assert np.isnan(trace.metrics["sometimes"][trace.reward <= 0]).all()


# -- files --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bandit_trace() -> PosteriorTrace:
    env = make_vec_env(BANDIT, n_envs=2, seed=0, env_kwargs={"trial_length": 5})
    return posterior_trace(small_model(env), env, 3)


def test_save_and_load(bandit_trace: PosteriorTrace, tmp_path: Path) -> None:
    bandit_trace.save(tmp_path / "trace")
    loaded = PosteriorTrace.load(tmp_path / "trace")
    assert loaded.settings == bandit_trace.settings
    assert loaded.latent_dim == bandit_trace.latent_dim
    assert loaded.columns().keys() == bandit_trace.columns().keys()
    for name, array in bandit_trace.columns().items():
        np.testing.assert_array_equal(loaded.columns()[name], array)
    assert loaded.examples is not None
    for ours, theirs in zip(loaded.examples, bandit_trace.examples or (), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_loading_something_else(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        PosteriorTrace.load(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("no trace")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    for name in ("text.npz", "other.npz"):
        with pytest.raises(ValueError, match=rf"{name}' is no trace"):
            PosteriorTrace.load(tmp_path / name)


def saved_arrays(trace: PosteriorTrace, path: Path) -> dict[str, Any]:
    trace.save(path)
    with np.load(path) as file:
        return dict(file)


def test_files_of_the_first_format(bandit_trace: PosteriorTrace, tmp_path: Path) -> None:
    """It had no returns, episode lengths and starts, and called metrics figures."""
    arrays = saved_arrays(bandit_trace, tmp_path / "trace.npz")
    for name in ("returns", "episode_lengths", "episode_start"):
        del arrays[name]
    for name in [name for name in arrays if name.startswith("metrics/")]:
        arrays[name.replace("metrics/", "figure/")] = arrays.pop(name).astype(np.float32)
    arrays["header"] = str(arrays["header"]).replace('"format": 2', '"format": 1')
    np.savez(tmp_path / "first.npz", **arrays)
    loaded = PosteriorTrace.load(tmp_path / "first.npz")
    assert loaded.metrics.keys() == bandit_trace.metrics.keys()
    for name, array in bandit_trace.columns().items():
        np.testing.assert_allclose(loaded.columns()[name], array, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(loaded.returns, bandit_trace.returns)
    assert loaded.episode_lengths.tolist() == bandit_trace.episode_lengths.tolist()


@pytest.mark.parametrize("name", ["lengths", "returns", "entropy", "examples/means"])
def test_loading_a_file_without_a_column(name: str, bandit_trace: PosteriorTrace, tmp_path: Path) -> None:
    arrays = saved_arrays(bandit_trace, tmp_path / "trace.npz")
    del arrays[name]
    np.savez(tmp_path / "lacking.npz", **arrays)
    with pytest.raises(ValueError, match=rf"lacking.npz' is no trace .*{name}' is missing"):
        PosteriorTrace.load(tmp_path / "lacking.npz")


def test_loading_a_file_of_before_there_were_read_outs(bandit_trace: PosteriorTrace, tmp_path: Path) -> None:
    moves = {name: np.full((3, 5), i + 1.0) for i, name in enumerate(TASK_COLUMNS)}
    arrays = saved_arrays(dataclasses.replace(bandit_trace, **moves), tmp_path / "trace.npz")
    for name in TASK_COLUMNS:
        np.testing.assert_array_equal(getattr(PosteriorTrace.load(tmp_path / "trace.npz"), name), moves[name])
        np.testing.assert_array_equal(arrays.pop(name), moves[name])
    np.savez(tmp_path / "before.npz", **arrays)
    loaded = PosteriorTrace.load(tmp_path / "before.npz")
    assert list(loaded.flatten()) == list(bandit_trace.flatten())
    assert np.isnan([loaded.task_move, loaded.task_expected_move]).all()


def test_loading_an_unknown_format(bandit_trace: PosteriorTrace, tmp_path: Path) -> None:
    arrays = saved_arrays(bandit_trace, tmp_path / "trace.npz")
    arrays["header"] = str(arrays["header"]).replace('"format": 2', '"format": 3')
    np.savez(tmp_path / "later.npz", **arrays)
    with pytest.raises(ValueError, match=r"it has format 3, this version reads 1 and 2"):
        PosteriorTrace.load(tmp_path / "later.npz")


def test_csv(bandit_trace: PosteriorTrace, tmp_path: Path) -> None:
    bandit_trace.to_csv(tmp_path / "trace.csv")
    with open(tmp_path / "trace.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 15
    assert [(row["trial"], row["step"]) for row in rows[4:6]] == [("0", "4"), ("1", "0")]
    assert float(rows[7]["metrics/regret"]) == pytest.approx(float(bandit_trace.metrics["regret"][1, 2]))
    assert float(rows[7]["entropy"]) == pytest.approx(float(bandit_trace.entropy[1, 2]), rel=1e-5)
    # There is no target
    assert rows[0]["target_quantile"] == ""


def test_dataframe(bandit_trace: PosteriorTrace, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pandas:
        DataFrame = dict

    monkeypatch.setitem(__import__("sys").modules, "pandas", Pandas)
    frame = bandit_trace.to_dataframe()
    assert list(frame)[:3] == ["trial", "step", "entropy"]
    assert {len(column) for column in frame.values()} == {15}
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        bandit_trace.to_dataframe()


# -- bad input, interrupts ----------------------------------------------------------------------------------


def test_arguments() -> None:
    env = random_env(2)
    model = small_model(env)
    for name, value in (("n_trials", 0), ("n_examples", -1)):
        with pytest.raises(ValueError, match=name):
            posterior_trace(model, env, **{name: value})
    with pytest.raises(ValueError, match=r"Box\(-1.0, 1.0, \(4,\), float32\) \(agent\) and Box\(.*\(7,\)"):
        posterior_trace(model, make_vec_env(BANDIT, n_envs=2), 1)


def test_a_trial_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(random_env(2))
    endless = random_env(2, end_rate=0.0)
    monkeypatch.setattr(trial_store, "MAX_STEPS", 100)
    with pytest.raises(ValueError, match=r"Trials of 101 steps or more are too long: to record 5 of them takes"):
        posterior_trace(model, endless, 5)
    monkeypatch.setattr(trial_store, "MAX_STEPS", 100_000)
    # Rewards are in double precision
    monkeypatch.setattr(trial_store, "MAX_BYTES", 4 * 5 * (len(COLUMNS) + 1) * 70)
    with pytest.raises(ValueError, match=r"Trials of 71 steps"):
        posterior_trace(model, endless, 5)


def test_an_interrupt_keeps_what_there_is() -> None:
    env = DummyVecEnv([lambda: InterruptedEnv(after=6), lambda: InterruptedEnv(after=100)])
    model = small_model(random_env(2))
    with pytest.warns(UserWarning, match="kept 2 of 10 trials, and 2 in part"):
        trace = posterior_trace(model, env, 10)
    assert trace.interrupted
    # One step of the second trials was played by all, one more cut off in the middle
    assert trace.lengths.tolist() == [4, 2, 4, 2]
    assert trace.complete.tolist() == [True, False, True, False]
    assert np.isfinite(trace.entropy[1, :2]).all()
    with pytest.raises(KeyboardInterrupt):
        posterior_trace(model, DummyVecEnv([lambda: InterruptedEnv(after=0)]), 2)
