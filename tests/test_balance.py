"""Moves and claims of a rollout's posteriors, and the penalty on the moves, against an exact Bayesian and by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_laplace.algorithm.losses.consistency import Balance, LatentBalance, TaskBalance, _parts
from sb3_laplace.policies.types import Evaluation
from sb3_laplace.posteriors import PosteriorStep, Replay
from sb3_laplace.posteriors.gaussian import DiagonalGaussian, FullGaussian, Gaussian
from sb3_laplace.readout import Readout


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
    ratios = balance.log_ratios()
    assert ratios is not None
    # Of full covariances 400 of the 10,000 are looked at
    assert ratios.whole == pytest.approx(math.log(overconfidence), abs=0.3 if is_full else 0.06)
    # Steps 1, 2 to 3, 4 to 7, 8 to 9
    assert len(ratios.parts) == (4 if kind is TaskBalance else 1)
    np.testing.assert_allclose(ratios.parts, math.log(overconfidence), atol=0.5 if is_full else 0.12)


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
        found = balance.log_ratios()
        assert found is not None
        ratios.append(found)
    assert ratios[1].whole == ratios[0].whole
    np.testing.assert_array_equal(ratios[1].parts, ratios[0].parts)


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
        found = balance.log_ratios()
        assert found is not None
        ratios.append(found.whole)
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
        assert balance.log_ratios() is None


def test_which_steps_make_a_ratio() -> None:
    steps, theta = conjugate(50, 2, 1.0)
    for kind in (LatentBalance, TaskBalance):
        for t, exists in ((-1, False), (0, False), (1, True)):
            balance = kind(50, 5, seed=0)
            balance.begin()
            balance.add(steps[1], np.full(50, t), theta)
            assert (balance.log_ratios() is not None) == exists
    # A trial's first step is one of the posteriors that the read-out is fitted to; where there is no task there is none
    for t, tasks, exists in ((-1, theta, False), (0, theta, True), (1, None, False)):
        balance = TaskBalance(50, 5, seed=0)
        balance.begin()
        balance.add(steps[1], np.full(50, t), tasks)
        assert balance.log_ratios() is None
        assert (balance._readout is not None) == exists


@pytest.mark.parametrize("kind", [LatentBalance, TaskBalance])
def test_one_trial_is_enough(kind: type[Balance]) -> None:
    steps, theta = conjugate(1, 3, 1.0)
    balance = kind(1, 3, seed=0)
    balance.begin()
    for t, step in enumerate(steps):
        balance.add(step, np.full(1, t), theta + t)
    assert balance.log_ratios() is not None


@pytest.mark.parametrize("kind", [LatentBalance, TaskBalance])
def test_a_posterior_that_does_not_move(kind: type[Balance]) -> None:
    """The ratio is 1e-3 at least."""
    steps, theta = conjugate(50, 2, 1.0)
    still = PosteriorStep(steps[1].posterior, DiagonalGaussian(steps[1].posterior.mean, th.ones(50, 3)), ())
    balance = kind(50, 5, seed=0)
    balance.begin()
    balance.add(still, np.full(50, 1), theta)
    ratios = balance.log_ratios()
    assert ratios is not None
    assert ratios.whole == pytest.approx(math.log(1e-3))
    np.testing.assert_allclose(ratios.parts, math.log(1e-3))


def balance_of(number: list[float], moved: list[float], claimed: list[float], scale: float = 1.0) -> TaskBalance:
    """Of given sums by part, and a read-out of one number whose square is ``scale``."""
    balance = TaskBalance(1, 1, seed=0)
    balance._sums = np.array([number, moved, claimed], dtype=np.float64)
    balance._readout = Readout(np.full((1, 1), math.sqrt(scale)), np.zeros(1))
    return balance


def test_earlier_rollouts_are_forgotten() -> None:
    """By a factor of 0.8 with each."""
    steps, theta = conjugate(50, 3, 1.0)
    balance = TaskBalance(50, 5, seed=0)
    for length in (3, 2, 3):
        balance.begin()
        for t in range(length):
            balance.add(steps[t], np.full(50, t), theta)
        balance.log_ratios()
    np.testing.assert_allclose(balance._sums[0], [50 * (0.64 + 0.8 + 1.0), 50 * (0.64 + 1.0)])


@pytest.mark.parametrize(("n_envs", "decay"), [(1, 0.8), (200, 0.5), (400, 0.0), (800, 0.0)])
def test_how_much_of_earlier_read_outs_is_left(n_envs: int, decay: float) -> None:
    """None, where a rollout has 100 posteriors for each of the 3 units and the bias; at most 0.8."""
    balance = TaskBalance(n_envs, 1, seed=0)
    for sign in (1.0, -1.0):
        steps, theta = conjugate(n_envs, 1, 1.0)
        balance.begin()
        balance.add(steps[0], np.zeros(n_envs), sign * theta)
        balance.log_ratios()
    assert balance._readout is not None
    only = TaskBalance(n_envs, 1, seed=0)
    only.begin()
    only.add(steps[0], np.zeros(n_envs), -theta)
    only.log_ratios()
    assert only._readout is not None
    if n_envs > 1:
        # Of equal means and opposite tasks
        expected = only._readout.weights * (1.0 - decay) / (1.0 + decay)
        np.testing.assert_allclose(balance._readout.weights, expected, rtol=1e-6, atol=1e-9)
    assert balance._moments.decay == decay


def test_parts_of_a_trial() -> None:
    """Step 1, then twice as many each."""
    steps = np.arange(1, 70)
    expected = [sum(step >= 2**k for k in range(1, 10)) for step in steps]
    np.testing.assert_array_equal(_parts(th.as_tensor(steps)), expected)


def test_ratios_by_hand() -> None:
    # The third part was never seen
    balance = balance_of([10, 5, 0, 10], [20, 5, 0, 300], [10, 10, 0, 10])
    ratios = balance._ratios_of_sums()
    assert ratios is not None
    assert ratios.whole == pytest.approx(math.log(325 / 30))
    np.testing.assert_allclose(ratios.parts, np.log([2.0, 0.5, np.nan, 30.0]))
    # What penalties are multiplied by counts from 1/20 to 20
    np.testing.assert_allclose(balance._ratios, [2.0, 0.5, 1.0, 20.0])
    # Of a part that claims nothing beside another of 10 a claim of a thousandth is assumed; ratios are bounded
    balance = balance_of([1, 1, 1], [10, 1e-4, 20], [10, 0, -1])
    ratios = balance._ratios_of_sums()
    assert ratios is not None
    assert ratios.whole == pytest.approx(math.log(30.0001 / 10.002))
    np.testing.assert_allclose(ratios.parts, np.log([1.0, 0.1, 1e3]))


@pytest.mark.parametrize(("claim", "scale", "exists"), [(1e-9, 4.0, False), (1e-8, 4.0, True), (1e-10, 1.0, False)])
def test_no_claim_is_relative_to_the_read_out(claim: float, scale: float, exists: bool) -> None:
    balance = balance_of([1, 1], [1, 1], [claim, claim], scale)
    balance._claims = np.ones(2)
    assert (balance._ratios_of_sums() is not None) == exists
    assert balance._claims.any() == exists


def test_the_claim_of_full_covariances_by_hand() -> None:
    """Sigma = [[2, 1], [1, 2]] becomes I: a read-out of the sum of both units claims 6 - 2."""
    balance = TaskBalance(1, 1, seed=0)
    balance._readout = Readout(np.ones((2, 1)), np.zeros(1))
    covariance = th.tensor([[[2.0, 1.0], [1.0, 2.0]]], dtype=th.float64)
    before, after = FullGaussian(th.zeros(1, 2), covariance.inverse()), FullGaussian(th.zeros(1, 2), th.eye(2)[None])
    assert balance._width(before) - balance._width(after) == pytest.approx(4.0)


def penalty_at(balance: TaskBalance, steps: list[int], moved: th.Tensor, multipliers: list[float]) -> th.Tensor:
    replay = Replay(moved.unsqueeze(0), lambda: th.zeros(1, len(steps)), lambda: moved)
    samples: Any = type("Samples", (), {"columns": {"trial_steps": th.tensor(steps)}})()
    evaluation: Any = Evaluation(None, None, None, replay, None)  # type: ignore[arg-type]
    return balance.penalty(samples, evaluation, np.array(multipliers))


def test_penalties_without_a_weight() -> None:
    moved = th.ones(1, 2, 1, requires_grad=True)
    balance = TaskBalance(1, 1, seed=0)
    # Nothing is known yet; then the read-out alone
    assert penalty_at(balance, [0, 1], moved, [1.0]).tolist() == [0.0, 0.0]
    balance._readout = Readout(np.ones((1, 1)), np.zeros(1))
    penalty = penalty_at(balance, [0, 1], moved, [1.0])
    assert penalty.tolist() == [0.0, 0.0]
    # ... and a loss of it can be differentiated
    penalty.sum().backward()
    # Steps later than those that were looked at have the weight of the last part
    balance._claims, balance._ratios = np.array([0.5, 0.25]), np.array([1.0, 2.0])
    assert penalty_at(balance, [1, 7], moved, [1.0, 3.0]).tolist() == [2.0, 24.0]
    # Later parts than the rollouts have reached are kept for when they do
    assert penalty_at(balance, [2, 3], moved, [1.0, 3.0, 100.0]).tolist() == [24.0, 24.0]


def test_a_posterior_that_does_not_say_what_moved() -> None:
    replay = Replay(th.zeros(1, 1, 1, 1), lambda: th.zeros(1, 1))
    evaluation: Any = Evaluation(None, None, None, replay, None)  # type: ignore[arg-type]
    samples: Any = None
    with pytest.raises(ValueError, match=r"kl_coef='auto' needs a posterior whose replay\(\) .*Replay.moved"):
        TaskBalance(1, 1, seed=0).penalty(samples, evaluation, np.ones(1))


def test_the_penalty_in_the_read_out_by_hand() -> None:
    n_envs, n_steps = 400, 4
    steps, theta = conjugate(n_envs, n_steps, 1.0)
    balance = TaskBalance(n_envs, n_steps, seed=0)
    balance.begin()
    for t, step in enumerate(steps):
        balance.add(step, np.full(n_envs, t), theta)
    balance.log_ratios()
    moved = th.arange(12, dtype=th.float32).view(1, 4, 3).requires_grad_()
    penalty = penalty_at(balance, [0, 1, 3, -1], moved, [0.5, 2.0])
    weights = balance._readout.weights  # type: ignore[union-attr]
    # What each step claims, from the literal precisions 1 + t / 4; steps 2 and 3 are one part
    claims = [np.sum(weights**2) * (1 / (1 + t / 4) - 1 / (1 + (t + 1) / 4)) for t in range(4)]
    squares = np.square(moved.detach().numpy()[0] @ weights).sum(1)
    # And how much the belief moves for it on average
    means = [step.posterior.mean.double().numpy() for step in steps]
    moves = [np.square((means[t] - means[t - 1]) @ weights).sum(1).mean() for t in range(1, 4)]
    ratios = moves[0] / claims[1], np.mean(moves[1:]) / np.mean(claims[2:])
    expected = [0.5 * ratios[0] * squares[1] / claims[1], 2.0 * ratios[1] * squares[2] / np.mean(claims[2:])]
    np.testing.assert_allclose(penalty.detach().numpy(), [0.0, *expected, 0.0], rtol=1e-4)
    penalty.sum().backward()
    assert moved.grad is not None
    assert (moved.grad[0, [0, 3]] == 0).all()
    assert (moved.grad[0, [1, 2]] != 0).any()
