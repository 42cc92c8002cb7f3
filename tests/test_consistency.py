"""The coefficient of the KL that follows how consistent the posterior is."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_laplace import LaplaceRecurrentPPO, diagnose, make_vec_env, posterior_trace
from sb3_laplace.algorithm.losses.consistency import LatentBalance, LogRatios, TaskBalance
from sb3_laplace.algorithm.losses.kl import KLTerm, initial_auto
from tests.helpers import RandomEnv
from tests.test_laplace_recurrent_ppo import small_model

BANDIT, GRID, CARTPOLE = "sb3_laplace/DirichletBandit-v0", "sb3_laplace/GridNavigation-v0", "CartPole-v1"


def agent(env_id: str = BANDIT, n_steps: int = 50, n_envs: int = 4, **kwargs: Any) -> LaplaceRecurrentPPO:
    policy_kwargs = {"lstm_hidden_size": 8, "net_arch": [8], "latent_dim": 4, "posterior_kwargs": {"prior_std": 1.0}}
    policy_kwargs |= kwargs.pop("policy_kwargs", {})
    arguments = {"kl_coef": "auto", "batch_size": n_steps * 2, "n_epochs": 1, "seed": 0, "device": "cpu"} | kwargs
    env = make_vec_env(env_id, n_envs=n_envs, seed=0)
    return LaplaceRecurrentPPO("LaplaceLstmPolicy", env, n_steps=n_steps, policy_kwargs=policy_kwargs, **arguments)


def term_of(model: LaplaceRecurrentPPO) -> KLTerm:
    return next(term for term in model.loss_terms if isinstance(term, KLTerm))


@pytest.mark.parametrize(
    ("ratio", "target", "factor"),
    [
        (2.0, 1.0, 2.0**0.2),
        (2.0, 2.0, 1.0),
        (0.5, 1.0, 0.5**0.2),
        (1e3, 1.0, math.exp(0.2)),
        (1e-3, 1.0, math.exp(-0.2)),
    ],
)
def test_a_step_of_dual_ascent(ratio: float, target: float, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = agent(kl_coef="auto_1e-3", kl_target=target)
    # Of a second part nothing is known
    found = LogRatios(math.log(7.0), np.array([math.log(ratio), math.nan]))
    monkeypatch.setattr(TaskBalance, "log_ratios", lambda self: found)
    model.learn(200)
    assert model.kl_multiplier == pytest.approx([1e-3 * factor, 1e-3])
    logged = model.logger.name_to_value
    assert logged["train/kl_coef"] == pytest.approx(np.mean(model.kl_multiplier))
    assert logged["train/moved_to_claimed"] == pytest.approx(7.0)
    assert term_of(model).weight == logged["train/kl_coef"]
    assert model.kl_coef == "auto_1e-3"


@pytest.mark.parametrize(("error", "factor"), [(-0.5, math.exp(-0.05)), (-10.0, math.exp(-0.1)), (10.0, 1.0)])
def test_the_prior_narrows_where_more_is_claimed_than_learned(
    error: float, factor: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From the next rollout on: the update has the prior of its rollout, so that the first epoch's ratio is one."""
    monkeypatch.setattr(TaskBalance, "log_ratios", lambda self: LogRatios(error, np.zeros(1)))
    model = agent(learning_rate=0.0, policy_kwargs={"posterior_kwargs": {"prior_std": [0.5, 1.0, 2.0, 4.0]}})
    model.learn(200)
    assert model.policy.latent_layer.prior_std == [0.5, 1.0, 2.0, 4.0]
    model.learn(200, reset_num_timesteps=False)
    expected = np.array([0.5, 1.0, 2.0, 4.0]) * factor
    np.testing.assert_allclose(model.policy.latent_layer.prior_std, expected)
    assert model.prior_narrowed == pytest.approx(factor)
    logged = model.logger.name_to_value
    assert logged["train/approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert logged["train/prior_narrowed"] == pytest.approx(max(min(factor**2, 1.0), 0.1))
    model.save(tmp_path / "model.zip")
    loaded = LaplaceRecurrentPPO.load(tmp_path / "model.zip", env=model.get_env())
    np.testing.assert_allclose(loaded.policy.latent_layer.prior_std, expected)
    assert loaded.prior_narrowed == model.prior_narrowed


def test_how_narrow_the_prior_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TaskBalance, "log_ratios", lambda self: LogRatios(-10.0, np.zeros(1)))
    model = agent(learning_rate=0.0, n_epochs=1)
    model.prior_narrowed = 0.101
    model.learn(600)
    assert model.prior_narrowed == 0.1
    assert model.policy.latent_layer.prior_std == pytest.approx(0.1 / 0.101)


@pytest.mark.parametrize(
    ("env_id", "posterior", "settings"),
    [(CARTPOLE, "laplace", {}), (BANDIT, "variational", {}), (BANDIT, "laplace", {"normalize": True})],
)
def test_priors_that_stay(env_id: str, posterior: str, settings: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the latent there is no knowing what it should be; others have none, or one that does not count."""
    for kind in (TaskBalance, LatentBalance):
        monkeypatch.setattr(kind, "log_ratios", lambda self: LogRatios(-10.0, np.zeros(1)))
    model = agent(env_id, policy_kwargs={"posterior": posterior, "posterior_kwargs": settings})
    model.learn(600)
    assert model.prior_narrowed == 1.0
    assert "train/prior_narrowed" not in model.logger.name_to_value


@pytest.mark.parametrize(
    ("env_id", "balance", "ratio", "bound"),
    [(BANDIT, TaskBalance, 1e3, 0.03), (BANDIT, TaskBalance, 1e-3, 1e-5), (CARTPOLE, LatentBalance, 1e3, 1.0)],
)
def test_its_bounds(env_id: str, balance: type, ratio: float, bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = agent(env_id, kl_coef=f"auto_{bound}")
    monkeypatch.setattr(balance, "log_ratios", lambda self: LogRatios(0.0, np.array([math.log(ratio)])))
    model.learn(200)
    assert model.kl_multiplier == [bound]


def test_it_follows_what_diagnose_measures() -> None:
    """In the latent, over one rollout of whole trials, the ratio is moved_to_claimed of the same trials."""
    model = agent(CARTPOLE, n_steps=100, n_envs=8, learning_rate=0.0)
    ratios = []
    original = LatentBalance.log_ratios

    class Spy(LatentBalance):
        def log_ratios(self) -> LogRatios | None:
            found = original(self)
            assert found is not None
            ratios.append(found.whole)
            return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sb3_laplace.algorithm.losses.kl.LatentBalance", Spy)
        model.learn(800 * 3)
    trace = posterior_trace(model, make_vec_env(CARTPOLE, n_envs=8, seed=1), 100)
    numbers = {name: value for finding in diagnose(trace).findings.values() for name, value in finding.numbers.items()}
    assert np.mean(ratios) == pytest.approx(math.log(numbers["moved_to_claimed"].value), abs=0.2)


POSTERIORS: list[dict[str, Any]] = [
    {"posterior_kwargs": {"covariance": "full", "prior_std": 1.0}},
    {"posterior_kwargs": {"factorization": "stationary", "prior_std": 1.0}},
    {"posterior_kwargs": {"sum_means": True, "prior_std": 1.0}},
    {"posterior_kwargs": {"window": 3, "prior_std": 1.0}},
    {"posterior": "variational", "posterior_kwargs": {}},
    {"posterior": "variational", "posterior_kwargs": {"covariance": "full"}},
    {"latent_dim": None},
]


@pytest.mark.parametrize("n_samples", [0, 2])
@pytest.mark.parametrize("env_id", [BANDIT, GRID, CARTPOLE])
@pytest.mark.parametrize("policy_kwargs", POSTERIORS)
def test_every_posterior(policy_kwargs: dict[str, Any], env_id: str, n_samples: int) -> None:
    # Rollouts that end within trials, and sequences of unequal length
    model = agent(
        env_id, n_steps=35, sequence_length=20, policy_kwargs=policy_kwargs | {"n_posterior_samples": n_samples}
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The posterior claims to learn nothing")
        model.learn(35 * 4 * 3)
    assert model.kl_multiplier is not None
    # Parts of trials of 50 and of 100 steps
    assert len(model.kl_multiplier) == {BANDIT: 6, GRID: 7, CARTPOLE: 1}[env_id]
    assert all(1e-6 <= one <= 1.0 for one in model.kl_multiplier)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())
    expected = LatentBalance if env_id == CARTPOLE else TaskBalance
    assert isinstance(term_of(model)._balance, expected)


@pytest.mark.parametrize(
    ("kl_coef", "env_id", "name"),
    [(0.01, BANDIT, "kl_loss"), ("auto", BANDIT, "consistency_loss"), ("auto", CARTPOLE, "kl_loss")],
)
def test_what_is_penalised(kl_coef: float | str, env_id: str, name: str) -> None:
    model = agent(env_id, kl_coef=kl_coef)
    model.learn(200)
    logged = model.logger.name_to_value
    assert {key for key in ("kl_loss", "consistency_loss") if f"train/{key}" in logged} == {name}
    assert ("train/kl_coef" in logged) == (kl_coef == "auto")


def test_environments_that_no_longer_report_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    model = agent(BANDIT)
    model.learn(200)
    assert isinstance(term_of(model)._balance, TaskBalance)
    monkeypatch.setattr("sb3_laplace.algorithm.losses.kl.reported_tasks", lambda env: None)
    assert model.kl_multiplier is not None
    mean = np.mean(model.kl_multiplier)
    model.learn(200)
    assert isinstance(term_of(model)._balance, LatentBalance)
    assert model.kl_multiplier is not None
    assert np.exp(-0.2) <= model.kl_multiplier / mean <= np.exp(0.2)


def test_steps_of_a_trial_longer_than_the_rollout() -> None:
    model = agent(GRID, n_steps=30)
    seen = []
    original = TaskBalance.add

    def spy(self: TaskBalance, step: Any, trial_steps: np.ndarray, tasks: Any) -> None:
        seen.append(trial_steps.copy())
        original(self, step, trial_steps, tasks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskBalance, "add", spy)
        model.learn(30 * 4 * 4)
    np.testing.assert_array_equal(np.stack(seen)[:, 0], np.arange(120) % 100)


class Drawn(RandomEnv):
    """Trials of any length, each with a task of its own."""

    task = 0.0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        result = super().reset(seed=seed, options=options)
        self.task = self.np_random.normal()
        return result


@pytest.mark.parametrize("together", [True, False])
def test_tasks_are_those_of_the_steps(together: bool) -> None:
    """Where trials end the tasks are new ones: they are the environment's at the time of each step."""
    model = agent(BANDIT, n_steps=70) if together else small_model(DummyVecEnv([Drawn] * 4), kl_coef="auto", n_steps=70)
    env: Any = model.get_env()
    before, seen = [], []
    original_add, original_step = TaskBalance.add, type(env).step_async

    def add(self: TaskBalance, step: Any, trial_steps: np.ndarray, tasks: Any) -> None:
        seen.append(tasks.copy())
        original_add(self, step, trial_steps, tasks)

    def step_async(self: Any, actions: np.ndarray) -> None:
        before.append(np.stack(self.get_attr("task")))
        original_step(self, actions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskBalance, "add", add)
        patch.setattr(type(env), "step_async", step_async)
        model.learn(70 * 4)
    np.testing.assert_array_equal(np.stack(seen), np.stack(before))
    changed = (np.diff(np.stack(seen).reshape(70, 4, -1), axis=0) != 0).any(-1)
    assert changed.any()
    assert (changed.all(1) == changed.any(1)).all() == together


@pytest.mark.parametrize("weights_only", [False, True])
def test_it_is_saved(weights_only: bool, tmp_path: Path) -> None:
    model = agent(kl_coef="auto_1e-2", kl_target=1.5)
    model.learn(200)
    model.save(tmp_path / "model.zip")
    loaded = LaplaceRecurrentPPO.load(tmp_path / "model.zip", env=model.get_env(), weights_only=weights_only)
    assert (loaded.kl_coef, loaded.kl_target) == ("auto_1e-2", 1.5)
    assert model.kl_multiplier is not None
    assert len(model.kl_multiplier) == 6
    assert loaded.kl_multiplier == model.kl_multiplier != [1e-2] * 6
    before = loaded.kl_multiplier
    loaded.learn(200)
    assert loaded.kl_multiplier is not None
    assert np.abs(np.log(loaded.kl_multiplier) - np.log(before)).max() <= 0.2 + 1e-9


def test_agents_saved_with_a_single_multiplier_go_on() -> None:
    model = agent()
    model.kl_multiplier = 1e-2  # type: ignore[assignment]
    model.learn(200)
    assert model.kl_multiplier is not None
    assert np.abs(np.log(np.array(model.kl_multiplier) / 1e-2)).max() <= 0.2 + 1e-9
    assert len(model.kl_multiplier) == 6


def test_later_parts_go_on_from_the_last_that_was_seen() -> None:
    """Rollouts of 30 steps reach the parts of a trial of 100 one after the other."""
    model = agent(GRID, n_steps=30)
    lengths = []
    for _ in range(4):
        model.learn(120, reset_num_timesteps=False)
        assert model.kl_multiplier is not None
        lengths.append(len(model.kl_multiplier))
    assert lengths == [5, 6, 7, 7]


def test_watching_does_not_change_the_rollout() -> None:
    rewards = []
    for kl_coef in (1e-4, "auto"):
        model = agent(kl_coef=kl_coef, learning_rate=0.0)
        model.learn(400)
        rewards.append(model.rollout_buffer.rewards)
    np.testing.assert_array_equal(*rewards)


def test_a_posterior_that_claims_nothing_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    model = agent(kl_coef="auto_1e-3")
    monkeypatch.setattr(TaskBalance, "log_ratios", lambda self: None)
    with pytest.warns(UserWarning, match="claims to learn nothing") as record:
        model.learn(600)
    assert sum("claims to learn nothing" in str(one.message) for one in record) == 1
    assert model.kl_multiplier == [1e-3]


@pytest.mark.parametrize("value", ["off", "auto_", "auto_x", "auto_0", "auto_2", "auto_nan", "automatic"])
def test_bad_coefficients(value: str) -> None:
    with pytest.raises(ValueError, match=r"kl_coef must be .*auto"):
        agent(kl_coef=value)
    with pytest.raises(ValueError, match="kl_coef"):
        initial_auto(value)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, "1"])
def test_bad_targets(value: Any) -> None:
    with pytest.raises(ValueError, match="kl_target"):
        agent(kl_target=value)


def test_not_of_a_point() -> None:
    with pytest.raises(ValueError, match="kl_coef must be 0 with posterior='point'"):
        agent(policy_kwargs={"posterior": "point", "posterior_kwargs": {}})
