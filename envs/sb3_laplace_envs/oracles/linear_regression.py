"""Bayesian linear regression: the limit of what an agent can predict on FourierRegression."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_laplace_envs.oracles.base import Belief, Oracle, check_env
from sb3_laplace_envs.tasks.batches import Observations
from sb3_laplace_envs.tasks.fourier_regression import FourierRegressionVectorEnv, fourier_basis

Array = NDArray[np.float64]

# Pairs are exact. This much noise keeps close-lying ones from asking for more digits than float64 has.
_NOISE_STD = 1e-5


def coefficient_covariance(n_frequencies: int, max_amplitude: float, max_shift: float, max_phase: float) -> Array:
    """Covariance of a task's coefficients in `fourier_basis`, whose mean is zero.

    Cosine i has the amplitude ``a'_i = a_i (i + 1) / 3`` and the offset ``theta_i = pi i s + phi_i / 2``, and its
    coefficients are ``a'_i cos(theta_i)`` and ``a'_i sin(theta_i)``. The a_i are independent with mean zero, so
    only these two are correlated, by ``E[cos(theta)^2] = (1 + E[cos(2 theta)]) / 2`` and its like, and the
    characteristic functions of s and phi give ``E[exp(2 theta sqrt(-1))]``.

    :param n_frequencies: The number of cosines
    :param max_amplitude: Of a_j ~ U(-max_amplitude, max_amplitude)
    :param max_shift: Of s ~ U(0, max_shift)
    :param max_phase: Of phi_i ~ U(0, max_phase)
    :return: (1 + 2 n_frequencies, 1 + 2 n_frequencies)
    """
    frequency = np.arange(1, n_frequencies + 1)
    power = (max_amplitude * (frequency + 1) / 3.0) ** 2 / 3.0
    double = _characteristic(2.0 * np.pi * frequency, max_shift) * _characteristic(np.ones(1), max_phase)
    covariance = np.zeros((1 + 2 * n_frequencies, 1 + 2 * n_frequencies))
    covariance[0, 0] = (max_amplitude / 6.0) ** 2 / 3.0
    cosine, sine = 2 * frequency - 1, 2 * frequency
    covariance[cosine, cosine] = power * (1.0 + double.real) / 2.0
    covariance[sine, sine] = power * (1.0 - double.real) / 2.0
    covariance[cosine, sine] = covariance[sine, cosine] = power * double.imag / 2.0
    return covariance


def _characteristic(t: NDArray[Any], width: float) -> NDArray[np.complex128]:
    """``E[exp(i t u)]`` for u ~ U(0, width)."""
    return np.expm1(1j * t * width) / (1j * t * width)


def bayesian_linear_regression(
    env: FourierRegressionVectorEnv, x: Array, y: Array, test_inputs: Array
) -> tuple[Array, Array]:
    """Predict the functions of a batch of tasks from n observed pairs each, knowing how tasks are drawn.

    A task is linear in `fourier_basis`. Its coefficients are no Gaussian, but have the covariance of
    `coefficient_covariance`, and the regression with a Gaussian prior of that covariance is close to the exact
    posterior. Pairs are taken to be exact, up to a noise of standard deviation 1e-5.

    :param env: The tasks' environment, for the distribution that they are drawn from
    :param x: Observed inputs, (N, n)
    :param y: Their values, (N, n)
    :param test_inputs: Where to predict, (J,)
    :return: Mean and standard deviation of y, each (N, J)
    """
    whitening = _whitening(env)
    identity = np.broadcast_to(np.eye(len(whitening)), (len(x), *whitening.shape))
    observed, tested = (fourier_basis(points, env.n_frequencies) @ whitening for points in (x, test_inputs))
    return _predict(*_condition(identity, np.zeros(identity.shape[:2]), observed, y), tested)


class BayesianLinearRegression(Oracle):
    """Predicts with `bayesian_linear_regression`, one pair at a time.

    Observations show pairs in single precision, which is well within the noise that it takes them to have.

    :param env: The tasks
    """

    def __init__(self, env: FourierRegressionVectorEnv) -> None:
        check_env(env, FourierRegressionVectorEnv)
        super().__init__(env)
        self.n_frequencies, self.action_scale, self.max_y = env.n_frequencies, env.action_scale, env.max_y
        self._whitening = _whitening(env)
        size = len(self._whitening)
        self._root = np.zeros((self.num_envs, size, size))
        self._projected = np.zeros((self.num_envs, size))
        self._query = np.zeros(self.num_envs)
        self.reset()

    def _reset(self, indices: NDArray[np.int64]) -> None:
        self._root[indices] = np.eye(len(self._whitening))
        self._projected[indices] = 0.0
        self._query[indices] = np.nan

    def observe(self, observations: Observations) -> None:
        super().observe(observations)
        self._query = observations[:, 2].astype(np.float64)

    def _update(self, observations: Observations, indices: NDArray[np.int64]) -> None:
        pairs = observations[indices, :2].astype(np.float64)
        rows = fourier_basis(pairs[:, :1], self.n_frequencies) @ self._whitening
        self._root[indices], self._projected[indices] = _condition(
            self._root[indices], self._projected[indices], rows, pairs[:, 1:]
        )

    def predict(self, x: NDArray[Any]) -> tuple[Array, Array]:
        """Predict y at any points.

        :param x: Points, (num_envs, n_points), or (n_points,) for the same points in all environments
        :return: Mean and standard deviation, each (num_envs, n_points)
        """
        return _predict(self._root, self._projected, fourier_basis(x, self.n_frequencies) @ self._whitening)

    def posterior(self) -> Belief:
        """Mean (num_envs, d) and covariance (num_envs, d, d) of the coefficients in `fourier_basis`."""
        inverse = np.linalg.solve(self._root, np.broadcast_to(np.eye(len(self._whitening)), self._root.shape))
        scale = self._whitening @ inverse
        return Belief((scale @ self._projected[..., np.newaxis])[..., 0], scale @ scale.swapaxes(1, 2))

    def act(self) -> NDArray[np.float32]:
        """Predict y at the queries last observed, as actions (num_envs, 1).

        :raises ValueError: Nothing was observed yet
        """
        if np.isnan(self._query).any():
            raise ValueError("observe must be called before act: it shows the query")
        mean, _ = self.predict(self._query[:, np.newaxis])
        return (mean.clip(-self.max_y, self.max_y) / self.action_scale).astype(np.float32)


def _whitening(env: FourierRegressionVectorEnv) -> Array:
    """W in ``coefficients = W w`` with w ~ N(0, I)."""
    covariance = coefficient_covariance(env.n_frequencies, env.max_amplitude, env.max_shift, env.max_phase)
    return np.asarray(np.linalg.cholesky(covariance))


def _condition(root: Array, projected: Array, rows: Array, y: Array) -> tuple[Array, Array]:
    """Add pairs to the posterior of whitened coefficients w, whose precision is R^T R and whose mean solves R w = z.

    The precision grows by A^T A / noise^2. Factorizing A itself does not square its condition.

    :param root: R, upper triangular, (N, d, d)
    :param projected: z, (N, d)
    :param rows: A, (N, n, d)
    :param y: The pairs' values, (N, n)
    :return: R and z with the pairs
    """
    q, root = np.linalg.qr(np.concatenate([rows / _NOISE_STD, root], axis=1))
    target = np.concatenate([y / _NOISE_STD, projected], axis=1)
    return root, (q * target[..., np.newaxis]).sum(1)


def _predict(root: Array, projected: Array, rows: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of y.

    :param root: R, (N, d, d)
    :param projected: z, (N, d)
    :param rows: The basis in whitened coefficients at the points, (J, d) or (N, J, d)
    :return: Each (N, J)
    """
    weights = np.linalg.solve(root, projected[..., np.newaxis])
    mean = (rows @ weights)[..., 0]
    columns = np.broadcast_to(rows.swapaxes(-1, -2), (len(root), rows.shape[-1], rows.shape[-2]))
    return mean, np.sqrt(np.square(np.linalg.solve(root.swapaxes(1, 2), columns)).sum(1))
