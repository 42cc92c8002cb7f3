"""Trials played by hand: an environment to make trials of, and a slow account of all that a trial shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

IMAGE = spaces.Box(0, 255, (4, 3, 2), np.uint8)
OBSERVATION_SPACES = {
    "box": spaces.Box(-1.0, 1.0, (3,)),
    "scalar": spaces.Box(-2.0, 5.0, ()),
    "double": spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
    "integers": spaces.Box(-3, 7, (2,), np.int64),
    "empty": spaces.Box(0.0, 1.0, (0,)),
    "image": IMAGE,
    "discrete": spaces.Discrete(5, start=-2),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(4),
    "dict": spaces.Dict({"camera": IMAGE, "pose": spaces.Box(-1.0, 1.0, (2,))}),
    "tuple": spaces.Tuple((spaces.Discrete(3), spaces.Box(0.0, 1.0, (2,)))),
}
ACTION_SPACES = {
    "discrete": spaces.Discrete(3, start=-1),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(3),
    "box": spaces.Box(-1.0, 2.0, (2,)),
    "far": spaces.Box(1.0, 2.0, (1, 2)),
}


class Anything(gym.Env):
    """Shows, rewards and ends at random, all by its own generator; rewards also depend on the hidden task."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, bonus: float = 0.0) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.hidden = np.zeros(2)
        self.bonus = bonus
        self.n_resets = 0

    def _show(self) -> Any:
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.n_resets += 1
        return self._show(), {
            "fresh": float(self.np_random.random()),
            "options": str(options or None),
            "reward": -99.0,
        }

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert action in self.action_space
        reward = float(self.np_random.normal() + self.hidden.sum() + self.bonus)
        terminated, truncated = bool(self.np_random.random() < 0.15), bool(self.np_random.random() < 0.1)
        return self._show(), reward, terminated, truncated, {"energy": reward**2, "note": "said", "reward": reward}


def sample_task(rng: np.random.Generator) -> np.ndarray:
    """A task of `Anything`."""
    return rng.uniform(-1.0, 1.0, 2)


def set_task(env: gym.Env, task: np.ndarray) -> None:
    """Tell `Anything` its task."""
    env.unwrapped.hidden = task


def encode(space: spaces.Space, action: Any) -> list[float]:
    """An action as Gymnasium flattens it, zeros for None."""
    if action is None:
        return [0.0] * spaces.flatdim(space)
    return spaces.flatten(space, action).astype(np.float64).tolist()


def view(space: spaces.Space, observation: Any, fields: dict[str, list[float]]) -> Any:
    """The agent's view of an observation with these fields."""
    if isinstance(space, spaces.Box) and space.dtype != np.uint8:
        numbers = [*np.asarray(observation).ravel().tolist(), *(x for field in fields.values() for x in field)]
        return np.array(numbers, dtype=np.float32)
    if isinstance(space, spaces.Dict):
        parts = dict(observation)
    elif isinstance(space, spaces.Tuple):
        parts = {f"observation_{i}": part for i, part in enumerate(observation)}
    else:
        parts = {"observation": observation}
    return {**parts, **{name: np.array(field, dtype=np.float32) for name, field in fields.items()}}


def by_hand(
    env: gym.Env,
    seed: int,
    actions: Iterator[Any],
    shown: tuple[str, ...],
    reward_scale: float = 1.0,
    n_episodes: int | None = None,
    trial_steps: int | None = None,
    ends_on_termination: bool = False,
) -> Iterator[tuple]:
    """What trials of an environment are, for ever, as long as there are actions.

    ``shown`` names the fields. Where a trial starts it is (view, info), then for each action
    (view, reward, terminated, truncated, info).
    """
    rng = np.random.default_rng(seed).spawn(1)[0]
    trial = 0
    while True:
        trial_seed = seed if trial == 0 else int(rng.integers(2**31))
        task = sample_task(rng)
        set_task(env, task)
        observation, info = env.reset(seed=trial_seed)
        steps, returns, lengths = 0, [0.0], [0]
        last_action, last_reward = None, 0.0
        starts_episode, ends = True, False
        step_result: tuple | None = None
        while True:
            fields = {
                "previous_action": encode(env.action_space, last_action),
                "previous_reward": [reward_scale * last_reward],
                "episode_start": [float(starts_episode)],
                "trial_start": [float(steps == 0)],
                "step_number": [steps / (trial_steps or 1)],
                "episode_number": [(len(returns) - 1) / (n_episodes or 1)],
            }
            seen = view(env.observation_space, observation, {name: fields[name] for name in shown})
            yield (seen, info) if step_result is None else (seen, *step_result, info)
            if ends:
                break
            last_action = next(actions)
            observation, last_reward, terminated, truncated, info = env.step(last_action)
            steps += 1
            returns[-1] += last_reward
            lengths[-1] += 1
            terminates = terminated and ends_on_termination
            out_of_episodes = (terminated or truncated) and len(returns) == n_episodes
            truncates = not terminates and (steps == trial_steps or out_of_episodes)
            ends = terminates or truncates
            starts_episode = (terminated or truncated) and not ends
            step_result = (last_reward, terminates, truncates)
            if ends:
                missing = min(limit for limit in (n_episodes, trial_steps) if limit is not None) - len(returns)
                info = {
                    **info,
                    "task": task,
                    "episode_returns": np.array(returns + [np.nan] * missing),
                    "episode_lengths": np.array(lengths + [0] * missing),
                    "episodes_ended": len(returns) - (not (terminated or truncated)),
                }
            elif starts_episode:
                observation, reset_info = env.reset()
                info = {**reset_info, **info}
                returns.append(0.0)
                lengths.append(0)
        trial += 1


def assert_same(one: Any, other: Any) -> None:
    """Two results are equal: arrays to the bit, with their dtypes; what is nested in tuples, lists and dicts too."""
    if isinstance(other, dict):
        assert one.keys() == other.keys()
        for key in other:
            assert_same(one[key], other[key])
    elif isinstance(other, tuple | list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(other, np.ndarray):
        assert (np.asarray(one).dtype, np.shape(one)) == (other.dtype, other.shape)
        np.testing.assert_array_equal(one, other)
    else:
        assert one == other
