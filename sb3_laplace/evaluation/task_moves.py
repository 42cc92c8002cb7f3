"""How far a belief about the task moves, and how far it claims to: in the linear read-out of the task."""

from typing import NamedTuple

import numpy as np
import torch as th

from sb3_laplace.posteriors.gaussian import DiagonalGaussian, Gaussian
from sb3_laplace.readout import Readout, ReadoutMoments, TaskEncoder

#: Why there is no read-out of the task
NO_TASK = "the environment reports no task"
ONE_TASK = "the task is the same in all trials"
NOT_READABLE = "no task can be read from the latent"
TOO_FEW = "too few trials were kept to fit a read-out of the task"
# Means and covariances kept, in bytes: beyond it every other trial's are forgotten
_MEMORY = 2**29
# Fewest trials that two read-outs are fitted to
_MIN_TRIALS = 4


class _Step(NamedTuple):
    """One step of n trials: which they are, where memory starts, means, packed covariances and tasks."""

    rows: np.ndarray
    starts: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    tasks: np.ndarray


class TaskMoves:
    """Keeps means, covariances and tasks of trials under way, and projects them on the read-out once they have ended.

    With the read-out ``E[task | m_t] = B m_t + b``, ``d_t = |B (m_t - m_{t-1})|^2`` and
    ``e_t = tr B (Sigma_{t-1} - Sigma_t) B^T``. Both are divided by the total variance of the tasks, so that they have
    no units. Two halves of the trials, drawn at random, have a read-out each, and each half is projected on that of the
    other: no trial is judged by what was fitted to it.

    B is known only at the end, so what it projects is kept in single precision, 4 D bytes of variances a step or
    2 D (D + 1) of full covariances. Whenever more than 512 MB are kept, a random half of the trials is forgotten:
    what remains is exact, and of fewer trials.

    :param n_trials: number of trials
    """

    def __init__(self, n_trials: int) -> None:
        # Neighbouring trials are of the same environment
        self._order = np.random.default_rng(0).permutation(n_trials)
        self._n_kept = n_trials
        self._n_bytes = 0
        self._steps: list[_Step] = []

    def keeps(self, rows: np.ndarray) -> np.ndarray:
        """Which of some trials are kept, shape (n,), bool.

        :param rows: the trials, shape (n,)
        """
        return self._order[rows] < self._n_kept

    def add(
        self, rows: np.ndarray, starts: np.ndarray, means: np.ndarray, covariances: np.ndarray, tasks: np.ndarray
    ) -> None:
        """Keep the next step of some trials that are kept.

        :param rows: which ones, each once, shape (n,)
        :param starts: where memory starts afresh with the step, shape (n,), bool
        :param means: m_t, shape (n, D)
        :param covariances: Sigma_t as :func:`packed_covariance` has them, shape (n, D) or (n, D (D + 1) / 2)
        :param tasks: what the environments reported, shape (n, ...)
        """
        step = _Step(rows, starts, means.astype(np.float32), covariances.astype(np.float32), tasks)
        self._steps.append(step)
        self._n_bytes += sum(array.nbytes for array in step)
        while self._n_bytes > _MEMORY and self._n_kept > 1:
            self._n_kept = (self._n_kept + 1) // 2
            kept = [(one, self.keeps(one.rows)) for one in self._steps]
            self._steps = [_Step(*(array[chosen] for array in one)) for one, chosen in kept if chosen.any()]
            self._n_bytes = sum(array.nbytes for one in self._steps for array in one)

    def result(self, n_steps: int) -> tuple[np.ndarray, np.ndarray, dict[str, float] | str]:
        """Fit the read-outs, and project.

        :param n_steps: length T of the arrays
        :return: d_t and e_t, each of shape (n_trials, T) and float32, NaN in trials that were forgotten and where
            memory starts afresh; and how well the read-outs do on the other half (``r2``, the share of the tasks'
            variance that they explain, of ``n_trials``), or why there is none, and all is NaN
        """
        n_trials = len(self._order)
        moved, claimed = (np.full((n_trials, n_steps), np.nan, dtype=np.float32) for _ in range(2))
        if not self._steps:
            return moved, claimed, NO_TASK
        n_kept = len(np.unique(np.concatenate([step.rows for step in self._steps])))
        if n_kept < _MIN_TRIALS:
            return moved, claimed, TOO_FEW
        # All choices get their columns before the first read-out is fitted
        encoder = TaskEncoder()
        for step in self._steps:
            encoder.encode(step.tasks)
        n_observed = sum(len(step.rows) for step in self._steps)
        mean = sum(encoder.encode(step.tasks).sum(0) for step in self._steps) / n_observed
        total = sum(float(np.square(encoder.encode(step.tasks) - mean).sum()) for step in self._steps) / n_observed
        if not total > 1e-12 * float(np.square(mean).sum()):
            return moved, claimed, ONE_TASK
        readouts = self._fit(encoder)
        if readouts is None:
            return moved, claimed, TOO_FEW
        grams = [_packed_gram(readout, self._steps[0].covariances.shape[1]) for readout in readouts]
        error = 0.0
        number = np.zeros(n_trials, dtype=np.int64)
        decoded, variance = np.zeros((n_trials, len(mean))), np.zeros(n_trials)
        for step in self._steps:
            rows, halves = step.rows, self._halves(step.rows)
            new_decoded, new_variance = np.empty((len(rows), len(mean))), np.empty(len(rows))
            for half, (readout, gram) in enumerate(zip(readouts, grams, strict=True)):
                other = halves != half
                new_decoded[other] = readout(step.means[other].astype(np.float64))
                new_variance[other] = step.covariances[other].astype(np.float64) @ gram
            error += float(np.square(encoder.encode(step.tasks) - new_decoded).sum())
            is_update = ~step.starts & (number[rows] > 0)
            moved[rows, number[rows]] = np.where(is_update, np.square(new_decoded - decoded[rows]).sum(1), np.nan)
            claimed[rows, number[rows]] = np.where(is_update, variance[rows] - new_variance, np.nan)
            decoded[rows], variance[rows] = new_decoded, new_variance
            number[rows] += 1
        r2 = 1.0 - error / n_observed / total
        if not r2 > 0.0:
            return np.full_like(moved, np.nan), np.full_like(claimed, np.nan), NOT_READABLE
        return moved / np.float32(total), claimed / np.float32(total), {"r2": round(r2, 4), "n_trials": n_kept}

    def _halves(self, rows: np.ndarray) -> np.ndarray:
        return self._order[rows] % 2

    def _fit(self, encoder: TaskEncoder) -> list[Readout] | None:
        """The read-out of each half, None if one has no trial."""
        moments = [ReadoutMoments(), ReadoutMoments()]
        is_empty = [True, True]
        for step in self._steps:
            halves, targets = self._halves(step.rows), encoder.encode(step.tasks)
            for half in range(2):
                chosen = halves == half
                if chosen.any():
                    moments[half].add(step.means[chosen], targets[chosen], weight=float(chosen.sum()))
                    is_empty[half] = False
        return None if any(is_empty) else [one.solve() for one in moments]


def packed_covariance(posterior: Gaussian, index: th.Tensor) -> np.ndarray:
    """The marginal variances of diagonal posteriors, shape (n, D), the upper triangles of others, (n, D (D + 1) / 2).

    :param posterior: a batch of posteriors
    :param index: which of them, shape (n,)
    """
    if isinstance(posterior, DiagonalGaussian):
        return posterior.variance[index].cpu().numpy()
    rows, columns = th.triu_indices(posterior.dim, posterior.dim, device=index.device)
    return posterior.covariance[index][:, rows, columns].cpu().numpy()


def _packed_gram(readout: Readout, size: int) -> np.ndarray:
    """What ``tr B Sigma B^T`` weighs the entries of a packed covariance by, shape (size,)."""
    gram = readout.weights @ readout.weights.T
    if size == len(gram):
        return gram.diagonal()
    rows, columns = np.triu_indices(len(gram))
    # Those off the diagonal are there twice
    return gram[rows, columns] * np.where(rows == columns, 1.0, 2.0)
