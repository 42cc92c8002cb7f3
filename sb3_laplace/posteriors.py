"""The latent layer: from recurrent states to Gaussian posteriors over the task latent, one class per posterior.

Shapes: N environments, S sequences of T steps, H hidden units, D latent units, K samples.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch as th
from torch import nn

from sb3_laplace.checks import check_integer, check_positive
from sb3_laplace.gaussian import DiagonalGaussian, FullGaussian, Gaussian
from sb3_laplace.jacobians import HiddenJacobian, hidden_jacobian

# At the default gain of one |J| is below 0.03 and mu far smaller than the posterior's noise: sampling
# swamps the latent and learning starts late.
_LATENT_GAIN = 3.0


class PosteriorStep(NamedTuple):
    """What a posterior makes of one time step.

    :param posterior: q_t, batch of N
    :param prior: q_{t-1}, or the prior q_0 at an episode's first step, batch of N
    :param state: the posterior's own part of the recurrent state after the step, each (1, N, ...)
    """

    posterior: Gaussian
    prior: Gaussian
    state: tuple[th.Tensor, ...]


class Replay(NamedTuple):
    """What the heads and the loss need of a posterior in an update.

    :param latents: what the heads read, shape (max(K, 1), S, T, D)
    :param kl: KL(q_t || sg(q_{t-1})) up to terms without gradient, in nats, shape (S, T); None if not asked for
    """

    latents: th.Tensor
    kl: th.Tensor | None


class LatentPosterior(nn.Module, ABC):
    """Interface of the latent layer between the actor's recurrent network and the heads.

    The latent mean is ``mu_t = h_t`` (``latent_dim=None``, the unmodified architecture) or
    ``mu_t = W h_t + b``.

    :param hidden_size: number of hidden units H
    :param latent_dim: number of latent units D, None for the identity (D = H)
    :param prior_std: standard deviation of the prior q_0 = N(0, prior_std^2 I)
    :raises ValueError: if latent_dim or prior_std is not positive
    """

    prior_mean: th.Tensor

    def __init__(self, hidden_size: int, latent_dim: int | None = None, prior_std: float = 0.1) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.latent_dim = hidden_size if latent_dim is None else check_integer("latent_dim", latent_dim, minimum=1)
        self.prior_std = check_positive("prior_std", prior_std)
        # Not a parameter and not saved: it knows the device and the floating point type
        self.register_buffer("prior_mean", th.zeros(self.latent_dim), persistent=False)
        self.mean_net = None if latent_dim is None else nn.Linear(hidden_size, self.latent_dim)
        if self.mean_net is not None:
            nn.init.orthogonal_(self.mean_net.weight, gain=_LATENT_GAIN)
            nn.init.zeros_(self.mean_net.bias)

    def latent_mean(self, hidden: th.Tensor) -> th.Tensor:
        """mu_t, shape (..., D).

        :param hidden: hidden states of the top layer, shape (..., H)
        """
        return hidden if self.mean_net is None else self.mean_net(hidden)

    @abstractmethod
    def initial_state(self, n_envs: int) -> tuple[th.Tensor, ...]:
        """The posterior's own part of the recurrent state before any observation, each (1, n_envs, ...)."""

    def reset(self, state: tuple[th.Tensor, ...], episode_starts: th.Tensor) -> tuple[th.Tensor, ...]:
        """Start again from the prior where an episode starts.

        :param state: own part of the recurrent state, each (1, N, ...)
        :param episode_starts: 1 where an episode starts, shape (N,)
        """
        starts = episode_starts != 0
        initial = self.initial_state(1)
        return tuple(
            th.where(starts.view(1, -1, *[1] * (part.dim() - 2)), first.to(part), part)
            for part, first in zip(state, initial, strict=True)
        )

    @abstractmethod
    def prior(self, n_envs: int) -> Gaussian:
        """The prior q_0 = N(0, prior_std^2 I), batch of n_envs."""

    @abstractmethod
    def from_state(self, hidden: th.Tensor, state: tuple[th.Tensor, ...]) -> Gaussian:
        """q_t as the recurrent state holds it.

        :param hidden: hidden states of the top layer, shape (N, H)
        :param state: own part of the recurrent state, each (1, N, ...)
        """

    @abstractmethod
    def step(
        self,
        rnn: nn.RNNBase,
        inputs: th.Tensor,
        previous_hidden: th.Tensor,
        rnn_state: tuple[th.Tensor, ...],
        state: tuple[th.Tensor, ...],
        episode_starts: th.Tensor,
    ) -> PosteriorStep:
        """Take in one observation.

        :param rnn: the actor's recurrent network
        :param inputs: inputs of its top layer, shape (N, F)
        :param previous_hidden: hidden states of the top layer before the step, zero at an episode's start, (N, H)
        :param rnn_state: updated state of the top layer, each (N, H)
        :param state: own part of the recurrent state before the step, reset where episodes start
        :param episode_starts: 1 where an episode starts, shape (N,)
        """

    def draw(self, posterior: Gaussian, n_samples: int) -> tuple[th.Tensor, th.Tensor]:
        """Sample latents, and the noise that an update needs to find them again.

        :param posterior: q_t, batch of N
        :param n_samples: number of samples K
        :return: latents and noise, each of shape (K, N, D)
        """
        mean = posterior.mean
        displacement = posterior.unwhiten(th.randn(n_samples, *mean.shape, dtype=mean.dtype, device=mean.device))
        return mean + displacement, displacement

    def kl_memory(self, step: PosteriorStep) -> th.Tensor | None:
        """What the KL penalty needs to remember of a step, shape (N, ...); None if nothing."""
        return None

    @abstractmethod
    def replay(
        self,
        hidden: th.Tensor,
        initial_hidden: th.Tensor,
        episode_starts: th.Tensor,
        noise: th.Tensor | None,
        kl_memory: th.Tensor | None,
        with_kl: bool,
    ) -> Replay:
        """Evaluate the posterior in an update, with gradients, at the noise of the rollout.

        :param hidden: hidden states of the top layer under the current weights, shape (S, T, H)
        :param initial_hidden: the same before the first step, shape (S, H)
        :param episode_starts: 1 where an episode starts, shape (S, T)
        :param noise: noise of the rollout, shape (K, S, T, D), or None to stay at the mean
        :param kl_memory: what :meth:`kl_memory` stored, shape (S, T, ...)
        :param with_kl: whether the KL between successive posteriors is asked for
        """


class LaplacePosterior(LatentPosterior):
    """Laplace approximation of the recurrent state, Markov factorization (the default of the paper, section 4).

    ``Lambda_t = Lambda_{t-1} + J_t J_t^T``, with ``J_t`` the Jacobian of the latent mean with respect to the
    hidden state, at the updated state; ``Lambda_0 = prior_std^{-2} I``. The mean is mu_t: nothing is learned
    beyond the network itself.

    :param hidden_size: number of hidden units H
    :param latent_dim: number of latent units D, None for the identity
    :param prior_std: standard deviation of the prior
    :param covariance: "diagonal" or "full"
    :raises ValueError: if an argument is out of range
    """

    def __init__(
        self,
        hidden_size: int,
        latent_dim: int | None = None,
        prior_std: float = 0.1,
        covariance: str = "diagonal",
    ) -> None:
        super().__init__(hidden_size, latent_dim, prior_std)
        if covariance not in ("diagonal", "full"):
            raise ValueError(f"covariance must be 'diagonal' or 'full', got {covariance!r}.")
        self.covariance = covariance
        self._gaussian = FullGaussian if covariance == "full" else DiagonalGaussian

    def initial_state(self, n_envs: int) -> tuple[th.Tensor, ...]:
        precision = th.full_like(self.prior_mean, self.prior_std**-2)
        if self.covariance == "full":
            precision = precision.diag()
        return (precision.expand(1, n_envs, *precision.shape).contiguous(),)

    def prior(self, n_envs: int) -> Gaussian:
        (precision,) = self.initial_state(n_envs)
        return self._gaussian(self.prior_mean.expand(n_envs, -1), precision[0])

    def from_state(self, hidden: th.Tensor, state: tuple[th.Tensor, ...]) -> Gaussian:
        return self._gaussian(self.latent_mean(hidden), state[0][0])

    def step(
        self,
        rnn: nn.RNNBase,
        inputs: th.Tensor,
        previous_hidden: th.Tensor,
        rnn_state: tuple[th.Tensor, ...],
        state: tuple[th.Tensor, ...],
        episode_starts: th.Tensor,
    ) -> PosteriorStep:
        precision = state[0][0]
        updated = self._add_curvature(precision, hidden_jacobian(rnn, inputs, rnn_state))
        # The prior's mean is zero, whatever b is
        previous_mean = self.latent_mean(previous_hidden) * (1.0 - episode_starts).unsqueeze(-1)
        return PosteriorStep(
            posterior=self._gaussian(self.latent_mean(rnn_state[0]), updated),
            prior=self._gaussian(previous_mean, precision),
            state=(updated.unsqueeze(0),),
        )

    @th.no_grad()
    def _add_curvature(self, precision: th.Tensor, jacobian: HiddenJacobian) -> th.Tensor:
        """``precision + J J^T`` or its diagonal."""
        if self.covariance == "diagonal" and self.mean_net is None:
            return precision + jacobian.row_norms_squared()
        dense = jacobian.dense() if self.mean_net is None else jacobian.project(self.mean_net.weight)
        if self.covariance == "diagonal":
            return precision + dense.square().sum(-1)
        return th.baddbmm(precision, dense, dense.mT)

    def kl_memory(self, step: PosteriorStep) -> th.Tensor | None:
        return step.prior.precision

    def replay(
        self,
        hidden: th.Tensor,
        initial_hidden: th.Tensor,
        episode_starts: th.Tensor,
        noise: th.Tensor | None,
        kl_memory: th.Tensor | None,
        with_kl: bool,
    ) -> Replay:
        mean = self.latent_mean(hidden)
        latents = mean.unsqueeze(0) if noise is None else mean + noise
        if not with_kl:
            return Replay(latents, None)
        previous = self._previous_mean(mean, initial_hidden, episode_starts)
        assert kl_memory is not None
        # The covariance part of the KL is constant: no gradient flows through a precision
        return Replay(latents, 0.5 * self._gaussian(previous, kl_memory).mahalanobis(mean - previous))

    @th.no_grad()
    def _previous_mean(self, mean: th.Tensor, initial_hidden: th.Tensor, episode_starts: th.Tensor) -> th.Tensor:
        """Means of q_{t-1}, the prior's zero where an episode starts, shape (S, T, D)."""
        first = self.latent_mean(initial_hidden).unsqueeze(1)
        previous = th.cat((first, mean[:, :-1]), dim=1)
        return previous * (1.0 - episode_starts).unsqueeze(-1)


POSTERIORS: dict[str, type[LatentPosterior]] = {"laplace": LaplacePosterior}


def make_posterior(
    posterior: str | type[LatentPosterior], hidden_size: int, latent_dim: int | None, posterior_kwargs: dict[str, Any]
) -> LatentPosterior:
    """Build the latent layer that ``policy_kwargs`` ask for.

    :param posterior: a name, or a subclass of :class:`LatentPosterior`
    :param hidden_size: number of hidden units H
    :param latent_dim: number of latent units D, None for the identity
    :param posterior_kwargs: further keyword arguments of the class
    :raises ValueError: if the name is unknown or an argument is out of range
    :raises TypeError: if the class takes no such keyword
    """
    if isinstance(posterior, str):
        if posterior not in POSTERIORS:
            raise ValueError(f"posterior must be one of {sorted(POSTERIORS)} or a class, got {posterior!r}.")
        posterior_class = POSTERIORS[posterior]
    elif isinstance(posterior, type) and issubclass(posterior, LatentPosterior):
        posterior_class = posterior
    else:
        raise ValueError(
            f"posterior must be one of {sorted(POSTERIORS)} or a LatentPosterior class, got {posterior!r}."
        )
    try:
        return posterior_class(hidden_size, latent_dim, **posterior_kwargs)
    except TypeError as error:
        raise TypeError(
            f"posterior_kwargs={posterior_kwargs!r} do not fit {posterior_class.__name__}: {error}"
        ) from None
