"""Batches: equal to single environments, the autoreset, partial resets, given tasks, speed."""

import time

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version

# The first step of every trial but the first is missing from what Gymnasium's wrapper counted before 1.4
WRAPPER_LOSES_A_STEP = Version(gym.__version__) < Version("1.4")
METRICS = {
    "sb3_laplace/FourierRegression-v0": {"target": np.float64, "squared_error": np.float64},
    "sb3_laplace/DirichletBandit-v0": {"regret": np.float64},
    "sb3_laplace/GridNavigation-v0": {"goals_reached": np.int64, "excess_steps": np.int64},
}


def make_pair(env_id, num_envs, **kwargs):
    """The batched task and, as an independent account of it, Gymnasium's own batch of single environments."""
    ours = gym.make_vec(env_id, num_envs=num_envs, **kwargs)
    theirs = gym.make_vec(
        env_id,
        num_envs=num_envs,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        **kwargs,
    )
    return ours, theirs


def assert_same_step(ours, theirs, metrics):
    """Compare what `step` returned, to the bit."""
    for one, other in zip(ours[:4], theirs[:4], strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    infos, expected, ended = ours[4], theirs[4], ours[3]
    end_keys = {"final_obs", "_final_obs", "final_info", "_final_info"} if ended.any() else set()
    assert infos.keys() == set(metrics) | end_keys
    for key, dtype in metrics.items():
        assert infos[key].dtype == dtype
        if not ended.all():
            # Gymnasium's batch holds these only where the trial goes on; ours everywhere.
            np.testing.assert_array_equal(infos[key][~ended], expected[key][~ended])
        if ended.any():
            np.testing.assert_array_equal(infos[key][ended], expected["final_info"][key][ended])
    for key in end_keys:
        if key == "final_info":
            assert infos[key].keys() == expected[key].keys()
            for name in infos[key]:
                np.testing.assert_array_equal(infos[key][name], expected[key][name])
        elif key == "final_obs":
            assert infos[key].dtype == object
            for one, other in zip(infos[key], expected[key], strict=True):
                assert (one is None) == (other is None)
                np.testing.assert_array_equal(one, other)
        else:
            np.testing.assert_array_equal(infos[key], expected[key])


@pytest.mark.parametrize("env_id", METRICS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_batch_equals_single_environments(env_id, data):
    """Same seeds and actions: the same trajectories to the bit, over trial ends and partial resets."""
    num_envs = data.draw(st.integers(1, 9), label="num_envs")
    trial_length = data.draw(st.integers(1, 12), label="trial_length")
    seed = data.draw(st.integers(0, 2**32), label="seed")
    ours, theirs = make_pair(env_id, num_envs, trial_length=trial_length)
    ours.action_space.seed(data.draw(st.integers(0, 1000), label="action seed"))
    seeds = data.draw(st.sampled_from([seed, [seed + 7 * i for i in range(num_envs)]]), label="seeds")
    np.testing.assert_array_equal(ours.reset(seed=seeds)[0], theirs.reset(seed=seeds)[0])

    for _ in range(data.draw(st.integers(1, 3), label="rounds")):
        for _ in range(data.draw(st.integers(1, 2 * trial_length + 1), label="steps")):
            actions = ours.action_space.sample()
            assert_same_step(ours.step(actions), theirs.step(actions), METRICS[env_id])
        np.testing.assert_array_equal(ours.unwrapped.task, [env.unwrapped.task for env in theirs.envs])
        mask = np.array(data.draw(st.lists(st.booleans(), min_size=num_envs, max_size=num_envs), label="mask"))
        if mask.any():
            new_seed = data.draw(st.none() | st.integers(0, 100), label="new seed")
            one, _ = ours.reset(seed=new_seed, options={"reset_mask": mask.copy()})
            other, _ = theirs.reset(seed=new_seed, options={"reset_mask": mask.copy()})
            np.testing.assert_array_equal(one, other)


def test_trials_do_not_depend_on_the_size_of_the_batch(env_id):
    small, large = gym.make_vec(env_id, num_envs=2), gym.make_vec(env_id, num_envs=64)
    large.action_space.seed(3)
    small.reset(seed=10)
    large.reset(seed=8)
    for _ in range(120):
        actions = large.action_space.sample()
        one, other = small.step(actions[2:4]), large.step(actions)
        np.testing.assert_array_equal(one[0], other[0][2:4])
        np.testing.assert_array_equal(one[1], other[1][2:4])


def test_spaces_and_dtypes(env_id):
    envs = gym.make_vec(env_id, num_envs=4)
    envs.action_space.seed(0)
    observations, infos = envs.reset(seed=0)
    assert envs.observation_space == gym.vector.utils.batch_space(envs.single_observation_space, 4)
    assert envs.action_space == gym.vector.utils.batch_space(envs.single_action_space, 4)
    assert observations in envs.observation_space
    assert infos == {}
    for _ in range(110):
        observations, rewards, terminations, truncations, infos = envs.step(envs.action_space.sample())
        assert observations in envs.observation_space
        assert (rewards.shape, rewards.dtype) == ((4,), np.float64)
        assert (terminations.shape, terminations.dtype) == ((4,), np.bool_)
        assert (truncations.shape, truncations.dtype) == ((4,), np.bool_)
        assert not terminations.any()
        for key, dtype in METRICS[env_id].items():
            assert (infos[key].shape, infos[key].dtype) == ((4,), dtype)


def test_autoreset(env_id):
    envs = gym.make_vec(env_id, num_envs=5, trial_length=6)
    envs.action_space.seed(0)
    observations, _ = envs.reset(seed=2)
    assert (observations[:, -1] == 1.0).all()
    for t in range(1, 25):
        before = envs.unwrapped.task
        observations, _, _, truncations, infos = envs.step(envs.action_space.sample())
        assert (truncations == (t % 6 == 0)).all()
        assert (observations[:, -1] == (t % 6 == 0)).all()
        if t % 6:
            np.testing.assert_array_equal(before, envs.unwrapped.task)
            continue
        assert (before != envs.unwrapped.task).any()
        final = np.stack(infos["final_obs"])
        assert final in envs.observation_space
        assert (final[:, -1] == 0.0).all()


def test_returned_arrays_are_the_callers(env_id):
    """Writing into what was returned changes nothing in the environment, nor does a later step change it."""
    ours, theirs = make_pair(env_id, 3, trial_length=4)
    ours.action_space.seed(0)
    kept = []
    ours.reset(seed=0)[0][:] = 7.0
    theirs.reset(seed=0)
    for _ in range(9):
        actions = ours.action_space.sample()
        step = ours.step(actions)
        assert_same_step(step, theirs.step(actions), METRICS[env_id])
        kept.append((step, [array.copy() for array in step[:4]]))
        ours.unwrapped.task[:] = 0
    for step, copies in kept:
        for array, copy in zip(step[:4], copies, strict=True):
            np.testing.assert_array_equal(array, copy)
    mask = np.array([True, False, False])
    kept[-1][0][0][:] = 7.0
    observations, _ = ours.reset(options={"reset_mask": mask})
    expected, _ = theirs.reset(options={"reset_mask": mask.copy()})
    np.testing.assert_array_equal(observations, expected)


def test_partial_reset_leaves_the_others_alone(env_id):
    envs = gym.make_vec(env_id, num_envs=4, trial_length=5)
    envs.action_space.seed(0)
    envs.reset(seed=0)
    for _ in range(2):
        before = envs.step(envs.action_space.sample())[0]
    tasks = envs.unwrapped.task
    mask = np.array([False, True, False, True])
    options = {"reset_mask": mask}
    after, _ = envs.reset(options=options)
    assert options.keys() == {"reset_mask"}
    np.testing.assert_array_equal(after[~mask], before[~mask])
    np.testing.assert_array_equal(after[:, -1], mask)
    np.testing.assert_array_equal(envs.unwrapped.task[~mask], tasks[~mask])

    ends = []
    for _ in range(5):
        _, _, _, truncations, infos = envs.step(envs.action_space.sample())
        ends.append(truncations)
        if truncations.any():
            assert [observation is not None for observation in infos["final_obs"]] == list(truncations)
    np.testing.assert_array_equal(ends, [~mask & (t == 2) | mask & (t == 4) for t in range(5)])


def test_partial_reset_comes_after_a_full_one(env_id):
    envs = gym.make_vec(env_id, num_envs=2)
    with pytest.raises(ResetNeeded, match="reset_mask"):
        envs.reset(options={"reset_mask": np.array([True, False])})


def test_given_task_holds_until_the_next_reset(env_id):
    envs = gym.make_vec(env_id, num_envs=6, trial_length=3)
    envs.action_space.seed(0)
    envs.reset(seed=9)
    tasks = envs.unwrapped.task

    envs.reset(seed=0, options={"task": tasks})
    for _ in range(7):
        np.testing.assert_array_equal(envs.unwrapped.task, tasks)
        envs.step(envs.action_space.sample())
    mask = np.arange(6) < 2
    envs.reset(options={"task": tasks[3], "reset_mask": mask})  # one task for both
    for _ in range(7):
        np.testing.assert_array_equal(envs.unwrapped.task, np.where(mask[:, None], tasks[3], tasks))
        envs.step(envs.action_space.sample())
    envs.reset()
    assert (envs.unwrapped.task != np.where(mask[:, None], tasks[3], tasks)).any(axis=1).sum() >= 3


def test_given_task_leaves_the_other_chance_alone(env_id):
    """Giving the task that the seed draws anyway changes nothing, then or in later trials."""
    drawn, given_ = gym.make(env_id, trial_length=8).unwrapped, gym.make(env_id, trial_length=8).unwrapped
    drawn.action_space.seed(0)
    drawn.reset(seed=5)
    np.testing.assert_array_equal(drawn.reset(seed=5)[0], given_.reset(seed=5, options={"task": drawn.task})[0])
    for _ in range(2):
        np.testing.assert_array_equal(drawn.task, given_.task)
        for _ in range(8):
            action = drawn.action_space.sample()
            one, other = drawn.step(action), given_.step(action)
            np.testing.assert_array_equal(one[0], other[0])
            assert one[1:] == other[1:]
        drawn.reset()
        given_.reset()


def test_gymnasium_wrappers(env_id):
    envs = DictInfoToList(RecordEpisodeStatistics(gym.make_vec(env_id, num_envs=3, trial_length=4)))
    envs.action_space.seed(0)
    envs.reset(seed=0)
    total = np.zeros(3)
    for t in range(1, 9):
        _, rewards, _, _, infos = envs.step(envs.action_space.sample())
        lost = WRAPPER_LOSES_A_STEP and t > 4
        if t % 4 != 1 or not lost:
            total += rewards
        for i, info in enumerate(infos):
            assert METRICS[env_id].keys() <= info.keys()
            assert ("final_obs" in info) == ("episode" in info) == (t % 4 == 0)
            if t % 4 == 0:
                assert info["episode"]["l"] == 4 - lost
                assert info["episode"]["r"] == pytest.approx(total[i])
                assert info["final_info"].keys() == METRICS[env_id].keys()
                total[i] = 0.0


def test_a_batch_of_bandits_is_fast():
    """A loose bound, a tenth of what one quiet core does: machines are noisy."""
    envs = gym.make_vec("sb3_laplace/DirichletBandit-v0", num_envs=256)
    envs.reset(seed=0)
    actions = [envs.action_space.sample() for _ in range(100)]
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        for action in actions:
            envs.step(action)
        rates.append(100 * 256 / (time.perf_counter() - start))
    assert max(rates) >= 300_000
