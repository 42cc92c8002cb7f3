"""Bad input to the tasks with episodes of their own: an error that names the argument and what was given."""

import sys

import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled

import sb3_laplace_envs as envs
from tests.envs_of_episodes import TASKS, batch, needs_mujoco

NAN, INF = float("nan"), float("inf")

pytestmark = pytest.mark.usefixtures("away")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("episode_length", value) for value in (0, -1, 2.5, "50", None, True, NAN)),
        *(("task_in_observation", value) for value in (1, "yes", None, NAN)),
        *(("render_mode", value) for value in ("human", "text", True, 1)),
    ],
)
def test_arguments(name, key, value):
    for cls in TASKS[name][:2]:
        with pytest.raises(ValueError, match=rf"{key} must .* got {value!r}"):
            cls(**{key: value})


@pytest.mark.parametrize("value", [0, -3, 2.0, "2", None, True])
def test_num_envs(name, value):
    with pytest.raises(ValueError, match="num_envs must be an integer >= 1"):
        batch(name, value)


@needs_mujoco
@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True])
def test_num_threads(value):
    with pytest.raises(ValueError, match="num_threads must be an integer >= 1"):
        envs.HalfCheetahVelVectorEnv(num_envs=2, num_threads=value)


@needs_mujoco
@pytest.mark.parametrize("value", ["forward", None, 2, ["circle"]])
def test_directions(value):
    with pytest.raises(ValueError, match="directions must be one of 'forward_backward', 'circle', got"):
        envs.AntDirEnv(directions=value)


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_sparse(value):
    with pytest.raises(ValueError, match="sparse must be True or False, got"):
        envs.PointRobotEnv(sparse=value)


@pytest.mark.parametrize("value", [1.01, -1.01, NAN, INF, "a", None, True])
def test_actions(name, value):
    ours, other = batch(name, 2), batch(name, 2)
    ours.reset(seed=0)
    other.reset(seed=0)
    actions = np.zeros((2, TASKS[name][4]), dtype=np.float64 if isinstance(value, float) else object)
    actions[1, 1] = value
    with pytest.raises(ValueError, match="actions must "):
        ours.step(actions)
    # The refused step changed nothing
    good = other.action_space.sample()
    np.testing.assert_array_equal(ours.step(good)[0], other.step(good)[0])


@pytest.mark.parametrize("shape", [(2,), (3, 2), (2, 1), (2, 2, 2), ()])
def test_shape_of_actions(name, shape):
    env = batch(name, 2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must hold real numbers in the shape \(2, "):
        env.step(np.zeros(shape))


@pytest.mark.parametrize(
    "value", [NAN, INF, [NAN, NAN], "a", {"a": 1}, np.zeros(3), np.zeros((3, 2)), [[0.0], [0.0, 0.0]]]
)
def test_task(name, value):
    with pytest.raises(ValueError, match=r"options\['task'\] must "):
        batch(name, 2).reset(options={"task": value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vel", [NAN]),
        ("dir", [0.0]),
        ("dir", [0.5]),
        ("dir", [NAN]),
        ("dir", [[1], [2]]),
        ("ant", [0.0]),
        ("ant", [-2]),
        ("circle", [0.0, 0.0]),
        ("circle", [1.0, 1.0]),
        ("circle", [[1.0, 0.0], [0.0, 0.9]]),
    ],
)
@needs_mujoco
def test_values_of_tasks(name, value):
    with pytest.raises(ValueError, match=r"options\['task'\] must be a (finite target|direction).* got \["):
        batch(name, 2).reset(options={"task": value})


@pytest.mark.parametrize("mask", [np.zeros(2, bool), np.ones(3, bool), np.array([0, 1]), "ab", True])
def test_reset_mask(name, mask):
    env = batch(name, 2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"options\['reset_mask'\] must "):
        env.reset(options={"reset_mask": mask})


def test_unknown_option_and_seeds(name):
    env = batch(name, 2)
    with pytest.raises(ValueError, match=r"options must be 'task' or 'reset_mask', got \['tasks'\]"):
        env.reset(options={"tasks": 1})
    for seed in (-1, 1.5, "1", [1], [1, -2]):
        with pytest.raises(ValueError, match="seed must "):
            env.reset(seed=seed)


@pytest.mark.parametrize("name", ["vel", "dir", "ant"])
def test_without_mujoco(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    monkeypatch.delitem(sys.modules, "mujoco.rollout", raising=False)
    for cls in TASKS[name][:2]:
        with pytest.raises(DependencyNotInstalled, match=r"pip install 'sb3-laplace\[mujoco\]'"):
            cls()
