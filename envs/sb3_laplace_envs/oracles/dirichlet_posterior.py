"""Mean and covariance of a bandit's arms whose probabilities are one draw of a Dirichlet distribution."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sb3_laplace_envs.arguments import check_array, check_integer, check_positive
from sb3_laplace_envs.oracles.base import Belief

# Both cut-offs below are exp(-36 y^10): 1 to machine precision for small y, and 0 at y = 1.
_CUTOFF_POWER = 10
# The step between exponential tilts. Between two of them, too little is lost to be seen.
_TILT_STEP = 8.0
# States evaluated at a time: what they need stays in the processor's cache.
_BLOCK = 64


class _Factors(NamedTuple):
    """The factors of the posterior for each distinct (tilt, successes, failures), at all frequencies."""

    row: NDArray[np.int64]
    """Which row belongs to an arm of a state, (N, n_arms)"""
    transform: NDArray[np.complex128]
    """Fourier transforms H of the tilted factors, (rows, n_frequencies)"""
    first: NDArray[np.complex128]
    """The same of p times the factor, divided by H"""
    second: NDArray[np.complex128]
    """The same of p^2 times the factor, divided by H"""


class DirichletPosterior:
    """The posterior of arms p ~ Dirichlet(concentration) after s successes and f failures of each arm.

    Its density on the simplex, the p >= 0 with sum 1, is the product over arms of the factors
    ``h_a(p_a) = p_a^(concentration + s_a - 1) (1 - p_a)^f_a``. Without failures that is a Dirichlet
    distribution; with failures it is no known one, as the factor (1 - p_a)^f_a is not conjugate to the sum.

    Integrals of such products over the simplex are convolutions at 1: ``(h_1 * ... * h_n)(1)``. With the Fourier
    transforms H_a that is ``1/(2 pi)`` times the integral of ``exp(i w) H_1(w) ... H_n(w)`` over w, and the moments
    follow with p_a h_a or p_a^2 h_a in the place of h_a. Four points make this fast and exact to about eight digits:

    - The singularity of h_a at 0 is the weight of a Gauss-Jacobi quadrature, in which the rest is smooth.
    - Only p_a <= 1 counts, so h_a may go on beyond 1. It does, and is cut off there smoothly. If it ended at 1, the
      convolution would have a kink exactly where it is wanted.
    - The convolution is smooth at 1, so high frequencies can be cut off smoothly too. It is zero outside of an
      interval, so the integral is a sum over equally spaced w.
    - ``exp(c (1 - sum of p))`` is 1 on the simplex. The product is multiplied by it, with the c that moves the bulk
      of the convolution to 1, so that the value there is no small difference of large numbers.

    :param n_arms: The number of arms, at least 2
    :param concentration: Of the prior
    :param max_pulls: The largest number of pulls in a state; costs grow in proportion
    """

    def __init__(self, n_arms: int, concentration: float, max_pulls: int) -> None:
        self.n_arms = check_integer("n_arms", n_arms, 2)
        self.concentration = check_positive("concentration", concentration)
        self.max_pulls = check_integer("max_pulls", max_pulls, 1)
        # The finest structure of a factor has about the size 1 / exponent.
        exponent = self.max_pulls + self.n_arms * self.concentration
        max_frequency = 300.0 + 7.0 * exponent
        beyond = min(0.2, 16.0 / exponent)
        n_nodes = math.ceil(max_frequency * (1.0 + beyond) / 4.0 + exponent / 2.0) + 60
        self._nodes, self._weights = gauss_jacobi(n_nodes, self.concentration - 1.0, 1.0 + beyond)
        self._weights *= _cutoff(np.maximum(self._nodes - 1.0, 0.0) / beyond)

        # The convolution is zero outside of 0 to n (1 + beyond). Repeated with this period it is unchanged at 1.
        period = max(self.n_arms * (1.0 + beyond) - 1.0, 1.0) + 2.0 * beyond
        frequencies = np.arange(0.0, max_frequency, 2.0 * np.pi / period)
        angles = np.outer(self._nodes, frequencies)
        self._fourier = np.concatenate([np.cos(angles), -np.sin(angles)], axis=1)
        self._sum = np.exp(1j * frequencies) * _cutoff(frequencies / max_frequency)
        self._sum[1:] *= 2.0  # negative frequencies
        self._tilts = np.arange(-self.max_pulls, exponent + _TILT_STEP, _TILT_STEP)

    def moments(self, successes: NDArray[np.int64], failures: NDArray[np.int64]) -> Belief:
        """Mean and covariance of the arms' probabilities.

        :param successes: (N, n_arms)
        :param failures: (N, n_arms)
        :return: (N, n_arms) and (N, n_arms, n_arms)
        :raises ValueError: Counts of another shape, negative ones, or more than ``max_pulls`` in a row
        """
        successes, failures = self._check_counts(successes, failures)
        states, inverse = np.unique(np.concatenate([successes, failures], axis=1), axis=0, return_inverse=True)
        factors = self._factors(*np.split(states, 2, axis=1))
        mean = np.empty((len(states), self.n_arms))
        covariance = np.empty((len(states), self.n_arms, self.n_arms))
        diagonal = np.arange(self.n_arms)
        for start in range(0, len(states), _BLOCK):
            block = slice(start, start + _BLOCK)
            rows = factors.row[block]
            product = factors.transform[rows].prod(axis=1) * self._sum
            product /= product.sum(axis=1, keepdims=True).real
            first = factors.first[rows]
            weighted = product[:, np.newaxis] * first
            mean[block] = weighted.sum(axis=2).real
            moments = (weighted @ first.swapaxes(1, 2)).real
            moments[:, diagonal, diagonal] = np.einsum("nf,naf->na", product, factors.second[rows]).real
            covariance[block] = moments - mean[block, :, np.newaxis] * mean[block, np.newaxis]
        inverse = inverse.ravel()
        return Belief(mean[inverse], covariance[inverse])

    def _check_counts(
        self, successes: NDArray[np.int64], failures: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        shape = (len(successes), self.n_arms)
        counts = [
            check_array(name, value, "iu", shape).astype(np.int64)
            for name, value in (("successes", successes), ("failures", failures))
        ]
        pulls = (counts[0] + counts[1]).sum(axis=1)
        if min(count.min(initial=0) for count in counts) < 0 or pulls.max(initial=0) > self.max_pulls:
            raise ValueError(
                f"successes and failures must be >= 0 and at most max_pulls = {self.max_pulls} in a row, "
                f"got {successes} and {failures}"
            )
        return counts[0], counts[1]

    def _factors(self, successes: NDArray[np.int64], failures: NDArray[np.int64]) -> _Factors:
        """Transform the factors, each distinct one once."""
        base = self.max_pulls + 1
        pairs, row = np.unique(successes * base + failures, return_inverse=True)
        row = row.reshape(successes.shape)
        powers = (pairs // base)[:, np.newaxis] * np.log(self._nodes)
        powers += (pairs % base)[:, np.newaxis] * np.log(np.abs(1.0 - self._nodes))
        tilt = self._choose_tilts(powers, row)

        keys, row = np.unique(row * len(self._tilts) + tilt[:, np.newaxis], return_inverse=True)
        pair, tilt = np.divmod(keys, len(self._tilts))
        values = powers[pair] - self._tilts[tilt][:, np.newaxis] * self._nodes
        values = self._weights * np.exp(values - values.max(axis=1, keepdims=True))
        values /= values.sum(axis=1, keepdims=True)
        beyond = self._nodes > 1.0
        values[:, beyond] *= np.where(pairs[pair] % base % 2, -1.0, 1.0)[:, np.newaxis]
        transforms = [self._transform(values * self._nodes**power) for power in range(3)]
        return _Factors(
            row.reshape(successes.shape), transforms[0], transforms[1] / transforms[0], transforms[2] / transforms[0]
        )

    def _choose_tilts(self, powers: NDArray[np.float64], row: NDArray[np.int64]) -> NDArray[np.int64]:
        """Find the c at which the product of the factors' integrals, times exp(c), is least: the saddle point.

        :param powers: log h_a without the quadrature's weight, (pairs, n_nodes)
        :param row: Which pair is an arm's, (N, n_arms)
        :return: Indices of the tilts, (N,)
        """
        inside = self._nodes <= 1.0
        nodes, largest = self._nodes[inside], powers[:, inside].max(axis=1)
        values = self._weights[inside] * np.exp(powers[:, inside] - largest[:, np.newaxis])
        # exp(-c p) may overflow for c < 0; exp(-c (p - 1)) and exp(-c p) do not, for c < 0 and c > 0.
        offset = np.where(self._tilts < 0.0, 1.0, 0.0)
        tilted = values @ np.exp(-self._tilts * (nodes[:, np.newaxis] - offset))
        # Where thousands of pulls make an integral underflow, its tilt is not one to choose.
        tilted = np.log(tilted, out=np.full_like(tilted, np.inf), where=tilted > 0.0)
        tilted += largest[:, np.newaxis] - self._tilts * offset
        return (self._tilts + tilted[row].sum(axis=1)).argmin(axis=1)

    def _transform(self, values: NDArray[np.float64]) -> NDArray[np.complex128]:
        real, imaginary = np.split(values @ self._fourier, 2, axis=1)
        return real + 1j * imaginary


def _cutoff(y: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(-36.0 * y**_CUTOFF_POWER)


def gauss_jacobi(n: int, power: float, length: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes and weights of the Gauss quadrature with the weight p^power on [0, length].

    It is exact for p^power times a polynomial of a degree up to 2 n - 1. Nodes are the eigenvalues of the matrix
    of the orthogonal polynomials' recurrence, weights come from its eigenvectors (Golub and Welsch, 1969).

    :param n: The number of nodes
    :param power: Above -1
    :param length: The end of the interval
    :return: Nodes, ascending, and weights, both (n,)
    """
    k = np.arange(1.0, n)
    diagonal = np.empty(n)
    diagonal[0] = power / (power + 2.0)
    diagonal[1:] = power**2 / ((2.0 * k + power) * (2.0 * k + power + 2.0))
    off = np.empty(n - 1)
    off[:1] = 4.0 * (1.0 + power) / ((2.0 + power) ** 2 * (3.0 + power))
    # At k = 1 this is 0 / 0 for power = -1, which the line above avoids
    k = k[1:]
    off[1:] = 4.0 * (k * (k + power)) ** 2 / ((2.0 * k + power) ** 2 * ((2.0 * k + power) ** 2 - 1.0))
    off = np.sqrt(off)
    nodes, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
    return length * (1.0 + nodes) / 2.0, vectors[0] ** 2 * length ** (power + 1.0) / (power + 1.0)
