"""What a trial cannot be made of: each error names the argument."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from sb3_laplace_envs import Trial, VectorTrial
from tests.envs.trial_oracle import ACTION_SPACES, OBSERVATION_SPACES, Anything, sample_task, set_task

BOX, DISCRETE = OBSERVATION_SPACES["box"], ACTION_SPACES["discrete"]
TASKS = {"sample_task": sample_task, "set_task": set_task}


def anything():
    return Anything(BOX, DISCRETE)


def bandit():
    return gym.make("sb3_laplace/DirichletBandit-v0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "n_episodes or trial_steps must be given"),
        ({"n_episodes": 0}, "n_episodes must be an integer >= 1, got 0"),
        ({"n_episodes": 2.0}, "n_episodes must be an integer >= 1, got 2.0"),
        ({"trial_steps": -1}, "trial_steps must be an integer >= 1, got -1"),
        ({"n_episodes": 2, "on_termination": "stop"}, "on_termination must be 'next_episode' or 'end_trial', got"),
        ({"n_episodes": 2, "reward_scale": 0.0}, "reward_scale must be a positive finite number, got 0.0"),
        ({"n_episodes": 2, "previous_action": 1}, "previous_action must be True or False, got 1"),
        ({"n_episodes": 2, "step_number": True}, "step_number must come with trial_steps"),
        ({"trial_steps": 2, "episode_number": True}, "episode_number must come with n_episodes"),
        ({"n_episodes": 2, "sample_task": sample_task}, "sample_task must come with set_task: env has no way to set"),
        ({"n_episodes": 2, "set_task": set_task}, "set_task must come with sample_task or tasks"),
        ({"n_episodes": 2, "tasks": [0.5]}, r"tasks must be seeds \(integers >= 0\) or come with set_task: env has no"),
        ({"n_episodes": 2, "tasks": []}, "tasks must be a sequence of at least one task"),
        ({"n_episodes": 2, "tasks": 3}, "tasks must be a sequence of at least one task"),
        (
            {"n_episodes": 2, "tasks": [np.zeros(2), np.zeros(3)], "set_task": set_task},
            r"tasks must have one shape, got \[\(2,\), \(3,\)\]",
        ),
        ({"n_episodes": 2, "tasks": [1], **TASKS}, "sample_task and tasks must not be given together"),
        ({"n_episodes": 2, "tasks": [1], "task_order": "sorted"}, "task_order must be 'random' or 'cyclic'"),
        ({"n_episodes": 2, "task_protocol": "magic"}, "task_protocol must be one of"),
        ({"n_episodes": 2, "task_protocol": "reset_task"}, "task_protocol='reset_task' must be a method of env"),
        ({"n_episodes": 2, "task_protocol": "seed", **TASKS}, "set_task and task_protocol must not be given together"),
        ({"n_episodes": 2, "sample_task": 5, "set_task": set_task}, "sample_task must be a callable or 'module:name'"),
        ({"n_episodes": 2, "sample_task": "x:y", "set_task": set_task}, "sample_task must be a callable or 'module:"),
        ({"n_episodes": 2, "task_kwargs": {"bonus": 1.0}}, r"task_kwargs\['bonus'\] must be a sequence of values"),
        ({"n_episodes": 2, "task_kwargs": {"bonus": [1.0]}}, "task_kwargs must be used with .* gymnasium.make"),
        (
            {"n_episodes": 2, "task_kwargs": {"bonus": [1.0]}, "task_protocol": "seed"},
            "task_kwargs must be given without",
        ),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Trial(anything(), **arguments)
    with pytest.raises(ValueError, match=message):
        VectorTrial(SyncVectorEnv([anything] * 2), **arguments)


@pytest.mark.parametrize(
    "action_space",
    [spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(0.0, np.inf, (1,)), spaces.Tuple((DISCRETE, DISCRETE))],
)
def test_action_spaces(action_space):
    for previous_action in (True, False):
        with pytest.raises(ValueError, match=r"env must have a.* bounded"):
            Trial(Anything(BOX, action_space), n_episodes=2, previous_action=previous_action)


def test_tasks_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"tasks must have the shape \(5,\) of the environment's, got \(4,\)"):
        Trial(bandit(), n_episodes=2, tasks=np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"tasks must have the shape \(5,\) of the environment's, got \(4,\)"):
        VectorTrial(gym.make_vec("sb3_laplace/DirichletBandit-v0", num_envs=2), n_episodes=2, tasks=np.zeros((3, 4)))
    sizes = iter(range(2, 9))
    env = Trial(anything(), n_episodes=2, sample_task=lambda rng: np.zeros(next(sizes)), set_task=set_task)
    env.reset()
    with pytest.raises(ValueError, match=r"sample_task must draw tasks of one shape, got \(2,\), then \(3,\)"):
        env.reset()
    with pytest.raises(ValueError, match=r"options\['task'\] must hold a task for each of 2"):
        VectorTrial(SyncVectorEnv([anything] * 2), n_episodes=2, **TASKS).reset(options={"task": np.zeros((3, 2))})


def test_methods_without_tasks():
    class Env(Anything):
        def set_task(self, task):
            pass

    with pytest.raises(ValueError, match="env has set_task but no sample_tasks: sample_task or tasks must be given"):
        Trial(Env(BOX, DISCRETE), n_episodes=2)


def test_constructor_keywords_that_change_the_spaces():
    env = Trial(gym.make("sb3_laplace/DirichletBandit-v0"), 2, task_kwargs={"n_arms": [7]})
    with pytest.raises(ValueError, match=r"task_kwargs must not change the observation_space: \{'n_arms': 7\}"):
        env.reset()


def test_names_that_are_taken():
    taken = spaces.Dict({"previous_reward": spaces.Discrete(2)})
    with pytest.raises(ValueError, match=r"env must not have observations under \['previous_reward'\]"):
        Trial(Anything(taken, DISCRETE), n_episodes=2)
    Trial(Anything(taken, DISCRETE), n_episodes=2, previous_reward=False)


def test_kinds_of_environments():
    with pytest.raises(ValueError, match=r"env must be a gymnasium.Env, got .*SyncVectorEnv.*: VectorTrial takes"):
        Trial(SyncVectorEnv([anything]), n_episodes=2)
    with pytest.raises(ValueError, match=r"env must be a gymnasium.vector.VectorEnv, got .*Anything.*: Trial takes"):
        VectorTrial(anything(), n_episodes=2)
    cartpoles = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="vector_entry_point")
    with pytest.raises(ValueError, match=r"env must have a way to set a task, got CartPoleVectorEnv.*Give set_task"):
        VectorTrial(cartpoles, n_episodes=2)
    with pytest.raises(ValueError, match=r"env must be a SyncVectorEnv for task_kwargs"):
        VectorTrial(cartpoles, n_episodes=2, task_kwargs={"sutton_barto_reward": [True, False]})

    class Resetting(Anything):
        def reset_task(self, task=None):
            pass

    workers = AsyncVectorEnv([lambda: Resetting(BOX, DISCRETE)])
    try:
        with pytest.raises(ValueError, match=r"env must be a SyncVectorEnv for reset_task.*put Trial into the single"):
            VectorTrial(workers, n_episodes=2)
    finally:
        workers.close()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"seed": [1]}, "seed must hold one seed for each of 2 environments, got 1"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
        ({"options": {"reset_mask": [True]}}, r"options\['reset_mask'\] must hold booleans in the shape \(2,\)"),
        (
            {"options": {"reset_mask": [False, False]}},
            r"options\['reset_mask'\] must select at least one environment, got none",
        ),
    ],
)
def test_resets(kwargs, message):
    with pytest.raises(ValueError, match=message):
        VectorTrial(SyncVectorEnv([anything] * 2), n_episodes=2, **TASKS).reset(**kwargs)
