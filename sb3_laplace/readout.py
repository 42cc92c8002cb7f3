"""The linear read-out of the task from the latent: the part of a posterior that is a belief about the task.

A hidden state also holds what is no task, as the position of a grid agent: that part moves forever. Where the
environment reports its task, ``E[task | m_t] = B m_t + b`` finds the part that does not.

It is regressed on the means. Regressed on draws of the posterior it needs no ridge, but shrinks with the posterior's
width, and calls a belief overconfident that is several times wider than the exact one.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

# So many choices have a column each
_MAX_CHOICES = 256


class Readout(NamedTuple):
    """The map ``m -> B m + b``.

    :param weights: B^T, shape (D, P)
    :param bias: b, shape (P,)
    """

    weights: np.ndarray
    bias: np.ndarray

    def __call__(self, means: np.ndarray) -> np.ndarray:
        """The expected tasks, shape (..., P).

        :param means: means of the latent, shape (..., D)
        """
        return means @ self.weights + self.bias

    def variance(self, covariance: np.ndarray) -> np.ndarray:
        """``tr B Sigma B^T``, the total variance of the task as the posterior has it, shape (...,).

        :param covariance: the latent's marginal variances, shape (..., D), or its covariances, shape (..., D, D)
        """
        gram = self.weights @ self.weights.T
        if covariance.shape[-2:] == gram.shape and covariance.ndim > 2:
            return np.einsum("...ij,ij->...", covariance, gram)
        return covariance @ gram.diagonal()


def moments_of(means: np.ndarray, targets: np.ndarray, weight: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Second moments of the latent with a 1 beside it, (D + 1, D + 1), and its products with the tasks, (D + 1, P).

    :param means: means of the latent, shape (n, D), n at least 1
    :param targets: encoded tasks, shape (n, P)
    :param weight: how many observations the batch counts for: by default its average is one
    """
    inputs = np.concatenate([means.astype(np.float64), np.ones((len(means), 1))], axis=1)
    scale = weight / len(means)
    return scale * (inputs.T @ inputs), scale * (inputs.T @ targets)


class ReadoutMoments:
    """The moments of means and tasks that a read-out is solved from, by ridge regression.

    Attribute ``decay``: what the moments so far are multiplied by whenever there are new ones. 1 weighs all alike, less
    forgets those of earlier weights.
    """

    def __init__(self) -> None:
        self.decay = 1.0
        self._inputs: Any = 0.0
        self._products: Any = 0.0

    def add(self, means: np.ndarray, targets: np.ndarray, weight: float = 1.0) -> None:
        """Take in a batch.

        :param means: means of the latent, shape (n, D), n at least 1
        :param targets: encoded tasks, shape (n, P); later batches may have more columns, which were 0 before
        :param weight: how many observations the batch counts for: by default its average is one
        """
        self.add_moments(*moments_of(means, targets, weight))

    def add_moments(self, inputs: np.ndarray, products: np.ndarray) -> None:
        """Take in the moments of a batch, as :func:`moments_of` returns them.

        :param inputs: shape (D + 1, D + 1)
        :param products: shape (D + 1, P); later batches may have more columns, which were 0 before
        """
        if np.ndim(self._products):
            new = products.shape[1] - self._products.shape[1]
            self._products = np.pad(self._products, ((0, 0), (0, new)))
        self._inputs = self.decay * self._inputs + inputs
        self._products = self.decay * self._products + products

    def solve(self, ridge: float = 1e-4) -> Readout:
        """The read-out with the least squared error, and a penalty on its weights.

        :param ridge: the penalty relative to the average second moment of the latent's units
        """
        n_units = len(self._inputs) - 1
        penalty = ridge * np.trace(self._inputs[:-1, :-1]) / n_units + 1e-12
        # No penalty on the bias
        solution = np.linalg.solve(self._inputs + np.diag(np.append(np.full(n_units, penalty), 0.0)), self._products)
        return Readout(solution[:-1], solution[-1])


class TaskEncoder:
    """Tasks as vectors of numbers: those of real numbers as they are, choices as one-hot vectors.

    A task of whole numbers is one choice, however many numbers it has: the columns stand for the distinct tasks
    in the order in which they were first seen, so that there may be more of them later. Of more than 256 distinct
    ones the later are zero in all columns: none of those that have one.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[int, ...], int] = {}

    def encode(self, tasks: np.ndarray) -> np.ndarray:
        """Encode a batch of tasks, shape (n, P), float64.

        :param tasks: shape (n, ...)
        """
        flat = tasks.reshape(len(tasks), -1)
        if flat.dtype.kind not in "biu":
            return flat.astype(np.float64)
        distinct, index = _distinct(flat.astype(np.int64))
        columns = [self._column(tuple(row.tolist())) for row in distinct]
        # The row beyond the choices is that of all others
        one_hot = np.eye(len(self._seen) + 1, len(self._seen))
        return one_hot[np.asarray(columns)[index]]

    @staticmethod
    def distinct(tasks: np.ndarray) -> np.ndarray | None:
        """The distinct tasks of a batch, in order, shape (m, P); None for those of real numbers, which are no choices.

        :param tasks: shape (n, ...)
        """
        flat = tasks.reshape(len(tasks), -1)
        return np.unique(flat, axis=0) if flat.dtype.kind in "biu" else None

    def _column(self, task: tuple[int, ...]) -> int:
        if task not in self._seen and len(self._seen) >= _MAX_CHOICES:
            return -1
        return self._seen.setdefault(task, len(self._seen))


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows in order, and which of them each row is.

    As np.unique of rows, which compares them byte by byte, where each can be a number of its own: five times as fast.
    """
    least = rows.min(axis=0)
    sizes = [int(largest) - int(smallest) + 1 for largest, smallest in zip(rows.max(axis=0), least, strict=True)]
    if math.prod(sizes) > 2**62:
        distinct, index = np.unique(rows, axis=0, return_inverse=True)
        return distinct, index.reshape(-1)
    numbers = np.ravel_multi_index(tuple((rows - least).T), sizes)
    distinct, index = np.unique(numbers, return_inverse=True)
    return np.stack(np.unravel_index(distinct, sizes), axis=1) + least, index


def reported_tasks(env: VecEnv) -> np.ndarray | None:
    """The present tasks of all environments, shape (n_envs, ...), a copy; None where they report none.

    An environment reports its task by an attribute ``task``, a finite array of numbers of the same shape throughout.
    Where that is not what observations are linear in, as the phases of a sum of cosines, it may have another,
    ``task_descriptor``, in which a belief is rather to be read: this one then counts.

    :param env: the environments
    """
    descriptors = _numbers(env, "task_descriptor")
    return _numbers(env, "task") if descriptors is None else descriptors


def _numbers(env: VecEnv, name: str) -> np.ndarray | None:
    """An attribute of all environments, None where one lacks it or it is no finite array of numbers."""
    # Asked for an attribute that it lacks, the environment of a worker process would end it
    if not env.has_attr(name):
        return None
    try:
        tasks = np.stack([np.asarray(task) for task in env.get_attr(name)])
    except (AttributeError, TypeError, ValueError):
        return None
    if tasks.dtype.kind not in "biuf" or not tasks.size or not np.isfinite(tasks).all():
        return None
    return tasks
