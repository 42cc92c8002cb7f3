"""Arrays (n_trials, T) that are filled step by step while trials of unknown lengths are played."""

from collections.abc import Mapping

import numpy as np

#: Longest trial that is recorded, in steps
MAX_STEPS = 100_000
#: Most memory that the arrays may take, in bytes
MAX_BYTES = 4 * 2**30
# Steps that there is room for at first; doubled whenever a trial gets longer
_FIRST_CAPACITY = 64


def check_size(n_steps: int, n_trials: int, bytes_per_step: int) -> None:
    """Refuse trials that are too long to be recorded.

    :param n_steps: length of a trial, at least
    :param n_trials: number of trials
    :param bytes_per_step: what is recorded of each step takes
    :raises ValueError: saying what they would take
    """
    n_bytes = n_steps * n_trials * bytes_per_step
    if n_steps > MAX_STEPS or n_bytes > MAX_BYTES:
        raise ValueError(
            f"Trials of {n_steps} steps or more are too long: to record {n_trials} of them takes at least "
            f"{n_bytes / 2**30:.2g} GiB. The limits are {MAX_STEPS} steps and {MAX_BYTES / 2**30:.0f} GiB: end trials "
            "earlier (gymnasium.wrappers.TimeLimit) or ask for fewer of them."
        )


class TrialStore:
    """Arrays (n_trials, T) by name that grow with the longest trial; NaN where nothing was stored.

    :param n_trials: number of trials
    """

    def __init__(self, n_trials: int) -> None:
        self._n_trials = n_trials
        self._capacity = 0
        #: Number of steps stored of each trial, shape (n_trials,)
        self.lengths = np.zeros(n_trials, dtype=np.int64)
        self._columns: dict[str, np.ndarray] = {}

    def add(self, trials: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        """Store the next step of some trials.

        :param trials: which ones, each once, shape (n,)
        :param values: arrays (n,) by name, float32 or float64, in which they are stored. A name may be missing
            from some steps.
        :raises ValueError: if a trial gets too long to be recorded
        """
        if not trials.size:
            return
        steps = self.lengths[trials]
        new = {name: array.dtype for name, array in values.items() if name not in self._columns}
        grows = steps.max() >= self._capacity
        if new or grows:
            self._make_room(int(steps.max()) + 1, new, grows)
        for name, array in values.items():
            self._columns[name][trials, steps] = array
        self.lengths[trials] += 1

    def _make_room(self, n_steps: int, new: Mapping[str, np.dtype], grows: bool) -> None:
        """Add columns, and room for trials of at least ``n_steps`` steps."""
        dtypes = {**{name: array.dtype for name, array in self._columns.items()}, **new}
        bytes_per_step = sum(dtype.itemsize for dtype in dtypes.values())
        check_size(n_steps, self._n_trials, bytes_per_step)
        most = min(MAX_STEPS, MAX_BYTES // (self._n_trials * bytes_per_step))
        wanted = max(_FIRST_CAPACITY, 2 * self._capacity) if grows else self._capacity
        self._capacity = min(wanted, most)
        # Not grown, the room may have to shrink to what another column leaves: never below what is stored
        for name, dtype in dtypes.items():
            resized = np.full((self._n_trials, self._capacity), np.nan, dtype=dtype)
            if name in self._columns:
                stored = self._columns[name][:, : self._capacity]
                resized[:, : stored.shape[1]] = stored
            self._columns[name] = resized

    def result(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """All columns by name, of the trials with at least one step; and which trials these are, shape (n_kept,)."""
        kept = np.flatnonzero(self.lengths)
        longest = int(self.lengths.max())
        return {name: array[kept, :longest] for name, array in self._columns.items()}, kept
