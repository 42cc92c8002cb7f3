"""What all tasks with episodes of their own do alike: batches, seeds, tasks, autoreset, partial resets."""

import contextlib
import copy
import gc
import pickle
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils import env_checker
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tests.envs_of_episodes import TASKS, batch, single

pytestmark = pytest.mark.usefixtures("away")


def singles(name, num_envs, **kwargs):
    """Gymnasium's own batch of single environments: an independent account of what a batch does."""
    makers = [lambda: single(name, **kwargs)] * num_envs
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)


def assert_same_step(ours, theirs, metrics):
    """Compare what `step` returned, to the bit."""
    for one, other in zip(ours[:4], theirs[:4], strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    infos, expected, ended = ours[4], theirs[4], ours[2] | ours[3]
    end_keys = {"final_obs", "_final_obs", "final_info", "_final_info"} if ended.any() else set()
    assert infos.keys() == metrics | end_keys
    for key in metrics:
        if not ended.all():
            # Gymnasium's batch holds these only where the episode goes on; ours everywhere
            np.testing.assert_array_equal(infos[key][~ended], expected[key][~ended])
        if ended.any():
            np.testing.assert_array_equal(infos[key][ended], expected["final_info"][key][ended])
            np.testing.assert_array_equal(infos["final_info"][key][ended], expected["final_info"][key][ended])
    for key in end_keys - {"final_info"}:
        for one, other in zip(infos[key], expected[key], strict=True):
            np.testing.assert_array_equal(one, other)


def test_batch_equals_single_environments(name):
    """Over ends of episodes by truncation and by termination, and partial resets."""
    ours, theirs = batch(name, 4, episode_length=7), singles(name, 4, episode_length=7)
    ours.action_space.seed(1)
    np.testing.assert_array_equal(ours.reset(seed=5)[0], theirs.reset(seed=5)[0])
    has_terminated = False
    for t in range(40):
        if t == 16:
            mask = np.array([True, False, False, True])
            seeds = [None, None, None, 9]
            one, _ = ours.reset(seed=seeds, options={"reset_mask": mask.copy()})
            other, _ = theirs.reset(seed=seeds, options={"reset_mask": mask.copy()})
            np.testing.assert_array_equal(one, other)
        if t == 18 and name in ("ant", "circle"):
            for states in (ours._states[2], theirs.envs[2].batch._states[0]):
                states[3] = 1.5
        actions = ours.action_space.sample()
        step = ours.step(actions)
        assert_same_step(step, theirs.step(actions), TASKS[name][6])
        np.testing.assert_array_equal(ours.task, [env.task for env in theirs.envs])
        has_terminated |= bool(step[2].any())
    assert has_terminated == (name in ("ant", "circle"))


def test_spaces(name):
    _, _, _, n_shown, n_actions, task_shape, _ = TASKS[name]
    for task_in_observation in (False, True):
        env = batch(name, 3, task_in_observation=task_in_observation)
        width = n_shown + task_shape[0] * task_in_observation
        assert env.single_observation_space == gym.spaces.Box(-np.inf, np.inf, (width,))
        assert env.single_action_space == gym.spaces.Box(-1.0, 1.0, (n_actions,))
        assert env.observation_space.shape == (3, width)
        assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
        env.action_space.seed(0)
        observations, infos = env.reset(seed=0)
        assert infos == {}
        assert env.task.shape == (3, *task_shape)
        for _ in range(3):
            assert observations in env.observation_space
            if task_in_observation:
                np.testing.assert_array_equal(observations[:, n_shown:], env.task.astype(np.float32))
            observations, rewards, terminations, truncations, infos = env.step(env.action_space.sample())
            assert (rewards.shape, rewards.dtype) == ((3,), np.float64)
            assert (terminations.dtype, truncations.dtype) == (np.bool_, np.bool_)
            assert all(metric.shape == (3,) for metric in infos.values())


def test_seeing_the_task_changes_nothing_else(name):
    blind, oracle = batch(name, 3, episode_length=5), batch(name, 3, episode_length=5, task_in_observation=True)
    blind.action_space.seed(0)
    np.testing.assert_array_equal(blind.reset(seed=0)[0], oracle.reset(seed=0)[0][:, : TASKS[name][3]])
    for _ in range(12):
        actions = blind.action_space.sample()
        one, other = blind.step(actions), oracle.step(actions)
        np.testing.assert_array_equal(one[0], other[0][:, : TASKS[name][3]])
        np.testing.assert_array_equal(one[1], other[1])


def test_episodes_depend_on_neither_the_size_of_the_batch_nor_threads(name):
    kwargs = {} if name in ("point", "sparse") else {"num_threads": 1}
    small, large = batch(name, 2, episode_length=9, **kwargs), batch(name, 40, episode_length=9)
    large.action_space.seed(3)
    np.testing.assert_array_equal(small.reset(seed=10)[0], large.reset(seed=8)[0][2:4])
    for _ in range(30):
        actions = large.action_space.sample()
        one, other = small.step(actions[2:4]), large.step(actions)
        for k in range(4):
            np.testing.assert_array_equal(one[k], other[k][2:4])


def test_autoreset(name):
    env = batch(name, 5, episode_length=6)
    env.action_space.seed(0)
    env.reset(seed=2)
    for t in range(1, 20):
        before = env.task
        observations, _, terminations, truncations, infos = env.step(env.action_space.sample())
        assert not terminations.any()
        assert (truncations == (t % 6 == 0)).all()
        if t % 6:
            np.testing.assert_array_equal(before, env.task)
            continue
        assert (before != env.task).any()
        final = np.stack(infos["final_obs"])
        assert (final != observations).any(axis=1).all()


def test_given_task_holds_until_the_next_reset(name):
    env = batch(name, 6, episode_length=3)
    env.action_space.seed(0)
    env.reset(seed=9)
    tasks = env.task
    env.reset(seed=0, options={"task": tasks})
    for _ in range(7):
        np.testing.assert_array_equal(env.task, tasks)
        env.step(env.action_space.sample())
    mask = np.arange(6) < 2
    env.reset(options={"task": tasks[3], "reset_mask": mask})  # one task for both
    for _ in range(7):
        np.testing.assert_array_equal(env.task, np.where(mask[:, None], tasks[3], tasks))
        env.step(env.action_space.sample())
    drawn = []
    for _ in range(30):
        env.reset(options={"reset_mask": mask})  # the others keep what they were given
        drawn.append(env.task)
        env.step(env.action_space.sample())
    np.testing.assert_array_equal((np.ptp(drawn, axis=0) > 0).any(axis=1), mask)
    drawn = []
    for _ in range(30):
        env.reset()
        drawn.append(env.task)
    assert (np.ptp(drawn, axis=0) > 0).any(axis=1).all()


def test_given_task_leaves_the_other_chance_alone(name):
    drawn, given = single(name, episode_length=4), single(name, episode_length=4)
    drawn.action_space.seed(0)
    drawn.reset(seed=5)
    np.testing.assert_array_equal(drawn.reset(seed=5)[0], given.reset(seed=5, options={"task": drawn.task})[0])
    for _ in range(3):
        np.testing.assert_array_equal(drawn.task, given.task)
        for _ in range(4):
            action = drawn.action_space.sample()
            one, other = drawn.step(action), given.step(action)
            np.testing.assert_array_equal(one[0], other[0])
            assert one[1:] == other[1:]
        drawn.reset()
        given.reset()


def test_partial_reset_leaves_the_others_alone(name):
    env, whole = batch(name, 4, episode_length=5), batch(name, 4, episode_length=5)
    with pytest.raises(ResetNeeded, match="reset_mask"):
        env.reset(options={"reset_mask": np.array([True, False, False, False])})
    env.action_space.seed(0)
    whole.reset(seed=0)
    observations, _ = env.reset(seed=0)
    mask = np.array([False, True, False, True])
    for t in range(4):
        if t == 2:
            before, tasks = observations, env.task
            observations, _ = env.reset(options={"reset_mask": mask})
            np.testing.assert_array_equal(observations[~mask], before[~mask])
            assert (observations[mask] != before[mask]).any(axis=1).all()
            np.testing.assert_array_equal(env.task[~mask], tasks[~mask])
        actions = env.action_space.sample()
        observations, rewards, *_ = env.step(actions)
        expected, expected_rewards, *_ = whole.step(actions)
        np.testing.assert_array_equal(observations[~mask], expected[~mask])
        np.testing.assert_array_equal(rewards[~mask], expected_rewards[~mask])
    *_, truncations, infos = env.step(env.action_space.sample())
    np.testing.assert_array_equal(truncations, ~mask)
    assert [one is not None for one in infos["final_obs"]] == (~mask).tolist()


def test_seeds_and_generators(name):
    env = batch(name, 3)
    env.reset(seed=4)
    assert env.np_random_seed == (4, 5, 6)
    tasks = env.task
    np.testing.assert_array_equal(batch(name, 3).reset(seed=[4, 5, 6])[0], env.reset(seed=4)[0])
    np.testing.assert_array_equal(env.task, tasks)
    assert len({generator.bit_generator.state["state"]["state"] for generator in env.np_random}) == 3

    one, other = single(name), single(name)
    one.np_random, other.np_random = np.random.default_rng(5), np.random.default_rng(5)
    np.testing.assert_array_equal(one.reset()[0], other.reset()[0])
    np.testing.assert_array_equal(one.task, other.task)
    unseeded = [batch(name, 8) for _ in range(2)]
    for env in unseeded:
        env.reset()
    assert (unseeded[0].np_random_seed[0]) != unseeded[1].np_random_seed[0]


def test_a_reset_draws_what_sample_tasks_draws(name):
    env = single(name)
    tasks = env.sample_tasks(4000, np.random.default_rng(0))
    assert tasks.shape == (4000, *TASKS[name][5])
    np.testing.assert_array_equal(tasks, env.batch.sample_tasks(4000, np.random.default_rng(0)))
    drawn = batch(name, 1000)
    drawn.reset(seed=0)
    for power in (1, 2):
        moments = [(sample**power).mean(axis=0) for sample in (tasks, drawn.task)]
        np.testing.assert_allclose(*moments, atol=4 * tasks.std() * (3.0 if name == "vel" else 1.0) * 1000**-0.5)


def test_step_before_reset_and_after_the_end(name):
    env = single(name, episode_length=3)
    action = np.zeros(TASKS[name][4], np.float32)
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(action)
    with pytest.raises(ResetNeeded, match="call reset"):
        batch(name, 2).step(np.stack([action, action]))
    env.reset(seed=0)
    assert [env.step(action)[3] for _ in range(3)] == [False, False, True]
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(action)


def test_copies_go_on_alike_and_nothing_leaks_into_the_next_episode(name):
    used = single(name)
    used.action_space.seed(0)
    used.reset(seed=0)
    for _ in range(7):
        used.step(used.action_space.sample())
    others = [pickle.loads(pickle.dumps(used)), copy.deepcopy(used)]
    for t in range(10):
        if t == 5:
            fresh = single(name)
            fresh.np_random = copy.deepcopy(used.np_random)
            others.append(fresh)
            first = used.reset()[0]
            for other in others:
                np.testing.assert_array_equal(first, other.reset()[0])
        action = used.action_space.sample()
        ours = used.step(action)
        for other in others:
            theirs = other.step(action)
            np.testing.assert_array_equal(ours[0], theirs[0])
            assert ours[1:] == theirs[1:]


def test_returned_arrays_are_the_callers(name):
    """Writing into what was returned changes nothing in the environment."""
    ours, theirs = batch(name, 3, episode_length=4), batch(name, 3, episode_length=4)
    ours.action_space.seed(0)
    ours.reset(seed=0)[0][:] = 7.0
    theirs.reset(seed=0)
    for _ in range(9):
        actions = ours.action_space.sample()
        one, other = ours.step(actions), theirs.step(actions)
        for k in range(4):
            np.testing.assert_array_equal(one[k], other[k])
        one[0][:], one[1][:], one[2][:], one[3][:] = 7.0, 7.0, True, True
        for metric in (one[4][key] for key in TASKS[name][6]):
            metric[:] = 7
        ours.task[:] = 7.0


@pytest.mark.parametrize("task_in_observation", [False, True])
def test_checkers(name, task_in_observation, monkeypatch):
    # Imported here, so that the other tests of the environments need neither SB3 nor torch.
    from stable_baselines3.common.env_checker import check_env

    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.envs.registration.registry))
    gym.register("EpisodeOfATask-v0", entry_point=TASKS[name][0], vector_entry_point=TASKS[name][1])
    arguments = {**TASKS[name][2], "task_in_observation": task_in_observation}
    env = gym.make("EpisodeOfATask-v0", **arguments).unwrapped
    assert isinstance(gym.make_vec("EpisodeOfATask-v0", num_envs=3, **arguments), TASKS[name][1])
    # A robot is drawn where OpenGL allows, in tests of its own
    without_images = name not in ("point", "sparse")
    assert gym.logger.min_level <= gym.logger.WARN
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # These two say that the bounds are infinite, as those of Gymnasium's own robots are
        warnings.filterwarnings("ignore", ".*Box observation space m(in|ax)imum value is")
        env_checker.check_env(env, skip_render_check=without_images)
        check_env(env, skip_render_check=without_images)


def test_closed_again(name):
    for env in (single(name), batch(name, 2)):
        env.reset(seed=0)
        env.close()
        env.close()


def test_closed_half_made(name, monkeypatch):
    """The garbage collector closes what a constructor left when it raised."""
    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    with contextlib.suppress(ValueError):
        batch(name, 0)
    gc.collect()
    assert said == []
