"""Every posterior before it has seen anything."""

from typing import Any

import pytest
import torch as th

from sb3_laplace.posteriors import (
    ConstantVariancePosterior,
    LaplacePosterior,
    LatentPosterior,
    PointPosterior,
    SequenceInputs,
    VariationalPosterior,
)
from sb3_laplace.posteriors.statistics import posterior_statistics, to_float64

GAUSSIANS: list[tuple[type[LatentPosterior], dict[str, Any]]] = [
    (LaplacePosterior, {"covariance": "diagonal"}),
    (LaplacePosterior, {"covariance": "full"}),
    (LaplacePosterior, {"covariance": "full", "factorization": "stationary", "damping": 3.0}),
    (ConstantVariancePosterior, {}),
    (VariationalPosterior, {"covariance": "diagonal"}),
    (VariationalPosterior, {"covariance": "full"}),
]


@pytest.mark.parametrize("prior_std", [0.1, 2.0])
@pytest.mark.parametrize(("posterior", "kwargs"), GAUSSIANS)
def test_the_prior_is_that_of_prior_std(
    posterior: type[LatentPosterior], kwargs: dict[str, Any], prior_std: float
) -> None:
    prior = posterior(4, 2, 3, prior_std=prior_std, **kwargs).prior(2)
    assert th.equal(prior.mean, th.zeros(2, 3))
    th.testing.assert_close(prior.covariance, prior_std**2 * th.eye(3).expand(2, 3, 3))
    assert prior.kl(prior).abs().max() < 1e-5
    assert prior[1:].covariance.shape == (1, 3, 3)


def test_the_prior_of_a_point_is_a_point() -> None:
    prior = PointPosterior(4, 2, 3).prior(2)
    assert th.equal(prior.mean, th.zeros(2, 3))
    assert th.equal(prior.variance, th.zeros(2, 3))


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("prior_std", [0.1, 2.0, [0.5, 1.0, 2.0]])
def test_variational_before_training_is_as_wide_as_the_prior(covariance: str, prior_std: float | list[float]) -> None:
    layer = VariationalPosterior(4, 2, 3, prior_std=prior_std, covariance=covariance)
    posterior = layer.distribution(th.zeros(2, 4))
    variances = th.as_tensor(prior_std).expand(3).square()
    th.testing.assert_close(posterior.covariance, variances.diag().expand(2, 3, 3))
    # ... and nearly so wherever the hidden state is
    variance = layer.distribution(th.rand(5, 4) * 2 - 1).variance
    assert (variance / variances - 1).abs().max() < 0.05


@pytest.mark.parametrize(("bias", "variance"), [(-50.0, -10.0), (50.0, 2.0)])
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_log_variances_are_clamped(covariance: str, bias: float, variance: float) -> None:
    layer = VariationalPosterior(4, 2, 3, covariance=covariance)
    with th.no_grad():
        layer.scale_net.bias[:3] = bias
        layer.scale_net.bias[3:] = 0.0
        layer.scale_net.weight.zero_()
    th.testing.assert_close(layer.distribution(th.rand(2, 4)).variance.log(), th.full((2, 3), variance))


def test_statistics_of_one_step() -> None:
    """By hand, D = 1: N(3, 1/4) after N(1, 1)."""
    layer = LaplacePosterior(1, 1, None, prior_std=1.0)
    previous, posterior = layer.prior(1), layer.prior(1)
    previous, posterior = (
        type(previous)(th.tensor([[mean]]), th.tensor([[precision]])) for mean, precision in ((1.0, 1.0), (3.0, 4.0))
    )
    found = posterior_statistics(to_float64(posterior), to_float64(previous))
    log4, log_2_pi = 1.3862943611198906, 1.8378770664093453
    expected = {
        "entropy": (1 + log_2_pi - log4) / 2,
        "kl_mean": 2.0,
        "kl_covariance": (0.25 - 1 + log4) / 2,
        "mean_step": 2.0,
        "expected_move": 0.75,
    }
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-12)


def test_the_latent_mean_at_the_start_of_training() -> None:
    """mu = W h with orthogonal rows of length 3."""
    layer = LaplacePosterior(5, 2, 3)
    assert layer.mean_net is not None
    th.testing.assert_close(layer.mean_net.weight @ layer.mean_net.weight.T, 9.0 * th.eye(3))
    assert (layer.mean_net.bias == 0).all()


def test_a_posterior_without_memory_has_none_to_reset() -> None:
    layer = PointPosterior(4, 2, 3)
    assert layer.initial_state(2) == ()
    assert layer.reset((), th.ones(2)) == ()


@pytest.mark.parametrize("posterior", [LaplacePosterior, ConstantVariancePosterior, VariationalPosterior])
def test_the_prior_by_default(posterior: type[LatentPosterior]) -> None:
    prior = posterior(4, 2).prior(1)
    th.testing.assert_close(prior.stddev, th.full((1, 4), 0.02))
    assert (prior.mean == 0).all()


def test_no_gradient_flows_through_summed_means() -> None:
    """m_t = mu_t + sg(m_{t-1}): every latent learns by its own hidden state alone."""
    layer = LaplacePosterior(3, 2, sum_means=True)
    hidden = th.rand(1, 4, 3, requires_grad=True)
    starts, initial = th.tensor([[0.0, 0.0, 1.0, 0.0]]), th.tensor([[10.0, 20.0, 30.0]])
    latents = layer.replay(SequenceInputs(hidden, th.zeros(1, 3), (initial,), starts, None, {})).latents
    h = hidden.detach()[0]
    expected = th.stack((initial[0] + h[0], initial[0] + h[0] + h[1], h[2], h[2] + h[3]))
    th.testing.assert_close(latents.detach(), expected.expand(1, 1, 4, 3))
    (gradient,) = th.autograd.grad(latents[0, 0, [1, 3]].sum(), hidden)
    th.testing.assert_close(gradient[0], th.tensor([0.0, 1.0, 0.0, 1.0]).unsqueeze(1).expand(4, 3))


@pytest.mark.parametrize("posterior", [LaplacePosterior, VariationalPosterior])
def test_draws_have_the_posteriors_type(posterior: type[LatentPosterior]) -> None:
    layer = posterior(4, 2, 3).double()
    latents, noise = layer.draw(layer.prior(2), 5)
    assert latents.shape == noise.shape == (5, 2, 3)
    assert latents.dtype == noise.dtype == th.float64


@pytest.mark.parametrize("posterior", [PointPosterior, VariationalPosterior, LaplacePosterior])
def test_without_noise_the_one_latent_is_the_mean(posterior: type[LatentPosterior]) -> None:
    layer = posterior(4, 2, 3)
    hidden, starts = th.rand(2, 5, 4), th.zeros(2, 5)
    latents = layer.replay(SequenceInputs(hidden, th.zeros(2, 4), (), starts, None, {})).latents
    assert latents.shape == (1, 2, 5, 3)
    th.testing.assert_close(latents[0], layer.latent_mean(hidden))
