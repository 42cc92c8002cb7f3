"""The ids of continuous control: trials of several episodes, single and batched."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from sb3_laplace import LaplaceRecurrentPPO, make_vec_env

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


def test_make_vec_env_takes_batches(env_id: str) -> None:
    assert make_vec_env(env_id, n_envs=2, seed=0).reset().shape[0] == 2


def test_an_agent_learns() -> None:
    env = make_vec_env(IDS[0], n_envs=4, seed=0, env_kwargs={"sparse": True, "episode_length": 5})
    model = LaplaceRecurrentPPO("LaplaceLstmPolicy", env, n_steps=15, batch_size=60, n_epochs=1, seed=0)
    assert model.learn(120).num_timesteps == 120
