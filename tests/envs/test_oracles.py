"""What all oracles share: nothing leaks between trials and environments, bad input, what is imported."""

import subprocess
import sys

import numpy as np
import pytest

from sb3_laplace_envs import DirichletBanditVectorEnv, FourierRegressionVectorEnv, GridNavigationVectorEnv
from sb3_laplace_envs.oracles import (
    BayesianLinearRegression,
    BayesOptimalNavigation,
    BetaThompsonSampling,
    DirichletIndexPolicy,
    DirichletThompsonSampling,
)


def oracles(num_envs=3, trial_length=6):
    bandit = DirichletBanditVectorEnv(num_envs, trial_length)
    for make in (BetaThompsonSampling, DirichletThompsonSampling, DirichletIndexPolicy):
        yield make, bandit
    yield BayesOptimalNavigation, GridNavigationVectorEnv(num_envs, trial_length)
    yield BayesianLinearRegression, FourierRegressionVectorEnv(num_envs, trial_length)


@pytest.mark.parametrize(("make", "env"), list(oracles()), ids=[make.__name__ for make, _ in oracles()])
class TestEveryOracle:
    def test_a_trial_begins_as_the_first(self, make, env):
        """Nothing leaks from a trial into the next, whether it ended or was reset; and nothing between environments."""
        used, fresh = make(env), make(env)
        env.action_space.seed(0)
        observations, _ = env.reset(seed=0)
        for _ in range(4):
            used.observe(observations)
            assert used.act() in env.action_space
            observations, *_ = env.step(env.action_space.sample())
        mask = np.array([True, False, True])
        before = self.belief(used)
        used.reset(mask)
        fresh.reset()
        for one, other, earlier in zip(self.belief(used), self.belief(fresh), before, strict=True):
            np.testing.assert_allclose(one[mask], other[mask], atol=1e-12)
            np.testing.assert_allclose(one[~mask], earlier[~mask], atol=1e-12)
        used.reset()
        for one, other in zip(self.belief(used), self.belief(fresh), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-12)

        observations, _ = env.reset(seed=1)
        for step in range(13):
            used.observe(observations)
            if step == 6:
                fresh.reset()
            fresh.observe(observations)
            for one, other in zip(self.belief(used), self.belief(fresh), strict=True):
                np.testing.assert_allclose(one, other, atol=1e-12)
            observations, *_ = env.step(env.action_space.sample())

    def test_the_first_observation_tells_nothing(self, make, env):
        oracle = make(env)
        before = self.belief(oracle)
        oracle.observe(env.reset(seed=0)[0])
        for one, other in zip(self.belief(oracle), before, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-12)

    @staticmethod
    def belief(oracle):
        if not hasattr(oracle, "posterior"):
            return oracle.successes.copy(), oracle.failures.copy()
        mean, covariance = oracle.posterior()
        assert np.isfinite(mean).all()
        assert np.isfinite(covariance).all()
        return mean, covariance

    def test_bad_observations(self, make, env):
        oracle = make(env)
        observations, _ = env.reset(seed=0)
        for bad in (observations[:2], observations[:, :-1], observations[0], None, "ab"):
            with pytest.raises(ValueError, match="observations must"):
                oracle.observe(bad)
        for value in (np.nan, -1e6):
            normalized = observations.copy()
            normalized[1, 0] = value
            with pytest.raises(ValueError, match=r"observations must lie in .* and not be normalized"):
                oracle.observe(normalized)

    def test_bad_mask(self, make, env):
        oracle = make(env)
        for mask in (np.array([1, 0, 1]), np.ones(2, bool), True):
            with pytest.raises(ValueError, match="mask must hold booleans"):
                oracle.reset(mask)

    def test_another_environment(self, make, env):
        wrong = next(other for _, other in oracles() if type(other) is not type(env))
        with pytest.raises(ValueError, match=f"env must be a {type(env).__name__} .*got {type(wrong).__name__}"):
            make(wrong)


@pytest.mark.parametrize(
    ("make", "kwargs", "message"),
    [
        (BetaThompsonSampling, {"seed": -1}, "seed must be an integer >= 0, got -1"),
        (DirichletThompsonSampling, {"n_sweeps": 0}, "n_sweeps must be an integer >= 1, got 0"),
        (DirichletThompsonSampling, {"concentration": 0.0}, "concentration must be a positive finite number, got 0.0"),
        (DirichletIndexPolicy, {"concentration": -1}, "concentration must be a positive finite number, got -1"),
        (DirichletIndexPolicy, {"exploration": -0.1}, "exploration must be a finite number >= 0, got -0.1"),
    ],
)
def test_bad_arguments(make, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(DirichletBanditVectorEnv(2), **kwargs)


def test_needs_numpy_and_gymnasium_only():
    code = (
        "import sys, sb3_laplace_envs\n"
        "assert 'sb3_laplace_envs.oracles' not in sys.modules\n"
        "from sb3_laplace_envs import oracles\n"
        "env = sb3_laplace_envs.DirichletBanditVectorEnv(2)\n"
        "oracles.DirichletIndexPolicy(env).act()\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'torch', 'stable_baselines3', 'sb3_contrib', 'sb3_laplace', 'scipy'}, loaded"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
