"""Confidence intervals by a bootstrap over trials.

What the intervals are worth was measured on simulated experiments whose truth is known, at 95%:

- Averages and ratios of averages, over 30 trials: 94% for normal numbers, 92% for log-normal ones of standard
  deviation 1.3 (sigma 1), 89% and 83% where they are wilder still (sigma 1.5 and 2, a few trials outweigh all others).
  Over 100 trials: 96%, 94%, 91% and 87%. Where an interval misses, it mostly lies below the truth: the trials that
  would have raised it are too rare to have been played. Percentile intervals hold the wildest only 67% of the time.
- The root mean squared gap: 93% to 99%, from 30 trials on, and always 0 where that is the truth but for one case in
  a hundred.
"""

import math
from collections.abc import Iterator
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


_NOTHING = Estimate(math.nan, math.nan, math.nan)


class Bootstrap(NamedTuple):
    """A bootstrap over n independent trials.

    :param n_resamples: number of resamples
    :param confidence_level: of the intervals
    :param seed: of the resampling; the same seed resamples the same trials, whatever is averaged
    """

    n_resamples: int = 1000
    confidence_level: float = 0.95
    seed: int = 0

    def ratio(self, above: np.ndarray, below: np.ndarray | None = None) -> Estimate:
        """Ratio of two averages over trials, with the studentized interval (bootstrap-t).

        The distance of a resampled ratio from the ratio of all trials is measured in standard errors of that resample.
        So a resample that by chance lacks the few large trials is known to be unsure, and the interval reaches further
        on the side of the long tail than one of percentiles does.

        :param above: a number for each trial, shape (n,)
        :param below: the same of what it is divided by; None for 1, which makes the ratio an average
        """
        x = np.asarray(above, dtype=np.float64)
        y = np.ones_like(x) if below is None else np.asarray(below, dtype=np.float64)
        n = len(x)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = x.mean() / y.mean()
            if not np.isfinite(value):
                return _NOTHING
            # Residuals of the ratio: an average over a resample of their squares gives its standard error
            residuals = x - value * y
            table = np.stack((residuals, y, residuals**2, residuals * y, y**2), axis=1)
            moved, size, squares, products, below_squares = self._averages(table).T
            # The resample's ratio less that of all trials, and the squares of the resample's own residuals
            moved = moved / size
            variance = squares - 2.0 * moved * products + moved**2 * below_squares
            distances = moved / (np.sqrt(np.maximum(variance, 0.0) / n) / np.abs(size))
            error = np.sqrt(np.square(residuals).mean() / n) / abs(y.mean())
        # A resample of a single trial, n times, tells nothing about its error
        distances = distances[np.isfinite(distances)]
        if error == 0.0 or not distances.size:
            return Estimate(float(value), float(value), float(value))
        upper, lower = np.quantile(distances, (1.0 - self._tail, self._tail))
        return Estimate(float(value), float(value - upper * error), float(value - lower * error))

    def root_mean_square(self, gaps: np.ndarray, weights: np.ndarray) -> Estimate:
        """Weighted root mean square of true gaps of which noisy ones were measured.

        The square of a measured gap is on average that of the true one and the measurement's variance, so the
        variances are taken off, estimated from the differences between trials; a mean square below 0 counts as 0.
        Resampling adds the variances once more, and they are taken off the resampled ones twice.

        :param gaps: what each trial adds to the gap of each of B bins, times the bin's weight, shape (n, B)
        :param weights: what it adds to the bin's weight, shape (n, B); over all bins 1 for each trial
        """
        kept = weights.any(0)
        gaps, weights = gaps[:, kept], weights[:, kept]
        n, n_bins = gaps.shape
        bias = float((gaps.var(0, ddof=1) / n / weights.mean(0)).sum())
        averages = self._averages(np.concatenate((gaps, weights), axis=1))
        resampled_gaps, resampled_weights = averages[:, :n_bins], averages[:, n_bins:]
        # A bin that no resampled trial has been in has no gap
        squares = np.square(resampled_gaps) / np.where(resampled_weights > 0, resampled_weights, 1.0)
        low, high = np.quantile(squares.sum(1), (self._tail, 1.0 - self._tail)) - 2.0 * bias
        square = (np.square(gaps.mean(0)) / weights.mean(0)).sum() - bias
        if not np.isfinite(square):
            return _NOTHING
        return Estimate(*(math.sqrt(max(float(one), 0.0)) for one in (square, low, high)))

    @property
    def _tail(self) -> float:
        return (1.0 - self.confidence_level) / 2.0

    def _averages(self, table: np.ndarray) -> np.ndarray:
        """Averages of the columns over resampled trials.

        :param table: shape (n, m)
        :return: shape (n_resamples, m)
        """
        return np.concatenate([counts @ table / len(table) for counts in self._counts(len(table))])

    def _counts(self, n: int) -> Iterator[np.ndarray]:
        """How often each of n trials is drawn in each resample, a part of the resamples (., n) at a time."""
        rng = np.random.default_rng(self.seed)
        chunk = max(1, _CHUNK // n)
        for first in range(0, self.n_resamples, chunk):
            size = min(chunk, self.n_resamples - first)
            # A count over (resample, trial) pairs
            pairs = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
            yield np.bincount(pairs.ravel(), minlength=size * n).reshape(size, n)
