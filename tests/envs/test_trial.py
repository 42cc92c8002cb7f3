"""Trials of a single environment: against trials played by hand, the ways of a task, what composes with them."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils import env_checker
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from hypothesis import given
from hypothesis import strategies as st

from sb3_laplace_envs import Trial
from tests.envs.trial_oracle import (
    ACTION_SPACES,
    OBSERVATION_SPACES,
    Anything,
    assert_same,
    by_hand,
    sample_task,
    set_task,
)

FIELDS = ("previous_action", "previous_reward", "episode_start", "trial_start", "step_number", "episode_number")
TASKS = {"sample_task": sample_task, "set_task": set_task}
BANDIT, GRID = "sb3_laplace/DirichletBandit-v0", "sb3_laplace/GridNavigation-v0"


def anything(observation_space="box", action_space="discrete", **kwargs):
    return Anything(OBSERVATION_SPACES[observation_space], ACTION_SPACES[action_space], **kwargs)


def play(env, seed=0, n_steps=60):
    """Views, rewards, ends and infos of trials one after another, with random actions of a fixed seed."""
    env.action_space.seed(0)
    played = [env.reset(seed=seed)]
    for _ in range(n_steps):
        played.append(env.step(env.action_space.sample()))
        if played[-1][2] or played[-1][3]:
            played.append(env.reset())
    return played


@given(data=st.data())
def test_equals_what_is_played_by_hand(data):
    observation_space = data.draw(st.sampled_from(sorted(OBSERVATION_SPACES)), label="observations")
    action_space = data.draw(st.sampled_from(sorted(ACTION_SPACES)), label="actions")
    limits = data.draw(st.sampled_from([(3, None), (None, 17), (2, 9), (9, 4), (1, 1)]), label="limits")
    ends_on_termination = data.draw(st.booleans(), label="ends on termination")
    switches = {name: data.draw(st.booleans(), label=name) for name in FIELDS}
    switches["step_number"] &= limits[1] is not None
    switches["episode_number"] &= limits[0] is not None
    reward_scale = data.draw(st.sampled_from([1.0, 0.1]), label="reward_scale")
    seed = data.draw(st.integers(0, 2**32), label="seed")
    trial = Trial(
        anything(observation_space, action_space),
        *limits,
        on_termination="end_trial" if ends_on_termination else "next_episode",
        reward_scale=reward_scale,
        **switches,
        **TASKS,
    )
    actions = []
    trial.action_space.seed(seed % 1000)
    expected = by_hand(
        anything(observation_space, action_space),
        seed,
        (actions[-1] for _ in itertools.count()),
        tuple(name for name in FIELDS if switches[name]),
        reward_scale,
        *limits,
        ends_on_termination,
    )
    result = trial.reset(seed=seed)
    assert_same(result, next(expected))
    for _ in range(60):
        actions.append(trial.action_space.sample())
        result = trial.step(actions[-1])
        assert_same(result, next(expected))
        assert result[0] in trial.observation_space
        if result[2] or result[3]:
            with pytest.raises(ResetNeeded, match="reset"):
                trial.step(actions[-1])
            result = trial.reset()
            assert_same(result, next(expected))
        assert result[0] in trial.observation_space


@pytest.mark.parametrize("observations", ["box", "double", "image", "discrete", "multi_binary", "dict"])
@pytest.mark.parametrize("actions", ["multi_discrete", "multi_binary", "box"])
def test_checkers_pass(observations, actions):
    from stable_baselines3.common.env_checker import check_env

    env = Trial(anything(observations, actions), n_episodes=2, trial_start=True, episode_number=True, **TASKS)
    env_checker.check_env(env, skip_render_check=True)
    check_env(env, warn=False)


def test_layout():
    env = Trial(anything("box", "discrete"), 2, **TASKS)
    assert env.observation_space.shape == (3 + 3 + 1 + 1,)
    env = Trial(anything("dict", "box"), 2, trial_start=True, previous_reward=False, **TASKS)
    assert list(env.observation_space) == sorted(["camera", "pose", "previous_action", "episode_start", "trial_start"])
    nothing = {"previous_action": False, "previous_reward": False, "episode_start": False}
    assert Trial(anything(), 2, **nothing, **TASKS).observation_space == anything().observation_space
    far = Trial(anything("image", "far"), 2, **TASKS).observation_space["previous_action"]
    assert far == spaces.Box(0.0, 2.0, (2,))
    # Without a limit of steps of its own, that of the episodes counts
    timed = Trial(gym.make("CartPole-v1", max_episode_steps=3), 2, step_number=True)
    timed.reset(seed=0)
    assert [timed.step(0)[0][-1] for _ in range(6)] == [np.float32(i / 6) for i in range(1, 7)]


class TestTheWaysOfATask:
    def test_garage_and_meta_world(self):
        class Env(Anything):
            told = ()

            def sample_tasks(self, n):
                return [self.np_random.uniform(size=2) for _ in range(n)]

            def set_task(self, task):
                self.told = (*self.told, task)

        def make():
            return Env(OBSERVATION_SPACES["box"], ACTION_SPACES["box"])

        env = Trial(make(), 2)
        played = play(env)
        assert_same(play(Trial(make(), 2)), played)
        reported = [step[-1]["task"] for step in played if "task" in step[-1]]
        assert len(reported) > 2
        assert len({task.tobytes() for task in reported}) == len(reported)
        assert_same(list(env.unwrapped.told)[: len(reported)], reported)
        assert_same(play(Trial(make(), 2), seed=1)[0][0], play(Trial(make(), 2), seed=1)[0][0])

        # Meta-World has set_task, and a list of tasks that are no arrays
        env = Trial(make(), 2, tasks=["door", "drawer"], task_order="cyclic")
        assert not any("task" in step[-1] for step in play(env))
        assert env.unwrapped.told[:4] == ("door", "drawer", "door", "drawer")

    @pytest.mark.parametrize("tells", [True, False])
    def test_varibad(self, tells):
        class Env(Anything):
            def reset_task(self, task=None):
                self.hidden = self.np_random.uniform(size=2) if task is None else task
                return None if tells else self.hidden

            if tells:

                def get_task(self):
                    return self.hidden

        env = Trial(Env(OBSERVATION_SPACES["box"], ACTION_SPACES["box"]), 2)
        played = play(env)
        tasks = [step[-1]["task"] for step in played if "task" in step[-1]]
        assert len({task.tobytes() for task in tasks}) == len(tasks) > 2
        chosen = Trial(env.env, 2, tasks=np.arange(6.0).reshape(3, 2))
        tasks = [step[-1]["task"].tolist() for step in play(chosen) if "task" in step[-1]]
        assert all(task in [[0, 1], [2, 3], [4, 5]] for task in tasks)

    def test_ours(self):
        env = Trial(gym.make(GRID, trial_length=4), n_episodes=3)
        env.reset(seed=2)
        tasks = []
        for _ in range(5):
            for t in range(12):
                np.testing.assert_array_equal(env.unwrapped.task, env.task)
                *_, truncated, info = env.step(t % 4)
                assert truncated == (t == 11)
            np.testing.assert_array_equal(info["task"], env.task)
            np.testing.assert_array_equal(info["episode_lengths"], [4, 4, 4])
            tasks.append(env.task)
            env.reset()
        assert len({task.tobytes() for task in tasks}) > 1
        env.reset(options={"task": np.array([3, 1])})
        for _ in range(12):
            np.testing.assert_array_equal(env.unwrapped.task, [3, 1])
            env.step(0)

    def test_episodes_of_one_task_differ(self):
        """A bandit's arms pay by new chance in each episode of a trial."""
        env = Trial(gym.make(BANDIT, trial_length=40), n_episodes=2)
        env.reset(seed=0, options={"task": np.full(5, 0.5)})
        rewards = [env.step(0)[1] for _ in range(80)]
        assert rewards[:40] != rewards[40:]

    def test_constructor_keywords(self):
        env = Trial(gym.make("CartPole-v1"), 1, task_kwargs={"sutton_barto_reward": [True, False]})
        rewards = set()
        for seed in range(8):
            env.reset(seed=seed)
            rewards.add(env.step(0)[1])
            assert env.get_wrapper_attr("_sutton_barto_reward") == (env.step(0)[1] == 0.0)
        assert rewards == {0.0, 1.0}
        drawn = Trial(gym.make("CartPole-v1"), 1, task_kwargs=lambda rng: {"sutton_barto_reward": rng.random() < 0.5})
        assert len({drawn.reset(seed=seed) and drawn.step(0)[1] for seed in range(8)}) == 2

    def test_constructor_keywords_leave_wrappers_where_they_are(self):
        wrapped = gym.wrappers.TransformReward(gym.make("CartPole-v1", max_episode_steps=3), lambda reward: reward + 7)
        env = Trial(wrapped, 2, task_kwargs={"sutton_barto_reward": [True, False]})
        specs, rewards = [], set()
        for seed in range(8):
            env.reset(seed=seed)
            steps = [env.step(0) for _ in range(6)]
            assert [step[3] for step in steps] == [False] * 5 + [True]
            assert env.env is wrapped
            rewards.add(steps[0][1])
            specs.append(env.unwrapped.spec)
        assert rewards == {7.0, 8.0}
        assert specs == [specs[0]] * 8

    def test_constructor_keywords_do_not_outlive_their_trial(self):
        draws = iter([{"sutton_barto_reward": True}, {}])
        env = Trial(gym.make("CartPole-v1"), 1, task_kwargs=lambda rng: next(draws))
        assert [env.reset(seed=0) and env.step(0)[1] for _ in range(2)] == [0.0, 1.0]

    def test_all_episodes_of_a_trial_have_the_task_that_is_drawn_beside_constructor_keywords(self):
        env = Trial(gym.make(BANDIT, trial_length=2), 3, task_kwargs={"concentration": [0.1, 5.0]})
        seen = set()
        for seed in range(6):
            env.reset(seed=seed)
            tasks = [env.unwrapped.task]
            for _ in range(5):
                env.step(0)
                tasks.append(env.unwrapped.task)
            assert len(np.unique(tasks, axis=0)) == 1
            seen.add((env.task["concentration"], tuple(tasks[0])))
        assert len(seen) == 6
        assert {concentration for concentration, _ in seen} == {0.1, 5.0}

    def test_held_seed(self):
        """Without anything else each episode of a trial is the same, those of the next trial are others."""
        env = Trial(anything("box", "box"), n_episodes=3, previous_action=False)
        first = {}
        observation, _ = env.reset(seed=3)
        for trial in range(3):
            first[trial] = [observation[:3]]
            ends = False
            while not ends:
                observation, _, _, ends, info = env.step(env.action_space.sample())
                if observation[-1] == 1.0:
                    first[trial].append(observation[:3])
            assert "task" not in info
            assert len(first[trial]) == 3
            assert_same(first[trial], [first[trial][0]] * 3)
            observation, _ = env.reset()
        assert len({episodes[0].tobytes() for episodes in first.values()}) == 3

    def test_seeds_as_tasks(self):
        env = Trial(anything("box", "box"), n_episodes=1, tasks=[7, 11], task_order="cyclic")
        starts = [observation[:3] for observation in (env.reset(seed=0)[0], env.reset()[0], env.reset()[0])]
        plain = anything("box", "box")
        assert_same(starts, [plain.reset(seed=seed)[0] for seed in (7, 11, 7)])

    def test_protocol_can_be_chosen(self):
        env = Trial(gym.make(BANDIT, trial_length=10), 2, task_protocol="seed")
        env.reset(seed=0)
        rewards = [env.step(1)[1] for _ in range(20)]
        assert rewards[:10] == rewards[10:]

    def test_fixed_tasks(self):
        tasks = np.arange(8.0).reshape(4, 2)
        env = Trial(anything(), 1, set_task=set_task, tasks=tasks, task_order="cyclic")
        played = [step[-1]["task"][0] for step in play(env) if "task" in step[-1]]
        assert played[:6] == [0, 2, 4, 6, 0, 2]
        env = Trial(anything(), 1, set_task=set_task, tasks=tasks)
        played = [step[-1]["task"][0] for step in play(env, n_steps=200) if "task" in step[-1]]
        assert set(played) == {0, 2, 4, 6}
        assert played[:4] != [0, 2, 4, 6]

    def test_named_callables(self):
        name = "tests.envs.trial_oracle"
        named = Trial(anything(), 2, sample_task=f"{name}:sample_task", set_task=f"{name}:set_task")
        assert_same(play(named), play(Trial(anything(), 2, **TASKS)))


class TestChance:
    def test_a_trial_does_not_depend_on_what_was_played_before(self):
        short, long = Trial(anything(), 2, **TASKS), Trial(anything(), 2, **TASKS)
        short.reset(seed=5)
        long.reset(seed=5)
        ends = False
        while not ends:
            *_, ends, _ = long.step(0)
        assert_same(short.reset(), long.reset())
        np.testing.assert_array_equal(short.task, long.task)

    def test_own_generator_is_used(self):
        one, other = Trial(anything(), 2, **TASKS), Trial(anything(), 2, **TASKS)
        one.unwrapped.np_random, other.unwrapped.np_random = np.random.default_rng(5), np.random.default_rng(5)
        assert_same(one.reset(), other.reset())
        np.testing.assert_array_equal(one.task, other.task)
        assert one.task.tobytes() != Trial(anything(), 2, **TASKS).task

    def test_unseeded_environments_differ(self):
        assert Trial(anything(), 2, **TASKS).reset()[0].tobytes() != Trial(anything(), 2, **TASKS).reset()[0].tobytes()

    def test_options_go_to_every_reset_of_the_trial(self):
        env = Trial(anything(), 4, **TASKS)
        _, info = env.reset(seed=0, options={"low": 1, "task": np.ones(2)})
        assert info["options"] == "{'low': 1}"
        seen, ends = [], False
        while not ends:
            np.testing.assert_array_equal(env.unwrapped.hidden, [1.0, 1.0])
            *_, ends, info = env.step(0)
            seen += [info["options"]] if "options" in info else []
        assert seen == ["{'low': 1}"] * 3
        assert env.reset()[1]["options"] == "None"
        assert (env.task != 1.0).all()


class TestComposition:
    def test_time_limits(self):
        inside = Trial(TimeLimit(anything(), 3), n_episodes=2, **TASKS)
        *_, last = (step for step in play(inside, n_steps=6) if "episode_lengths" in step[-1])
        assert (last[-1]["episode_lengths"] <= 3).all()
        outside = TimeLimit(Trial(anything(), n_episodes=50, **TASKS), 5)
        ends = [i for i, step in enumerate(play(outside, n_steps=5)) if len(step) == 5 and step[3]]
        assert ends == [5]

    def test_statistics_inside_become_those_of_the_trial(self):
        from stable_baselines3.common.monitor import Monitor

        for wrapper in (Monitor, RecordEpisodeStatistics):
            env = Trial(wrapper(anything()), trial_steps=11, **TASKS)
            for step in play(env):
                assert ("episode" in step[-1]) == ("episode_returns" in step[-1])
                if "episode" in step[-1]:
                    assert step[-1]["episode"]["l"] == 11
                    assert step[-1]["episode"]["r"] == pytest.approx(np.nansum(step[-1]["episode_returns"]), abs=1e-5)
        outside = RecordEpisodeStatistics(Trial(anything(), trial_steps=11, **TASKS))
        assert {step[-1]["episode"]["l"] for step in play(outside) if "episode" in step[-1]} == {11}

    @pytest.mark.parametrize("batch", [SyncVectorEnv, AsyncVectorEnv])
    def test_gymnasium_batches(self, batch):
        make = [lambda: Trial(anything("dict", "box"), n_episodes=2, **TASKS)] * 2
        envs = batch(make, autoreset_mode=AutoresetMode.SAME_STEP)
        singles = [make[0]() for _ in range(2)]
        envs.action_space.seed(0)
        observations, _ = envs.reset(seed=4)
        for i, single in enumerate(singles):
            assert_same({key: part[i] for key, part in observations.items()}, single.reset(seed=4 + i)[0])
        for _ in range(40):
            actions = envs.action_space.sample()
            observations, _, _, truncations, infos = envs.step(actions)
            for i, single in enumerate(singles):
                observation, _, _, truncated, info = single.step(actions[i])
                assert truncated == truncations[i]
                if truncated:
                    assert_same(infos["final_obs"][i], observation)
                    assert_same(infos["final_info"]["episode_returns"][i], info["episode_returns"])
                    observation, _ = single.reset()
                assert_same({key: part[i] for key, part in observations.items()}, observation)
        envs.close()

    def test_sb3(self):
        from stable_baselines3.common.env_util import make_vec_env
        from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

        env = make_vec_env(
            lambda: gym.make("CartPole-v1"), 3, seed=0, wrapper_class=Trial, wrapper_kwargs={"n_episodes": 2}
        )
        env = VecFrameStack(VecNormalize(env), 2)
        obs = env.reset()
        assert obs.shape == (3, 2 * 8)
        ends = []
        for _ in range(200):
            _, _, dones, infos = env.step([env.action_space.sample() for _ in range(3)])
            for done, info in zip(dones, infos, strict=True):
                assert done == ("episode" in info) == ("episode_returns" in info)
                if done:
                    ends.append(info)
                    assert info["TimeLimit.truncated"]
                    assert info["episode"]["r"] == info["episode_returns"].sum() == info["episode_lengths"].sum()
        assert len(ends) > 3

    def test_spec_makes_the_same_again(self):
        env = Trial(gym.make("CartPole-v1"), n_episodes=2, reward_scale=0.5)
        again = gym.make(env.spec)
        assert isinstance(again, Trial)
        assert_same(play(again), play(env))
