"""The interface of the latent layer: from recurrent states to Gaussian posteriors over the task latent.

Shapes: N environments, S sequences of T steps, H hidden units, D latent units, K samples.
"""

import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch as th
from torch import nn

from sb3_laplace.checks import check_integer, check_positive
from sb3_laplace.cores import Core, CoreState
from sb3_laplace.posteriors.gaussian import DiagonalGaussian, Gaussian

# At the default gain of one |J| is below 0.03 and mu far smaller than the posterior's noise: sampling
# swamps the latent and learning starts late.
_LATENT_GAIN = 3.0
# Of the identity latent
_IDENTITY_PRIOR_STD = 0.02


#: What a posterior remembers of N environments beside the core's state: tensors (N, ...), best a named tuple
PosteriorState = tuple[th.Tensor, ...]


class StepInputs(NamedTuple):
    """What a rollout knows of one time step of N environments.

    :param core: the actor's memory
    :param inputs: what its Jacobian takes beside the state, see :meth:`~sb3_laplace.Core.jacobian_inputs`, shape
        (N, F)
    :param previous_hidden: hidden states before the step, zero at an episode's start, shape (N, H)
    :param hidden: hidden states after the step, shape (N, H)
    :param core_state: the core's state after the step
    :param state: the posterior's own state before the step, reset where episodes start
    :param episode_starts: 1 where an episode starts, shape (N,)
    """

    core: Core
    inputs: th.Tensor
    previous_hidden: th.Tensor
    hidden: th.Tensor
    core_state: CoreState
    state: PosteriorState
    episode_starts: th.Tensor


class PosteriorStep:
    """What a posterior makes of one time step.

    :param posterior: q_t, batch of N
    :param previous: q_{t-1}, or the prior q_0 at an episode's first step, batch of N; or a function that computes it,
        as most steps are never asked for it
    :param state: the posterior's own state after the step
    """

    def __init__(self, posterior: Gaussian, previous: Gaussian | Callable[[], Gaussian], state: PosteriorState) -> None:
        self.posterior = posterior
        self.state = state
        self._previous = previous

    @property
    def previous(self) -> Gaussian:
        """q_{t-1}, or the prior q_0 at an episode's first step, batch of N."""
        if not isinstance(self._previous, Gaussian):
            with th.no_grad():
                self._previous = self._previous()
        return self._previous


class Replay(NamedTuple):
    """What the heads and the loss need of a posterior in an update.

    :param latents: what the heads read, shape (max(K, 1), S, T, D)
    :param kl: function that computes KL(q_t || sg(q_{t-1})) up to terms without gradient, in nats, shape (S, T)
    :param moved: function that computes m_t - sg(m_{t-1}), where m_0 is the prior's mean, shape (S, T, D). None if the
        posterior does not say, which kl_coef="auto" asks for where environments report their task.
    """

    latents: th.Tensor
    kl: Callable[[], th.Tensor]
    moved: Callable[[], th.Tensor] | None = None


class SequenceInputs(NamedTuple):
    """What an update knows of S sequences of T steps.

    :param hidden: hidden states under the current weights, shape (S, T, H)
    :param initial_hidden: the same before the first step, shape (S, H)
    :param initial_state: what :meth:`~sb3_laplace.LatentPosterior.sequence_state` kept before the first step, each
        (S, ...)
    :param episode_starts: 1 where an episode starts, shape (S, T)
    :param noise: noise of the rollout, shape (K, S, T, D), or None to stay at the mean
    :param memory: what :meth:`~sb3_laplace.LatentPosterior.memory` kept of the steps, by name; of each name a list of
        the S sequences, each of shape (T, ...), or shorter where a sequence is padded. Empty unless the KL is asked
        for.
    """

    hidden: th.Tensor
    initial_hidden: th.Tensor
    initial_state: PosteriorState
    episode_starts: th.Tensor
    noise: th.Tensor | None
    memory: Mapping[str, Sequence[th.Tensor]]


class LatentPosterior(nn.Module, ABC):
    """Interface of the latent layer between the actor's recurrent network and the heads.

    The latent mean is ``mu_t = h_t`` (``latent_dim=None``, the unmodified architecture) or
    ``mu_t = W h_t + b``. Subclass :class:`HiddenStatePosterior` for a posterior that is a function of the
    hidden state alone, this class for one with a memory of its own.

    :param hidden_size: number of hidden units H
    :param input_size: number of inputs F that the core's Jacobian takes, see
        :meth:`~sb3_laplace.Core.jacobian_input_size`
    :param latent_dim: number of latent units D, None for the identity (D = H)
    :param prior_std: standard deviation of the prior q_0 = N(prior_mean, diag(prior_std^2)), a number or one for each
        latent unit. None is 1 for a projection, which can make its means as large as the noise demands (the paper's
        setting), and 0.02 for the identity, which cannot: hidden states lie in (-1, 1), and wider noise swamps them.
    :param prior_mean: mean of the prior, a number or one for each latent unit
    :raises ValueError: if latent_dim or prior_std is not positive, or there are not as many numbers as latent units
    """

    #: True if q_t is a point: there is nothing to sample and no KL
    is_point: ClassVar[bool] = False
    #: Mean and precisions of the prior, each of shape (D,)
    prior_mean: th.Tensor
    prior_precision: th.Tensor
    #: Its standard deviation as the constructor takes it: a number, or one for each latent unit
    prior_std: float | Sequence[float]

    def __init__(
        self,
        hidden_size: int,
        input_size: int,
        latent_dim: int | None = None,
        prior_std: float | Sequence[float] | None = None,
        prior_mean: float | Sequence[float] = 0.0,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.input_size = input_size
        self.latent_dim = hidden_size if latent_dim is None else check_integer("latent_dim", latent_dim, minimum=1)
        self.register_buffer("prior_mean", th.zeros(self.latent_dim), persistent=False)
        if prior_std is None:
            prior_std = _IDENTITY_PRIOR_STD if latent_dim is None else 1.0
        self.set_prior(prior_mean, prior_std)
        self.mean_net = None if latent_dim is None else nn.Linear(hidden_size, self.latent_dim)
        if self.mean_net is not None:
            nn.init.orthogonal_(self.mean_net.weight, gain=_LATENT_GAIN)
            nn.init.zeros_(self.mean_net.bias)

    def set_prior(
        self, mean: float | Sequence[float] | None = None, std: float | Sequence[float] | None = None
    ) -> None:
        """Put another prior q_0 in the place of the present one.

        :param mean: its mean, a number or one for each latent unit; None leaves it
        :param std: its standard deviation, a number or one for each latent unit; None leaves it
        :raises ValueError: if a number is not finite, a standard deviation not positive, or there are not as many of
            them as latent units
        """
        means = None if mean is None else self._check_units("prior_mean", mean)
        stds = None if std is None else self._check_units("prior_std", std, positive=True)
        # What is a number each is saved with the weights too; a single one is an argument alone
        if means is not None:
            tensor = th.as_tensor(means).to(self.prior_mean)
            self.register_buffer("prior_mean", tensor, persistent=np.ndim(mean) > 0)  # type: ignore[arg-type]
        if stds is not None:
            self.prior_std = stds.tolist() if np.ndim(std) > 0 else float(stds[0])  # type: ignore[arg-type]
            tensor = th.as_tensor(stds**-2).to(self.prior_mean)
            self.register_buffer("prior_precision", tensor, persistent=np.ndim(std) > 0)  # type: ignore[arg-type]

    def _check_units(self, name: str, value: float | Sequence[float], positive: bool = False) -> np.ndarray:
        units = np.asarray(value, dtype=np.float64) if np.ndim(value) > 0 else None
        if units is None:
            if positive:
                return np.full(self.latent_dim, check_positive(name, value))
            is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            units = np.full(self.latent_dim, value, dtype=np.float64) if is_number else np.zeros(0)
        if units.shape != (self.latent_dim,) or not np.isfinite(units).all() or (positive and (units <= 0).any()):
            kind = "positive finite" if positive else "finite"
            raise ValueError(f"{name} must be a {kind} number or {self.latent_dim} of them, got {value!r}.")
        return units

    def latent_mean(self, hidden: th.Tensor) -> th.Tensor:
        """mu_t, shape (..., D).

        :param hidden: hidden states, shape (..., H)
        """
        return hidden if self.mean_net is None else self.mean_net(hidden)

    def prior(self, n_envs: int) -> Gaussian:
        """The prior q_0 = N(prior_mean, diag(prior_std^2)), a batch of n_envs, of the posterior's own structure.

        :param n_envs: number of environments
        """
        return DiagonalGaussian(self.prior_mean.expand(n_envs, -1), self.prior_precision.expand(n_envs, -1))

    # -- acting -----------------------------------------------------------------------------------------

    @abstractmethod
    def initial_state(self, n_envs: int) -> PosteriorState:
        """The posterior's own state before any observation, each (n_envs, ...).

        A dimension of size 0 is one that grows.

        :param n_envs: number of environments
        """

    @abstractmethod
    def reset(self, state: PosteriorState, episode_starts: th.Tensor) -> PosteriorState:
        """Start again from the prior where an episode starts.

        :param state: own state of N environments
        :param episode_starts: 1 where an episode starts, shape (N,)
        """

    @abstractmethod
    def from_state(self, hidden: th.Tensor, state: PosteriorState) -> Gaussian:
        """q_t as the states hold it.

        :param hidden: hidden states, shape (N, H)
        :param state: own state of N environments
        """

    @abstractmethod
    def step(self, given: StepInputs) -> PosteriorStep:
        """Take in one observation.

        :param given: what is known of the step
        """

    def next_mean(self, hidden: th.Tensor, state: PosteriorState) -> th.Tensor:
        """m_t without its precision, for the critic's bootstrap, shape (N, D).

        :param hidden: updated hidden states, shape (N, H)
        :param state: own state before the step, reset where episodes start
        """
        return self.latent_mean(hidden)

    @abstractmethod
    def draw(self, posterior: Gaussian, n_samples: int) -> tuple[th.Tensor, th.Tensor]:
        """Sample latents, and the noise that an update needs to find them again.

        :param posterior: q_t, batch of N
        :param n_samples: number of samples K
        :return: latents and noise, each of shape (K, N, D)
        """

    # -- updating ---------------------------------------------------------------------------------------

    def sequence_state(self, state: PosteriorState) -> PosteriorState:
        """What of the own state an update needs before the first step of a sequence, each (N, ...).

        :param state: own state of N environments
        """
        return ()

    def memory(self, step: PosteriorStep) -> dict[str, th.Tensor]:
        """What the KL penalty of :meth:`replay` needs to remember of a step, by name, each of shape (N, ...).

        :param step: what :meth:`step` returned
        """
        return {}

    @abstractmethod
    def replay(self, inputs: SequenceInputs) -> Replay:
        """Evaluate the posterior in an update, with gradients, at the noise of the rollout.

        :param inputs: what is known of the sequences
        """


class HiddenStatePosterior(LatentPosterior):
    """A posterior that is a function of the hidden state alone: implement :meth:`distribution`.

    Its parameters learn by the gradients through the sampled latents and through the KL.
    """

    @abstractmethod
    def distribution(self, hidden: th.Tensor) -> Gaussian:
        """q_t for hidden states.

        :param hidden: shape (..., H)
        :return: Gaussians with mean of shape (..., D)
        """

    def initial_state(self, n_envs: int) -> PosteriorState:
        return ()

    def reset(self, state: PosteriorState, episode_starts: th.Tensor) -> PosteriorState:
        return state

    def from_state(self, hidden: th.Tensor, state: PosteriorState) -> Gaussian:
        return self.distribution(hidden)

    def step(self, given: StepInputs) -> PosteriorStep:
        return PosteriorStep(
            self.distribution(given.hidden),
            lambda: self._previous(given.previous_hidden, given.episode_starts),
            (),
        )

    def _previous(self, previous_hidden: th.Tensor, episode_starts: th.Tensor) -> Gaussian:
        """q_{t-1}, the prior where an episode starts."""
        previous = self.distribution(previous_hidden)
        if episode_starts.is_cpu and not episode_starts.any():
            return previous
        return self.prior(1).where(episode_starts != 0, previous)

    def draw(self, posterior: Gaussian, n_samples: int) -> tuple[th.Tensor, th.Tensor]:
        mean = posterior.mean
        noise = th.randn(n_samples, *mean.shape, dtype=mean.dtype, device=mean.device)
        return mean + posterior.unwhiten(noise), noise

    def replay(self, inputs: SequenceInputs) -> Replay:
        posterior = self.distribution(inputs.hidden)
        latents = posterior.mean.unsqueeze(0)
        if inputs.noise is not None:
            latents = posterior.mean + posterior.unwhiten(inputs.noise)

        def previous() -> Gaussian:
            with th.no_grad():
                previous_hidden = th.cat((inputs.initial_hidden.unsqueeze(1), inputs.hidden[:, :-1]), dim=1)
                return self._previous(previous_hidden, inputs.episode_starts)

        return Replay(latents, lambda: posterior.kl(previous()), lambda: posterior.mean - previous().mean)
