"""The bandit's oracles: exact moments against exact arithmetic, policies against published regrets."""

import itertools
from fractions import Fraction
from math import comb, prod

import numpy as np
import pytest

from sb3_laplace_envs import DirichletBanditVectorEnv
from sb3_laplace_envs.oracles import (
    BetaThompsonSampling,
    DirichletIndexPolicy,
    DirichletPosterior,
    DirichletThompsonSampling,
)
from sb3_laplace_envs.oracles.dirichlet_posterior import gauss_jacobi


def rational_moments(concentration, successes, failures):
    """Mean and covariance by exact arithmetic: failures multiplied out, Dirichlet integrals of the monomials.

    The integral of prod_a p_a^(alpha + s_a + k_a - 1) over the simplex is the product of gamma functions of the
    exponents over the gamma function of their sum, and depends on the k_a through rising factorials only.
    """
    n_arms = len(successes)

    def rising(x, n):
        return prod((x + i for i in range(n)), start=Fraction(1))

    def integral(more):
        starts = [concentration + s for s in successes]
        polynomial = [Fraction(1)]  # its k-th number: the terms with sum of k_a = k
        for a in range(n_arms):
            terms = [comb(failures[a], k) * (-1) ** k * rising(starts[a], k + more[a]) for k in range(failures[a] + 1)]
            longer = [Fraction(0)] * (len(polynomial) + failures[a])
            for (i, x), (j, y) in itertools.product(enumerate(polynomial), enumerate(terms)):
                longer[i + j] += x * y
            polynomial = longer
        return sum(x / rising(sum(starts), k + sum(more)) for k, x in enumerate(polynomial))

    unit = np.eye(n_arms, dtype=int)
    total = integral([0] * n_arms)
    mean = np.array([float(integral(list(unit[a])) / total) for a in range(n_arms)])
    second = [[float(integral(list(unit[a] + unit[b])) / total) for b in range(n_arms)] for a in range(n_arms)]
    return mean, np.array(second) - np.outer(mean, mean)


class TestDirichletPosterior:
    @pytest.mark.parametrize(
        ("successes", "failures"),
        [
            ((0, 0, 0, 0, 0), (0, 0, 0, 0, 0)),
            ((0, 0, 0, 0, 0), (1, 0, 0, 0, 0)),
            ((3, 0, 0, 0, 0), (1, 2, 0, 0, 0)),
            ((40, 0, 0, 0, 0), (3, 2, 1, 1, 1)),
            ((48, 0, 0, 0, 0), (1, 1, 0, 0, 0)),
            ((20, 5, 1, 0, 0), (10, 6, 4, 3, 1)),
            ((0, 1, 1, 1, 0), (20, 10, 10, 1, 5)),
            # Hardly possible for probabilities with the sum 1: the value at 1 is in the convolution's far tail
            ((0, 0, 0, 0, 0), (10, 10, 10, 10, 10)),
            ((25, 25, 0, 0, 0), (0, 0, 0, 0, 0)),
            ((10, 10, 10, 10, 10), (0, 0, 0, 0, 0)),
        ],
    )
    @pytest.mark.parametrize("concentration", [Fraction(1, 5), Fraction(3, 2)])
    def test_against_exact_arithmetic(self, concentration, successes, failures):
        expected = rational_moments(concentration, successes, failures)
        posterior = DirichletPosterior(5, float(concentration), 50)
        found = posterior.moments(np.array([successes]), np.array([failures]))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one[0], other, atol=2e-9)

    def test_long_trials(self):
        states = [((190, 0, 0, 0, 0), (4, 2, 2, 1, 1)), ((30, 2, 0, 0, 0), (20, 10, 5, 3, 2))]
        posterior = DirichletPosterior(5, 0.2, 200)
        found = posterior.moments(*(np.array(counts) for counts in zip(*states, strict=True)))
        for i, state in enumerate(states):
            for one, other in zip(found, rational_moments(Fraction(1, 5), *state), strict=True):
                np.testing.assert_allclose(one[i], other, atol=2e-7)

    @pytest.mark.parametrize(("n_arms", "concentration"), [(2, 0.2), (3, 1.0), (5, 0.01), (5, 10.0), (12, 0.3)])
    def test_without_failures_it_is_a_dirichlet_distribution(self, n_arms, concentration):
        successes = np.random.default_rng(0).integers(0, 4, (6, n_arms)) * [[0], [1], [1], [1], [1], [1]]
        mean, covariance = DirichletPosterior(n_arms, concentration, 50).moments(successes, 0 * successes)
        alpha = concentration + successes
        total = alpha.sum(axis=1, keepdims=True)
        expected = alpha / total
        np.testing.assert_allclose(mean, expected, atol=1e-8)
        outer = expected[:, :, np.newaxis] * expected[:, np.newaxis]
        diagonal = np.eye(n_arms) * expected[:, np.newaxis]
        np.testing.assert_allclose(covariance, (diagonal - outer) / (total[..., np.newaxis] + 1), atol=1e-8)

    @pytest.mark.parametrize("concentration", [0.2, 1.0, 4.0])
    def test_two_arms_are_one_beta_distribution(self, concentration):
        """A failure of one arm is as much as a success of the other."""
        counts = np.random.default_rng(1).integers(0, 13, (50, 4))
        mean, covariance = DirichletPosterior(2, concentration, 50).moments(counts[:, :2], counts[:, 2:])
        a, b = (concentration + counts[:, one] + counts[:, other] for one, other in ((0, 3), (1, 2)))
        np.testing.assert_allclose(mean, np.stack([a, b], axis=1) / (a + b)[:, np.newaxis], atol=1e-8)
        variance = a * b / ((a + b) ** 2 * (a + b + 1))
        np.testing.assert_allclose(covariance, variance[:, np.newaxis, np.newaxis] * [[1, -1], [-1, 1]], atol=1e-8)

    def test_against_importance_sampling(self):
        successes, failures = np.array([2, 0, 1, 0]), np.array([1, 3, 2, 0])
        draws = np.random.default_rng(0).dirichlet(0.5 + successes, 200_000)
        weights = ((1 - draws) ** failures).prod(axis=1)
        mean, covariance = DirichletPosterior(4, 0.5, 20).moments(successes[np.newaxis], failures[np.newaxis])
        n_effective = weights.sum() ** 2 / (weights**2).sum()
        found = np.average(draws, axis=0, weights=weights)
        error = np.sqrt(covariance[0].diagonal() / n_effective)
        assert (np.abs(mean[0] - found) < 4 * error).all()
        centred = draws - mean[0]
        second = (weights[:, np.newaxis, np.newaxis] * centred[:, :, np.newaxis] * centred[:, np.newaxis]).sum(axis=0)
        np.testing.assert_allclose(covariance[0], second / weights.sum(), atol=0.001)

    def test_states_do_not_touch_one_another(self):
        generator = np.random.default_rng(2)
        counts = generator.integers(0, 5, (300, 10))
        posterior = DirichletPosterior(5, 0.2, 50)
        mean, covariance = posterior.moments(counts[:, :5], counts[:, 5:])
        np.testing.assert_allclose(mean.sum(axis=1), 1.0, atol=1e-8)
        np.testing.assert_allclose(covariance.sum(axis=2), 0.0, atol=1e-8)
        for i in (0, 77, 299):
            one = posterior.moments(counts[i : i + 1, :5], counts[i : i + 1, 5:])
            np.testing.assert_allclose(one.mean[0], mean[i], atol=1e-12)
            np.testing.assert_allclose(one.covariance[0], covariance[i], atol=1e-12)

    def test_bad_counts(self):
        posterior = DirichletPosterior(3, 0.2, 10)
        good = np.array([[1, 2, 3]])
        for bad in (np.array([[1.0, 2.0, 3.0]]), np.array([[1, 2]]), np.array([[1, 2, -1]]), np.array([[5, 0, 0]])):
            with pytest.raises(ValueError, match="failures"):
                posterior.moments(good, bad)

    @pytest.mark.parametrize("power", [-0.8, -0.5, 0.0, 1.5])
    def test_quadrature(self, power):
        nodes, weights = gauss_jacobi(6, power, 2.0)
        for degree in range(12):
            expected = 2.0 ** (power + degree + 1) / (power + degree + 1)
            np.testing.assert_allclose((weights * nodes**degree).sum(), expected, rtol=1e-12)


def bandit_regret(make_oracle, num_envs, trial_length=50, **kwargs):
    """Cumulative regret of an oracle in each trial, (trial_length, num_envs)."""
    env = DirichletBanditVectorEnv(num_envs, trial_length, **kwargs)
    oracle = make_oracle(env)
    observations, _ = env.reset(seed=100)
    regret = []
    for _ in range(trial_length):
        oracle.observe(observations)
        observations, _, _, _, infos = env.step(oracle.act())
        regret.append(infos["regret"])
    return np.cumsum(regret, axis=0)


class TestBanditPolicies:
    """Regret against the published means of 8000 trials, in 4 standard errors of the difference."""

    @pytest.mark.parametrize(
        ("make_oracle", "num_envs", "published"),
        [
            (BetaThompsonSampling, 4000, {0.2: (3.71, 6.08, 7.98), 0.3: (None, None, 8.14)}),
            (lambda env: DirichletThompsonSampling(env, 0.2), 500, {0.2: (2.79, 3.96, 4.79), 0.3: (None, None, 5.17)}),
            (lambda env: DirichletIndexPolicy(env, 0.2, 0.0), 400, {0.2: (2.12, 2.91, 3.77), 0.3: (None, None, 4.00)}),
            (lambda env: DirichletIndexPolicy(env, 0.2), 400, {0.2: (2.12, 2.78, 3.21), 0.3: (None, None, 3.50)}),
        ],
        ids=["beta", "dirichlet", "greedy", "index"],
    )
    def test_regret(self, make_oracle, num_envs, published):
        for concentration, expected in published.items():
            regret = bandit_regret(make_oracle, num_envs, concentration=concentration)
            for pulls, value in zip((10, 25, 50), expected, strict=True):
                if value is not None:
                    std = regret[pulls - 1].std()
                    error = std * np.sqrt(1 / num_envs + 1 / 8000)
                    assert abs(regret[pulls - 1].mean() - value) < 4 * error + 0.005, (concentration, pulls)

    def test_draws_are_of_the_posterior(self):
        """Along trials of uniform pulls: the draws' moments are the exact ones, and the draws are not."""
        env = DirichletBanditVectorEnv(1500, concentration=0.2)
        oracle, exact = DirichletThompsonSampling(env), DirichletIndexPolicy(env)
        observations, _ = env.reset(seed=3)
        arms = np.random.default_rng(0).integers(5, size=(20, 1500))
        for step in range(20):
            for one in (oracle, exact):
                one.observe(observations)
            if step in (0, 2, 8, 19):
                draw, (mean, covariance) = oracle.sample(), exact.posterior()
                np.testing.assert_allclose(draw.sum(axis=1), 1.0)
                difference = draw - mean
                assert (np.abs(difference.mean(axis=0)) < 4 * difference.std(axis=0) / 1500**0.5).all()
                # The product of deviations has the exact covariance as its mean, trial by trial
                products = difference[:, :, np.newaxis] * difference[:, np.newaxis] - covariance
                assert (np.abs(products.mean(axis=0)) < 4 * products.std(axis=0) / 1500**0.5).all()
                # and so have the true probabilities
                truth = env.task - mean
                products = truth[:, :, np.newaxis] * truth[:, np.newaxis] - covariance
                assert (np.abs(products.mean(axis=0)) < 4 * products.std(axis=0) / 1500**0.5).all()
            observations, *_ = env.step(arms[step])

    def test_index(self):
        """Beside its own formula, in a state where exploration decides; not so before the last pull."""
        env, short = DirichletBanditVectorEnv(1, trial_length=50), DirichletBanditVectorEnv(1, trial_length=10)
        greedy, index, last = DirichletIndexPolicy(env, exploration=0), *map(DirichletIndexPolicy, (env, short))
        for oracle in (greedy, index, last):
            oracle.successes[:], oracle.failures[:] = [[2, 0, 0, 0, 0]], [[4, 1, 1, 0, 1]]
        mean, covariance = rational_moments(Fraction(1, 5), (2, 0, 0, 0, 0), (4, 1, 1, 0, 1))
        value = mean + 3 * np.sqrt(40 / 50) * np.sqrt(covariance.diagonal())
        assert index.act()[0] == value.argmax() == 3
        assert greedy.act()[0] == last.act()[0] == mean.argmax() == 0

    def test_beyond_the_last_pull(self):
        """The last observation of a trial has no next pull, but a posterior."""
        env = DirichletBanditVectorEnv(2, trial_length=3)
        oracle = DirichletIndexPolicy(env)
        observations, _ = env.reset(seed=0)
        for _ in range(3):
            oracle.observe(observations)
            observations, *_, infos = env.step(oracle.act())
        oracle.observe(np.stack(infos["final_obs"]))
        assert (oracle.successes + oracle.failures).sum(axis=1).tolist() == [3, 3]
        assert np.isfinite(oracle.posterior().covariance).all()
        assert oracle.act().shape == (2,)
