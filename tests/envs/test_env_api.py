"""What Gymnasium and Stable-Baselines3 demand of an environment, and how the tasks are registered."""

import copy
import importlib
import pickle
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils import env_checker

import sb3_laplace_envs


@pytest.fixture
def warnings_as_errors():
    """Make any warning an error, Gymnasium's too: its logger goes through ``warnings`` from level WARN on."""
    assert gym.logger.min_level <= gym.logger.WARN
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.usefixtures("warnings_as_errors")
class TestWithoutAWarning:
    def test_gymnasium_checker(self, single):
        env_checker.check_env(single)

    def test_sb3_checker(self, single):
        # Imported here, so that the other tests of the environments need neither SB3 nor torch.
        from stable_baselines3.common.env_checker import check_env

        check_env(single, skip_render_check=False)

    def test_the_checkers_would_warn(self):
        env = gym.make("sb3_laplace/FourierRegression-v0", action_scale=1.0).unwrapped
        with pytest.raises(UserWarning, match="normalized"):
            env_checker.check_env(env)

    def test_make_and_make_vec(self, env_id):
        env = gym.make(env_id, trial_length=7)
        env.reset(seed=0)
        steps = 0
        truncated = False
        while not truncated:
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            steps += 1
            assert not terminated
        assert steps == 7  # the environment's own doing: the id has no TimeLimit

        envs = gym.make_vec(env_id, num_envs=3, trial_length=7)
        assert isinstance(envs.unwrapped, sb3_laplace_envs.TrialVectorEnv)
        assert envs.num_envs == 3
        assert envs.metadata["autoreset_mode"] is gym.vector.AutoresetMode.SAME_STEP

    def test_importing_again(self):
        importlib.reload(sb3_laplace_envs)


def test_default_trial_lengths():
    lengths = {
        task: gym.make(f"sb3_laplace/{task}-v0").unwrapped.batch.trial_length
        for task in ("FourierRegression", "DirichletBandit", "GridNavigation")
    }
    assert lengths == {"FourierRegression": 50, "DirichletBandit": 50, "GridNavigation": 100}


def test_needs_neither_torch_nor_sb3():
    code = (
        "import sys, sb3_laplace_envs\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "unwanted = {'torch', 'stable_baselines3', 'sb3_contrib', 'sb3_laplace', 'scipy', 'pygame', 'mujoco'}\n"
        "assert not loaded & unwanted, loaded"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_step_before_reset_and_after_the_end(single, env_id):
    action = single.action_space.sample()
    with pytest.raises(ResetNeeded, match="reset"):
        single.step(action)
    with pytest.raises(ResetNeeded, match="reset"):
        gym.make_vec(env_id, num_envs=2).step(np.stack([action, action]))

    single.reset(seed=0)
    for _ in range(single.batch.trial_length):
        single.step(action)
    with pytest.raises(ResetNeeded, match="reset"):
        single.step(action)


def test_own_generator_is_used(env_id):
    one, other = gym.make(env_id).unwrapped, gym.make(env_id).unwrapped
    one.np_random, other.np_random = np.random.default_rng(5), np.random.default_rng(5)
    one.reset()
    other.reset()
    np.testing.assert_array_equal(one.task, other.task)

    one.reset()  # moves the generator on
    assert (one.task != other.task).any() or env_id.endswith("GridNavigation-v0")
    assert one.np_random.bit_generator.state != other.np_random.bit_generator.state


def test_generators_of_a_batch(env_id):
    envs = gym.make_vec(env_id, num_envs=3)
    envs.reset(seed=4)
    assert envs.unwrapped.np_random_seed == (4, 5, 6)
    assert len({generator.bit_generator.state["state"]["state"] for generator in envs.unwrapped.np_random}) == 3


def test_unseeded_environments_differ(env_id):
    tasks = set()
    for _ in range(2):
        envs = gym.make_vec(env_id, num_envs=20)
        envs.reset()
        tasks.add(envs.unwrapped.task.tobytes())
    assert len(tasks) == 2


def test_pickled_environment_goes_on_alike(single):
    single.reset(seed=1)
    single.action_space.seed(1)
    twin = pickle.loads(pickle.dumps(single))
    for _ in range(2):
        for _ in range(single.batch.trial_length):
            action = single.action_space.sample()
            ours, theirs = single.step(action), twin.step(action)
            np.testing.assert_array_equal(ours[0], theirs[0])
            assert ours[1:] == theirs[1:]
        np.testing.assert_array_equal(single.reset()[0], twin.reset()[0])


@pytest.mark.parametrize("steps_before", [7, 100])
def test_nothing_leaks_into_the_next_trial(env_id, steps_before):
    """A trial after another, whole or broken off, is that of a fresh environment with the same generator."""
    used, fresh = (gym.make(env_id, trial_length=100).unwrapped for _ in range(2))
    used.action_space.seed(0)
    used.reset(seed=0)
    for _ in range(steps_before):
        used.step(used.action_space.sample())
    fresh.np_random = copy.deepcopy(used.np_random)
    np.testing.assert_array_equal(used.reset()[0], fresh.reset()[0])
    for _ in range(100):
        action = used.action_space.sample()
        ours, theirs = used.step(action), fresh.step(action)
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1:] == theirs[1:]


def test_observation_layout(single):
    """Previous action, previous reward and flag stand at the end, zeros before the first action."""
    width = single.action_space.n if isinstance(single.action_space, gym.spaces.Discrete) else 1
    single.action_space.seed(0)
    for _ in range(2):
        observation, info = single.reset(seed=0)
        assert info == {}
        assert observation.dtype == np.float32
        np.testing.assert_array_equal(observation[-width - 2 :], [0.0] * (width + 1) + [1.0])
        for _ in range(5):
            action = single.action_space.sample()
            observation, reward, *_ = single.step(action)
            assert observation in single.observation_space
            encoded = np.eye(width)[action] if width > 1 else action
            np.testing.assert_array_equal(observation[-width - 2 : -2], encoded)
            assert observation[-2] == np.float32(reward)
            assert observation[-1] == 0.0
