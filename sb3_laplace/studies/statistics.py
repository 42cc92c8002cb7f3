"""What scores of several seeds say: means and interquartile means, differences, probability of improvement.

Runs are drawn anew within each environment (a stratum), so that every resample has as many runs of each. The
intervals are the percentiles of the resampled statistic, as Agarwal et al. propose (Deep Reinforcement Learning at the
Edge of the Statistical Precipice, NeurIPS 2021, arXiv 2108.13264). With few seeds they are too narrow, as measured on
normal scores: 95% intervals of the mean hold the truth 75% of the time with 3 seeds, 85% with 5, 90% with 10; over four
environments 86% with 3 seeds, 92% with 5.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from sb3_laplace.evaluation.bootstrap import Estimate

#: Takes resampled strata, each of shape (n_resamples, n), to a statistic of shape (n_resamples,)
Statistic = Callable[..., np.ndarray]

_N_RESAMPLES = 2000
_LEVEL = 0.95


def mean(*strata: np.ndarray) -> np.ndarray:
    """Mean over the strata of the mean within each, which counts environments alike whatever their number of runs.

    :param strata: scores of each environment, each of shape (..., n)
    :return: shape (...)
    """
    return np.mean([stratum.mean(-1) for stratum in strata], axis=0)


def interquartile_mean(*strata: np.ndarray) -> np.ndarray:
    """Mean of the middle half of all runs. A quarter of their number is left out at each end, rounded down.

    :param strata: scores of each environment, each of shape (..., n)
    :return: shape (...)
    """
    scores = np.sort(np.concatenate(strata, axis=-1), axis=-1)
    n = scores.shape[-1]
    return scores[..., n // 4 : n - n // 4].mean(-1)


def estimate(statistic: Statistic, strata: Sequence[np.ndarray], seed: int = 0) -> Estimate:
    """A statistic of the runs of one agent, with its 95% stratified bootstrap interval.

    :param statistic: the statistic
    :param strata: scores of each environment, each of shape (n,) with one run at least
    :param seed: of the resampling
    :return: no interval (NaN) where every stratum has a single run
    """
    strata = [np.asarray(stratum, dtype=np.float64) for stratum in strata]
    value = float(statistic(*strata))
    if max(len(stratum) for stratum in strata) < 2:
        return Estimate(value, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    resampled = [stratum[rng.integers(len(stratum), size=(_N_RESAMPLES, len(stratum)))] for stratum in strata]
    low, high = np.quantile(statistic(*resampled), ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2))
    return Estimate(value, float(low), float(high))


def probability_of_improvement(
    agents: Sequence[np.ndarray], baselines: Sequence[np.ndarray], sign: int = 1, seed: int = 0
) -> Estimate:
    """Probability that a run of an agent is better than one of the baseline, ties counting one half.

    It is the mean over environments of the share of pairs of runs, with its 95% stratified bootstrap interval, for
    which agents and baselines are drawn independently.

    :param agents: scores of the agent in each environment, each of shape (n,)
    :param baselines: those of the baseline in the same environments, each of shape (m,)
    :param sign: 1 if more is better, -1 if less is
    :param seed: of the resampling
    """

    def share(*strata: np.ndarray) -> np.ndarray:
        pairs = zip(strata[: len(agents)], strata[len(agents) :], strict=True)
        return np.mean([_share_better(x, y) for x, y in pairs], axis=0)

    return estimate(share, [sign * np.asarray(one) for one in (*agents, *baselines)], seed)


def _share_better(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    difference = x[..., :, None] - y[..., None, :]
    return ((difference > 0) + 0.5 * (difference == 0)).mean((-1, -2))


def band(curves: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over runs of curves, and the ends of its 95% bootstrap interval at each point.

    :param curves: shape (n_runs, n_points); NaN where a run has nothing
    :param seed: of the resampling
    :return: mean, lower and upper end, each of shape (n_points,); NaN where no run has anything, and ends where one has
    """
    counts = np.isfinite(curves).sum(0)
    means, low, high = (np.full(curves.shape[1], math.nan) for _ in range(3))
    for point in np.flatnonzero(counts):
        values = curves[np.isfinite(curves[:, point]), point]
        means[point], low[point], high[point] = estimate(mean, [values], seed)
    return means, low, high
