"""Confidence intervals by a bootstrap over trials."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# Resampled indices held at a time
_CHUNK = 4_000_000


class Estimate(NamedTuple):
    """A number with its confidence interval, NaN where it does not exist.

    :param value: the estimate
    :param low: lower end of the interval
    :param high: upper end of the interval
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return "-"
        return f"{_text(self.value)} [{_text(self.low)}, {_text(self.high)}]"


def _text(number: float) -> str:
    return f"{number:,.0f}" if 1e3 <= abs(number) < 1e6 else f"{number:.3g}"


def bootstrap(
    columns: list[np.ndarray],
    statistic: Callable[..., np.ndarray],
    n_resamples: int = 1000,
    confidence_level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """A function of averages over trials, with the percentile interval of a bootstrap over the trials.

    :param columns: what to average, one number for each of n trials, each of shape (n,)
    :param statistic: takes the averages of the columns, each of shape (r,) for r resamples, and returns shape (r,)
    :param n_resamples: number of resamples
    :param confidence_level: of the interval
    :param seed: of the resampling; the same seed resamples the same trials, whatever the columns
    """
    table = np.stack(columns, axis=1)
    n = len(table)
    rng = np.random.default_rng(seed)
    averages = []
    chunk = max(1, _CHUNK // n)
    for first in range(0, n_resamples, chunk):
        size = min(chunk, n_resamples - first)
        # How often each trial is drawn in each resample: a count over (resample, trial) pairs
        pairs = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(pairs.ravel(), minlength=size * n).reshape(size, n)
        averages.append(counts @ table / n)
    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = statistic(*np.concatenate(averages).T)
        value = statistic(*table.mean(0, keepdims=True).T)[0]
    resampled = resampled[np.isfinite(resampled)]
    if not np.isfinite(value) or not resampled.size:
        return Estimate(math.nan, math.nan, math.nan)
    tail = (1.0 - confidence_level) / 2.0
    low, high = np.quantile(resampled, (tail, 1.0 - tail))
    return Estimate(float(value), float(low), float(high))
