"""Posteriors without an uncertainty of their own: a point, and a Gaussian of constant variance."""

from typing import ClassVar

import torch as th

from sb3_laplace.posteriors.base import HiddenStatePosterior
from sb3_laplace.posteriors.gaussian import DiagonalGaussian, Gaussian, PointMass


class PointPosterior(HiddenStatePosterior):
    """q_t is a point at mu_t: plain RL^2. No latent is drawn, whatever ``n_posterior_samples``."""

    is_point: ClassVar[bool] = True

    def prior(self, n_envs: int) -> Gaussian:
        return PointMass(self.prior_mean.expand(n_envs, -1))

    def distribution(self, hidden: th.Tensor) -> Gaussian:
        return PointMass(self.latent_mean(hidden))


class ConstantVariancePosterior(HiddenStatePosterior):
    """q_t = N(mu_t, diag(prior_std^2)): the noise of a posterior without its information."""

    def distribution(self, hidden: th.Tensor) -> Gaussian:
        mean = self.latent_mean(hidden)
        return DiagonalGaussian(mean, self.prior_precision.expand_as(mean))
