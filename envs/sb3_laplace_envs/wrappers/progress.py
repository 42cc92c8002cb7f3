"""How far trials are: steps, episodes and their returns, and when a trial ends."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_laplace_envs.arguments import check_integer

NEXT_EPISODE, END_TRIAL = "next_episode", "end_trial"


class Progress:
    """Counts the steps and episodes of a batch of trials.

    :param num_envs: The number of environments
    :param n_episodes: Episodes after which a trial is truncated; None for no such limit
    :param trial_steps: Steps after which a trial is truncated; None for no such limit
    :param on_termination: What the termination of an episode does: "next_episode" starts the next one, "end_trial"
        terminates the trial
    :raises ValueError: An argument is not what is allowed, or there is no limit
    """

    def __init__(self, num_envs: int, n_episodes: int | None, trial_steps: int | None, on_termination: str) -> None:
        if n_episodes is None and trial_steps is None:
            raise ValueError("n_episodes or trial_steps must be given, got None for both: a trial has to end")
        self.n_episodes = None if n_episodes is None else check_integer("n_episodes", n_episodes, 1)
        self.trial_steps = None if trial_steps is None else check_integer("trial_steps", trial_steps, 1)
        if on_termination not in (NEXT_EPISODE, END_TRIAL):
            raise ValueError(f"on_termination must be {NEXT_EPISODE!r} or {END_TRIAL!r}, got {on_termination!r}")
        self._ends_on_termination = on_termination == END_TRIAL
        # An episode takes a step at least
        most = min(limit for limit in (self.n_episodes, self.trial_steps) if limit is not None)
        #: Steps taken in the trial, and episodes ended in it, (num_envs,)
        self.steps, self.episodes = np.zeros((2, num_envs), dtype=np.int64)
        self._returns = np.full((num_envs, most), np.nan)
        self._lengths = np.zeros((num_envs, most), dtype=np.int64)
        # Episodes that ended of themselves: all but one that the trial's end cut short
        self._ended = np.zeros(num_envs, dtype=np.int64)
        self._rows = np.arange(num_envs)

    def start(self, rows: NDArray[Any]) -> None:
        """Start a trial in some environments."""
        self.steps[rows] = self.episodes[rows] = self._ended[rows] = self._lengths[rows] = 0
        self._returns[rows] = np.nan
        self._returns[rows, 0] = 0.0

    def count(
        self, rewards: NDArray[np.float64], terminations: NDArray[np.bool_], truncations: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
        """Count a step of all environments.

        :param rewards: What it earned, (num_envs,)
        :param terminations: Where the environments' own episodes terminated, (num_envs,)
        :param truncations: Where they were truncated, (num_envs,)
        :return: Where the next episode of the trial has to start, where the trial terminated, where it was truncated
        """
        self.steps += 1
        self._returns[self._rows, self.episodes] += rewards
        self._lengths[self._rows, self.episodes] += 1
        ended = terminations | truncations
        self._ended += ended
        terminated = terminations.copy() if self._ends_on_termination else np.zeros_like(terminations)
        truncated = np.zeros_like(ended)
        if self.trial_steps is not None:
            truncated |= self.steps == self.trial_steps
        if self.n_episodes is not None:
            truncated |= ended & (self.episodes == self.n_episodes - 1)
        truncated &= ~terminated
        next_episode = ended & ~terminated & ~truncated
        if next_episode.any():
            self.episodes += next_episode
            rows = np.flatnonzero(next_episode)
            self._returns[rows, self.episodes[rows]] = 0.0
        return next_episode, terminated, truncated

    def report(self, rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """What the episodes of the trials were, one that the trial's end cut short included.

        :param rows: Some environments, (n,)
        :return: ``episode_returns`` (n, most episodes), NaN where there was none, ``episode_lengths``, 0 there, and
            ``episodes_ended`` (n,), how many were not cut short
        """
        return {
            "episode_returns": self._returns[rows],
            "episode_lengths": self._lengths[rows],
            "episodes_ended": self._ended[rows],
        }

    @property
    def trial_returns(self) -> NDArray[np.float64]:
        """The return of each trial so far, (num_envs,)."""
        return np.nansum(self._returns, axis=1)
