"""Statistics of VecNormalize that all ranks have a part in."""

from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from sb3_laplace.algorithm import distributed


class Moments(NamedTuple):
    """Moments of what one rank has seen in a rollout.

    :param mean: shape of an observation, or () for returns
    :param variance: the same
    :param number: how many observations
    """

    mean: np.ndarray
    variance: np.ndarray
    number: float


class SharedNormalizer:
    """Keeps what each rank has added to the statistics since they were last merged.

    All ranks start from the statistics of rank 0. All must make one at the same time.

    :param env: the training environment's VecNormalize, None if it has none
    """

    def __init__(self, env: VecNormalize | None) -> None:
        self._statistics = [] if env is None else _statistics_of(env)
        self._merged = distributed.from_first(self._statistics)
        self._take_over()

    def added(self) -> list[Moments]:
        """Moments of what this rank has seen since the last merge, one for each of the statistics."""
        return [_difference(now, before) for now, before in zip(self._statistics, self._merged, strict=True)]

    def merge(self, added: list[list[Moments]]) -> None:
        """Add what all ranks have seen to the statistics as they were at the last merge.

        :param added: of each rank, in their order, what :meth:`added` returned
        """
        for of_rank in added:
            for statistics, moments in zip(self._merged, of_rank, strict=True):
                if moments.number > 0:
                    statistics.update_from_moments(*moments)
        self._take_over()

    def _take_over(self) -> None:
        self._merged = [statistics.copy() for statistics in self._merged]
        for own, merged in zip(self._statistics, self._merged, strict=True):
            own.mean, own.var, own.count = merged.mean.copy(), merged.var.copy(), merged.count


def _statistics_of(env: VecNormalize) -> list[RunningMeanStd]:
    observations: Any = env.obs_rms if env.norm_obs else {}
    parts = [observations[key] for key in sorted(observations)] if isinstance(observations, dict) else [observations]
    return [*parts, env.ret_rms]


def _difference(now: RunningMeanStd, before: RunningMeanStd) -> Moments:
    """Chan's formula of combined moments, solved for the second part."""
    number = now.count - before.count
    if number <= 0:
        return Moments(before.mean, before.var, 0.0)
    mean = before.mean + (now.mean - before.mean) * (now.count / number)
    between = np.square(mean - before.mean) * before.count * number / now.count
    squares = now.var * now.count - before.var * before.count - between
    return Moments(mean, np.maximum(squares / number, 0.0), float(number))
