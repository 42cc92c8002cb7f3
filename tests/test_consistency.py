"""The coefficient of the KL that follows how consistent the posterior is."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_laplace import LaplaceRecurrentPPO, diagnose, make_vec_env, posterior_trace
from sb3_laplace.algorithm.losses.consistency import Balance, LatentBalance, TaskBalance
from sb3_laplace.algorithm.losses.kl import KLTerm, initial_auto
from sb3_laplace.policies.types import Evaluation
from sb3_laplace.posteriors import PosteriorStep, Replay
from sb3_laplace.posteriors.gaussian import DiagonalGaussian, FullGaussian, Gaussian
from tests.helpers import RandomEnv
from tests.test_laplace_recurrent_ppo import small_model

BANDIT, GRID, CARTPOLE = "sb3_laplace/DirichletBandit-v0", "sb3_laplace/GridNavigation-v0", "CartPole-v1"


# -- against an exact Bayesian ------------------------------------------------------------------------------


def conjugate(n_envs: int, n_steps: int, overconfidence: float, is_full: bool = False) -> tuple[list, np.ndarray]:
    """Exact posteriors of the mean theta ~ N(0, I) of three Gaussians, from one observation a step with noise of 2,
    and what somebody claims whose covariance is too small by a factor. The claims of the covariance have this factor.
    """
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(n_envs, 3))
    precision, total = 1.0, np.zeros_like(theta)
    means, precisions = [np.zeros_like(theta)], [precision]
    for _ in range(n_steps):
        total += (theta + 2.0 * rng.normal(size=theta.shape)) / 4.0
        precision += 1.0 / 4.0
        means.append(total / precision)
        precisions.append(precision)

    def gaussian(t: int) -> Gaussian:
        units = th.full((n_envs, 3), precisions[t] * overconfidence)
        mean = th.as_tensor(means[t], dtype=th.float32)
        return FullGaussian(mean, units.diag_embed()) if is_full else DiagonalGaussian(mean, units)

    return [PosteriorStep(gaussian(t + 1), gaussian(t), ()) for t in range(n_steps)], theta


@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize("overconfidence", [1.0, 10.0])
@pytest.mark.parametrize("kind", [LatentBalance, TaskBalance])
def test_the_ratio_of_an_exact_bayesian_is_one(kind: type[Balance], overconfidence: float, is_full: bool) -> None:
    n_envs, n_steps = 1000, 10
    steps, theta = conjugate(n_envs, n_steps, overconfidence, is_full)
    balance = kind(n_envs, n_steps, seed=0)
    balance.begin()
    for t, step in enumerate(steps):
        balance.add(step, np.full(n_envs, t), theta)
    ratio = balance.log_ratio()
    assert ratio is not None
    # Of full covariances 400 of the 10,000 are looked at
    assert ratio == pytest.approx(math.log(overconfidence), abs=0.3 if is_full else 0.06)


@pytest.mark.parametrize("kind", [LatentBalance, TaskBalance])
def test_first_steps_and_ignored_ones_do_not_count(kind: type[Balance]) -> None:
    """At a trial's first step the previous posterior is a prior; of ignored steps nothing is looked at."""
    n_envs = 100
    steps, theta = conjugate(n_envs, 5, 1.0)
    ratios = []
    for garbage in (False, True):
        balance = kind(n_envs, 20, seed=0)
        balance.begin()
        for t, step in enumerate(steps):
            if garbage and t == 0:
                far = DiagonalGaussian(step.previous.mean + 100.0, th.full((n_envs, 3), 1e-6))
                step = PosteriorStep(step.posterior, far, ())
                balance.add(PosteriorStep(far, step.posterior, ()), np.full(n_envs, -1), theta)
            balance.add(step, np.full(n_envs, t), theta)
        ratios.append(balance.log_ratio())
    assert ratios[0] is not None
    assert ratios[1] == ratios[0]


@pytest.mark.parametrize(
    ("is_full", "n_envs", "n_steps", "number"),
    [
        # 20,000 of a rollout, or 400 full ones
        (False, 100, 200, 100),
        (False, 1000, 100, 200),
        (False, 100, 20_000, 1),
        (True, 4, 100, 4),
        (True, 8, 100, 4),
        (True, 100, 1000, 0.4),
    ],
)
def test_how_many_posteriors_are_looked_at(is_full: bool, n_envs: int, n_steps: int, number: float) -> None:
    steps, _ = conjugate(n_envs, 1, 1.0, is_full)
    balance = LatentBalance(n_envs, n_steps, seed=0)
    chosen = [balance._choose(np.arange(n_envs), steps[0]) for _ in range(500)]
    # The standard error of a number below one is 0.02
    assert np.mean([len(one) for one in chosen]) == pytest.approx(number, abs=0.0 if number >= 1 else 0.07)
    for one in chosen:
        assert (np.diff(one) > 0).all()
    if number >= 1:
        assert set(np.concatenate(chosen)) == set(range(n_envs))


def test_the_read_out_leaves_out_what_is_no_task() -> None:
    n_envs, n_steps = 500, 10
    steps, theta = conjugate(n_envs, n_steps, 1.0)
    rng = np.random.default_rng(1)
    ratios = []
    for kind in (LatentBalance, TaskBalance):
        balance = kind(n_envs, n_steps, seed=0)
        balance.begin()
        for t, step in enumerate(steps):
            # A fourth unit moves about forever, and its precision is that of the others
            parts = []
            for gaussian in (step.posterior, step.previous):
                unit = th.as_tensor(rng.normal(size=(n_envs, 1)), dtype=th.float32)
                mean = th.cat((gaussian.mean, unit), dim=1)
                parts.append(DiagonalGaussian(mean, gaussian.precision[:, :1].expand(-1, 4)))
            balance.add(PosteriorStep(parts[0], parts[1], ()), np.full(n_envs, t), theta)
        ratios.append(balance.log_ratio())
    assert ratios[0] is not None
    assert ratios[0] > math.log(5)
    assert ratios[1] == pytest.approx(0.0, abs=0.1)


def test_nothing_is_claimed() -> None:
    steps, theta = conjugate(50, 5, 1.0)
    for kind in (LatentBalance, TaskBalance):
        balance = kind(50, 5, seed=0)
        balance.begin()
        for t, step in enumerate(steps):
            constant = PosteriorStep(
                DiagonalGaussian(step.posterior.mean, th.ones(50, 3)),
                DiagonalGaussian(step.previous.mean, th.ones(50, 3)),
                (),
            )
            balance.add(constant, np.full(50, t), theta)
        assert balance.log_ratio() is None


def test_the_penalty_in_the_read_out_by_hand() -> None:
    n_envs, n_steps = 400, 4
    steps, theta = conjugate(n_envs, n_steps, 1.0)
    balance = TaskBalance(n_envs, n_steps, seed=0)
    balance.begin()
    for t, step in enumerate(steps):
        balance.add(step, np.full(n_envs, t), theta)
    balance.log_ratio()
    moved = th.arange(12, dtype=th.float32).view(1, 4, 3).requires_grad_()
    replay = Replay(moved.unsqueeze(0), lambda: th.zeros(1, 4), lambda: moved)
    samples: Any = type("Samples", (), {"columns": {"trial_steps": th.tensor([0, 1, 3, -1])}})()
    evaluation: Any = Evaluation(None, None, None, replay, None)  # type: ignore[arg-type]
    penalty = balance.penalty(samples, evaluation)
    weights = balance._readout.weights  # type: ignore[union-attr]
    # What each step claims, from the literal precisions 1 + t / 4
    claims = [np.sum(weights**2) * (1 / (1 + t / 4) - 1 / (1 + (t + 1) / 4)) for t in range(4)]
    expected = [np.square(moved.detach().numpy()[0, i] @ weights).sum() / claims[t] for i, t in ((1, 1), (2, 3))]
    np.testing.assert_allclose(penalty.detach().numpy(), [0.0, *expected, 0.0], rtol=1e-4)
    penalty.sum().backward()
    assert moved.grad is not None
    assert (moved.grad[0, [0, 3]] == 0).all()
    assert (moved.grad[0, [1, 2]] != 0).any()


# -- the coefficient ----------------------------------------------------------------------------------------


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
    monkeypatch.setattr(TaskBalance, "log_ratio", lambda self: math.log(ratio))
    model.learn(200)
    assert model.kl_multiplier == pytest.approx(1e-3 * factor)
    assert term_of(model).weight == model.kl_multiplier
    assert model.kl_coef == "auto_1e-3"


@pytest.mark.parametrize(("ratio", "bound"), [(1e3, 1.0), (1e-3, 1e-6)])
def test_its_bounds(ratio: float, bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = agent(kl_coef=f"auto_{bound}")
    monkeypatch.setattr(TaskBalance, "log_ratio", lambda self: math.log(ratio))
    model.learn(200)
    assert model.kl_multiplier == bound


def test_it_follows_what_diagnose_measures() -> None:
    """In the latent, over one rollout of whole trials, the ratio is moved_to_claimed of the same trials."""
    model = agent(CARTPOLE, n_steps=100, n_envs=8, learning_rate=0.0)
    ratios = []
    original = LatentBalance.log_ratio

    class Spy(LatentBalance):
        def log_ratio(self) -> float | None:
            ratios.append(original(self))
            return ratios[-1]

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
    assert 1e-6 <= model.kl_multiplier <= 1.0
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
    model.learn(200)
    assert isinstance(term_of(model)._balance, LatentBalance)


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
    assert loaded.kl_multiplier == model.kl_multiplier != 1e-2
    before = loaded.kl_multiplier
    loaded.learn(200)
    assert loaded.kl_multiplier is not None
    assert abs(math.log(loaded.kl_multiplier / before)) <= 0.2 + 1e-9


def test_watching_does_not_change_the_rollout() -> None:
    rewards = []
    for kl_coef in (1e-4, "auto"):
        model = agent(kl_coef=kl_coef, learning_rate=0.0)
        model.learn(400)
        rewards.append(model.rollout_buffer.rewards)
    np.testing.assert_array_equal(*rewards)


def test_a_posterior_that_claims_nothing_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    model = agent(kl_coef="auto_1e-3")
    monkeypatch.setattr(TaskBalance, "log_ratio", lambda self: None)
    with pytest.warns(UserWarning, match="claims to learn nothing") as record:
        model.learn(600)
    assert sum("claims to learn nothing" in str(one.message) for one in record) == 1
    assert model.kl_multiplier == 1e-3


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
