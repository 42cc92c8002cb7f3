"""The ids of continuous control: trials of several episodes, single and batched."""

import re
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import DependencyNotInstalled
from gymnasium.utils.env_checker import check_env

from sb3_laplace import GymnasiumVecEnv, LaplaceRecurrentPPO, make_vec_env
from sb3_laplace_envs import Trial
from tests.zoo_helpers import train

IDS = [f"sb3_laplace/{name}-v0" for name in ("PointRobot", "HalfCheetahVel", "HalfCheetahDir", "AntDir")]
LENGTHS = [(100, 3), (200, 2), (200, 2), (200, 2)]


@pytest.fixture(params=IDS)
def env_id(request: pytest.FixtureRequest) -> str:
    if "PointRobot" not in request.param:
        pytest.importorskip("mujoco")
    return str(request.param)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_gymnasium_finds_nothing_wrong(env_id: str) -> None:
    check_env(gym.make(env_id), skip_render_check=True)


@pytest.mark.parametrize("shown", [False, True])
def test_a_batch_plays_what_single_environments_play(env_id: str, shown: bool) -> None:
    kwargs = {"episode_length": 5, "task_in_observation": shown, "n_episodes": 2, "step_number": True}
    batch = gym.make_vec(env_id, num_envs=2, vectorization_mode="vector_entry_point", **kwargs)
    singles = [gym.make(env_id, **kwargs) for _ in range(2)]
    rng = np.random.default_rng(0)
    observations, _ = batch.reset(seed=3)
    for i, single in enumerate(singles):
        np.testing.assert_array_equal(single.reset(seed=3 + i)[0], observations[i])
    for step in range(10):
        actions = rng.uniform(-0.1, 0.1, batch.action_space.shape).astype(np.float32)
        observations, rewards, _, truncations, infos = batch.step(actions)
        for i, single in enumerate(singles):
            observation, reward, _, truncated, _ = single.step(actions[i])
            assert truncated == truncations[i] == (step == 9)
            np.testing.assert_array_equal(observation, infos["final_obs"][i] if truncated else observations[i])
            assert reward == rewards[i]


def test_the_task_is_shown_where_it_is_asked_for(env_id: str) -> None:
    hidden, oracle = gym.make(env_id), gym.make(env_id, task_in_observation=True)
    (shown, _), task = oracle.reset(seed=0), oracle.get_wrapper_attr("task")
    n = hidden.unwrapped.observation_space.shape[0]
    assert oracle.observation_space.shape[0] == hidden.observation_space.shape[0] + task.size
    np.testing.assert_array_equal(shown[n : n + task.size], task.ravel().astype(np.float32))


@pytest.mark.parametrize(("name", "lengths"), list(zip(IDS, LENGTHS, strict=True)))
def test_lengths(name: str, lengths: tuple[int, int]) -> None:
    if "PointRobot" not in name:
        pytest.importorskip("mujoco")
    env = gym.make(name)
    env.reset(seed=0)
    done = False
    while not done:
        *_, done, info = env.step(np.zeros(env.action_space.shape, dtype=np.float32))
    assert len(info["episode_returns"]) == info["episodes_ended"] == lengths[1]
    assert max(info["episode_lengths"]) == lengths[0]


def test_constructor_keywords_of_an_id() -> None:
    """Drawn anew for each trial, single and batched alike; the goal stays for all of its episodes."""
    kwargs = {"task_kwargs": {"sparse": [True, False]}, "episode_length": 3, "n_episodes": 2}
    venv = make_vec_env(IDS[0], n_envs=3, seed=4, env_kwargs=kwargs)
    assert isinstance(venv, GymnasiumVecEnv)
    singles = [gym.make(IDS[0], **kwargs) for _ in range(3)]
    observations = venv.reset()
    for i, single in enumerate(singles):
        np.testing.assert_array_equal(single.reset(seed=4 + i)[0], observations[i])
    rng, kinds = np.random.default_rng(0), set()
    for step in range(30):
        actions = rng.uniform(-1.0, 1.0, (3, 2)).astype(np.float32)
        observations, rewards, dones, infos = venv.step(actions)
        for i, single in enumerate(singles):
            goal, is_sparse = single.unwrapped.task, single.unwrapped.batch.sparse
            observation, reward, _, truncated, _ = single.step(actions[i])
            assert dones[i] == truncated == (step % 6 == 5)
            assert reward == pytest.approx(rewards[i])
            if truncated:
                np.testing.assert_array_equal(infos[i]["terminal_observation"], observation)
                observation, _ = single.reset()
            else:
                np.testing.assert_array_equal(single.unwrapped.task, goal)
            np.testing.assert_array_equal(observation, observations[i])
            kinds.add((is_sparse, reward == 0.0))
        assert single.spec.id == IDS[0]
    assert kinds == {(True, True), (False, False)}


class Registered(gym.Wrapper):
    """A wrapper that says nothing of how it was made, as SB3's Monitor."""


def test_constructor_keywords_of_ids_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """``gym.make`` says of the innermost environment that it is what the id makes."""

    def make(**kwargs: Any) -> gym.Env:
        return Trial(Registered(gym.make("CartPole-v1", max_episode_steps=4)), 2, **kwargs)

    monkeypatch.setitem(gym.registry, "OwnTrials-v0", EnvSpec("OwnTrials-v0", entry_point=make))
    env = gym.make("OwnTrials-v0", task_kwargs={"sutton_barto_reward": [True, False]})
    rewards = set()
    for seed in range(8):
        assert env.reset(seed=seed)[0].shape == (8,)
        rewards.add(env.step(0)[1])
    assert rewards == {0.0, 1.0}


@pytest.mark.parametrize("is_batch", [False, True])
def test_sparse_rewards_of_an_id(is_batch: bool) -> None:
    """Nothing on the way to a goal that is seven steps off, and what the distance leaves of 1 there."""
    actions = np.full((10, 2), np.sqrt(0.5), dtype=np.float32)
    actions[9:] = 0.0
    rewards = {}
    for sparse in (False, True):
        if is_batch:
            batch = gym.make_vec(IDS[0], 1, vectorization_mode="vector_entry_point", sparse=sparse)
            batch.reset(seed=0, options={"task": np.full((1, 2), np.sqrt(0.5))})
            rewards[sparse] = np.array([batch.step(action[np.newaxis])[1][0] for action in actions])
        else:
            env = gym.make(IDS[0], sparse=sparse)
            env.reset(seed=0, options={"task": np.full(2, np.sqrt(0.5))})
            rewards[sparse] = np.array([env.step(action)[1] for action in actions])
    distance = np.abs(1.0 - np.minimum(np.arange(1, 11), 9) / 10)
    np.testing.assert_allclose(rewards[False], -distance, atol=1e-6)
    # The eighth step comes to the edge of 0.2, where rounding decides
    np.testing.assert_array_equal(rewards[True][:7], 0.0)
    np.testing.assert_allclose(rewards[True][8:], 1.0 - distance[8:], atol=1e-6)


@pytest.mark.parametrize(("directions", "shape"), [("forward_backward", (1,)), ("circle", (2,))])
def test_directions_of_an_id(directions: str, shape: tuple[int, ...]) -> None:
    pytest.importorskip("mujoco")
    env = gym.make(IDS[3], directions=directions)
    tasks = []
    for seed in range(20):
        env.reset(seed=seed)
        tasks.append(env.get_wrapper_attr("task"))
    assert np.shape(tasks) == (20, *shape)
    np.testing.assert_allclose(np.linalg.norm(tasks, axis=1), 1.0, rtol=1e-12)
    assert len(np.unique(tasks, axis=0)) == (2 if directions == "forward_backward" else 20)
    venv = make_vec_env(IDS[3], n_envs=3, seed=0, env_kwargs={"directions": directions})
    venv.reset()
    assert np.shape(venv.get_attr("task")) == (3, *shape)
    venv.close()


@pytest.mark.parametrize("name", IDS[1:])
def test_ids_without_mujoco(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What to install is said by every way that an environment is made in."""
    monkeypatch.setitem(sys.modules, "mujoco", None)
    monkeypatch.delitem(sys.modules, "mujoco.rollout", raising=False)
    message = r"pip install 'sb3-laplace\[mujoco\]'"
    for make in (gym.make, lambda name: gym.make_vec(name, 2, vectorization_mode="vector_entry_point"), make_vec_env):
        with pytest.raises(DependencyNotInstalled, match=message):
            make(name)
    assert train("-n", 10, env=name) == 2
    assert re.search(message, capsys.readouterr().err)


def test_make_vec_env_takes_batches(env_id: str) -> None:
    assert make_vec_env(env_id, n_envs=2, seed=0).reset().shape[0] == 2


def test_an_agent_learns() -> None:
    env = make_vec_env(IDS[0], n_envs=4, seed=0, env_kwargs={"sparse": True, "episode_length": 5})
    model = LaplaceRecurrentPPO("LaplaceLstmPolicy", env, n_steps=15, batch_size=60, n_epochs=1, seed=0)
    assert model.learn(120).num_timesteps == 120
