"""The linear read-out of the task from the latent."""

from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from stable_baselines3.common.env_util import make_vec_env as sb3_make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_laplace import make_vec_env
from sb3_laplace.readout import Readout, ReadoutMoments, TaskEncoder, _distinct, reported_tasks
from sb3_laplace.vec_env import GymnasiumVecEnv
from sb3_laplace_envs import GridNavigationEnv


def test_the_read_out_is_the_least_squares_solution() -> None:
    rng = np.random.default_rng(0)
    means, targets = rng.normal(size=(200, 5)) + 1.0, rng.normal(size=(200, 3))
    moments = ReadoutMoments()
    moments.add(means[:100], targets[:100])
    moments.add(means[100:], targets[100:])
    readout = moments.solve(ridge=0.0)
    expected = np.linalg.lstsq(np.append(means, np.ones((200, 1)), axis=1), targets, rcond=None)[0]
    np.testing.assert_allclose(readout.weights, expected[:-1], atol=1e-10)
    np.testing.assert_allclose(readout.bias, expected[-1], atol=1e-10)
    np.testing.assert_allclose(readout(means[:4]), np.append(means, np.ones((200, 1)), axis=1)[:4] @ expected)


def test_decay_forgets() -> None:
    rng = np.random.default_rng(0)
    means = rng.normal(size=(100, 2))
    moments = ReadoutMoments()
    moments.decay = 0.5
    moments.add(means, means @ [[1.0], [0.0]])
    moments.add(means, means @ [[0.0], [1.0]])
    # Weights 1/2 and 1
    np.testing.assert_allclose(moments.solve(0.0).weights.ravel(), [1 / 3, 2 / 3], atol=1e-10)


def test_a_ridge_where_units_are_constant() -> None:
    moments = ReadoutMoments()
    moments.add(np.zeros((10, 3)), np.ones((10, 1)))
    readout = moments.solve()
    np.testing.assert_allclose(readout.weights, 0.0)
    np.testing.assert_allclose(readout.bias, 1.0)


def test_the_ridge_by_hand() -> None:
    """Second moments of 2: a ridge of 0.5 of their average adds 1 to each, and nothing to the bias."""
    means = np.array([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0], [0.0, -2.0]])
    moments = ReadoutMoments()
    moments.add(means, means[:, :1] + 3.0)
    readout = moments.solve(ridge=0.5)
    np.testing.assert_allclose(readout.weights, [[2 / 3], [0.0]], atol=1e-10)
    np.testing.assert_allclose(readout.bias, [3.0])


def test_variances_of_any_batch_are_told_from_covariances() -> None:
    """As many posteriors as units are no matrix, nor is a batch of two dimensions a batch of matrices."""
    readout = Readout(np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), np.zeros(2))
    # The squares of the rows of B^T sum to 1, 4 and 0
    np.testing.assert_allclose(readout.variance(np.arange(9.0).reshape(3, 3)), [4.0, 19.0, 34.0])
    np.testing.assert_allclose(readout.variance(np.arange(6.0).reshape(1, 2, 3)), [[4.0, 19.0]])


def test_variance_of_both_structures() -> None:
    rng = np.random.default_rng(0)
    moments = ReadoutMoments()
    moments.add(rng.normal(size=(50, 4)), rng.normal(size=(50, 2)))
    readout = moments.solve()
    variance = rng.uniform(1, 2, size=(6, 4))
    full = variance[:, :, None] * np.eye(4) + 0.3
    b = readout.weights.T
    expected = [np.trace(b @ np.diag(row) @ b.T) for row in variance]
    np.testing.assert_allclose(readout.variance(variance), expected)
    np.testing.assert_allclose(readout.variance(full), [np.trace(b @ matrix @ b.T) for matrix in full])


def test_whole_numbers_are_choices() -> None:
    encoder = TaskEncoder()
    np.testing.assert_array_equal(encoder.encode(np.array([[0, 1], [2, 0], [0, 1]])), [[1, 0], [0, 1], [1, 0]])
    # What was seen keeps its column
    np.testing.assert_array_equal(encoder.encode(np.array([[0, 0], [2, 0]])), [[0, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(encoder.encode(np.array([[0.5, 1.0]])), [[0.5, 1.0]])
    encoded = encoder.encode(np.stack([np.arange(400), np.full(400, 7)], axis=1))
    assert encoded.shape == (400, 256)
    np.testing.assert_array_equal(encoded.sum(1), np.arange(400) < 253)


def test_later_columns_were_zero_before() -> None:
    rng = np.random.default_rng(1)
    means = rng.normal(size=(20, 2))
    goals = np.array([[0]] * 10 + [[1]] * 5 + [[2]] * 5)
    online, encoder = ReadoutMoments(), TaskEncoder()
    online.add(means[:10], encoder.encode(goals[:10]))
    online.add(means[10:], encoder.encode(goals[10:]))
    whole = ReadoutMoments()
    whole.add(means, TaskEncoder().encode(goals))
    np.testing.assert_allclose(online.solve().weights, whole.solve().weights, atol=1e-6)


def _vector(n_envs: int) -> VecEnv:
    return GymnasiumVecEnv(SyncVectorEnv([GridNavigationEnv] * n_envs, autoreset_mode=AutoresetMode.SAME_STEP))


@pytest.mark.parametrize(
    "make",
    [
        lambda n: make_vec_env("sb3_laplace/GridNavigation-v0", n_envs=n),
        lambda n: sb3_make_vec_env("sb3_laplace/GridNavigation-v0", n_envs=n),
        _vector,
    ],
)
def test_tasks_of_every_kind_of_batch(make: Any) -> None:
    env = make(3)
    env.reset()
    tasks = reported_tasks(env)
    assert tasks is not None
    assert tasks.shape == (3, 2)


def test_no_task() -> None:
    assert reported_tasks(sb3_make_vec_env("CartPole-v1", n_envs=2)) is None


class Reporting:
    """What a VecEnv says of its tasks."""

    def __init__(self, *tasks: Any, **others: Any) -> None:
        self.attributes = {"task": tasks, **others}

    def has_attr(self, name: str) -> bool:
        return name in self.attributes

    def get_attr(self, name: str) -> list[Any]:
        return list(self.attributes[name])


@pytest.mark.parametrize(
    "tasks", [(0.5, np.nan), (1.0, np.inf), ("a", "b"), ([], []), ([1.0], [1.0, 2.0]), (None, None)]
)
def test_what_is_no_task(tasks: tuple[Any, Any]) -> None:
    env: Any = Reporting(*tasks)
    assert reported_tasks(env) is None


@pytest.mark.parametrize("tasks", [(0.5, -2.0), (True, False), (3, 4), ([1.0, 0.0], [0.0, 2.0])])
def test_what_is_a_task(tasks: tuple[Any, Any]) -> None:
    env: Any = Reporting(*tasks)
    np.testing.assert_array_equal(reported_tasks(env), np.array(tasks))


@pytest.mark.parametrize(
    "make",
    [
        lambda n: make_vec_env("sb3_laplace/FourierRegression-v0", n_envs=n, seed=0),
        lambda n: sb3_make_vec_env("sb3_laplace/FourierRegression-v0", n_envs=n, seed=0),
    ],
)
def test_functions_are_read_by_what_they_are_linear_in(make: Any) -> None:
    env = make(3)
    env.reset()
    tasks = reported_tasks(env)
    assert tasks is not None
    np.testing.assert_array_equal(tasks, np.stack(env.get_attr("coefficients")))
    assert len(np.unique(tasks, axis=0)) == 3


@pytest.mark.parametrize(("descriptor", "counts"), [((0.5, 1.5), True), ((np.nan, 1.0), False), ((None, None), False)])
def test_a_descriptor_counts_before_the_task_if_it_is_numbers(descriptor: tuple[Any, Any], counts: bool) -> None:
    env: Any = Reporting(3, 4, task_descriptor=descriptor)
    np.testing.assert_array_equal(reported_tasks(env), np.array(descriptor if counts else (3, 4)))


@given(
    arrays(
        np.int64,
        st.tuples(st.integers(1, 30), st.integers(1, 4)),
        elements=st.integers(-3, 3) | st.sampled_from([-(2**62), 2**62, -(2**31), 2**31]),
    )
)
def test_distinct_choices_are_those_of_numpy(rows: np.ndarray) -> None:
    """Also where they are too far apart to be numbered."""
    distinct, index = _distinct(rows)
    np.testing.assert_array_equal(distinct, np.unique(rows, axis=0))
    np.testing.assert_array_equal(distinct[index], rows)
