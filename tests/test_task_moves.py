"""Moves in the linear read-out of the task: against their definition, and for beliefs beside what is no task."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_laplace import diagnose, make_vec_env, posterior_trace
from sb3_laplace.evaluation import task_moves
from sb3_laplace.evaluation.task_moves import NO_TASK, NOT_READABLE, ONE_TASK, TOO_FEW, TaskMoves
from sb3_laplace.evaluation.traces import PosteriorTrace
from sb3_laplace.posteriors.gaussian import FullGaussian
from sb3_laplace.readout import reported_tasks
from tests.helpers import RandomEnv
from tests.test_traces import small_model

BANDIT = "sb3_laplace/DirichletBandit-v0"


class Simulation:
    """Trials of a conjugate belief about a Gaussian task of two numbers beside a position that never settles.

    The latent is a rotation of both, so that no unit of it is free of the position.

    :param overstated: factor by which the covariance reported of the task is smaller than the right one
    """

    def __init__(self, full: bool, overstated: float = 1.0, n_trials: int = 200, n_steps: int = 16) -> None:
        rng = np.random.default_rng(0)
        self.rows = np.arange(n_trials)
        self.task = rng.normal(size=(n_trials, 2))
        belief, position, precision = np.zeros((n_trials, 2)), np.zeros((n_trials, 2)), 1.0
        # Without off-diagonal elements the units have to be those of the task and of the position
        rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0] if full else np.eye(4)
        self.means, self.covariances, self.starts = [], [], []
        for step in range(n_steps):
            observed = self.task + rng.normal(size=self.task.shape) * 2.0
            belief = (precision * belief + 0.25 * observed) / (precision + 0.25)
            precision += 0.25
            position = position + rng.normal(size=position.shape)
            covariance = np.diag([1 / precision / overstated] * 2 + [0.5 / (1 + 0.1 * step)] * 2)
            self.means.append(np.append(belief, position, axis=1) @ rotation.T)
            covariance = rotation @ covariance @ rotation.T
            packed = covariance[np.triu_indices(4)] if full else covariance.diagonal()
            self.covariances.append(np.tile(packed, (n_trials, 1)))
            self.starts.append(np.full(n_trials, step == 0))

    def feed(self, moves: TaskMoves) -> None:
        for means, covariances, starts in zip(self.means, self.covariances, self.starts, strict=True):
            kept = moves.keeps(self.rows)
            moves.add(self.rows[kept], starts[kept], means[kept], covariances[kept], self.task[kept])


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("overstated", [1.0, 5.0])
def test_what_is_no_task_does_not_count(full: bool, overstated: float) -> None:
    simulation = Simulation(full, overstated)
    moves = TaskMoves(200)
    simulation.feed(moves)
    moved, claimed, readout = moves.result(16)
    assert np.isnan(moved[:, 0]).all()
    assert np.isfinite(moved[:, 1:]).all()
    assert moved[:, 1:].sum() / claimed[:, 1:].sum() == pytest.approx(overstated, rel=0.1)
    assert isinstance(readout, dict)
    assert readout["n_trials"] == 200
    # What a belief knows of the task on average over the steps: 1 - 1 / precision
    assert readout["r2"] == pytest.approx(np.mean(1 - 1 / (1 + 0.25 * np.arange(1, 17))), abs=0.05)
    # In units of the task's variance, of 2
    assert claimed[0, 1] == pytest.approx((1 / 1.25 - 1 / 1.5) / overstated, rel=0.3)


def test_against_least_squares_on_the_other_half() -> None:
    simulation = Simulation(full=True, n_trials=40)
    moves = TaskMoves(40)
    simulation.feed(moves)
    moved, claimed, readout = moves.result(20)
    means = np.stack(simulation.means, axis=1)
    matrix = np.zeros((16, 4, 4))
    rows, columns = np.triu_indices(4)
    for step, packed in enumerate(simulation.covariances):
        matrix[step, rows, columns] = matrix[step, columns, rows] = packed[0]
    total = np.square(simulation.task - simulation.task.mean(0)).sum() / 40
    halves = moves._halves(simulation.rows)
    assert halves.sum() == 20
    error = 0.0
    for half in range(2):
        ones = np.ones((20, 16, 1))
        inputs = np.append(means[halves == half], ones, axis=2).reshape(-1, 5)
        solution = np.linalg.lstsq(inputs, np.repeat(simulation.task[halves == half], 16, axis=0), rcond=None)[0]
        b, others = solution[:4].T, halves != half
        steps = np.diff(means[others], axis=1) @ b.T
        np.testing.assert_allclose(moved[others, 1:16], np.square(steps).sum(2) / total, rtol=0.02, atol=1e-4)
        variance = np.einsum("pi,tij,pj->t", b, matrix, b)
        np.testing.assert_allclose(claimed[others, 1:16], np.tile(-np.diff(variance), (20, 1)) / total, rtol=0.02)
        decoded = np.append(means[others], ones, axis=2) @ solution
        error += np.square(decoded - simulation.task[others][:, None]).sum()
    assert np.isnan(moved[:, 16:]).all()
    assert isinstance(readout, dict)
    assert readout["r2"] == pytest.approx(1 - error / (40 * 16) / total, abs=0.003)


def test_memory_that_starts_afresh_is_no_move() -> None:
    simulation = Simulation(full=False)
    simulation.starts[7][:50] = True
    moves = TaskMoves(200)
    simulation.feed(moves)
    for array in moves.result(16)[:2]:
        assert np.isnan(array[:50, 7]).all()
        assert np.isfinite(array[50:, 7]).all()
        assert np.isfinite(array[:50, 8]).all()


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the trials are forgotten, and again; those that remain are whole. (A step of a trial takes 81 bytes.)"""
    simulation = Simulation(full=True)
    monkeypatch.setattr(task_moves, "_MEMORY", 200 * 16 * 81 // 3)
    moves = TaskMoves(200)
    simulation.feed(moves)
    moved, claimed, readout = moves.result(16)
    kept = np.isfinite(moved[:, 1:]).all(1)
    assert np.isnan(moved[~kept]).all()
    assert isinstance(readout, dict)
    assert kept.sum() == readout["n_trials"] == 50
    assert moved[kept, 1:].sum() / claimed[kept, 1:].sum() == pytest.approx(1.0, rel=0.15)


def test_why_there_is_no_read_out() -> None:
    rng = np.random.default_rng(0)

    def readout(tasks: np.ndarray | None, n_trials: int = 20) -> Any:
        moves = TaskMoves(n_trials)
        rows = np.arange(n_trials)
        if tasks is not None:
            for step in range(8):
                means = rng.normal(size=(n_trials, 30))
                moves.add(rows, np.full(n_trials, step == 0), means, np.ones((n_trials, 30)), tasks)
        moved, claimed, reason = moves.result(8)
        assert np.isnan([moved, claimed]).all()
        return reason

    assert readout(None) == NO_TASK
    assert readout(np.full((20, 2), 0.7)) == ONE_TASK
    assert readout(np.full((20, 1), 3)) == ONE_TASK
    assert readout(np.arange(3.0), 3) == TOO_FEW
    assert readout(rng.normal(size=(20, 1))) == NOT_READABLE


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_what_a_trace_keeps(covariance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means, covariances and tasks of the same step, with the trial's own task also where it has just ended."""
    added: list[tuple] = []
    add = TaskMoves.add
    monkeypatch.setattr(TaskMoves, "add", lambda self, *step: (added.append(step), add(self, *step))[1])
    env = make_vec_env(BANDIT, 3, seed=0, env_kwargs={"trial_length": 6})
    model = small_model(env, latent_dim=3, posterior_kwargs={"covariance": covariance, "prior_std": 1.0})
    trace = posterior_trace(model, env, 9)
    assert trace.examples is not None
    assert len(added) == 18
    tasks: dict[int, np.ndarray] = {}
    for step, (rows, starts, means, covariances, its_tasks) in enumerate(added):
        assert starts.all() == (step % 6 == 0)
        for row, task in zip(rows, its_tasks, strict=True):
            np.testing.assert_array_equal(tasks.setdefault(int(row), task), task)
        for i, row in enumerate(trace.examples.trials) if step < 6 else ():
            at = rows.tolist().index(row)
            np.testing.assert_allclose(means[at], trace.examples.means[i, step], rtol=1e-6)
            if step in trace.examples.steps:
                expected = trace.examples.covariances[i, trace.examples.steps.tolist().index(step)]
                packed = expected.diagonal() if covariance == "diagonal" else expected[np.triu_indices(3)]
                np.testing.assert_allclose(covariances[at], packed, rtol=1e-4)
    assert len({tuple(task) for task in tasks.values()}) == 9


def test_traces_say_how_well_the_task_is_read_out() -> None:
    env = make_vec_env(BANDIT, 16, seed=0, env_kwargs={"trial_length": 20})
    trace = posterior_trace(small_model(env, latent_dim=None, posterior_kwargs={"prior_std": 1.0}), env, 128)
    assert trace.settings["task_readout"]["n_trials"] == 128
    assert 0.0 < trace.settings["task_readout"]["r2"] < 1.0
    finding = diagnose(trace).findings["overconfidence"]
    assert finding.space == "task"
    assert diagnose(trace).to_dict()["findings"]["overconfidence"]["space"] == "task"
    moved, claimed = (np.nansum(array) for array in (trace.task_move, trace.task_expected_move))
    assert finding.numbers["moved_to_claimed"].value == pytest.approx(moved / claimed, rel=1e-4)


def test_cart_poles_have_no_task(tmp_path: Any) -> None:
    env = DummyVecEnv([lambda: gym.make("CartPole-v1")] * 4)
    env.seed(0)
    trace = posterior_trace(small_model(env, posterior_kwargs={"prior_std": 0.01}), env, 60)
    trace.save(tmp_path / "trace.npz")
    for one in (trace, PosteriorTrace.load(tmp_path / "trace.npz")):
        finding = diagnose(one).findings["overconfidence"]
        assert (finding.verdict, finding.space) == ("moves more than claimed", "latent")
        assert NO_TASK in finding.meaning


def test_points_are_not_asked_for_a_task() -> None:
    env = make_vec_env(BANDIT, 3, seed=0, env_kwargs={"trial_length": 6})
    trace = posterior_trace(small_model(env, posterior="point"), env, 6)
    assert np.isnan(trace.task_move).all()
    assert trace.settings["task_readout"] is None


def test_worker_processes_without_a_task_survive_the_question() -> None:
    env = SubprocVecEnv([RandomEnv] * 2, start_method="fork")
    try:
        env.reset()
        assert reported_tasks(env) is None
        assert env.reset().shape == (2, 4)
    finally:
        env.close()


def test_packed_covariances_weigh_both_halves() -> None:
    factor = th.randn(5, 3, 3, generator=th.Generator().manual_seed(0), dtype=th.float64)
    gaussian = FullGaussian(th.zeros(5, 3, dtype=th.float64), factor @ factor.mT + th.eye(3))
    packed = task_moves.packed_covariance(gaussian, th.tensor([4, 1]))
    np.testing.assert_allclose(packed, gaussian.covariance[[4, 1]][:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]])
