"""Bayesian linear regression: the limit of what an agent can predict on FourierRegression."""

import numpy as np

from sb3_laplace_envs.tasks.fourier_regression import FourierRegressionVectorEnv, fourier_basis

# Pairs are exact. This much noise keeps close-lying ones from asking for more digits than float64 has.
_NOISE_STD = 1e-5


def coefficient_covariance(n_frequencies: int, max_amplitude: float, max_shift: float, max_phase: float) -> np.ndarray:
    """Covariance of a task's coefficients in ``fourier_basis``, whose mean is zero.

    Cosine i has the amplitude ``a'_i = a_i (i + 1) / 3`` and the offset ``theta_i = pi i s + phi_i / 2``, and its
    coefficients are ``a'_i cos(theta_i)`` and ``a'_i sin(theta_i)``. The a_i are independent with mean zero, so
    only these two are correlated, by ``E[cos(theta)^2] = (1 + E[cos(2 theta)]) / 2`` and its like, and the
    characteristic functions of s and phi give ``E[exp(2 theta sqrt(-1))]``.

    :param n_frequencies: number of cosines
    :param max_amplitude: of a_j ~ U(-max_amplitude, max_amplitude)
    :param max_shift: of s ~ U(0, max_shift)
    :param max_phase: of phi_i ~ U(0, max_phase)
    :return: shape (1 + 2 n_frequencies, 1 + 2 n_frequencies)
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


def _characteristic(t: np.ndarray, width: float) -> np.ndarray:
    """``E[exp(i t u)]`` for u ~ U(0, width)."""
    return np.expm1(1j * t * width) / (1j * t * width)


def bayesian_linear_regression(
    env: FourierRegressionVectorEnv, x: np.ndarray, y: np.ndarray, test_inputs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Predict the functions of a batch of tasks from n observed pairs each, knowing how tasks are drawn.

    A task is linear in ``fourier_basis``. Its coefficients are no Gaussian, but have the covariance of
    :func:`coefficient_covariance`, and the regression with a Gaussian prior of that covariance is close to
    the exact posterior. Pairs are taken to be exact, up to a noise of standard deviation 1e-5.

    :param env: the tasks' environment, for the distribution that they are drawn from
    :param x: observed inputs, shape (N, n)
    :param y: their values, shape (N, n)
    :param test_inputs: where to predict, shape (J,)
    :return: mean and standard deviation of y, each of shape (N, J), float64
    """
    covariance = coefficient_covariance(env.n_frequencies, env.max_amplitude, env.max_shift, env.max_phase)
    # In whitened coefficients w ~ N(0, I): y = A w
    whitening = np.linalg.cholesky(covariance)
    observed = fourier_basis(x, env.n_frequencies) @ whitening
    identity = np.broadcast_to(np.eye(len(covariance)), (len(x), *covariance.shape))
    # The posterior's precision A^T A / noise^2 + I is R^T R: factorizing A itself does not square its condition
    q, r = np.linalg.qr(np.concatenate([observed / _NOISE_STD, identity], axis=1))
    weights = np.linalg.solve(r, (q[:, : x.shape[1]] * (y / _NOISE_STD)[..., np.newaxis]).sum(1)[..., np.newaxis])
    tested = fourier_basis(test_inputs, env.n_frequencies) @ whitening
    mean = (tested @ weights)[..., 0]
    std = np.sqrt(np.square(np.linalg.solve(r.swapaxes(1, 2), tested.T[np.newaxis])).sum(1))
    return mean, std
