"""Mixtures of Gaussians in one dimension: what an agent that samples its latent predicts for a number."""

import math
from typing import NamedTuple

import torch as th

# Halvings of an interval of less than 100 standard deviations: down to 1e-10 of one
_N_HALVINGS = 40
# No more than exp(-32) of a Gaussian lies beyond this many standard deviations
_REACH = 8.0


class GaussianMixture(NamedTuple):
    """A batch ``...`` of equal-weight mixtures of K Gaussians over the real line.

    :param means: the components' means, shape (K, ...)
    :param stds: the components' standard deviations, shape (K, ...)
    """

    means: th.Tensor
    stds: th.Tensor

    @property
    def mean(self) -> th.Tensor:
        """Means of the mixtures, shape (...)."""
        return self.means.mean(0)

    @property
    def variance(self) -> th.Tensor:
        """Variances of the mixtures, shape (...): the mean variance and the variance of the means."""
        return self.stds.square().mean(0) + self.means.var(0, correction=0)

    def moment_matched(self) -> "GaussianMixture":
        """The single Gaussians of the same mean and variance, as mixtures of one component."""
        return GaussianMixture(self.mean.unsqueeze(0), self.variance.sqrt().unsqueeze(0))

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        """Log-density in nats, shape (...).

        :param value: shape (...)
        """
        log_probs = -0.5 * ((value - self.means) / self.stds).square() - self.stds.log()
        return log_probs.logsumexp(0) - math.log(len(self.means)) - 0.5 * math.log(2.0 * math.pi)

    def cdf(self, value: th.Tensor) -> th.Tensor:
        """Probability of no more than a value, shape (...).

        :param value: shape (...)
        """
        return th.special.ndtr((value - self.means) / self.stds).mean(0)

    def quantile(self, probability: float) -> th.Tensor:
        """The value whose :meth:`cdf` is ``probability``, by bisection, shape (...).

        :param probability: between 1e-15 and 1 - 1e-15
        """
        low = (self.means - _REACH * self.stds).amin(0)
        high = (self.means + _REACH * self.stds).amax(0)
        for _ in range(_N_HALVINGS):
            middle = 0.5 * (low + high)
            above = self.cdf(middle) > probability
            low, high = th.where(above, low, middle), th.where(above, middle, high)
        return 0.5 * (low + high)
