"""GymnasiumVecEnv against SB3's own: DummyVecEnv over Monitor is the oracle."""

from typing import Any

import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common import env_util

from sb3_laplace.vec_env import GymnasiumVecEnv, make_vec_env
from tests.scripted_env import (
    LOSSLESS,
    TASKS,
    ScriptedEnv,
    ScriptedVectorEnv,
    assert_equal,
    assert_same_run,
    oracle,
    sync,
)

# What SB3's make_vec_env says of environments without images
pytestmark = pytest.mark.filterwarnings("ignore:.*not in the possible render_modes")


@settings(max_examples=25, deadline=None)
@given(
    n_envs=st.integers(1, 4),
    seed=st.integers(0, 2**20),
    max_length=st.integers(1, 5),
    mode=st.sampled_from(LOSSLESS),
    obs_kind=st.sampled_from(["box", "dict", "discrete"]),
    native=st.booleans(),
)
def test_same_as_dummy_vec_env(
    n_envs: int, seed: int, max_length: int, mode: AutoresetMode, obs_kind: str, native: bool
) -> None:
    kwargs: dict[str, Any] = {"obs_kind": obs_kind, "max_length": max_length}
    expected = oracle(n_envs, **kwargs)
    actual = GymnasiumVecEnv(ScriptedVectorEnv(n_envs, mode, **kwargs) if native else sync(n_envs, mode, **kwargs))
    assert expected.seed(seed) == actual.seed(seed)
    assert assert_same_run(expected, actual, 3 * max_length, seed) >= 3 * n_envs


@pytest.mark.parametrize("env_id", TASKS)
def test_tasks_same_as_dummy_vec_env(env_id: str) -> None:
    actual = make_vec_env(env_id, 3, seed=5, env_kwargs={"trial_length": 7})
    assert isinstance(actual, GymnasiumVecEnv)
    expected = env_util.make_vec_env(env_id, 3, seed=5, env_kwargs={"trial_length": 7})
    assert assert_same_run(expected, actual, 30) == 12
    assert actual.reset_infos == expected.reset_infos


@pytest.mark.parametrize("mode", LOSSLESS)
def test_the_infos_of_an_episode_end_are_those_of_dummy_vec_env(mode: AutoresetMode) -> None:
    expected, actual = oracle(3), GymnasiumVecEnv(sync(3, mode))
    for venv in (expected, actual):
        venv.seed(1)
        venv.reset()
    for _ in range(20):
        _, _, dones, infos = expected.step(np.zeros(3))
        _, _, _, actual_infos = actual.step(np.zeros(3))
        for i in np.flatnonzero(dones):
            for info in (infos[i], actual_infos[i]):
                info.pop("episode")
            assert_equal(infos[i], actual_infos[i])  # nested dicts, strings, arrays, is_success
            assert {"nested", "name", "path", "is_success"} <= infos[i].keys()
            for key in ("count", "figure", "is_success"):
                assert type(infos[i][key]) is type(actual_infos[i][key])
        assert expected.reset_infos == actual.reset_infos


@settings(max_examples=15, deadline=None)
@given(
    n_envs=st.integers(1, 3),
    seed=st.integers(0, 2**20),
    max_length=st.integers(1, 4),
    obs_kind=st.sampled_from(["box", "dict"]),
)
@pytest.mark.filterwarnings("ignore:.*resets an environment in the step after")
def test_next_step_is_dummy_vec_env_with_pseudo_episodes(
    n_envs: int, seed: int, max_length: int, obs_kind: str
) -> None:
    """Without its pseudo-episodes, each environment's transitions are those of a DummyVecEnv of its own."""
    kwargs: dict[str, Any] = {"obs_kind": obs_kind, "max_length": max_length}
    venv = GymnasiumVecEnv(sync(n_envs, AutoresetMode.NEXT_STEP, **kwargs))
    venv.seed(seed)
    obs = venv.reset()
    singles = [oracle(1, **kwargs) for _ in range(n_envs)]
    for i, single in enumerate(singles):
        single.seed(seed + i)
    expected_obs = [single.reset() for single in singles]
    rng = np.random.default_rng(seed)
    ended = np.zeros(n_envs, dtype=bool)

    def row(batch: Any, i: int) -> Any:
        return {key: value[i] for key, value in batch.items()} if isinstance(batch, dict) else batch[i]

    for _ in range(4 * max_length):
        actions = rng.integers(0, 5, n_envs)
        last_obs, (obs, rewards, dones, infos) = obs, venv.step(actions)
        for i, single in enumerate(singles):
            if ended[i]:  # the ignored step
                assert dones[i]
                assert rewards[i] == 0
                assert infos[i].keys() == {"terminal_observation", "TimeLimit.truncated"}
                assert infos[i]["TimeLimit.truncated"] is True
                assert_equal(infos[i]["terminal_observation"], row(last_obs, i))
                assert venv.reset_infos[i] == single.reset_infos[0]
                ended[i] = False
            else:
                expected_obs[i], expected_rewards, expected_dones, expected_infos = single.step(actions[i : i + 1])
                assert rewards[i] == expected_rewards[0]
                assert dones[i] == expected_dones[0]
                ended[i] = dones[i]
            if ended[i]:
                assert_equal(row(obs, i), infos[i]["terminal_observation"])
                assert_equal(expected_infos[0]["terminal_observation"], infos[i]["terminal_observation"])
                assert infos[i]["TimeLimit.truncated"] is expected_infos[0]["TimeLimit.truncated"]
                assert infos[i]["episode"]["r"] == pytest.approx(expected_infos[0]["episode"]["r"], abs=1e-6)
                assert infos[i]["episode"]["l"] == expected_infos[0]["episode"]["l"]
            else:
                assert_equal(row(obs, i), row(expected_obs[i], 0))


def test_cart_pole_vector_env() -> None:
    with pytest.warns(UserWarning, match="one ignored step per episode"):
        venv = GymnasiumVecEnv(CartPoleVectorEnv(2, max_episode_steps=3))
    venv.seed(0)
    venv.reset()
    record = []
    for _ in range(9):
        obs, rewards, dones, infos = venv.step(np.ones(2))
        record.append(
            (rewards[0], dones[0], infos[0].get("episode", {}).get("r"), infos[0].get("episode", {}).get("l"))
        )
        if infos[0].get("episode"):
            terminal = obs[0]
        elif dones[0]:
            np.testing.assert_array_equal(infos[0]["terminal_observation"], terminal)
            assert np.abs(obs[0]).max() <= 0.05  # a first observation
    episode = [(1, False, None, None), (1, False, None, None), (1, True, 3, 3), (0, True, None, None)]
    assert record == (episode * 3)[:9]


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"Expected a gymnasium.vector.VectorEnv, got .*ScriptedEnv"):
        GymnasiumVecEnv(ScriptedEnv())  # type: ignore[arg-type]
    untold = ScriptedVectorEnv(2)
    untold.metadata = {}
    with pytest.raises(ValueError, match="autoreset_mode"):
        GymnasiumVecEnv(untold)
    for obs_kind in ("tuple", "nested"):
        with pytest.raises(NotImplementedError, match="not supported"):
            GymnasiumVecEnv(sync(2, obs_kind=obs_kind))
