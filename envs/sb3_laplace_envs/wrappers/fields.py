"""What an agent sees of its trial beside the observation: previous action and reward, flags, numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_laplace_envs.arguments import check_positive

Block = NDArray[np.float32]


class TrialFields:
    """The fields that a trial adds to the observations of a batch, in a flat block (num_envs, width), float32.

    In this order, each where it is asked for:

    | field | content | on the first step of a trial |
    | --- | --- | --- |
    | previous_action | one-hot where actions are discrete (each part of a MultiDiscrete), as it is otherwise | 0 |
    | previous_reward | ``reward_scale`` times the last reward | 0 |
    | episode_start | 1 on the first step of an episode | 1 |
    | trial_start | 1 on the first step of a trial | 1 |
    | step_number | steps taken in the trial, divided by ``n_steps`` | 0 |
    | episode_number | episodes ended in the trial, divided by ``n_episodes`` | 0 |

    :param num_envs: The number of environments
    :param action_space: The actions of one environment: Discrete, MultiDiscrete, MultiBinary or bounded Box
    :param previous_action: Whether the previous action is shown
    :param previous_reward: Whether the previous reward is shown
    :param reward_scale: What the reward shown is multiplied by
    :param reward_range: The lowest and the highest reward, where they are known
    :param episode_start: Whether the first step of an episode is flagged
    :param trial_start: Whether the first step of a trial is flagged
    :param n_steps: How many steps are shown as 1; None does not show their number
    :param n_episodes: How many episodes are shown as 1; None does not show their number
    :raises ValueError: The action space is unbounded or none of these, or ``reward_scale`` is not positive
    """

    def __init__(
        self,
        num_envs: int,
        action_space: spaces.Space[Any],
        previous_action: bool = True,
        previous_reward: bool = True,
        reward_scale: float = 1.0,
        reward_range: tuple[float, float] = (-math.inf, math.inf),
        episode_start: bool = True,
        trial_start: bool = False,
        n_steps: int | None = None,
        n_episodes: int | None = None,
    ) -> None:
        encoding = _ActionEncoding(num_envs, action_space)
        self.reward_scale = check_positive("reward_scale", reward_scale)
        self._n_steps, self._n_episodes = n_steps, n_episodes
        low, high = (bound * self.reward_scale for bound in reward_range)
        fields = {
            "previous_action": encoding.space if previous_action else None,
            "previous_reward": spaces.Box(low, high, (1,)) if previous_reward else None,
            "episode_start": _unit_box() if episode_start else None,
            "trial_start": _unit_box() if trial_start else None,
            "step_number": _unit_box() if n_steps is not None else None,
            "episode_number": _unit_box() if n_episodes is not None else None,
        }
        #: The space of each field, (field width,)
        self.spaces: dict[str, spaces.Box] = {name: space for name, space in fields.items() if space is not None}
        #: Where in the block each field stands
        self.slices: dict[str, slice] = {}
        self.width = 0
        for name, space in self.spaces.items():
            self.slices[name] = slice(self.width, self.width + space.shape[0])
            self.width += space.shape[0]
        self._encoding = encoding if previous_action else None
        self._reward = self._column("previous_reward")
        self._step_number, self._episode_number = self._column("step_number"), self._column("episode_number")
        self._episode_start, self._trial_start = self._column("episode_start"), self._column("trial_start")

    def _column(self, name: str) -> int | None:
        return self.slices[name].start if name in self.slices else None

    @property
    def low(self) -> NDArray[np.float32]:
        """The lower bounds of the block, (width,)."""
        return np.concatenate([np.zeros(0, dtype=np.float32), *(space.low for space in self.spaces.values())])

    @property
    def high(self) -> NDArray[np.float32]:
        """The upper bounds of the block, (width,)."""
        return np.concatenate([np.zeros(0, dtype=np.float32), *(space.high for space in self.spaces.values())])

    def write_step(self, block: Block, actions: NDArray[Any], rewards: NDArray[np.float64]) -> None:
        """Write what was done and what came of it.

        :param block: Zeros, (num_envs, width)
        :param actions: The actions taken, one for each environment
        :param rewards: What they earned, (num_envs,)
        """
        if self._encoding is not None:
            self._encoding.write(block, actions)
        if self._reward is not None:
            block[:, self._reward] = rewards if self.reward_scale == 1.0 else self.reward_scale * rewards

    def write_episode_starts(self, block: Block, rows: NDArray[Any]) -> None:
        """Flag the first step of an episode within a trial in some environments."""
        if self._episode_start is not None:
            block[rows, self._episode_start] = 1.0

    def write_trial_starts(self, block: Block, rows: NDArray[Any]) -> None:
        """Write the first step of a trial for some environments: zeros and the flags, whatever was there before."""
        block[rows] = 0.0
        if self._trial_start is not None:
            block[rows, self._trial_start] = 1.0
        if self._episode_start is not None:
            block[rows, self._episode_start] = 1.0

    def write_numbers(self, block: Block, steps: NDArray[np.int64], episodes: NDArray[np.int64]) -> None:
        """Write how far the trials are.

        :param block: The block, (num_envs, width)
        :param steps: Steps taken in the trial, (num_envs,)
        :param episodes: Episodes ended in the trial, (num_envs,)
        """
        if self._step_number is not None and self._n_steps is not None:
            block[:, self._step_number] = np.minimum(steps / self._n_steps, 1.0)
        if self._episode_number is not None and self._n_episodes is not None:
            block[:, self._episode_number] = np.minimum(episodes / self._n_episodes, 1.0)


def _unit_box() -> spaces.Box:
    return spaces.Box(0.0, 1.0, (1,))


class _ActionEncoding:
    """How an action looks in an observation: one-hot where actions are discrete, flat otherwise."""

    def __init__(self, num_envs: int, action_space: spaces.Space[Any]) -> None:
        self._num_envs = num_envs
        self._offsets: NDArray[np.int64] | int | None = None  # added to discrete actions: their columns
        self._rows = np.arange(num_envs)
        if isinstance(action_space, spaces.Discrete):
            self.space = spaces.Box(0.0, 1.0, (int(action_space.n),))
            self._offsets = -int(action_space.start)
        elif isinstance(action_space, spaces.MultiDiscrete):
            sizes = action_space.nvec.ravel().astype(np.int64)
            self.space = spaces.Box(0.0, 1.0, (int(sizes.sum()),))
            self._offsets = np.cumsum(sizes) - sizes - action_space.start.ravel()
            self._rows = self._rows[:, np.newaxis]
        elif isinstance(action_space, spaces.MultiBinary):
            self.space = spaces.Box(0.0, 1.0, (int(np.prod(action_space.shape)),))
        elif isinstance(action_space, spaces.Box):
            if not action_space.is_bounded():
                raise ValueError(
                    f"env must have a bounded action space, got {action_space}: gymnasium.wrappers.RescaleAction or "
                    "TransformAction give it bounds"
                )
            # Before the first action zeros are shown, which the bounds must hold also where 0 is no action
            low, high = np.minimum(action_space.low, 0).ravel(), np.maximum(action_space.high, 0).ravel()
            self.space = spaces.Box(low.astype(np.float32), high.astype(np.float32))
        else:
            raise ValueError(
                "env must have an action space that is Discrete, MultiDiscrete, MultiBinary or a bounded Box, "
                f"got {action_space}"
            )
        self._width = self.space.shape[0]

    def write(self, block: Block, actions: NDArray[Any]) -> None:
        """Write actions into the first columns of the block, which hold zeros."""
        if self._offsets is None:
            block[:, : self._width] = actions.reshape(self._num_envs, self._width)
        elif isinstance(self._offsets, int):
            block[self._rows, actions + self._offsets if self._offsets else actions] = 1.0
        else:
            block[self._rows, actions.reshape(self._num_envs, -1) + self._offsets] = 1.0
