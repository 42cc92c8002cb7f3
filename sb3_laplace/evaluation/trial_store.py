"""Arrays (n_trials, T) that a batch of environments fills, a number of trials fixed for each."""

from collections.abc import Mapping

import numpy as np

#: Longest trial that is recorded, in steps
MAX_STEPS = 100_000
#: Most memory that the arrays may take, in bytes
MAX_BYTES = 4 * 2**30


def check_size(n_steps: int, n_trials: int, n_columns: int) -> None:
    """Refuse trials that are too long to be recorded.

    :param n_steps: length of a trial, at least
    :param n_trials: number of trials
    :param n_columns: number of figures of each step
    :raises ValueError: saying what they would take
    """
    n_bytes = 4 * n_steps * n_trials * n_columns
    if n_steps > MAX_STEPS or n_bytes > MAX_BYTES:
        raise ValueError(
            f"Trials of {n_steps} steps or more are too long: to record {n_trials} of them takes at least "
            f"{n_bytes / 2**30:.2g} GiB. The limits are {MAX_STEPS} steps and {MAX_BYTES / 2**30:.0f} GiB: end trials "
            "earlier (gymnasium.wrappers.TimeLimit) or ask for fewer of them."
        )


class TrialStore:
    """Arrays (n_trials, T) that grow with the longest trial, filled by a batch of environments.

    :param n_trials: number of trials, shared out over the environments in advance
    :param n_envs: number of environments
    """

    def __init__(self, n_trials: int, n_envs: int) -> None:
        self.n_trials = n_trials
        self._targets = (n_trials + np.arange(n_envs)) // n_envs
        self._first_row = np.cumsum(self._targets) - self._targets
        self._played = np.zeros(n_envs, dtype=np.int64)
        self._step = np.zeros(n_envs, dtype=np.int64)
        self._capacity = 0
        self.lengths = np.zeros(n_trials, dtype=np.int64)
        self.complete = np.zeros(n_trials, dtype=bool)
        self.columns: dict[str, np.ndarray] = {}

    @property
    def active(self) -> np.ndarray:
        """Environments with trials left to play, shape (n_envs,)."""
        return self._played < self._targets

    @property
    def rows(self) -> np.ndarray:
        """The trial that each environment is in, shape (n_envs,); not to be used where it is not active."""
        return self._first_row + self._played

    def add(self, values: Mapping[str, np.ndarray]) -> None:
        """Store one step of all environments.

        :param values: arrays (n_envs,) by name
        :raises ValueError: if a trial gets too long
        """
        active = self.active
        rows, steps = self.rows[active], self._step[active]
        for name in values:
            if name not in self.columns:
                self.columns[name] = np.full((self.n_trials, self._capacity), np.nan, dtype=np.float32)
        if steps.max() >= self._capacity:
            self._grow()
        for name, array in values.items():
            self.columns[name][rows, steps] = array[active]
        self.lengths[rows] = steps + 1
        self._step += 1

    def _grow(self) -> None:
        check_size(self._capacity + 1, self.n_trials, len(self.columns))
        most = min(MAX_STEPS, MAX_BYTES // (4 * self.n_trials * len(self.columns)))
        self._capacity = min(max(64, 2 * self._capacity), most)
        for name, array in self.columns.items():
            grown = np.full((self.n_trials, self._capacity), np.nan, dtype=np.float32)
            grown[:, : array.shape[1]] = array
            self.columns[name] = grown

    def end(self, dones: np.ndarray, is_trial: np.ndarray) -> int:
        """Close the trials of the environments that are done.

        :param dones: shape (n_envs,)
        :param is_trial: False where what ended is not to be counted as a trial, shape (n_envs,)
        :return: number of trials that ended
        """
        ended = dones & self.active
        self.lengths[self.rows[ended & ~is_trial]] = 0
        counted = ended & is_trial
        self.complete[self.rows[counted]] = True
        self._played[counted] += 1
        self._step[dones] = 0
        return int(counted.sum())

    def at_first_step(self) -> np.ndarray:
        """Environments whose last stored step was the first of its trial, shape (n_envs,)."""
        return self._step == 1

    def result(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """``lengths``, ``complete`` and all columns, cut to what was recorded; and which rows that is."""
        kept = np.flatnonzero(self.lengths)
        longest = int(self.lengths.max())
        columns = {name: array[kept, :longest] for name, array in self.columns.items()}
        inside = np.arange(longest) < self.lengths[kept][:, None]
        for array in columns.values():
            # A step that was not counted as a trial may have left something
            array[~inside | ~np.isfinite(array)] = np.nan
        return {"lengths": self.lengths[kept], "complete": self.complete[kept], **columns}, kept
