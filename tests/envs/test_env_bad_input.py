"""Bad input: a ValueError that names the argument and what was given."""

import gymnasium as gym
import numpy as np
import pytest

NAN, INF = float("nan"), float("inf")

COMMON = [("trial_length", value) for value in (0, -1, 2.5, "50", None, True, NAN)]
ARGUMENTS = {
    "DirichletBandit": [
        *COMMON,
        *(("n_arms", value) for value in (1, 0, 5.0, "5")),
        *(("concentration", value) for value in (0, -0.2, NAN, INF, "0.2", None, [0.2], True)),
    ],
    "GridNavigation": [
        *COMMON,
        *(("size", value) for value in (1, -5, 5.0, (5, 5))),
        *(("max_attempt_steps", value) for value in (0, 7, 15.0, INF)),
    ],
    "FourierRegression": [
        *COMMON,
        *(("n_frequencies", value) for value in (0, 3.0, "3")),
        *((name, value) for name in ("max_amplitude", "max_shift", "max_phase") for value in (0, -1, NAN, INF, "1")),
        *(("action_scale", value) for value in (0, -1.0, NAN, INF, "1")),
        *(
            ("query_intervals", value)
            for value in (
                [],
                5,
                None,
                "ab",
                (-1.0, 1.0),
                [(-1.0, 1.0), (2.0,)],
                [(1.0, -1.0)],
                [(0.0, 0.0)],
                [(0.0, NAN)],
                [(-INF, 0.0)],
                [(0.0, 0.5), (0.4, 1.0)],
                [(0.5, 1.0), (-1.0, 0.0)],
            )
        ),
    ],
}


@pytest.mark.parametrize(
    ("task", "name", "value"), [(task, name, value) for task, cases in ARGUMENTS.items() for name, value in cases]
)
def test_arguments(task, name, value):
    env_id = f"sb3_laplace/{task}-v0"
    for make in (gym.make, gym.make_vec):
        with pytest.raises(ValueError, match=name) as error:
            make(env_id, **{name: value})
        given = "shape" if name == "query_intervals" and "shape" in str(error.value) else str(value)
        assert given in str(error.value)


@pytest.mark.parametrize("value", [0, -3, 2.0, "2", None])
def test_num_envs(env_id, value):
    with pytest.raises(ValueError, match="num_envs must be an integer >= 1"):
        gym.make_vec(env_id, num_envs=value)


def test_grid_too_large_for_its_attempts():
    with pytest.raises(ValueError, match=r"max_attempt_steps must be at least 16.*size 9, got 15"):
        gym.make("sb3_laplace/GridNavigation-v0", size=9)


@pytest.mark.filterwarnings("ignore:.*render_mode")
def test_render_mode():
    with pytest.raises(ValueError, match=r"render_mode must be None or one of .* got 'text'"):
        gym.make("sb3_laplace/GridNavigation-v0", render_mode="text")
    with pytest.raises(TypeError, match="render_mode"):  # which SB3's make_vec_env relies on
        gym.make("sb3_laplace/DirichletBandit-v0", render_mode="rgb_array")


DISCRETE_ACTIONS = [
    np.array([0, 5]),
    np.array([-1, 0]),
    np.array([0.0, 1.0]),
    np.array([True, False]),
    np.array(["0", "1"]),
    np.array([0]),
    np.array([[0], [1]]),
    [[0], [1, 2]],
    1,
    None,
]
BOX_ACTIONS = [
    np.array([[0.0], [NAN]]),
    np.array([[0.0], [INF]]),
    np.array([[1.01], [0.0]]),
    np.array([[0.0], [-1.01]]),
    np.array([0.0, 0.0]),
    np.array([[0.0]]),
    np.array([["0"], ["0"]]),
    [[0.0], [0.0, 0.0]],
    None,
]


@pytest.mark.parametrize(
    ("task", "actions"),
    [("DirichletBandit", actions) for actions in DISCRETE_ACTIONS]
    + [("GridNavigation", actions) for actions in DISCRETE_ACTIONS]
    + [("FourierRegression", actions) for actions in BOX_ACTIONS],
)
def test_actions(task, actions):
    envs = gym.make_vec(f"sb3_laplace/{task}-v0", num_envs=2)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="actions must "):
        envs.step(actions)
    # The refused step changed nothing.
    other = gym.make_vec(f"sb3_laplace/{task}-v0", num_envs=2)
    other.reset(seed=0)
    good = other.action_space.sample()
    np.testing.assert_array_equal(envs.step(good)[0], other.step(good)[0])


@pytest.mark.parametrize("task", ["DirichletBandit", "GridNavigation", "FourierRegression"])
@pytest.mark.parametrize("action", [99, -1, 0.5, "a", None, [0.1, 0.2]])
def test_single_action(task, action):
    env = gym.make(f"sb3_laplace/{task}-v0").unwrapped
    env.reset(seed=0)
    with pytest.raises(ValueError, match="actions must "):
        env.step(action)


@pytest.mark.parametrize(
    ("task", "value"),
    [
        *(("DirichletBandit", value) for value in ([0.5] * 4, [[0.5] * 5] * 3, [0.5] * 4 + [1.1], [-0.1] + [0.5] * 4)),
        *(("DirichletBandit", value) for value in ([NAN] * 5, ["a"] * 5, 0.5, [[0.5], [0.5, 0.5]], {"p": 1})),
        *(("GridNavigation", value) for value in ((0, 0), (5, 0), (0, -1), (1.0, 2.0), (1,), [(1, 1)] * 3, "ab")),
        ("GridNavigation", [(1, 1), (0, 0)]),
        *(("FourierRegression", value) for value in ([0.0] * 7, [1.1] * 8, [-1.1] * 8, [NAN] * 8, [0.0] * 7 + [INF])),
        *(("FourierRegression", value) for value in ("a", {"a": 1}, np.zeros((3, 8)))),
    ],
)
def test_task_option(task, value):
    envs = gym.make_vec(f"sb3_laplace/{task}-v0", num_envs=2)
    with pytest.raises(ValueError, match=r"options\['task'\] must hold|options\['task'\] must be"):
        envs.reset(options={"task": value})


@pytest.mark.parametrize(
    "mask", [np.zeros(2, bool), np.ones(3, bool), np.array([0, 1]), [[True], [True, False]], "ab", True]
)
def test_reset_mask(env_id, mask):
    envs = gym.make_vec(env_id, num_envs=2)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"options\['reset_mask'\] must "):
        envs.reset(options={"reset_mask": mask})


def test_unknown_option(single):
    with pytest.raises(ValueError, match=r"options must be 'task' or 'reset_mask', got \['tasks'\]"):
        single.reset(options={"tasks": 1})


@pytest.mark.parametrize("seed", [-1, 1.5, "1", [1], [1, 2, 3], [1, -2], [1, 2.0]])
def test_seed(env_id, seed):
    envs = gym.make_vec(env_id, num_envs=2)
    with pytest.raises(ValueError, match="seed must "):
        envs.reset(seed=seed)
