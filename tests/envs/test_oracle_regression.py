"""Bayesian linear regression against independent programs, the tasks' own moments and dense conditioning."""

import numpy as np
import pytest

from sb3_laplace_envs import FourierRegressionVectorEnv, fourier_basis
from sb3_laplace_envs.oracles import BayesianLinearRegression, bayesian_linear_regression, coefficient_covariance

GRID = (2 * np.arange(100) + 1) / 100 - 1.0


def observe(env, n, seed=0):
    """n uniform inputs of each of the environment's tasks, and their values."""
    env.reset(seed=seed)
    x = np.random.default_rng(seed).uniform(-1, 1, (env.num_envs, n))
    return x, env.evaluate(x)


def test_limit_is_that_of_an_independent_program():
    """Mean squared error and NLL of 2000 other functions, and the prior's variances."""
    env = FourierRegressionVectorEnv(3000)
    x, y = observe(env, 10)
    truth = env.evaluate(GRID)
    # Mean squared error, and NLL with the standard deviation floored at .05 and at .6936
    expected = {
        0: (0.552, 1.122, 1.122),
        1: (0.442, 0.930, 1.011),
        3: (0.241, 0.376, 0.804),
        5: (0.087, -0.480, 0.644),
        7: (0.0003, -2.05, 0.5535),
        10: (0.0, -2.08, 0.5531),
    }
    for n, (mse, *nlls) in expected.items():
        mean, std = bayesian_linear_regression(env, x[:, :n], y[:, :n], GRID)
        error = np.square(mean - truth)
        found = [(error, mse, 2e-4)]
        for floor, nll in zip((0.05, 0.6936), nlls, strict=True):
            floored = std.clip(min=floor)
            scores = 0.5 * error / floored**2 + np.log(floored) + 0.5 * np.log(2 * np.pi)
            found.append((scores, nll, 5e-3))
        for scores, value, rounding in found:
            # Their functions are no fewer by much, so that the difference has twice the variance and a half
            standard_error = scores.mean(1).std() / 3000**0.5 * 2.5**0.5
            assert abs(scores.mean() - value) < 3 * standard_error + rounding, n
    covariance = coefficient_covariance(3, 1.0, np.pi, np.pi)
    variances = (0.00925, 0.07319, 0.07496, 0.16341, 0.17007, 0.29044, 0.30208)
    np.testing.assert_allclose(covariance.diagonal(), variances, rtol=2e-3)


def test_limit_with_assumed_noise(monkeypatch):
    """The same independent program with an assumed noise standard deviation of .05."""
    monkeypatch.setattr("sb3_laplace_envs.oracles.linear_regression._NOISE_STD", 0.05)
    env = FourierRegressionVectorEnv(3000)
    x, y = observe(env, 10)
    truth = env.evaluate(GRID)
    for n, mse in {0: 0.552, 1: 0.442, 3: 0.247, 5: 0.110, 7: 0.039, 10: 0.0073}.items():
        mean, _ = bayesian_linear_regression(env, x[:, :n], y[:, :n], GRID)
        error = np.square(mean - truth).mean(1)
        assert abs(error.mean() - mse) < 3 * error.std() / 3000**0.5 * 2.5**0.5 + 5e-4, n


def test_prior_is_that_of_the_tasks():
    arguments = {"n_frequencies": 2, "max_amplitude": 0.7, "max_shift": 0.3, "max_phase": 2.0}
    env = FourierRegressionVectorEnv(20_000, trial_length=1, **arguments)
    env.reset(seed=0)
    found = env.coefficients.T @ env.coefficients / env.num_envs
    np.testing.assert_allclose(coefficient_covariance(**arguments), found, atol=0.003)


@pytest.mark.parametrize("n", [0, 1, 4, 12])
def test_limit_against_dense_conditioning(n, monkeypatch):
    """The same posterior from the joint Gaussian of pairs and test values, with more noise to be well conditioned."""
    monkeypatch.setattr("sb3_laplace_envs.oracles.linear_regression._NOISE_STD", 0.1)
    env = FourierRegressionVectorEnv(3)
    x, y = observe(env, n)
    grid = np.linspace(-1, 1, 9)
    mean, std = bayesian_linear_regression(env, x, y, grid)
    covariance = coefficient_covariance(3, 1.0, np.pi, np.pi)
    tested = fourier_basis(grid)
    for i in range(3):
        observed = fourier_basis(x[i])
        gain = tested @ covariance @ observed.T @ np.linalg.inv(observed @ covariance @ observed.T + 0.01 * np.eye(n))
        np.testing.assert_allclose(mean[i], gain @ y[i], atol=1e-10)
        variance = ((tested - gain @ observed) @ covariance * tested).sum(1)
        np.testing.assert_allclose(std[i], np.sqrt(variance), rtol=1e-8)


def test_one_pair_at_a_time_is_all_at_once(monkeypatch):
    """What the oracle predicts from observations is what the function does from their pairs, also across trials."""
    monkeypatch.setattr("sb3_laplace_envs.oracles.linear_regression._NOISE_STD", 0.01)
    env = FourierRegressionVectorEnv(4, trial_length=6)
    oracle = BayesianLinearRegression(env)
    observations, _ = env.reset(seed=1)
    pairs = np.zeros((4, 0, 2))
    for step in range(14):
        oracle.observe(observations)
        pairs = pairs[:, :0] if step % 6 == 0 else np.concatenate([pairs, observations[:, np.newaxis, :2]], axis=1)
        expected = bayesian_linear_regression(env, pairs[..., 0], pairs[..., 1], GRID)
        for found, value in zip(oracle.predict(GRID), expected, strict=True):
            np.testing.assert_allclose(found, value, atol=1e-9)
        mean, covariance = oracle.posterior()
        basis = fourier_basis(GRID)
        np.testing.assert_allclose(mean @ basis.T, expected[0], atol=1e-9)
        np.testing.assert_allclose(np.einsum("jd,nde,je->nj", basis, covariance, basis), expected[1] ** 2, atol=1e-9)
        own = oracle.predict(observations[:, 2:3])[0]
        actions = oracle.act()
        np.testing.assert_allclose(env.action_scale * actions, own.clip(-env.max_y, env.max_y), rtol=1e-6)
        observations, *_ = env.step(actions)


def test_predictions_in_single_precision_are_the_limit():
    """Pairs as the environment shows them, in single precision, determine the function too."""
    env = FourierRegressionVectorEnv(500, action_scale=1.0)
    oracle = BayesianLinearRegression(env)
    observations, _ = env.reset(seed=2)
    errors = []
    for _ in range(50):
        oracle.observe(observations)
        observations, *_, infos = env.step(oracle.act())
        errors.append(infos["squared_error"])
    assert np.mean(errors[10:], axis=1).max() < 1e-4
    assert np.mean(errors[30:]) < 1e-10


def test_predictions_stay_in_the_action_space():
    env = FourierRegressionVectorEnv(2, trial_length=3)
    oracle = BayesianLinearRegression(env)
    observations, _ = env.reset(seed=0)
    oracle.observe(observations)
    oracle._projected[:] = [[50.0] * 7, [-50.0] * 7]
    oracle._query = np.zeros(2)
    assert oracle.act() in env.action_space
    assert np.abs(oracle.act()).max() == 1.0


def test_act_before_observe():
    oracle = BayesianLinearRegression(FourierRegressionVectorEnv(2))
    with pytest.raises(ValueError, match="observe must be called before act"):
        oracle.act()
