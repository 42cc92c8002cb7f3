"""Prior and noise fitted so that a belief moves as much as it claims."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_laplace import LaplaceRecurrentPPO, calibrate_posterior, make_vec_env
from sb3_laplace.posteriors import PosteriorStep, StepInputs
from sb3_laplace.posthoc import calibrate_posterior as calibration
from sb3_laplace.posthoc.empirical_bayes import PARTS, Fit, Recording, against_spread, fit_posterior, ratios
from sb3_laplace.readout import Readout
from tests.helpers import RandomEnv
from tests.test_laplace_recurrent_ppo import small_model

BANDIT = "sb3_laplace/DirichletBandit-v0"


@pytest.mark.parametrize("full", [False, True])
def test_a_conjugate_model_is_recovered(full: bool) -> None:
    rng = np.random.default_rng(0)
    n, length, noise_std = 600, 12, 3.0
    prior_mean, prior_std = np.array([1.0, -2.0, 0.5]), np.array([0.5, 1.0, 2.0])
    truth = prior_mean + prior_std * rng.standard_normal((n, 3))
    designs = rng.standard_normal((n, length, 3, 3)) if full else rng.gamma(2.0, 1.0, (n, length, 3))
    curvature = np.cumsum(designs @ designs.swapaxes(-1, -2) if full else designs, axis=1)
    noise = noise_std * rng.standard_normal((n, length, 3))
    if full:
        added = designs @ (designs.swapaxes(-1, -2) @ truth[:, None, :, None] + noise[..., None])
        evidence = np.cumsum(added[..., 0], axis=1)
        precision = np.diag(prior_std**-2) + curvature / noise_std**2
        right = prior_mean / prior_std**2 + evidence / noise_std**2
        means = np.linalg.solve(precision, right[..., None])[..., 0]
    else:
        evidence = np.cumsum(designs * truth[:, None] + np.sqrt(designs) * noise, axis=1)
        precision = prior_std**-2 + curvature / noise_std**2
        means = (prior_mean / prior_std**2 + evidence / noise_std**2) / precision
    steps = np.arange(n * length).reshape(n, length)
    part = np.broadcast_to(np.minimum(1 + 3 * np.arange(length - 1) // (length - 1), 3), (n, length - 1))
    recording = Recording(
        means.reshape(-1, 3),
        curvature.reshape(-1, *curvature.shape[2:]),
        steps[:, 1:].ravel(),
        part.ravel(),
        steps[:, -1],
    )
    np.testing.assert_allclose(list(ratios(recording, prior_std, noise_std, None).values()), 1.0, atol=0.1)
    fit = fit_posterior(recording)
    np.testing.assert_allclose(fit.prior_mean, prior_mean, atol=0.25)
    np.testing.assert_allclose(fit.prior_std, prior_std, rtol=0.12)
    np.testing.assert_allclose(fit.noise_std, noise_std, rtol=0.12)
    # All that the mean moves, and all that is claimed, is the variance that it ends with
    np.testing.assert_allclose(against_spread(recording, fit, None), 1.0, atol=0.1)
    readout = Readout(rng.standard_normal((3, 2)), np.zeros(2))
    np.testing.assert_allclose(against_spread(recording, fit, readout), 1.0, atol=0.15)
    # A mean that wavers moves more, and ends with little more variance: noise of variance w adds 2 w to every move
    spread = recording.means[recording.last].var(0)
    wavering = recording._replace(
        means=recording.means + np.sqrt(0.1 * spread) * rng.standard_normal(recording.means.shape)
    )
    moved, claimed = against_spread(wavering, fit, None)
    assert moved == pytest.approx((1.0 + 0.2 * (length - 1) + 0.1) / 1.1, abs=0.1)
    assert claimed == pytest.approx(1.0 / 1.1, abs=0.1)


def test_units_that_are_copies_of_each_other() -> None:
    """A prior of independent units claims the variance of each: of four copies, whose mean is read out, a quarter."""
    rng = np.random.default_rng(0)
    n, length = 500, 10
    truth = rng.standard_normal(n)
    evidence = np.cumsum(truth[:, None] + 3.0 * rng.standard_normal((n, length)), axis=1) / 9.0
    curvature = np.broadcast_to(np.arange(1, length + 1)[:, None], (n, length, 1)).repeat(4, axis=2).astype(float)
    means = np.repeat((evidence / (1.0 + curvature[..., 0] / 9.0))[..., None], 4, axis=2)
    steps = np.arange(n * length).reshape(n, length)
    part = np.broadcast_to(np.minimum(1 + 3 * np.arange(length - 1) // (length - 1), 3), (n, length - 1))
    recording = Recording(
        means.reshape(-1, 4), curvature.reshape(-1, 4), steps[:, 1:].ravel(), part.ravel(), steps[:, -1]
    )
    fit = Fit(np.zeros(4), np.ones(4), 3.0)
    moved, claimed = against_spread(recording, fit, Readout(np.full((4, 1), 0.25), np.zeros(1)))
    assert moved == pytest.approx(1.0, abs=0.1)
    assert claimed == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_on_the_bandit(covariance: str, tmp_path: Path) -> None:
    env = make_vec_env("sb3_laplace/DirichletBandit-v0", 8, seed=0, env_kwargs={"trial_length": 10})
    kwargs = {"latent_dim": 4, "posterior_kwargs": {"covariance": covariance, "prior_std": 1.0}}
    model = small_model(env, n_steps=20, batch_size=80, learning_rate=3e-3, policy_kwargs=kwargs).learn(800)
    generator = th.get_rng_state()
    result = calibrate_posterior(model, env, n_trials=64, deterministic=True, seed=3)
    assert th.equal(generator, th.get_rng_state())
    assert result.n_fitted == result.n_reported == 32
    assert abs(np.log(result.after["all"])) < abs(np.log(result.before["all"])), result.table()
    # Played again with what was set, the same trials have the same ratios
    again = calibrate_posterior(model, env, n_trials=64, deterministic=True, seed=3)
    np.testing.assert_allclose(list(again.before.values()), list(result.after.values()), rtol=0.02)
    np.testing.assert_allclose(again.noise_std, result.noise_std, rtol=0.02)
    model.save(tmp_path / "model")
    layer = LaplaceRecurrentPPO.load(tmp_path / "model", device="cpu").policy.latent_layer
    assert layer.noise_std == again.noise_std
    np.testing.assert_allclose(layer.prior_std, again.prior_std)
    np.testing.assert_allclose(layer.prior_mean.numpy(), again.prior_mean, rtol=1e-5)


@pytest.mark.parametrize(
    ("before", "after", "warns"), [(0.5, 0.2, True), (3.0, 0.2, True), (0.5, 0.47, False), (9.0, 1.2, False)]
)
def test_a_ratio_that_gets_worse_is_told(
    before: float, after: float, warns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([before, after])
    monkeypatch.setattr(calibration, "ratios", lambda *_: dict.fromkeys(PARTS, next(found)))
    env = make_vec_env(BANDIT, 8, seed=0, env_kwargs={"trial_length": 8})
    model = small_model(env, n_steps=16, batch_size=64, policy_kwargs={"latent_dim": 4})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        calibrate_posterior(model, env, n_trials=20)
    texts = [str(one.message) for one in caught if "further from 1" in str(one.message)]
    assert len(texts) == warns
    if warns:
        assert f"{after:.2g} of what it claims" in texts[0]
        assert f"{before:.2g} before" in texts[0]


def test_without_a_task_it_is_the_latent_and_the_environment_is_left_as_it_was() -> None:
    env = VecNormalize(DummyVecEnv([lambda: RandomEnv(end_rate=0.05)] * 2))
    model = small_model(env, policy_kwargs={"latent_dim": None}).learn(48)
    statistics = env.obs_rms.mean.copy()
    result = calibrate_posterior(model, model.get_env(), n_trials=60, seed=1)
    assert result.space == "latent"
    assert "latent space" in result.table()
    assert abs(np.log(result.after["all"])) < abs(np.log(result.before["all"])), result.table()
    assert model._last_obs is None
    assert env.training
    np.testing.assert_array_equal(env.obs_rms.mean, statistics)


@pytest.mark.parametrize(
    "kwargs", [{"window": 3}, {"factorization": "stationary"}, {"factorization": "stationary", "covariance": "full"}]
)
def test_windows(kwargs: dict) -> None:
    """Their precision is a sum of evidence too, if another one: played again, the same trials are as was foretold."""
    env = make_vec_env(BANDIT, 8, seed=0, env_kwargs={"trial_length": 10})
    policy_kwargs = {"latent_dim": 4, "posterior_kwargs": {"prior_std": 1.0, **kwargs}}
    model = small_model(env, n_steps=20, batch_size=80, learning_rate=3e-3, policy_kwargs=policy_kwargs).learn(320)
    result = calibrate_posterior(model, env, n_trials=64, deterministic=True, seed=3)
    again = calibrate_posterior(model, env, n_trials=64, deterministic=True, seed=3)
    np.testing.assert_allclose(list(again.before.values()), list(result.after.values()), rtol=0.03)


def test_a_window_that_loses_what_it_learned() -> None:
    """Of a short window no more is known late than early, so that no noise makes the last third learn."""
    env = make_vec_env(BANDIT, 8, seed=0, env_kwargs={"trial_length": 30})
    kwargs = {"latent_dim": 4, "posterior_kwargs": {"prior_std": 1.0, "factorization": "stationary", "window": 2}}
    model = small_model(env, policy_kwargs=kwargs)
    before = model.policy.latent_layer.prior_std, model.policy.latent_layer.noise_std
    with pytest.raises(ValueError, match="does not grow in every third of a trial: no noise can be fitted"):
        calibrate_posterior(model, env, n_trials=64)
    assert (model.policy.latent_layer.prior_std, model.policy.latent_layer.noise_std) == before


def test_full_matrices_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the memory every other trial is forgotten, down to 40, and of diagonal ones none."""
    env = make_vec_env(BANDIT, 8, seed=0, env_kwargs={"trial_length": 10})
    # 4 * 4 units, 10 steps: 640 bytes a trial
    cases = (("full", 200, 100, 100), ("full", 200, 15, 50), ("full", 79, 15, 79), ("full", 80, 15, 40))
    for covariance, n_trials, n_fit, n_kept in (*cases, ("diagonal", 200, 15, 200)):
        monkeypatch.setattr(calibration, "_MEMORY", 640 * n_fit)
        kwargs = {"latent_dim": 4, "posterior_kwargs": {"covariance": covariance, "prior_std": 1.0}}
        model = small_model(env, policy_kwargs=kwargs)
        result = calibrate_posterior(model, env, n_trials=n_trials)
        assert result.n_fitted + result.n_reported == n_kept


def test_too_few_trials_that_are_long_enough() -> None:
    env = make_vec_env(BANDIT, 8, seed=0, env_kwargs={"trial_length": 3})
    with pytest.raises(ValueError, match=r"takes 20 complete trials of at least 4 steps.*here are 0 \(n_trials=40\)"):
        calibrate_posterior(small_model(env), env, n_trials=40)


@pytest.mark.parametrize(
    ("part", "message"),
    [("mean", "The policy's action logits are not finite"), ("precision", "its means or precisions hold NaN")],
)
def test_a_posterior_that_is_not_finite(part: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_vec_env(BANDIT, 8, seed=0, env_kwargs={"trial_length": 6})
    model = small_model(env, policy_kwargs={"latent_dim": 4})
    layer = model.policy.latent_layer
    step = layer.step

    def broken(given: StepInputs) -> PosteriorStep:
        result = step(given)
        getattr(result.posterior, part)[3, 1] = np.nan
        return result

    monkeypatch.setattr(layer, "step", broken)
    with pytest.raises(ValueError, match=message):
        calibrate_posterior(model, env, n_trials=40, deterministic=True)
    assert layer.noise_std == 1.0


def test_errors() -> None:
    for posterior in ("point", "variational"):
        model = small_model(policy_kwargs={"posterior": posterior})
        with pytest.raises(ValueError, match="model must have a Laplace posterior"):
            calibrate_posterior(model, model.env)
    for name in ("sum_means", "normalize"):
        model = small_model(policy_kwargs={"posterior_kwargs": {name: True}})
        with pytest.raises(ValueError, match=f"with {name}=True cannot be calibrated"):
            calibrate_posterior(model, model.env)
    model = small_model(policy_kwargs={"posterior_kwargs": {"factorization": "stationary", "damping": 1.0}})
    with pytest.raises(ValueError, match="prior_std has no effect on"):
        calibrate_posterior(model, model.env)
    model = small_model()
    with pytest.raises(ValueError, match="n_trials must be an integer >= 20, got 4"):
        calibrate_posterior(model, model.env, n_trials=4)
