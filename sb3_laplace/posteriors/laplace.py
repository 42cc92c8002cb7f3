"""The Laplace posterior: the curvature of the recurrent network as a precision (paper, section 4)."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch as th

from sb3_laplace.checks import check_choice, check_integer, check_positive
from sb3_laplace.cores import Core, CoreState, JacobianOperator
from sb3_laplace.posteriors.base import (
    LatentPosterior,
    PosteriorState,
    PosteriorStep,
    Replay,
    SequenceInputs,
    StepInputs,
)
from sb3_laplace.posteriors.gaussian import DiagonalGaussian, FullGaussian, Gaussian


class LaplaceState(NamedTuple):
    """What is remembered of N environments.

    :param mean: m_t, shape (N, D)
    :param precision: Lambda_t, shape (N, D, D) or (N, D)
    """

    mean: th.Tensor
    precision: th.Tensor


class WindowState(NamedTuple):
    """The same with past inputs.

    :param mean: m_t, shape (N, D)
    :param precision: Lambda_t, shape (N, D, D) or (N, D)
    :param inputs: past inputs of the core's Jacobian, the newest last, shape (N, L, F)
    :param number: how many of them belong to the present episode, shape (N,); those beyond it are never read
    """

    mean: th.Tensor
    precision: th.Tensor
    inputs: th.Tensor
    number: th.Tensor


class LaplacePosterior(LatentPosterior):
    """Laplace approximation of the recurrent state.

    The mean is mu_t and nothing is learned beyond the network itself. With ``P_t(e) = J_t(e) J_t(e)^T``, where
    ``J_t(e)`` is the Jacobian of the latent mean with respect to the hidden state for the input e, evaluated
    at the *current* state (h_t, c_t), and the sum running over the last ``window`` inputs of the episode:

    - markov: ``Lambda_t = Lambda_{t-1} + sum_i P_t(e_i)``, with ``Lambda_0 = diag(prior_std^{-2})``
    - stationary: ``Lambda_t = damping I + sum_i P_t(e_i)``

    A window of more than one input keeps the past inputs in the recurrent state and evaluates all of them
    anew at every step: with ``window=None`` the time of a step and the memory (N t F floats) grow as O(t).

    :param hidden_size: number of hidden units H
    :param input_size: number of inputs F that the core's Jacobian takes, see
        :meth:`~sb3_laplace.Core.jacobian_input_size`
    :param latent_dim: number of latent units D, None for the identity
    :param prior_std: standard deviation of the prior, a number or one for each latent unit; None is 1, with the
        identity 0.02
    :param covariance: "diagonal" or "full"
    :param factorization: "markov" or "stationary"
    :param window: number of past inputs in the sum, the present one included; None for the whole episode.
        "auto" is 1 for markov and None for stationary.
    :param sum_means: ``m_t = mu_t + sg(m_{t-1})`` in the place of ``m_t = mu_t``
    :param normalize: divide the sum by the number of inputs in it
    :param damping: of the stationary factorization; by default the prior's precision
    :param prior_mean: mean of the prior, a number or one for each latent unit
    :param noise_std: standard deviation s of the observation noise, which J J^T takes for 1: ``P_t = J_t J_t^T / s^2``
    :param jacobian_dtype: "bfloat16" computes the products for J in that type, where no window is kept: faster on
        processors that have it, with an error of about 0.3% in ``Lambda_t - Lambda_{t-1}``. None computes in the
        network's own type.
    :raises ValueError: if an argument is out of range
    """

    def __init__(
        self,
        hidden_size: int,
        input_size: int,
        latent_dim: int | None = None,
        prior_std: float | Sequence[float] | None = None,
        covariance: str = "diagonal",
        factorization: str = "markov",
        window: int | Literal["auto"] | None = "auto",
        sum_means: bool = False,
        normalize: bool = False,
        damping: float | None = None,
        jacobian_dtype: str | None = None,
        prior_mean: float | Sequence[float] = 0.0,
        noise_std: float = 1.0,
    ) -> None:
        super().__init__(hidden_size, input_size, latent_dim, prior_std, prior_mean)
        self.noise_std = check_positive("noise_std", noise_std)
        check_choice("covariance", covariance, ("diagonal", "full"))
        check_choice("factorization", factorization, ("markov", "stationary"))
        if damping is not None and factorization == "markov":
            raise ValueError(f"damping is for factorization='stationary' only, got {damping!r}.")
        self.covariance = covariance
        self.factorization = factorization
        if window == "auto":
            window = 1 if factorization == "markov" else None
        self.window = None if window is None else check_integer("window", window, minimum=1)
        self.sum_means = sum_means
        self.normalize = normalize
        check_choice("jacobian_dtype", jacobian_dtype, (None, "bfloat16"))
        if jacobian_dtype is not None and self._keeps_history:
            raise ValueError(f"jacobian_dtype={jacobian_dtype!r} needs window=1, got window={window!r}.")
        self._jacobian_dtype = None if jacobian_dtype is None else th.bfloat16
        self.damping = None if damping is None else check_positive("damping", damping)
        self._gaussian = FullGaussian if covariance == "full" else DiagonalGaussian

    @property
    def _keeps_history(self) -> bool:
        return self.window != 1

    def _from_diagonal(self, n_envs: int, diagonal: th.Tensor) -> th.Tensor:
        """``diag(diagonal)`` as this posterior stores precisions, shape (n_envs, D, D) or (n_envs, D)."""
        precision = diagonal.diag() if self.covariance == "full" else diagonal
        return precision.expand(n_envs, *precision.shape)

    def prior(self, n_envs: int) -> Gaussian:
        mean = self.prior_mean.expand(n_envs, -1)
        return self._gaussian(mean, self._from_diagonal(n_envs, self.prior_precision))

    # -- acting -----------------------------------------------------------------------------------------

    def initial_state(self, n_envs: int) -> LaplaceState | WindowState:
        prior = self.prior(n_envs)
        if not self._keeps_history:
            return LaplaceState(prior.mean, prior.precision)
        empty = self.prior_mean.new_zeros(n_envs, 0, self.input_size)
        return WindowState(prior.mean, prior.precision, empty, self.prior_mean.new_zeros(n_envs))

    def reset(self, state: PosteriorState, episode_starts: th.Tensor) -> LaplaceState | WindowState:
        assert isinstance(state, (LaplaceState, WindowState))
        starts = episode_starts != 0
        prior = self.prior(1)
        mean = th.where(starts.view(-1, 1), prior.mean, state.mean)
        precision = th.where(starts.view(-1, *[1] * (state.precision.dim() - 1)), prior.precision, state.precision)
        if isinstance(state, LaplaceState):
            return LaplaceState(mean, precision)
        return WindowState(mean, precision, state.inputs, state.number * ~starts)

    def from_state(self, hidden: th.Tensor, state: PosteriorState) -> Gaussian:
        assert isinstance(state, (LaplaceState, WindowState))
        return self._gaussian(state.mean, state.precision)

    def step(self, given: StepInputs) -> PosteriorStep:
        state = given.state
        previous = self.from_state(given.previous_hidden, state)
        mean = self.next_mean(given.hidden, state)
        base = previous.precision
        if self.factorization == "stationary":
            damping = self.prior_precision
            if self.damping is not None:
                damping = th.full_like(damping, self.damping)
            base = self._from_diagonal(len(mean), damping)
        updated: LaplaceState | WindowState
        with th.no_grad():
            if isinstance(state, WindowState):
                past, number = self._append(state.inputs, state.number, given.inputs)
                precision = self._add_window(base, given.core, past, number, given.core_state)
                updated = WindowState(mean, precision, past, number)
            else:
                precision = self._add_curvature(base, given.core.jacobian(given.inputs, given.core_state))
                updated = LaplaceState(mean, precision)
        return PosteriorStep(self._gaussian(mean, precision), previous, updated)

    def next_mean(self, hidden: th.Tensor, state: PosteriorState) -> th.Tensor:
        mean = self.latent_mean(hidden)
        if not self.sum_means:
            return mean
        assert isinstance(state, (LaplaceState, WindowState))
        return mean + state.mean

    def _append(self, history: th.Tensor, number: th.Tensor, inputs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Add an input to the history; what no environment reads any more is dropped.

        :param history: past inputs, the newest last, shape (N, L, F)
        :param number: how many of them belong to the present episode, shape (N,)
        :param inputs: shape (N, F)
        """
        number = number + 1
        if self.window is not None:
            number = number.clamp(max=self.window)
        longest = int(number.max())
        past = th.cat((history, inputs.unsqueeze(1)), dim=1)
        return past[:, past.shape[1] - longest :].contiguous(), number

    def _add_curvature(self, base: th.Tensor, jacobian: JacobianOperator) -> th.Tensor:
        """``base + J J^T / noise_std^2`` or its diagonal, for one input in each environment."""
        per_noise = self.noise_std**-2
        if self.covariance == "diagonal":
            if self.mean_net is None:
                norms = jacobian.row_norms_squared()
            else:
                norms = jacobian.projected_row_norms_squared(self.mean_net.weight, self._jacobian_dtype)
            return th.add(base, norms, alpha=per_noise)
        precision = th.empty_like(base, memory_format=th.contiguous_format)
        projection = None if self.mean_net is None else self.mean_net.weight
        for block, dense in jacobian.blocks(projection, self._jacobian_dtype):
            dense = dense.to(base.dtype)
            th.baddbmm(base[block], dense, dense.mT, alpha=per_noise, out=precision[block])
        return precision

    def _add_window(
        self, base: th.Tensor, core: Core, past: th.Tensor, number: th.Tensor, core_state: CoreState
    ) -> th.Tensor:
        """``base + sum_i J(e_i) J(e_i)^T / noise_std^2`` or its diagonal, over the past inputs of each environment.

        :param past: past inputs, the newest last, shape (N, L, F)
        :param number: how many of them are in the sum, shape (N,)
        :param core_state: state at which all of them are evaluated
        """
        length = past.shape[1]
        jacobian = core.jacobian(past, core_state)
        in_sum = th.arange(length, device=past.device) >= length - number.unsqueeze(1)
        weight = in_sum.to(past.dtype)
        if self.normalize:
            weight = weight / number.unsqueeze(1)
        # J enters twice
        jacobian = jacobian.scale(weight.sqrt() / self.noise_std)
        if self.covariance == "diagonal" and self.mean_net is None:
            return base + jacobian.row_norms_squared().sum(1)
        total = jacobian.summed_outer_product()
        if self.mean_net is not None:
            projection = self.mean_net.weight.detach()
            half = projection @ total
            if self.covariance == "diagonal":
                return base + (half * projection).sum(-1)
            total = half @ projection.T
        # Rounding leaves the product with W slightly asymmetric
        return base + 0.5 * (total + total.mT)

    def draw(self, posterior: Gaussian, n_samples: int) -> tuple[th.Tensor, th.Tensor]:
        """The noise is the displacement itself: an update holds the covariance at its rollout value."""
        mean = posterior.mean
        displacement = posterior.unwhiten(th.randn(n_samples, *mean.shape, dtype=mean.dtype, device=mean.device))
        return mean + displacement, displacement

    # -- updating ---------------------------------------------------------------------------------------

    def sequence_state(self, state: PosteriorState) -> PosteriorState:
        if not self.sum_means:
            return ()
        assert isinstance(state, (LaplaceState, WindowState))
        return (state.mean,)

    def memory(self, step: PosteriorStep) -> dict[str, th.Tensor]:
        return {"previous_precision": step.previous.precision}

    def replay(self, inputs: SequenceInputs) -> Replay:
        mean = self.latent_mean(inputs.hidden)
        sums = None
        if self.sum_means:
            sums = self._previous_sums(mean, inputs)
            mean = mean + sums

        def moved() -> th.Tensor:
            return mean - (self._previous_means(mean, inputs) if sums is None else sums)

        def kl() -> th.Tensor:
            return self._mean_part_of_kl(moved(), inputs.memory["previous_precision"])

        return Replay(mean.unsqueeze(0) if inputs.noise is None else mean + inputs.noise, kl, moved)

    def _mean_part_of_kl(self, moved: th.Tensor, precisions: Sequence[th.Tensor]) -> th.Tensor:
        """``d^T Lambda d / 2``, the part of the KL with a gradient, shape (S, T).

        The covariance part is constant: no gradient flows through a precision.

        :param moved: d, how far the mean moved at each step, shape (S, T, D)
        :param precisions: Lambda_{t-1} of the steps of each sequence, shape (T, D, D) or (T, D), or shorter
        """
        with th.no_grad():
            # Autograd would keep and transpose the matrices once more
            product = _products(precisions, moved, in_place=moved.is_cpu)
        quadratic = (product * moved).sum(-1)
        # Its gradient is Lambda d, that of half the quadratic form
        return quadratic - 0.5 * quadratic.detach()

    @th.no_grad()
    def _previous_means(self, mean: th.Tensor, inputs: SequenceInputs) -> th.Tensor:
        """Means of q_{t-1}, the prior's where an episode starts, shape (S, T, D)."""
        first = self.latent_mean(inputs.initial_hidden).unsqueeze(1)
        previous = th.cat((first, mean[:, :-1]), dim=1)
        return th.where((inputs.episode_starts != 0).unsqueeze(-1), self.prior_mean, previous)

    @th.no_grad()
    def _previous_sums(self, mean: th.Tensor, inputs: SequenceInputs) -> th.Tensor:
        """Summed means before each step: of the episode's steps so far, shape (S, T, D)."""
        (initial,) = inputs.initial_state
        # Sums before each step over the whole sequence, less what came before the episode's start
        total = th.cat((initial.unsqueeze(1), mean[:, :-1]), dim=1).cumsum(1)
        steps = th.arange(mean.shape[1], device=mean.device)
        last_start = th.where(inputs.episode_starts != 0, steps, -1).cummax(1).values
        before = total.gather(1, last_start.clamp(min=0).unsqueeze(-1).expand_as(total))
        return th.where((last_start >= 0).unsqueeze(-1), total - before + self.prior_mean, total)


def _products(precisions: Sequence[th.Tensor], vectors: th.Tensor, in_place: bool) -> th.Tensor:
    """``Lambda d`` for the steps of S sequences, zero where a sequence is padded, shape (S, T, D).

    :param precisions: Lambda of each sequence, shape (T, D, D) or (T, D), or shorter
    :param vectors: d, shape (S, T, D)
    :param in_place: read the matrices where they are stored, one sequence after the other: on a CPU this is bound by
        memory traffic. A GPU is faster with one product of matrices that are gathered first.
    """
    if not in_place and all(len(precision) == vectors.shape[1] for precision in precisions):
        gathered = th.stack(tuple(precisions))
        is_full = gathered.dim() > vectors.dim()
        return (gathered @ vectors.unsqueeze(-1)).squeeze(-1) if is_full else gathered * vectors
    product = th.zeros_like(vectors)
    for precision, vector, out in zip(precisions, vectors, product, strict=True):
        length = len(precision)
        if precision.dim() == 3:
            th.bmm(precision, vector[:length].unsqueeze(-1), out=out[:length].unsqueeze(-1))
        else:
            th.mul(precision, vector[:length], out=out[:length])
    return product
