"""An environment of random, reproducible episodes: alone, as a batch, and in SB3's DummyVecEnv, the oracle."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space, create_empty_array
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_laplace.vec_env import GymnasiumVecEnv

#: The batched tasks, and the resets that lose no step
TASKS = ("sb3_laplace/DirichletBandit-v0", "sb3_laplace/FourierRegression-v0", "sb3_laplace/GridNavigation-v0")
LOSSLESS = (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)


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
