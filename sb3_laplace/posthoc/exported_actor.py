"""The deterministic actor as a function of observation, state and episode start, in operations that exporters know."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.nn import functional as F

from sb3_laplace.cores import Core, CoreState
from sb3_laplace.cores.jacobians import DenseJacobian, DiagonalJacobian, GateSumJacobian, PullbackJacobian
from sb3_laplace.cores.lstm import LSTM
from sb3_laplace.cores.torch_cell import CellWeights
from sb3_laplace.policies import LaplaceLstmPolicy
from sb3_laplace.posteriors import HiddenStatePosterior, LaplacePosterior, VariationalPosterior
from sb3_laplace.posteriors.gaussian import DiagonalGaussian, FullGaussian, Gaussian
from sb3_laplace.posteriors.laplace import LaplaceState
from sb3_laplace.posteriors.variational import LOG_VARIANCE_BOUNDS

#: Observation, state and episode start
ActorInputs = tuple[PyTorchObs, tuple[th.Tensor, ...], th.Tensor]


class ExportedActor(nn.Module):
    """What ``predict(deterministic=True)`` computes, without its checks, whose branches on numbers cannot be traced.

    Without entropies the state is the core's, and the sum of means where the posterior has one: no Jacobian is needed.
    With them it is that of ``predict``, each tensor of shape (layers or 1, N, ...).

    :param policy: the policy
    :param with_entropy: whether the posterior's entropy is returned too
    :raises ValueError: if the posterior, or its entropy, has no form that can be traced
    """

    def __init__(self, policy: LaplaceLstmPolicy, with_entropy: bool) -> None:
        super().__init__()
        self.policy = policy
        self.with_entropy = with_entropy
        layer = policy.latent_layer
        name = type(layer).__name__
        if not isinstance(layer, (LaplacePosterior, HiddenStatePosterior)):
            raise ValueError(
                f"{name} cannot be exported, a posterior with a state of its own: a LaplacePosterior or a "
                "HiddenStatePosterior can."
            )
        if with_entropy and layer.is_point:
            raise ValueError(f"entropy=True cannot be exported with {name}: a point has no entropy.")
        self._keeps_precision = with_entropy and isinstance(layer, LaplacePosterior)
        if self._keeps_precision and len(policy.initial_states(1).pi.posterior) != len(LaplaceState._fields):
            raise ValueError(
                "entropy=True cannot be exported with a window of past inputs (factorization='stationary', or a window "
                "of more than one), which grows: entropy=False can."
            )
        core_class = type(policy.lstm_actor)
        if self._keeps_precision and core_class.jacobian is Core.jacobian:
            raise ValueError(
                f"entropy=True cannot be exported with {core_class.__name__}, whose Jacobian is by autodiff: "
                "give the core a jacobian() in closed form, or leave entropy out."
            )
        if self._keeps_precision and layer._jacobian_dtype is not None:
            raise ValueError(f"entropy=True cannot be exported with jacobian_dtype = {layer._jacobian_dtype}.")
        self._keeps_mean = self._keeps_precision or getattr(layer, "sum_means", False)
        if isinstance(policy.action_space, spaces.Box):
            for bound in ("low", "high"):
                self.register_buffer(bound, th.as_tensor(getattr(policy.action_space, bound)))

    def initial_state(self, n_envs: int) -> tuple[th.Tensor, ...]:
        """The state before any observation, each (layers or 1, n_envs, ...).

        :param n_envs: number of environments N
        """
        core, own = self.policy.initial_states(n_envs).pi
        n_own = 2 if self._keeps_precision else int(self._keeps_mean)
        # No views: the tracer would hold on to what they are views of
        return (*core, *(part.unsqueeze(0).clone() for part in own[:n_own]))

    def forward(
        self, observation: PyTorchObs, state: tuple[th.Tensor, ...], episode_start: th.Tensor
    ) -> tuple[th.Tensor, ...]:
        """One step of N environments.

        :param observation: as the policy takes it, shape (N, ...), or a dict of these
        :param state: the state before it
        :param episode_start: True where an episode starts, shape (N,), bool
        :return: the actions as the environment takes them, (N, ...); the state's tensors; and the entropies, (N,)
        """
        policy, core = self.policy, self.policy.lstm_actor
        n_parts = len(core.state_shapes)
        features = policy._actor_features(observation)
        core_state = core.step(features, core.reset(state[:n_parts], episode_start))
        hidden = core.hidden(core_state)
        posterior = self._posterior(features, core_state, hidden, state[n_parts:], episode_start)
        heads = policy._head_input(posterior.mean.unsqueeze(0), hidden, features)
        actions = self._to_env(_mode(policy._mixture(heads)))
        own: tuple[th.Tensor, ...] = (posterior.mean.unsqueeze(0),) if self._keeps_mean else ()
        if self._keeps_precision:
            own = (*own, posterior.precision.unsqueeze(0))
        entropy = (_entropy(posterior),) if self.with_entropy else ()
        return (actions.reshape(-1, *policy.action_space.shape), *core_state, *own, *entropy)  # type: ignore[misc]

    def _posterior(
        self,
        features: th.Tensor,
        core_state: CoreState,
        hidden: th.Tensor,
        own: tuple[th.Tensor, ...],
        episode_start: th.Tensor,
    ) -> Gaussian:
        """q_t; of Laplace without entropies the prior's precision stands for its own."""
        layer = self.policy.latent_layer
        # The tracer's proxies for modules are of subclasses
        own_method = getattr(type(layer), "distribution", None)
        if own_method is VariationalPosterior.distribution:
            assert isinstance(layer, VariationalPosterior)
            # Neither mean nor entropy depends on the rotation, a solve that ONNX does not have
            log_variance = layer.scale_net(hidden)[:, : layer.latent_dim].clamp(*LOG_VARIANCE_BOUNDS)
            return DiagonalGaussian(layer.latent_mean(hidden), (-log_variance).exp())
        if isinstance(layer, HiddenStatePosterior):
            return layer.distribution(hidden)
        assert isinstance(layer, LaplacePosterior)
        prior = layer.prior(1)
        mean_before = own[0][0] if self._keeps_mean else prior.mean
        before = LaplaceState(mean_before, own[1][0] if self._keeps_precision else prior.precision)
        before = layer.reset(before, episode_start)  # type: ignore[assignment]
        mean = layer.next_mean(hidden, before)
        if not self._keeps_precision:
            return DiagonalGaussian(mean, before.precision)
        jacobian = _jacobian(self.policy.lstm_actor, features, core_state)
        if layer.mean_net is not None:
            jacobian = layer.mean_net.weight @ jacobian
        if layer.covariance == "diagonal":
            return DiagonalGaussian(mean, before.precision + jacobian.square().sum(-1) / layer.noise_std**2)
        return FullGaussian(mean, before.precision + jacobian @ jacobian.mT / layer.noise_std**2)

    def _to_env(self, actions: th.Tensor) -> th.Tensor:
        """As :meth:`HeadsPolicy.to_env_actions`, on tensors."""
        if not isinstance(self.policy.action_space, spaces.Box):
            return actions
        actions = actions.reshape(-1, *self.policy.action_space.shape)
        low, high = self.get_buffer("low"), self.get_buffer("high")
        if self.policy.squash_output:
            return low + 0.5 * (actions + 1.0) * (high - low)
        return actions.clamp(low, high)


def _mode(distribution: Distribution) -> th.Tensor:
    if isinstance(distribution, CategoricalDistribution):
        # SB3's, without our look for NaN
        return CategoricalDistribution.mode(distribution)
    return distribution.mode()


def _jacobian(core: Core, features: th.Tensor, state: CoreState) -> th.Tensor:
    """``dh'/dh`` as :meth:`~sb3_laplace.Core.jacobian` has it, as a matrix, shape (N, H, H)."""
    inputs = core.jacobian_inputs(features, state)
    if isinstance(core, LSTM):
        weights = core.weights_of_layer(-1)
        return th.einsum("gnh,ghk->nhk", _lstm_factors(inputs, state, weights), weights.hh.unflatten(0, (4, -1)))
    jacobian = core.jacobian(inputs, state)
    if isinstance(jacobian, GateSumJacobian):
        return th.einsum("gnh,ghk->nhk", jacobian.coefficients, jacobian.weights)
    if isinstance(jacobian, DiagonalJacobian):
        return jacobian.diagonal.diag_embed()
    if isinstance(jacobian, PullbackJacobian):
        return jacobian.dense()
    assert isinstance(jacobian, DenseJacobian)
    return jacobian.matrix


def _lstm_factors(inputs: th.Tensor, state: CoreState, weights: CellWeights) -> th.Tensor:
    """Those of :meth:`LSTM.row_factors`, which writes in place: there exporters fix the number of environments."""
    hidden, cell = (part[-1] for part in state)
    gates = F.linear(inputs, weights.ih, weights.bias_ih) + F.linear(hidden, weights.hh, weights.bias_hh)
    of_i, of_f, of_g, of_o = gates.chunk(4, dim=-1)
    i, f, g, o = of_i.sigmoid(), of_f.sigmoid(), of_g.tanh(), of_o.sigmoid()
    squashed = (f * cell + i * g).tanh()
    k = o * (1 - squashed.square())
    return th.stack((k * g * i * (1 - i), k * cell * f * (1 - f), k * i * (1 - g.square()), squashed * o * (1 - o)))


def _entropy(posterior: Gaussian) -> th.Tensor:
    """Entropies in nats, shape (N,). ONNX has no Cholesky factor: of a full precision, by Gaussian elimination."""
    if not isinstance(posterior, FullGaussian):
        return posterior.entropy()
    rest, pivots = posterior.precision, []
    for _ in range(posterior.dim):
        pivots.append(rest[:, 0, 0])
        rest = rest[:, 1:, 1:] - rest[:, 1:, :1] * rest[:, :1, 1:] / rest[:, :1, :1]
    return DiagonalGaussian(posterior.mean, th.stack(pivots, dim=-1)).entropy()


@contextmanager
def unchecked_distributions() -> Iterator[None]:
    """Keep torch's distributions from looking at their arguments, a branch on numbers."""
    distribution = th.distributions.Distribution
    before = distribution._validate_args
    distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        distribution.set_default_validate_args(before)
