"""GymnasiumVecEnv and make_vec_env against SB3's own: DummyVecEnv over Monitor is the oracle."""

import csv
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space, create_empty_array
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common import env_util
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    is_vecenv_wrapped,
    sync_envs_normalization,
    unwrap_vec_normalize,
)

import sb3_laplace_envs  # noqa: F401 (registers the tasks)
from sb3_laplace.vec_env import GymnasiumVecEnv, make_vec_env
from sb3_laplace.vec_env.infos import unbatch, with_final_infos

TASKS = ("sb3_laplace/DirichletBandit-v0", "sb3_laplace/FourierRegression-v0", "sb3_laplace/GridNavigation-v0")
# What SB3's make_vec_env says of environments without images
pytestmark = pytest.mark.filterwarnings("ignore:.*not in the possible render_modes")
LOSSLESS = (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """Small networks only wait for more threads."""
    threads = th.get_num_threads()
    th.set_num_threads(1)
    yield
    th.set_num_threads(threads)


class ScriptedEnv(gym.Env):
    """
    Episodes of random length and kind of end, all of it from the seed and the actions.

    :param obs_kind: "box", "dict", "discrete" or "tuple"
    :param max_length: Longest episode
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, obs_kind: str = "box", max_length: int = 4, render_mode: str | None = None):
        box = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        image = spaces.Box(0, 255, (2, 2), np.uint8)
        self.observation_space = {
            "box": box,
            "dict": spaces.Dict({"vector": box, "image": image}),
            "discrete": spaces.Discrete(100),
            "tuple": spaces.Tuple((box, image)),
            "nested": spaces.Dict({"outer": spaces.Dict({"inner": box})}),
        }[obs_kind]
        self.action_space = spaces.Discrete(5)
        self.obs_kind, self.max_length, self.render_mode = obs_kind, max_length, render_mode
        self.offset = 0.0
        self.episodes = 0

    def _observe(self) -> Any:
        vector = (self.np_random.normal(size=3) + self.offset).astype(np.float32)
        vector[0] = self.t
        image = self.np_random.integers(0, 255, (2, 2), dtype=np.uint8)
        return {"box": vector, "dict": {"vector": vector, "image": image}, "discrete": int(image[0, 0]) % 100}[
            self.obs_kind
        ]

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.t = 0
        self.episodes += 1
        if options:
            self.offset = options["offset"]
        self.length = int(self.np_random.integers(1, self.max_length + 1))
        self.ends = self.np_random.choice(["terminated", "truncated", "both"])
        return self._observe(), {"start": float(self.np_random.normal()), "figure": -1000.0}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        self.t += 1
        over = self.t == self.length
        info = {"figure": float(self.np_random.normal()), "count": self.t, "nested": {"deep": self.t * 10}, "name": "x"}
        if self.t % 2:
            info["odd"] = 1.5
        if over:
            info["is_success"] = bool(self.length > 2)
            info["path"] = np.arange(3.0) + self.length
        reward = float(np.float32(self.np_random.normal() + 0.1 * int(action)))
        terminated, truncated = over and self.ends != "truncated", over and self.ends != "terminated"
        return self._observe(), reward, terminated, truncated, info

    def render(self) -> np.ndarray:
        return np.full((2, 2, 3), self.t, dtype=np.uint8)

    def scale(self, factor: float) -> float:
        return factor * self.max_length


class ScriptedVectorEnv(VectorEnv):
    """
    ScriptedEnvs as a batch that writes over its own buffers, its figures and final observations plain
    arrays: what a fast environment may do.
    """

    def __init__(self, num_envs: int, autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP, **kwargs: Any):
        self.envs_inside = [ScriptedEnv(**kwargs) for _ in range(num_envs)]
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": autoreset_mode}
        self.render_mode = kwargs.get("render_mode")
        self.single_observation_space = self.envs_inside[0].observation_space
        self.single_action_space = self.envs_inside[0].action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.buffer = create_empty_array(self.single_observation_space, num_envs)
        self.rewards = np.zeros(num_envs, dtype=np.float32)
        self.terminated, self.truncated = np.zeros((2, num_envs), dtype=bool)
        self.figure = np.zeros(num_envs)
        self.difficulty = np.arange(num_envs, dtype=np.float64)
        self.label = "hard"
        self._shares = [0] * num_envs

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool))
        own = {key: value for key, value in (options or {}).items() if key != "reset_mask"} or None
        for i in np.flatnonzero(mask):
            obs, info = self.envs_inside[i].reset(seed=None if seed is None else seed + int(i), options=own)
            self._write(i, obs)
            self.figure[i] = info["figure"]
        self.rewards[mask] = np.nan
        self.terminated[mask] = self.truncated[mask] = False
        return self.buffer, {"figure": self.figure}

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict]:
        assert self.action_space.contains(actions)
        for i, env in enumerate(self.envs_inside):
            obs, self.rewards[i], self.terminated[i], self.truncated[i], info = env.step(actions[i])
            self.figure[i] = info["figure"]
            self._write(i, obs)
        infos: dict[str, Any] = {"figure": self.figure}
        done = self.terminated | self.truncated
        if done.any() and self.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP:
            final = (
                {k: v.copy() for k, v in self.buffer.items()} if isinstance(self.buffer, dict) else self.buffer.copy()
            )
            infos |= {"final_obs": final, "_final_obs": done}
            for i in np.flatnonzero(done):
                self._write(i, self.envs_inside[i].reset()[0])
        return self.buffer, self.rewards, self.terminated, self.truncated, infos

    def _write(self, i: int, obs: Any) -> None:
        if isinstance(self.buffer, dict):
            for key, value in obs.items():
                self.buffer[key][i] = value
        else:
            self.buffer[i] = obs

    def render(self) -> tuple[np.ndarray, ...]:
        return tuple(env.render() for env in self.envs_inside)

    @property
    def shares(self) -> list[int]:
        """A property that returns a copy."""
        return list(self._shares)

    @shares.setter
    def shares(self, value: list[int]) -> None:
        self._shares = list(value)

    def weights(self, factor: float) -> np.ndarray:
        return factor * np.ones((self.num_envs, 2)) * self.difficulty[:, None]

    def version(self) -> str:
        return "v1"


def sync(n: int, mode: AutoresetMode = AutoresetMode.SAME_STEP, **kwargs: Any) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: ScriptedEnv(**kwargs) for _ in range(n)], autoreset_mode=mode)


def oracle(n: int, **kwargs: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: Monitor(ScriptedEnv(**kwargs)) for _ in range(n)])


def assert_equal(left: Any, right: Any) -> None:
    """Equal in structure, values and dtype (a numpy number equals Python's)."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_equal(left[key], right[key])
    else:
        left, right = np.asarray(left), np.asarray(right)
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def assert_same_run(expected: DummyVecEnv, actual: GymnasiumVecEnv, n_steps: int, actions_seed: int = 0) -> int:
    """Step both with the same actions and compare all that they have in common; return the number of episodes."""
    rng = np.random.default_rng(actions_seed)
    n_envs, n_episodes = expected.num_envs, 0
    sums: list[dict[str, float]] = [{} for _ in range(n_envs)]
    assert_equal(expected.reset(), actual.reset())
    for _ in range(n_steps):
        sample = expected.action_space.sample
        expected.action_space.seed(int(rng.integers(2**31)))
        actions = np.array([sample() for _ in range(n_envs)])
        obs, rewards, dones, infos = expected.step(actions)
        actual_obs, actual_rewards, actual_dones, actual_infos = actual.step(actions)
        assert_equal(obs, actual_obs)
        assert_equal(rewards, actual_rewards)
        assert_equal(dones, actual_dones)
        for i, (info, actual_info) in enumerate(zip(infos, actual_infos, strict=True)):
            for key, values in actual.step_infos.items():
                if key.startswith("_"):
                    continue
                assert actual.step_infos.get(f"_{key}", [True] * n_envs)[i] == (key in info)
                if isinstance(info.get(key), float | int):
                    assert values[i] == info[key]
                    sums[i][key] = sums[i].get(key, 0.0) + info[key]
                elif key == "nested":
                    assert values["deep"][i] == info[key]["deep"]
            if not dones[i]:
                assert actual_info == {}
                continue
            n_episodes += 1
            for key in info.keys() & actual_info.keys() - {"episode"}:
                assert_equal(info[key], actual_info[key])
            assert {"TimeLimit.truncated", "terminal_observation", "episode"} <= actual_info.keys()
            episode = dict(actual_info["episode"])
            assert episode.pop("r") == pytest.approx(info["episode"]["r"], abs=1e-6)
            assert episode.pop("l") == info["episode"]["l"]
            assert episode.pop("t") == pytest.approx(info["episode"]["t"], abs=5)
            assert {k: episode[k] for k in sums[i]} == pytest.approx(sums[i])
            assert not any(v for k, v in episode.items() if k not in sums[i])
            sums[i] = {}
    return n_episodes


# Against DummyVecEnv


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


# Observations, infos and figures


class ReusingEnv(ScriptedEnv):
    """Returns the same array at each step."""

    def _observe(self) -> Any:
        self.buffer = getattr(self, "buffer", np.zeros(3, dtype=np.float32))
        self.buffer[:] = super()._observe()
        return self.buffer


@pytest.mark.parametrize("mode", LOSSLESS)
@pytest.mark.parametrize("kind", ["box", "dict", "single"])
def test_nothing_returned_changes_later(mode: AutoresetMode, kind: str) -> None:
    """ScriptedVectorEnv returns the same buffers at each step."""
    env: VectorEnv
    if kind == "single":
        env = SyncVectorEnv([ReusingEnv] * 2, copy=False, autoreset_mode=mode)
    else:
        env = ScriptedVectorEnv(2, mode, obs_kind=kind)
    venv = GymnasiumVecEnv(env)
    venv.seed(0)
    kept = [(venv.reset(), np.zeros(2), np.zeros(2), [{}, {}])]
    snapshots = [repr(kept[0])]
    for _ in range(10):
        kept.append(venv.step(np.zeros(2)))
        snapshots.append(repr(kept[-1]))
    assert [repr(step) for step in kept] == snapshots


def test_types_are_those_of_sb3() -> None:
    venv = GymnasiumVecEnv(ScriptedVectorEnv(2, max_length=1))
    venv.reset()
    _, rewards, dones, infos = venv.step(np.zeros(2))
    assert (rewards.dtype, rewards.shape, dones.dtype, dones.shape) == (np.float32, (2,), bool, (2,))
    assert {type(infos[0]["episode"][key]) for key in ("r", "t", "figure")} == {float}
    assert type(infos[0]["episode"]["l"]) is int
    assert infos[0]["episode"]["r"] == round(float(rewards[0]), 6) != float(rewards[0])
    assert type(infos[0]["TimeLimit.truncated"]) is bool


def test_each_environment_has_a_dict_of_its_own() -> None:
    venv = GymnasiumVecEnv(ScriptedVectorEnv(2, max_length=100))
    venv.seed(0)
    venv.reset()
    *_, infos = venv.step(np.zeros(2))
    infos[0]["mine"] = 1
    *_, later = venv.step(np.zeros(2))
    assert infos[1] == {}
    assert later == [{}, {}]


def test_step_infos_are_the_steps_own() -> None:
    """Also where an environment ended, and reached through SB3's wrappers; a reset reports nothing of a step."""
    inner = GymnasiumVecEnv(sync(2, max_length=2))
    venv = VecNormalize(inner)
    venv.seed(0)
    venv.reset()
    assert venv.step_infos == {}
    n_ends = 0
    for _ in range(10):
        _, _, dones, infos = venv.step(np.zeros(2))
        assert (venv.step_infos["figure"] > -1000).all()
        assert not {"final_obs", "final_info", "_final_obs", "_final_info"} & venv.step_infos.keys()
        for i in np.flatnonzero(dones):
            n_ends += 1
            assert venv.step_infos["figure"][i] == infos[i]["figure"]
            assert venv.step_infos["nested"]["deep"][i] == infos[i]["nested"]["deep"] == 10 * infos[i]["count"]
        assert not venv.step_infos["_start"].any() if "start" in venv.step_infos else True
    assert n_ends > 5
    venv.reset()
    assert venv.step_infos == {}


def test_final_infos_of_another_shape_hold_for_the_ended_alone() -> None:
    done = np.array([True, False])
    merged = with_final_infos({"a": np.zeros((2, 3)), "_a": ~done}, {"a": np.ones((2, 2)), "_a": done}, done)
    assert unbatch(merged, np.arange(2), 2)[1] == {}
    assert_equal(unbatch(merged, np.arange(1), 2)[0], {"a": np.ones(2)})


def test_a_reset_starts_the_sums_again() -> None:
    venv = GymnasiumVecEnv(ScriptedVectorEnv(1, max_length=50))
    venv.seed(0)
    venv.reset()
    for _ in range(5):
        *_, dones, _ = venv.step(np.zeros(1))
        assert not dones.any()
    venv.reset()
    total, length = 0.0, 0
    while not dones.any():
        _, _, dones, infos = venv.step(np.zeros(1))
        total, length = total + venv.step_infos["figure"][0], length + 1
    assert infos[0]["episode"]["figure"] == pytest.approx(total)
    assert infos[0]["episode"]["l"] == length


def test_a_monitor_inside_keeps_its_statistics() -> None:
    """Rewards changed outside of a Monitor do not change what it reports, as in SB3."""

    def make() -> gym.Env:
        return gym.wrappers.TransformReward(Monitor(ScriptedEnv()), lambda reward: reward + 100)

    expected, actual = (
        DummyVecEnv([make]),
        GymnasiumVecEnv(SyncVectorEnv([make], autoreset_mode=AutoresetMode.SAME_STEP)),
    )
    expected.seed(0)
    actual.seed(0)
    assert assert_same_run(expected, actual, 20) > 4


# Seeds, options, attributes


def test_seeds_and_options_are_used_once() -> None:
    venv, twin = (GymnasiumVecEnv(sync(2)) for _ in range(2))
    venv.seed(3)
    first = venv.reset()
    assert not np.array_equal(first, venv.reset())
    venv.seed(3)
    venv.set_options({"offset": 1000.0})
    shifted = venv.reset()
    np.testing.assert_allclose(shifted[:, 1:], first[:, 1:] + 1000, rtol=1e-5)
    twin.seed(np.int64(3))  # type: ignore[arg-type]
    twin.set_options([{"offset": 1000.0}] * 2)
    np.testing.assert_array_equal(twin.reset(), shifted)
    assert venv._options == [{}, {}]
    with pytest.raises(ValueError, match="options of all have to be equal"):
        twin.set_options([{"offset": np.ones(2)}, {"offset": np.ones(2) + 1e-9}])


def test_without_a_seed_runs_differ() -> None:
    venvs = [GymnasiumVecEnv(sync(2)) for _ in range(2)]
    assert not np.array_equal(*(venv.reset() for venv in venvs))


@pytest.mark.parametrize("attr", ["max_length", "render_mode", "observation_space", "action_space"])
@pytest.mark.parametrize("indices", [None, 1, [2, 0]])
def test_get_attr_of_single_environments(attr: str, indices: Any) -> None:
    assert GymnasiumVecEnv(sync(3)).get_attr(attr, indices) == oracle(3).get_attr(attr, indices)


def test_attributes_and_methods_of_single_environments() -> None:
    venv = GymnasiumVecEnv(sync(3))
    assert venv.env_method("scale", 2, indices=[0, 1]) == [8, 8]
    venv.set_attr("max_length", 7, indices=1)
    assert venv.get_attr("max_length") == [4, 7, 4]
    venv.set_attr("max_length", [1, 2, 3])
    assert venv.get_attr("max_length") == [[1, 2, 3]] * 3  # like SB3, the value for each
    assert venv.has_attr("scale")
    assert not venv.has_attr("missing")
    with pytest.raises(AttributeError):
        venv.get_attr("missing")


class Passing(VectorWrapper):
    """A vector wrapper with an attribute of its own."""

    passing = True


def test_attributes_and_methods_of_a_batch() -> None:
    venv = GymnasiumVecEnv(Passing(ScriptedVectorEnv(3)))
    assert venv.get_attr("difficulty") == [0, 1, 2]
    assert venv.get_attr("difficulty", [2, 1]) == [2, 1]
    assert venv.get_attr("label", 0) == ["hard"]
    assert venv.get_attr("passing") == [True] * 3
    assert venv.get_attr("observation_space") == [venv.observation_space] * 3
    assert_equal(venv.env_method("weights", factor=2.0), [[0, 0], [2, 2], [4, 4.0]])
    assert venv.env_method("version") == ["v1"] * 3
    with pytest.raises(NotImplementedError, match=r"'weights' cannot be applied to \[0\] only"):
        venv.env_method("weights", 2.0, indices=0)

    venv.set_attr("difficulty", 9.0, indices=[1])
    assert venv.get_attr("difficulty") == [0, 9, 2]
    venv.set_attr("shares", 5, indices=2)
    assert venv.get_attr("shares") == [0, 0, 5]
    venv.set_attr("label", "easy")
    assert venv.get_attr("label") == ["easy"] * 3
    venv.set_attr("brand_new", 1)
    assert venv.env.unwrapped.brand_new == 1
    with pytest.raises(NotImplementedError, match="'label' cannot be applied"):
        venv.set_attr("label", "easy", indices=[0, 1])

    assert venv.has_attr("version")
    assert not venv.has_attr("missing")
    with pytest.raises(AttributeError):
        venv.env_method("missing")


def test_a_task_can_be_read_and_not_set() -> None:
    venv = make_vec_env(TASKS[0], 3, seed=0)
    venv.reset()
    assert_equal(np.stack(venv.get_attr("task")), venv.env.task)  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        venv.set_attr("task", 0.0)


def test_async_vector_env() -> None:
    venv = GymnasiumVecEnv(AsyncVectorEnv([ScriptedEnv] * 2, autoreset_mode=AutoresetMode.SAME_STEP))
    expected = oracle(2)
    for each in (venv, expected):
        each.seed(0)
    assert not venv.has_attr("missing")
    assert venv.has_attr("max_length")
    assert venv.env_method("scale", 2) == [8, 8]
    venv.set_attr("max_length", 2, indices=0)
    expected.env_method("set_wrapper_attr", "max_length", 2, indices=0)
    assert venv.get_attr("max_length") == [2, 4]
    with pytest.raises(NotImplementedError, match="cannot be applied"):
        venv.env_method("scale", 2, indices=0)
    assert assert_same_run(expected, venv, 10) > 4
    venv.close()


def test_render() -> None:
    venv, expected = GymnasiumVecEnv(ScriptedVectorEnv(4, render_mode="rgb_array")), oracle(4, render_mode="rgb_array")
    for each in (venv, expected):
        each.reset()
    assert venv.render_mode == "rgb_array"
    assert_equal(venv.render(), expected.render())
    assert GymnasiumVecEnv(ScriptedVectorEnv(2)).get_images() == [None, None]


def test_close() -> None:
    inner = ScriptedVectorEnv(2)
    GymnasiumVecEnv(inner).close()
    assert inner.closed


# Under SB3's wrappers, helpers and algorithms


@pytest.mark.parametrize(
    "wrap",
    [
        VecNormalize,
        VecCheckNan,
        lambda venv: VecFrameStack(venv, 3),
        pytest.param(VecMonitor, marks=pytest.mark.filterwarnings("ignore:The environment is already wrapped")),
    ],
)
@pytest.mark.parametrize("native", [True, False])
def test_sb3_wrappers(wrap: Any, native: bool) -> None:
    expected, actual = wrap(oracle(3)), wrap(GymnasiumVecEnv(ScriptedVectorEnv(3) if native else sync(3)))
    for venv in (expected, actual):
        venv.seed(4)
    assert_equal(expected.reset(), actual.reset())
    for k in range(20):
        obs, rewards, dones, infos = expected.step(np.full(3, k % 5))
        actual_obs, actual_rewards, actual_dones, actual_infos = actual.step(np.full(3, k % 5))
        np.testing.assert_allclose(obs, actual_obs, rtol=1e-5)
        np.testing.assert_allclose(rewards, actual_rewards, rtol=1e-5)
        assert_equal(dones, actual_dones)
        for i in np.flatnonzero(dones):
            np.testing.assert_allclose(
                infos[i]["terminal_observation"], actual_infos[i]["terminal_observation"], rtol=1e-5
            )
            for key in ("r", "l"):
                assert infos[i]["episode"][key] == pytest.approx(actual_infos[i]["episode"][key], abs=1e-5)


@pytest.mark.filterwarnings("ignore:.*resets an environment in the step after")
def test_frame_stack_over_next_step_starts_afresh() -> None:
    """Frames of an episode never reach into the next one, and a terminal observation is stacked once."""
    venv = VecFrameStack(GymnasiumVecEnv(sync(1, AutoresetMode.NEXT_STEP, obs_kind="dict", max_length=3)), 2)
    venv.seed(0)
    venv.reset()
    after_pseudo = False
    for _ in range(30):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            obs, _, dones, infos = venv.step(np.zeros(1))
        time = obs["vector"].reshape(2, 3)[:, 0]  # ScriptedEnv: the first number is the step
        if dones[0]:
            assert infos[0]["terminal_observation"]["vector"].shape == (6,)
            assert time[0] == 0  # what SB3 fills in before a first frame
        elif after_pseudo:
            np.testing.assert_array_equal(time, [0, 1])
        after_pseudo = dones[0] and "episode" not in infos[0]


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.filterwarnings("ignore:.*resets an environment in the step after")
def test_evaluate_policy(mode: AutoresetMode, n_envs: int) -> None:
    class Zero:
        def predict(self, obs: np.ndarray, **_: Any) -> tuple[np.ndarray, None]:
            return np.zeros(len(obs)), None

    expected, actual = oracle(n_envs), GymnasiumVecEnv(sync(n_envs, mode))
    for venv in (expected, actual):
        venv.seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = [evaluate_policy(Zero(), venv, 9, return_episode_rewards=True) for venv in (expected, actual)]  # type: ignore[arg-type]
    # NEXT_STEP spends steps on resets, so that the environments end their episodes in another order
    assert sorted(results[1][0]) == pytest.approx(sorted(results[0][0]), abs=1e-5)
    assert sorted(results[1][1]) == sorted(results[0][1])


def test_helpers_and_eval_callback(tmp_path: Any) -> None:
    def make() -> VecNormalize:
        return VecNormalize(make_vec_env(TASKS[0], 4, seed=1, env_kwargs={"trial_length": 5}))

    venv, eval_venv = make(), make()
    assert is_vecenv_wrapped(venv, VecNormalize)
    assert unwrap_vec_normalize(venv) is venv
    assert venv.env_is_wrapped(Monitor) == [True] * 4
    assert venv.env_is_wrapped(gym.wrappers.TimeLimit, indices=[0, 1]) == [False] * 2
    wrapped = SyncVectorEnv([lambda: gym.wrappers.TimeLimit(ScriptedEnv(), 3)], autoreset_mode=AutoresetMode.SAME_STEP)
    assert GymnasiumVecEnv(wrapped).env_is_wrapped(gym.wrappers.TimeLimit) == [True]

    model = PPO("MlpPolicy", venv, n_steps=16, batch_size=32, n_epochs=1)
    callback = EvalCallback(eval_venv, n_eval_episodes=6, eval_freq=16, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.learn(128, callback)
    assert len(callback.evaluations_results) == 0  # no log_path
    assert 0 <= callback.last_mean_reward <= 5
    sync_envs_normalization(venv, eval_venv)
    assert_equal(eval_venv.obs_rms.mean, venv.obs_rms.mean)
    venv.save(str(tmp_path / "normalize.pkl"))
    loaded = VecNormalize.load(str(tmp_path / "normalize.pkl"), make_vec_env(TASKS[0], 4))
    assert_equal(loaded.obs_rms.mean, venv.obs_rms.mean)


@pytest.mark.filterwarnings("ignore:.*resets an environment in the step after")
@pytest.mark.parametrize(
    "make", [lambda: CartPoleVectorEnv(4, max_episode_steps=20), lambda: gym.make_vec(TASKS[2], 4)]
)
@pytest.mark.parametrize("algorithm", [PPO, RecurrentPPO, DQN])
def test_algorithms_run(make: Any, algorithm: Any) -> None:
    policy = "MlpLstmPolicy" if algorithm is RecurrentPPO else "MlpPolicy"
    kwargs = {"learning_starts": 40, "train_freq": 8} if algorithm is DQN else {"n_steps": 32, "n_epochs": 2}
    model = algorithm(policy, GymnasiumVecEnv(make()), batch_size=32, seed=0, **kwargs)
    model.learn(512)
    assert model.num_timesteps >= 512
    assert len(model.ep_info_buffer) >= 4
    assert {"r", "l", "t"} <= model.ep_info_buffer[0].keys()


def test_ppo_gives_the_same_run_as_on_dummy_vec_env() -> None:
    weights = []
    for venv in (oracle(3), GymnasiumVecEnv(ScriptedVectorEnv(3))):
        model = PPO("MlpPolicy", venv, n_steps=16, batch_size=24, n_epochs=2, seed=0, device="cpu")
        model.learn(96)
        weights.append(model.policy.state_dict())
    for key, value in weights[0].items():
        np.testing.assert_allclose(value.numpy(), weights[1][key].numpy(), rtol=1e-5, atol=1e-7)


# Errors


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


# make_vec_env


@pytest.fixture
def registered() -> Any:
    """Ids of a batched environment, once as it is and once with what only single environments do."""

    def vector(num_envs: int, mode: AutoresetMode = AutoresetMode.SAME_STEP, max_length: int = 4) -> ScriptedVectorEnv:
        return ScriptedVectorEnv(num_envs, mode, max_length=max_length)

    def limited(num_envs: int, max_episode_steps: int, render_mode: str | None = None) -> ScriptedVectorEnv:
        return ScriptedVectorEnv(num_envs, max_length=max_episode_steps, render_mode=render_mode)

    ids = {
        "Batched-v0": {"vector_entry_point": vector},
        "Limited-v0": {"vector_entry_point": limited, "max_episode_steps": 2},
        "LimitLost-v0": {"vector_entry_point": vector, "max_episode_steps": 2},
        "Wrapped-v0": {
            "vector_entry_point": vector,
            "additional_wrappers": (gym.wrappers.TimeLimit.wrapper_spec(max_episode_steps=2),),
        },
        "NextStep-v0": {"vector_entry_point": lambda num_envs: ScriptedVectorEnv(num_envs, AutoresetMode.NEXT_STEP)},
    }
    for name, kwargs in ids.items():
        gym.register(name, entry_point=ScriptedEnv, **kwargs)  # type: ignore[arg-type]
    yield
    for name in ids:
        del gym.registry[name]


def test_make_vec_env_takes_the_batched_form(registered: None) -> None:
    for env_id, n_envs in ((TASKS[0], 1), (TASKS[1], 3), ("sb3_laplace_envs:" + TASKS[2], 2), ("Batched-v0", 2)):
        venv = make_vec_env(env_id, n_envs)
        assert isinstance(venv, GymnasiumVecEnv)
        assert venv.num_envs == n_envs
    venv = make_vec_env("Batched-v0", 2, env_kwargs={"max_length": 9, "mode": AutoresetMode.DISABLED})
    assert venv.get_attr("envs_inside")[0].max_length == 9
    venv = make_vec_env("Limited-v0", 2)
    assert isinstance(venv, GymnasiumVecEnv)
    assert venv.get_attr("envs_inside")[0].max_length == 2
    assert venv.render_mode == "rgb_array"  # as in SB3


@pytest.mark.parametrize("seed", [0, 12])
@pytest.mark.parametrize("start_index", [0, 2])
def test_make_vec_env_seeds_as_sb3(seed: int, start_index: int) -> None:
    actual, expected = (
        make(TASKS[0], 3, seed=seed, start_index=start_index) for make in (make_vec_env, env_util.make_vec_env)
    )
    assert isinstance(actual, GymnasiumVecEnv)
    assert [actual.action_space.sample() for _ in range(9)] == [expected.action_space.sample() for _ in range(9)]
    for venv in (actual, expected):
        venv.reset()
    assert_equal(np.stack(actual.get_attr("task")), np.stack(expected.env_method("get_wrapper_attr", "task")))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"wrapper_class": gym.wrappers.RecordEpisodeStatistics},
        {"vec_env_cls": SubprocVecEnv},
        {"vec_env_cls": DummyVecEnv},
        {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}},
        {"monitor_kwargs": {"info_keywords": ("regret",)}},
        {"env_kwargs": {"disable_env_checker": True}},
    ],
)
def test_make_vec_env_falls_back_for_what_only_single_environments_have(kwargs: dict[str, Any]) -> None:
    # With the module, as a worker process does not know what was imported here
    venv = make_vec_env(f"sb3_laplace_envs:{TASKS[0]}", 1, seed=0, **kwargs)
    assert type(venv) is kwargs.get("vec_env_cls", DummyVecEnv)
    venv.reset()
    venv.step(np.zeros(1, dtype=np.int64))
    if "wrapper_class" in kwargs:
        assert venv.env_is_wrapped(kwargs["wrapper_class"]) == [True]
    venv.close()


@pytest.mark.parametrize(
    "env_id", ["CartPole-v1", "Pendulum-v1", "LimitLost-v0", "Wrapped-v0", "NextStep-v0", ScriptedEnv]
)
def test_make_vec_env_falls_back_for_ids_without_a_lossless_batched_form(registered: None, env_id: Any) -> None:
    venv = make_vec_env(env_id, 2, seed=0)
    assert type(venv) is DummyVecEnv
    if env_id in ("LimitLost-v0", "Wrapped-v0"):
        assert venv.env_is_wrapped(gym.wrappers.TimeLimit) == [True] * 2


def test_make_vec_env_writes_a_monitor_file(tmp_path: Any) -> None:
    folder = tmp_path / "new"
    venv = make_vec_env(TASKS[0], 3, seed=0, start_index=4, monitor_dir=str(folder), env_kwargs={"trial_length": 5})
    assert isinstance(venv, GymnasiumVecEnv)
    venv.reset()
    returns = [info["episode"]["r"] for _ in range(10) for info in venv.step(np.zeros(3))[3] if "episode" in info]
    venv.close()
    assert venv._results_writer is not None
    assert venv._results_writer.file_handler.closed
    assert [path.name for path in folder.iterdir()] == ["4.monitor.csv"]
    header, *lines = (folder / "4.monitor.csv").read_text().splitlines()
    assert header.startswith("#{")
    assert TASKS[0] in header
    rows = list(csv.DictReader(lines))
    assert len(rows) == 6
    assert [float(row["r"]) for row in rows] == returns
    assert {row["l"] for row in rows} == {"5"}


def test_make_vec_env_imports_the_module_of_an_id(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_tasks.py").write_text(
        "import gymnasium as gym\n"
        "class Bandit(gym.vector.VectorEnv):\n"
        "    metadata = {'autoreset_mode': gym.vector.AutoresetMode.SAME_STEP}\n"
        "    single_observation_space = single_action_space = gym.spaces.Discrete(2)\n"
        "    def __init__(self, num_envs):\n"
        "        self.num_envs = num_envs\n"
        "gym.register('SomeTask-v0', vector_entry_point=Bandit)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert isinstance(make_vec_env("some_tasks:SomeTask-v0"), GymnasiumVecEnv)
    del gym.registry["SomeTask-v0"]


def test_make_vec_env_errors() -> None:
    with pytest.raises(ValueError, match="n_envs must be at least 1, got 0"):
        make_vec_env(TASKS[0], 0)
    with pytest.raises(gym.error.NameNotFound):
        make_vec_env("NoSuchEnvironment-v0")
    with pytest.raises(ModuleNotFoundError):
        make_vec_env("no_such_module:CartPole-v1")
    with pytest.raises(TypeError, match="start_method"):  # SB3's: DummyVecEnv takes none
        make_vec_env(TASKS[0], vec_env_kwargs={"start_method": "fork"})
    with pytest.raises(TypeError, match="no_such_argument"):
        make_vec_env(TASKS[0], env_kwargs={"no_such_argument": 1})
    with pytest.raises(ValueError, match="trial_length"):
        make_vec_env(TASKS[0], env_kwargs={"trial_length": 0})
