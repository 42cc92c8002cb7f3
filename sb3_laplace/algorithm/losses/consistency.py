"""Does the posterior of a rollout move as much as it claims to learn? What the coefficient of the KL follows.

Under a correct Bayesian update the posterior's mean is a martingale whose moves the shrinking covariance announces:
``E[(m_t - m_{t-1})(m_t - m_{t-1})^T] = E[Sigma_{t-1} - Sigma_t]``. Moves d_t, what they should be e_t: where the
environments report their task, both are taken in the linear read-out of the task, elsewhere in the latent.

Of several ranks' rollouts all count: ``Balance.log_ratios`` is called on all of them, and is the same on all.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_laplace.algorithm import distributed
from sb3_laplace.policies.types import Evaluation, SequenceRolloutBufferSamples
from sb3_laplace.posteriors import PosteriorStep
from sb3_laplace.posteriors.gaussian import Gaussian
from sb3_laplace.posteriors.statistics import posterior_statistics, to_float64
from sb3_laplace.readout import Readout, ReadoutMoments, TaskEncoder, moments_of

# Posteriors whose widths are looked at in a rollout: as many diagonal ones, or full ones, whose inverses cost
_MAX_DIAGONAL = 20_000
_MAX_FULL = 400
# How fast what earlier rollouts have shown is forgotten, at least
_DECAY = 0.8
# So many posteriors for each unit of the latent are enough for a read-out: earlier ones are of other weights, and from
# a mixture of weights the read-out comes out too small, and the ratio too large
_ENOUGH = 100
# Ratios are in [1 / this, this], and where a penalty is multiplied by them
_MAX_RATIO, _MAX_RATIO_OF_PENALTY = 1e3, 20.0
# A part of a trial that claims less a step than this, relative to the part that claims most, is taken to claim so much:
# its penalty must not drown everything else
_LEAST_CLAIM = 1e-4
# A rollout's posteriors of less claim than this, per step, claim to learn nothing
_NO_CLAIM = 1e-9


class LogRatios(NamedTuple):
    """Logarithms of moves over claims.

    :param whole: of the whole rollout
    :param parts: of each part of a trial that has a multiplier of its own, NaN of what was not seen; shape (parts,)
    """

    whole: float
    parts: np.ndarray


class Balance(ABC):
    """Moves and claims of the posteriors of a rollout, and a penalty on the moves.

    :param n_envs: number of environments
    :param n_steps: number of steps of a rollout
    :param seed: seed of the choice of posteriors
    """

    #: Name of the mean penalty in the log
    name: str
    #: Range of the coefficient
    least: float
    largest: float

    def __init__(self, n_envs: int, n_steps: int, seed: int | None) -> None:
        self._n_envs, self._n_steps = n_envs, n_steps
        # Its own generator: watching must not change what the agent does
        self._rng = np.random.default_rng(seed)

    @abstractmethod
    def begin(self) -> None:
        """Forget the last rollout."""

    @abstractmethod
    def add(self, step: PosteriorStep, trial_steps: np.ndarray, tasks: np.ndarray | None) -> None:
        """Take in a step.

        :param step: the posteriors
        :param trial_steps: step within the trial, from 0 for its first, -1 where it does not count; shape (n_envs,)
        :param tasks: the tasks of the environments, shape (n_envs, ...)
        """

    @abstractmethod
    def log_ratios(self) -> LogRatios | None:
        """Logarithms of moves over claims in the rollout, None if nothing was claimed."""

    @abstractmethod
    def penalty(
        self, samples: SequenceRolloutBufferSamples, evaluation: Evaluation, multipliers: np.ndarray
    ) -> th.Tensor:
        """The penalty on the moves of a minibatch, shape (B,).

        :param samples: the minibatch
        :param evaluation: what the policy makes of it
        :param multipliers: what each part of a trial counts, shape (parts,)
        """

    def _choose(self, candidates: np.ndarray, step: PosteriorStep) -> np.ndarray:
        """Environments whose widths are looked at in a step, in all about as many as can be afforded in a rollout.

        :param candidates: indices of environments
        :param step: the posteriors
        """
        is_full = any(part.dim() > step.posterior.mean.dim() for part in step.posterior.tensors)
        share = (_MAX_FULL if is_full else _MAX_DIAGONAL) / (self._n_envs * self._n_steps)
        if share >= 1.0:
            return candidates
        # Their number is right on average, also where it is below one a step
        number = int(self._n_envs * share + self._rng.random())
        return np.sort(self._rng.permutation(candidates)[:number])


class LatentBalance(Balance):
    """In the latent itself, whitened by the precision before the step; the penalty is the KL."""

    name = "kl_loss"
    least, largest = 1e-6, 1.0

    def begin(self) -> None:
        self._pairs: list[tuple[Gaussian, Gaussian]] = []

    def add(self, step: PosteriorStep, trial_steps: np.ndarray, tasks: np.ndarray | None) -> None:
        # At a trial's first step there is a prior before it, which is no belief of the agent's
        chosen = self._choose(np.flatnonzero(trial_steps > 0), step)
        if chosen.size:
            self._pairs.append(_of(step, chosen))

    def log_ratios(self) -> LogRatios | None:
        merged = _merged(self._means_of_rollout())
        if merged is None:
            return None
        _, (moved, claimed) = merged
        if claimed < _NO_CLAIM:
            return None
        whole = np.log(max(moved / claimed, 1.0 / _MAX_RATIO))
        return LogRatios(float(whole), np.array([whole]))

    def _means_of_rollout(self) -> tuple[int, list[Any]]:
        """Number of this rank's pairs, and the means of moves and claims."""
        if not self._pairs:
            return 0, []
        posterior, previous = (to_float64(Gaussian.concatenate(parts)) for parts in zip(*self._pairs, strict=True))
        values = posterior_statistics(posterior, previous)
        moved = 2.0 * values["kl_mean"].mean().item() / posterior.dim
        return len(posterior.mean), [moved, values["expected_move"].mean().item()]

    def penalty(
        self, samples: SequenceRolloutBufferSamples, evaluation: Evaluation, multipliers: np.ndarray
    ) -> th.Tensor:
        return float(multipliers[0]) * evaluation.posterior.kl().reshape(-1)


class TaskBalance(Balance):
    """In the linear read-out of the task, part by part of the trial: its steps 1, 2 to 3, 4 to 7, 8 to 15 and so on.

    The read-out B is fitted to the rollout, and to earlier ones where it is short. d_t = |B (m_t - m_{t-1})|^2 and
    e_t = tr B (Sigma_{t-1} - Sigma_t) B^T are averaged over trials and the steps of a part. Each part's constraint is
    E d = E e, and its penalty r d_t / E e with r = E d / E e: late steps may move a hundred times as much as they claim
    where early ones move less, and no single multiplier can tell them apart. (With r, the violation itself, multipliers
    do not have to grow so far that they go on for long once the constraint is met.)
    """

    name = "consistency_loss"
    # Below, the penalty does nothing, and the way up should not take half of a training; above, it costs much more than
    # it brings where a mean cannot but waver
    least, largest = 1e-5, 0.03

    def __init__(self, n_envs: int, n_steps: int, seed: int | None) -> None:
        super().__init__(n_envs, n_steps, seed)
        self._encoder, self._moments = TaskEncoder(), ReadoutMoments()
        # By part of a trial: number of posteriors, moves, claims
        self._sums = np.zeros((3, 0))
        self._readout: Readout | None = None
        # E e of each part, and E d / E e
        self._claims, self._ratios = np.zeros(0), np.zeros(0)

    def begin(self) -> None:
        self._means: list[np.ndarray] = []
        self._tasks: list[np.ndarray] = []
        self._steps: list[np.ndarray] = []
        self._moves: list[np.ndarray] = []
        self._widths: list[tuple[Gaussian, Gaussian]] = []

    def add(self, step: PosteriorStep, trial_steps: np.ndarray, tasks: np.ndarray | None) -> None:
        counts = np.flatnonzero(trial_steps >= 0)
        if tasks is None or not counts.size:
            return
        means = step.posterior.mean.detach().cpu().numpy()
        is_all = counts.size == len(trial_steps)
        self._means.append(means if is_all else means[counts])
        self._tasks.append(tasks if is_all else tasks[counts])
        chosen = self._choose(np.flatnonzero(trial_steps > 0), step)
        if chosen.size:
            posterior, previous = _of(step, chosen)
            self._steps.append(trial_steps[chosen])
            self._moves.append((posterior.mean - previous.mean).detach().cpu().numpy())
            self._widths.append((posterior, previous))

    def log_ratios(self) -> LogRatios | None:
        self._agree_on_tasks()
        merged = _merged(self._moments_of_rollout())
        if merged is None:
            return None
        number, (inputs, products) = merged
        self._moments.decay = min(max(1.0 - number / (_ENOUGH * len(inputs)), 0.0), _DECAY)
        self._moments.add_moments(inputs, products)
        self._readout = self._moments.solve()
        sums = [of_rank for of_rank in distributed.gather(self._sums_of_rollout()) if of_rank is not None]
        if not sums:
            return None
        length = max(part.shape[1] for part in (self._sums, *sums))
        self._sums, *padded = (np.pad(part, ((0, 0), (0, length - part.shape[1]))) for part in (self._sums, *sums))
        self._sums = _DECAY * self._sums
        for part in padded:
            self._sums += part
        return self._ratios_of_sums()

    def _agree_on_tasks(self) -> None:
        """Have choices stand for the same columns on all ranks."""
        if distributed.size() == 1:
            return
        choices = self._encoder.distinct(np.concatenate(self._tasks)) if self._tasks else None
        for of_rank in distributed.gather(choices):
            if of_rank is not None:
                self._encoder.encode(of_rank)

    def _moments_of_rollout(self) -> tuple[int, list[Any]]:
        """Number of this rank's posteriors, and their moments with the tasks."""
        if not self._means:
            return 0, []
        means = np.concatenate(self._means)
        return len(means), [*moments_of(means, self._encoder.encode(np.concatenate(self._tasks)))]

    def _sums_of_rollout(self) -> np.ndarray | None:
        """By part of a trial: number, moves and claims of this rank's posteriors, shape (3, parts); None of none."""
        if not self._steps:
            return None
        assert self._readout is not None
        parts = _parts(th.as_tensor(np.concatenate(self._steps))).numpy()
        moved = np.square(np.concatenate(self._moves).astype(np.float64) @ self._readout.weights).sum(-1)
        posterior, previous = (to_float64(Gaussian.concatenate(each)) for each in zip(*self._widths, strict=True))
        claimed = self._width(previous) - self._width(posterior)
        return np.stack([np.bincount(parts, values) for values in (np.ones(len(parts)), moved, claimed)])

    def _ratios_of_sums(self) -> LogRatios | None:
        number, moved, claimed = self._sums
        known = number > 0.01
        mean_move, mean_claim = (
            np.divide(part, number, out=np.zeros_like(part), where=known) for part in (moved, claimed)
        )
        largest = mean_claim.max(initial=0.0)
        scale = float(np.sum(np.square(self._readout.weights))) if self._readout is not None else 0.0
        if largest <= _NO_CLAIM * max(scale, _NO_CLAIM):
            self._claims = self._ratios = np.zeros(0)
            return None
        self._claims = np.maximum(mean_claim, _LEAST_CLAIM * largest)
        ratios = np.clip(mean_move / self._claims, 1.0 / _MAX_RATIO, _MAX_RATIO)
        whole = np.clip(moved.sum() / (number * self._claims).sum(), 1.0 / _MAX_RATIO, _MAX_RATIO)
        self._ratios = np.where(known, np.clip(ratios, 1.0 / _MAX_RATIO_OF_PENALTY, _MAX_RATIO_OF_PENALTY), 1.0)
        return LogRatios(float(np.log(whole)), np.where(known, np.log(ratios), np.nan))

    def _width(self, gaussian: Gaussian) -> np.ndarray:
        assert self._readout is not None
        is_full = any(part.dim() > gaussian.mean.dim() for part in gaussian.tensors)
        return self._readout.variance((gaussian.covariance if is_full else gaussian.variance).cpu().numpy())

    def penalty(
        self, samples: SequenceRolloutBufferSamples, evaluation: Evaluation, multipliers: np.ndarray
    ) -> th.Tensor:
        moved = evaluation.posterior.moved
        if moved is None:
            raise ValueError(
                "kl_coef='auto' needs a posterior whose replay() returns what has moved (Replay.moved) where "
                "environments report their task. Give a number."
            )
        moves = moved().flatten(0, 1)
        if self._readout is None or not len(self._claims):
            return moves.sum(-1) * 0.0
        steps = samples.columns["trial_steps"]
        assert isinstance(steps, th.Tensor)
        of_parts = multipliers[: len(self._claims)] * self._ratios / self._claims
        weights = th.as_tensor(of_parts, dtype=moves.dtype, device=moves.device)
        # First steps, and those that do not count, have no weight; later ones than were looked at have the last part's
        parts = _parts(steps.clamp(min=1)).clamp(max=len(weights) - 1)
        readout = th.as_tensor(self._readout.weights, dtype=moves.dtype, device=moves.device)
        return (moves @ readout).square().sum(-1) * weights[parts] * (steps > 0)


def _of(step: PosteriorStep, chosen: np.ndarray) -> tuple[Gaussian, Gaussian]:
    """The posteriors of some environments after and before a step; of all, without a copy."""
    if len(chosen) == len(step.posterior.mean):
        return step.posterior, step.previous
    index = th.as_tensor(chosen, device=step.posterior.mean.device)
    return step.posterior[index], step.previous[index]


def _parts(steps: th.Tensor) -> th.Tensor:
    """Which part of a trial steps are in, from 0 for the step 1 on; the parts double in length."""
    return steps.log2().floor().long()


def _merged(of_rank: tuple[int, list[Any]]) -> tuple[int, list[Any]] | None:
    """Number and means over all ranks; None if there is nothing on any.

    :param of_rank: a number, and means of so many on this rank, each a number or an array
    """
    ranks = [(number, means) for number, means in distributed.gather(of_rank) if number > 0]
    if not ranks:
        return None
    total = sum(number for number, _ in ranks)
    return total, [
        sum(number / total * mean for (number, _), mean in zip(ranks, means, strict=True))
        for means in zip(*(means for _, means in ranks), strict=True)
    ]
