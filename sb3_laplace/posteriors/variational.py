"""The variational posterior (VRNN): a covariance learned by gradient."""

from collections.abc import Sequence

import numpy as np
import torch as th
from torch import nn

from sb3_laplace.checks import check_choice
from sb3_laplace.posteriors.base import HiddenStatePosterior
from sb3_laplace.posteriors.gaussian import DiagonalGaussian, Gaussian, RotatedGaussian

# Bounds of the log-variances (reference)
LOG_VARIANCE_BOUNDS = (-10.0, 2.0)


class VariationalPosterior(HiddenStatePosterior):
    """q_t = N(mu_t, Sigma(h_t)) with a learned covariance (paper, section 5: the VRNN baseline).

    Diagonal: ``Sigma = diag(exp(s))``. Full: ``Sigma = Q diag(exp(s)) Q^T`` with Q orthogonal, the Cayley map
    ``Q = -A^{-1} A^T``, ``A = I + (T - T^T) / 2``, of a strictly lower triangular T. The log-variances s,
    clamped to [-10, 2], and the D (D - 1) / 2 entries of T, row by row, are linear in h_t.

    :param hidden_size: number of hidden units H
    :param input_size: number of inputs F that the core's Jacobian takes
    :param latent_dim: number of latent units D, None for the identity
    :param prior_std: standard deviation of the prior, and of the posterior before training, a number or one for each
        latent unit; None is 1, with the identity 0.02
    :param covariance: "diagonal" or "full"
    :param prior_mean: mean of the prior, a number or one for each latent unit
    :raises ValueError: if an argument is out of range
    """

    def __init__(
        self,
        hidden_size: int,
        input_size: int,
        latent_dim: int | None = None,
        prior_std: float | Sequence[float] | None = None,
        covariance: str = "diagonal",
        prior_mean: float | Sequence[float] = 0.0,
    ) -> None:
        super().__init__(hidden_size, input_size, latent_dim, prior_std, prior_mean)
        check_choice("covariance", covariance, ("diagonal", "full"))
        self.covariance = covariance
        dim = self.latent_dim
        n_scales = dim if covariance == "diagonal" else dim * (dim + 1) // 2
        self.scale_net = nn.Linear(hidden_size, n_scales)
        nn.init.orthogonal_(self.scale_net.weight, gain=0.01)
        nn.init.zeros_(self.scale_net.bias)
        with th.no_grad():
            self.scale_net.bias[:dim] = self._prior_log_variance()

    def prior(self, n_envs: int) -> Gaussian:
        if self.covariance == "diagonal":
            return super().prior(n_envs)
        mean = self.prior_mean.expand(n_envs, -1)
        identity = th.eye(self.latent_dim, dtype=mean.dtype, device=mean.device).expand(n_envs, -1, -1)
        return RotatedGaussian(mean, self._prior_log_variance().expand_as(mean), identity)

    def _prior_log_variance(self) -> th.Tensor:
        return th.as_tensor(2.0 * np.log(self.prior_std)).to(self.prior_mean)

    def distribution(self, hidden: th.Tensor) -> Gaussian:
        mean, scales = self.latent_mean(hidden), self.scale_net(hidden)
        log_variance = scales[..., : self.latent_dim].clamp(*LOG_VARIANCE_BOUNDS)
        if self.covariance == "diagonal":
            return DiagonalGaussian(mean, (-log_variance).exp())
        return RotatedGaussian(mean, log_variance, self._rotation(scales[..., self.latent_dim :]))

    def _rotation(self, entries: th.Tensor) -> th.Tensor:
        """Cayley map of D (D - 1) / 2 numbers to an orthogonal matrix, shape (..., D, D)."""
        dim = self.latent_dim
        row, column = th.tril_indices(dim, dim, offset=-1, device=entries.device)
        lower = entries.new_zeros(*entries.shape[:-1], dim, dim)
        lower[..., row, column] = entries
        matrix = th.eye(dim, dtype=entries.dtype, device=entries.device) + 0.5 * (lower - lower.mT)
        return -th.linalg.solve(matrix, matrix.mT)
