"""Trials of a batch: equal to those of single environments, however the batch resets itself and is told its tasks."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_laplace_envs import Trial, VectorTrial
from sb3_laplace_envs.wrappers.vector_tasks import _stacked
from tests.envs.trial_oracle import (
    ACTION_SPACES,
    OBSERVATION_SPACES,
    Anything,
    assert_same,
    sample_task,
    set_task,
)

MODES = list(AutoresetMode)
TASKS = {"sample_task": sample_task, "set_task": set_task}
BANDIT, GRID = "sb3_laplace/DirichletBandit-v0", "sb3_laplace/GridNavigation-v0"


class Native(VectorEnv):
    """A batch that does not show that it is made of single environments, with attributes that hold all tasks."""

    def __init__(self, make, num_envs, mode):
        self.batch = SyncVectorEnv([make] * num_envs, autoreset_mode=mode)
        self.num_envs, self.metadata = num_envs, self.batch.metadata
        self.single_observation_space, self.observation_space = (
            self.batch.single_observation_space,
            self.batch.observation_space,
        )
        self.single_action_space, self.action_space = self.batch.single_action_space, self.batch.action_space

    @property
    def np_random(self):
        return self.batch.np_random

    def set_hidden(self, tasks):
        assert tasks.shape == (self.num_envs, 2)
        for env, task in zip(self.batch.envs, tasks, strict=True):
            set_task(env, task)

    def reset(self, **kwargs):
        return self.batch.reset(**kwargs)

    def step(self, actions):
        return self.batch.step(actions)


def anything(observation_space="box", action_space="discrete"):
    return Anything(OBSERVATION_SPACES[observation_space], ACTION_SPACES[action_space])


def rows(observations, i):
    if isinstance(observations, dict):
        return {key: part[i] for key, part in observations.items()}
    return observations[i]


def assert_like_single_ones(batch, singles, n_steps=60, seed=5):
    """The same trials to the bit: observations, rewards, ends, infos and tasks.

    :return: How many trials ended
    """
    batch.action_space.seed(0)
    n_ended = 0
    observations, infos = batch.reset(seed=seed)
    for i, single in enumerate(singles):
        observation, info = single.reset(seed=seed + i)
        assert_same(rows(observations, i), observation)
        assert_reported(infos, info, i)
    for _ in range(n_steps):
        actions = batch.action_space.sample()
        observations, rewards, terminations, truncations, infos = batch.step(actions)
        assert observations in batch.observation_space
        assert (rewards.dtype, terminations.dtype, truncations.dtype) == (np.float64, np.bool_, np.bool_)
        ended = terminations | truncations
        assert ("final_obs" in infos) == ended.any()
        for i, single in enumerate(singles):
            observation, reward, terminated, truncated, info = single.step(actions[i])
            assert (rewards[i], terminations[i], truncations[i]) == (reward, terminated, truncated)
            if ended[i]:
                n_ended += 1
                assert_same(infos["final_obs"][i], observation)
                assert_reported(infos["final_info"], info, i)
                observation, info = single.reset()
            else:
                assert not ended.any() or not infos["_final_info"][i]
            assert_same(rows(observations, i), observation)
            assert_reported(infos, info, i)
            np.testing.assert_array_equal(batch.task[i], single.task)
    return n_ended


def assert_reported(infos, info, i):
    """What is reported of environment i is what the single one reports, or what is reported of all."""
    for key, value in info.items():
        assert_same(np.asarray(infos[key][i]), np.asarray(value))
        assert f"_{key}" not in infos or infos[f"_{key}"][i]
    for key, mask in infos.items():
        if key.startswith("_") and key[1:] in infos and not key.startswith("_final"):
            assert mask[i] == (key[1:] in info)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=12)
@given(data=st.data())
def test_equals_single_trials(mode, data):
    observation_space = data.draw(st.sampled_from(sorted(OBSERVATION_SPACES)), label="observations")
    action_space = data.draw(st.sampled_from(sorted(set(ACTION_SPACES) - {"dict"})), label="actions")
    n_episodes, trial_steps = data.draw(st.sampled_from([(3, None), (None, 7), (2, 5)]), label="limits")
    on_termination = data.draw(st.sampled_from(["next_episode", "end_trial"]), label="on_termination")
    n = data.draw(st.integers(1, 4), label="n")
    is_native = data.draw(st.booleans(), label="native")

    def make():
        return anything(observation_space, action_space)

    arguments = {
        "n_episodes": n_episodes,
        "trial_steps": trial_steps,
        "on_termination": on_termination,
        "reward_scale": 0.5,
        "trial_start": True,
        "step_number": trial_steps is not None,
        "sample_task": sample_task,
    }
    singles = [Trial(make(), set_task=set_task, **arguments) for _ in range(n)]
    if is_native:
        inner = Native(make, n, mode)
        batch = VectorTrial(inner, set_task=lambda env, tasks: env.unwrapped.set_hidden(tasks), **arguments)
    else:
        batch = VectorTrial(SyncVectorEnv([make] * n, autoreset_mode=mode), set_task=set_task, **arguments)
    assert batch.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert_like_single_ones(batch, singles)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "way", ["options", "seed", "sample_tasks", "reset_task", "task_kwargs", "keywords_of_a_task", "tasks"]
)
def test_every_way_of_a_task(mode, way):
    class Env(Anything):
        pass

    if way == "sample_tasks":
        Env.sample_tasks = lambda self, n: [self.np_random.uniform(size=2) for _ in range(n)]
        Env.set_task = lambda self, task: setattr(self, "hidden", task)
    if way == "reset_task":

        def reset_task(self, task=None):
            self.hidden = self.np_random.uniform(size=2) if task is None else task
            return self.hidden

        Env.reset_task = reset_task
    arguments = {"n_episodes": 3}
    if way == "task_kwargs":
        arguments |= {"task_kwargs": {"sutton_barto_reward": [True, False]}}
    if way == "keywords_of_a_task":
        arguments |= {"task_kwargs": {"concentration": [0.1, 5.0]}}
    if way == "tasks":
        arguments |= {"set_task": set_task, "tasks": np.arange(6.0).reshape(3, 2)}

    def make():
        if way in ("options", "keywords_of_a_task"):
            return gym.make(BANDIT, trial_length=4)
        if way == "task_kwargs":
            return gym.make("CartPole-v1", max_episode_steps=5)
        return Env(OBSERVATION_SPACES["box"], ACTION_SPACES["discrete"])

    batch = VectorTrial(SyncVectorEnv([make] * 3, autoreset_mode=mode), **arguments)
    assert assert_like_single_ones(batch, [Trial(make(), **arguments) for _ in range(3)]) > 3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", ["options", "seed", "callable"])
def test_workers(mode, way):
    """The single environments in processes of their own."""
    make = {
        "options": lambda: gym.make(GRID, trial_length=6),
        "seed": lambda: anything("dict", "box"),
        "callable": anything,
    }[way]
    batch_tasks, single_tasks = {}, {}
    if way == "callable":
        single_tasks = TASKS
        batch_tasks = {**TASKS, "set_task": lambda env, tasks: env.set_attr("hidden", list(tasks))}
    batch = VectorTrial(AsyncVectorEnv([make] * 2, autoreset_mode=mode), 2, **batch_tasks)
    try:
        assert assert_like_single_ones(batch, [Trial(make(), 2, **single_tasks) for _ in range(2)], 40) > 2
    finally:
        batch.close()


@pytest.mark.parametrize("env_id", [BANDIT, GRID, "sb3_laplace/FourierRegression-v0"])
@pytest.mark.parametrize("limits", [(2, None), (None, 7)])
def test_our_tasks_in_their_batched_form(env_id, limits):
    batch = VectorTrial(gym.make_vec(env_id, num_envs=3, trial_length=5), *limits)
    singles = [Trial(gym.make(env_id, trial_length=5), *limits) for _ in range(3)]
    # What all environments report at each step is of the step, also where the next trial begins
    batch.action_space.seed(0)
    observations, _ = batch.reset(seed=1)
    for i, single in enumerate(singles):
        assert_same(observations[i], single.reset(seed=1 + i)[0])
    for _ in range(40):
        actions = batch.action_space.sample()
        observations, rewards, _, truncations, infos = batch.step(actions)
        for i, single in enumerate(singles):
            observation, reward, _, truncated, info = single.step(actions[i])
            assert (rewards[i], truncations[i]) == (reward, truncated)
            source = infos["final_info"] if truncated else infos
            for key, value in info.items():
                assert_same(np.asarray(source[key][i]), np.asarray(value))
            if truncated:
                assert_same(infos["final_obs"][i], observation)
                observation, _ = single.reset()
            assert_same(observations[i], observation)
            np.testing.assert_array_equal(batch.task[i], single.task)


def test_tasks_in_turn():
    """A batch plays each task of a set once before any is played again."""
    tasks = np.arange(12.0).reshape(6, 2)
    arguments = {"n_episodes": 1, "set_task": set_task, "task_order": "cyclic"}
    batch = VectorTrial(SyncVectorEnv([anything] * 3), tasks=tasks, **arguments)
    singles = [Trial(anything(), tasks=tasks[i::3], **arguments) for i in range(3)]
    assert assert_like_single_ones(batch, singles) > 6


def test_partial_resets_and_given_tasks():
    batch = VectorTrial(SyncVectorEnv([anything] * 3), n_episodes=2, **TASKS)
    with pytest.raises(ResetNeeded, match="reset_mask"):
        batch.reset(options={"reset_mask": np.array([True, False, False])})
    with pytest.raises(ResetNeeded, match="reset"):
        batch.step(np.zeros(3, dtype=np.int64))
    batch.reset(seed=0)
    before = batch.step(np.zeros(3, dtype=np.int64))[0]
    tasks = batch.task
    mask = np.array([False, True, False])
    after, _ = batch.reset(options={"reset_mask": mask, "task": np.full((3, 2), 9.0)})
    np.testing.assert_array_equal(after[~mask], before[~mask])
    np.testing.assert_array_equal(after[1, 3:], [0, 0, 0, 0, 1])
    for _ in range(60):
        np.testing.assert_array_equal(batch.task[1], [9.0, 9.0])
        np.testing.assert_array_equal(batch.env.envs[1].hidden, [9.0, 9.0])
        batch.step(np.zeros(3, dtype=np.int64))
    assert (batch.task[~mask] != tasks[~mask]).all()
    batch.reset()
    assert (batch.task != 9.0).all()


def test_given_tasks_of_ours():
    batch = VectorTrial(gym.make_vec(GRID, num_envs=4, trial_length=3), n_episodes=2)
    goals = np.array([[1, 1], [2, 2], [3, 3], [4, 4]])
    batch.reset(seed=0, options={"task": goals})
    for _ in range(20):
        np.testing.assert_array_equal(batch.task, goals)
        np.testing.assert_array_equal(batch.unwrapped.task, goals)
        batch.step(np.zeros(4, dtype=np.int64))
    batch.reset(options={"task": goals[::-1], "reset_mask": np.arange(4) < 2})
    np.testing.assert_array_equal(batch.task, [[4, 4], [3, 3], [3, 3], [4, 4]])


def test_statistics_inside_and_outside():
    inner = RecordEpisodeStatistics(SyncVectorEnv([anything] * 2, autoreset_mode=AutoresetMode.NEXT_STEP))
    batch = VectorTrial(inner, trial_steps=8, **TASKS)
    outer = RecordEpisodeStatistics(VectorTrial(SyncVectorEnv([anything] * 2), trial_steps=8, **TASKS))
    batch.reset(seed=0)
    outer.reset(seed=0)
    for t in range(1, 25):
        assert "episode" not in batch.step(np.zeros(2, dtype=np.int64))[4]
        infos = outer.step(np.zeros(2, dtype=np.int64))[4]
        assert ("episode" in infos) == (t % 8 == 0)


def test_a_batch_that_resets_all_is_refused():
    envs = gym.make_vec("CartPole-v1", num_envs=8, vectorization_mode="vector_entry_point")

    def set_lengths(env, tasks):
        env.unwrapped.length = tasks[:, 0]

    batch = VectorTrial(envs, n_episodes=2, sample_task=lambda rng: rng.uniform(0.3, 1.0, 1), set_task=set_lengths)
    batch.reset(seed=0)

    def play():
        for _ in range(100):
            batch.step(batch.action_space.sample())

    with pytest.raises(ValueError, match="env must heed options"):
        play()


def test_returned_arrays_are_the_callers():
    ours, theirs = (VectorTrial(SyncVectorEnv([anything] * 2), n_episodes=2, **TASKS) for _ in range(2))
    ours.reset(seed=0)[0][:] = 7.0
    theirs.reset(seed=0)
    for _ in range(30):
        one, other = ours.step(np.ones(2, dtype=np.int64)), theirs.step(np.ones(2, dtype=np.int64))
        assert_same(one[:4], other[:4])
        one[0][:] = 7.0
        ours.task[:] = 7.0


@pytest.mark.parametrize(
    ("tasks", "is_array"),
    [
        ([(0.5, 2.0), (1.5, 3.0)], True),
        ([np.ones(2), np.zeros(2)], True),
        ([1, 2.5], True),
        ([(0.5,), (1.5, 3.0)], False),
        ([{"a": 1}, {"a": 2}], False),
        (["a", "b"], False),
    ],
)
def test_tasks_of_all_are_one_array_where_each_is_one(tasks, is_array):
    """Tuples of numbers too, which a `Trial` reports as arrays."""
    found = _stacked(tasks)
    assert isinstance(found, np.ndarray) == is_array
    for one, task in zip(found, tasks, strict=True):
        assert np.array_equal(one, task) if is_array else one is task
