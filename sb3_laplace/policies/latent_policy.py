"""What a recurrent policy with a posterior remembers with: the cores, the latent layer and the recurrent state."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import Schedule

from sb3_laplace.checks import check_integer, check_observation_space, check_state
from sb3_laplace.cores import Core, core_class
from sb3_laplace.policies.distributions import (
    LogSoftmaxCategoricalDistribution,
    StateDependentLogStd,
    check_state_dependent_std,
)
from sb3_laplace.policies.features import check_extractor
from sb3_laplace.policies.types import RecurrentState, RecurrentStates
from sb3_laplace.posteriors import LatentPosterior, PosteriorStep, StepInputs, make_posterior
from sb3_laplace.posteriors.gaussian import Gaussian

HEAD_INPUTS = ("hidden", "features")
# Methods of RecurrentPPO's policy that are never called here, and what is done instead
_NEVER_CALLED = {
    "_predict": "predicts by predict()",
    "forward": "acts by act()",
    "evaluate_actions": "evaluates whole sequences by evaluate_sequences()",
    "_process_sequence": "runs the core that rnn_type names",
}


class LatentPolicy(RecurrentActorCriticPolicy):
    """The memory of :class:`~sb3_laplace.LaplaceLstmPolicy`, whose arguments it takes.

    :raises ValueError: if an argument is out of range
    """

    lstm_actor: Core  # type: ignore[assignment]
    lstm_critic: Core | None  # type: ignore[assignment]
    latent_layer: LatentPosterior

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        latent_dim: int | Literal["auto"] | None = "auto",
        posterior: str | type[LatentPosterior] = "laplace",
        posterior_kwargs: dict[str, Any] | None = None,
        n_posterior_samples: int = 1,
        head_inputs: Sequence[str] = (),
        reward_decoder_kwargs: dict[str, Any] | None = None,
        detach_critic: bool = False,
        state_dependent_std: bool = False,
        lstm_hidden_size: int = 256,
        n_lstm_layers: int = 1,
        lstm_kwargs: dict[str, Any] | None = None,
        rnn_type: str | type = "lstm",
        **kwargs: Any,
    ) -> None:
        self._refuse_overrides()
        check_observation_space(observation_space)
        check_extractor(observation_space, kwargs.get("features_extractor_class", FlattenExtractor))
        self._core_class = core_class(rnn_type)
        self._core_class.check_keywords(lstm_kwargs or {})
        check_integer("n_posterior_samples", n_posterior_samples, minimum=0)
        if kwargs.get("use_sde", False) and n_posterior_samples > 1:
            raise ValueError(f"use_sde=True (gSDE) takes n_posterior_samples <= 1, got {n_posterior_samples!r}.")
        if state_dependent_std:
            check_state_dependent_std(action_space, kwargs)
        if isinstance(head_inputs, str) or not set(head_inputs) <= set(HEAD_INPUTS):
            raise ValueError(f"head_inputs must be a sequence of any of {HEAD_INPUTS}, got {head_inputs!r}.")
        if kwargs.get("optimizer_class", th.optim.Adam) is th.optim.Adam and kwargs.get("optimizer_kwargs") is None:
            # SB3's own choice of eps; the fused step is four times faster on small networks
            kwargs["optimizer_kwargs"] = {"eps": 1e-5, "fused": True}
        self.head_inputs = tuple(head_inputs)
        self.n_posterior_samples = n_posterior_samples
        self.detach_critic = detach_critic
        self.state_dependent_std = state_dependent_std
        # Read by _build, which the parent class calls before it sets any of its own
        self.shared_lstm = kwargs.get("shared_lstm", False)
        self._own_parameters = {
            "latent_dim": latent_dim,
            "posterior": posterior,
            "posterior_kwargs": posterior_kwargs or {},
            "n_posterior_samples": n_posterior_samples,
            "head_inputs": self.head_inputs,
            "reward_decoder_kwargs": reward_decoder_kwargs,
            "detach_critic": detach_critic,
            "state_dependent_std": state_dependent_std,
            "rnn_type": rnn_type,
            "lstm_hidden_size": lstm_hidden_size,
            "n_lstm_layers": n_lstm_layers,
            "lstm_kwargs": lstm_kwargs,
            "shared_lstm": self.shared_lstm,
            "enable_critic_lstm": kwargs.get("enable_critic_lstm", True),
            "share_features_extractor": kwargs.get("share_features_extractor", True),
        }
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            lstm_hidden_size=lstm_hidden_size,
            n_lstm_layers=n_lstm_layers,
            # The parent's LSTM, which is replaced, may not take what another core does
            lstm_kwargs=lstm_kwargs if self._core_class.is_torch_lstm else None,
            **kwargs,
        )
        self.lstm_kwargs = lstm_kwargs or {}
        self._replace_lstms()
        self.optimizer = self.optimizer_class(  # type: ignore[call-arg]
            self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs
        )

    def _refuse_overrides(self) -> None:
        """Say at once which methods of a subclass would never be called."""
        for name, instead in _NEVER_CALLED.items():
            owner = next(parent for parent in type(self).__mro__ if name in vars(parent))
            if not owner.__module__.startswith(("sb3_laplace.", "sb3_contrib.")):
                raise ValueError(
                    f"{owner.__name__}.{name} would never be called: LaplaceRecurrentPPO {instead}. What can be "
                    "overridden as in SB3: extract_features, _build_mlp_extractor, _get_action_dist_from_latent."
                )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self._own_parameters}

    def _build(self, lr_schedule: Schedule) -> None:
        """The latent layer, then the heads that read it."""
        # SB3 counts the features of MultiDiscrete observations in numpy integers, which torch's LSTM refuses
        self.features_dim = int(self.features_dim)
        if type(self.action_dist) is CategoricalDistribution:
            self.action_dist = LogSoftmaxCategoricalDistribution(self.action_dist.action_dim)
        self._build_latent_layer()
        super()._build(lr_schedule)
        if self.state_dependent_std:
            # SB3's parameter becomes a layer, as SAC's is: at first the same number in every state
            log_std = self.log_std
            del self.log_std
            self.log_std = StateDependentLogStd(self.mlp_extractor.latent_dim_pi, log_std)  # type: ignore[assignment]

    def _build_latent_layer(self) -> None:
        own = self._own_parameters
        hidden_size = own["lstm_hidden_size"]
        input_size = self._core_class.jacobian_input_size(self.features_dim, hidden_size, own["n_lstm_layers"])
        self.latent_layer = make_posterior(
            own["posterior"], hidden_size, input_size, own["latent_dim"], own["posterior_kwargs"]
        )
        own["latent_dim"] = None if self.latent_layer.mean_net is None else self.latent_layer.latent_dim
        extra = {"hidden": hidden_size, "features": self.features_dim}
        self.lstm_output_dim = self.latent_layer.latent_dim + sum(extra[name] for name in self.head_inputs)

    def _replace_lstms(self) -> None:
        """Put cores where the parent class has built LSTMs."""
        for name in ("lstm_actor", "lstm_critic"):
            lstm = getattr(self, name)
            if lstm is None:
                continue
            sizes = {"num_layers": lstm.num_layers, **self.lstm_kwargs}
            # With the parent's weights where they fit: the same seed is the same agent as RecurrentPPO's
            keeps_weights = self._core_class.is_torch_lstm
            with th.random.fork_rng(devices=[], enabled=keeps_weights):
                core = self._core_class(lstm.input_size, lstm.hidden_size, **sizes)
            if keeps_weights:
                core.load_state_dict(lstm.state_dict())
            setattr(self, name, core)

    # -- recurrent state --------------------------------------------------------------------------------

    def initial_states(self, n_envs: int) -> RecurrentStates:
        """Recurrent states before any observation.

        :param n_envs: number of environments N
        :return: ``pi`` is the actor's :class:`~sb3_laplace.policies.types.RecurrentState`: its core's state, (h, c) of
            an LSTM, each (layers, N, H), and the posterior's own, each (N, ...); ``vf`` is that of the critic's core,
            without a posterior, or ``pi`` if it has none
        """
        pi = RecurrentState(self.lstm_actor.initial_state(n_envs), self.latent_layer.initial_state(n_envs))
        return RecurrentStates(
            pi, pi if self.lstm_critic is None else RecurrentState(self.lstm_critic.initial_state(n_envs))
        )

    def sequence_states(self, states: RecurrentStates) -> RecurrentStates:
        """What of the recurrent states :meth:`evaluate_sequences` needs before a sequence.

        :param states: recurrent states as :meth:`act` takes them
        """
        return RecurrentStates(
            RecurrentState(states.pi.core, self.latent_layer.sequence_state(states.pi.posterior)),
            RecurrentState(states.vf.core if self.lstm_critic is not None else ()),
        )

    def posterior(self, state: tuple[np.ndarray, ...]) -> Gaussian:
        """The posterior q_t that a state returned by :meth:`predict` holds.

        :param state: the state, for N environments
        :return: a batch of N Gaussians: mean, variance, precision, entropy(), kl(), sample()
        :raises ValueError: if the state is not one of this policy
        """
        restored = self._restore_state(state)
        with th.no_grad():
            return self.latent_layer.from_state(self.lstm_actor.hidden(restored.core), restored.posterior)

    def posterior_summary(self) -> dict[str, Any]:
        """The posterior's name and sizes, and the numbers of parameters that it adds.

        :return: "posterior", "latent_dim", "mean_parameters" (W and b), "covariance_parameters" (what is learned for
            the covariance: none for Laplace) and "policy_parameters" (all of the policy's)
        """
        layer = self.latent_layer
        of_mean = 0 if layer.mean_net is None else sum(part.numel() for part in layer.mean_net.parameters())
        return {
            "posterior": type(layer).__name__,
            "latent_dim": layer.latent_dim,
            "mean_parameters": of_mean,
            "covariance_parameters": sum(part.numel() for part in layer.parameters()) - of_mean,
            "policy_parameters": sum(part.numel() for part in self.parameters()),
        }

    def _restore_state(self, state: tuple[np.ndarray, ...], n_envs: int | None = None) -> RecurrentState:
        """Check a state of :meth:`predict` and convert it.

        :raises ValueError: if it is not one of this policy, or not of ``n_envs`` environments
        """
        expected = self.initial_states(1).pi.flatten()
        check_state(state, [tuple(part.shape) for part in expected], n_envs)
        return self._actor_state(tuple(th.as_tensor(a).to(b) for a, b in zip(state, expected, strict=True)))

    def _critic_state(self, state: RecurrentState | tuple[th.Tensor, ...]) -> RecurrentState:
        """The critic's state as it is inside, or as RecurrentPPO has it."""
        return state if isinstance(state, RecurrentState) else RecurrentState(tuple(state))

    def _actor_state(self, state: RecurrentState | tuple[th.Tensor, ...]) -> RecurrentState:
        """The actor's state, whatever form it is given in.

        :param state: as it is inside; or flat, as :meth:`predict` has it; or RecurrentPPO's, without the posterior's
            own part, which is the prior then
        """
        if isinstance(state, RecurrentState):
            return state
        n_parts = len(self.lstm_actor.state_shapes)
        core, own = state[:n_parts], state[n_parts:]
        restored = RecurrentState(tuple(core), self.latent_layer.initial_state(core[0].shape[1]))
        return restored.with_posterior(part[0] for part in own) if own else restored

    # -- one step ---------------------------------------------------------------------------------------

    def _advance(
        self, features: th.Tensor, state: RecurrentState, episode_starts: th.Tensor
    ) -> tuple[th.Tensor, PosteriorStep, RecurrentState]:
        """Take in one observation: the actor's core and the posterior.

        :return: hidden states (N, H), the posterior step and the new state
        """
        core, (core_state, own) = self.lstm_actor, state
        # Asking a GPU would wait for all that it has been given
        if not episode_starts.is_cpu or bool(episode_starts.any()):
            core_state = core.reset(core_state, episode_starts)
            own = self.latent_layer.reset(own, episode_starts)
        previous_hidden = core.hidden(core_state)
        core_state = core.step(features, core_state)
        hidden = core.hidden(core_state)
        inputs = core.jacobian_inputs(features, core_state)
        step = self.latent_layer.step(
            StepInputs(core, inputs, previous_hidden, hidden, core_state, own, episode_starts)
        )
        return hidden, step, RecurrentState(core_state, step.state)

    def _critic_step(
        self,
        core: Core,
        features: th.Tensor,
        state: RecurrentState | tuple[th.Tensor, ...],
        episode_starts: th.Tensor,
    ) -> RecurrentState:
        """One step of the critic's own core, set back where an episode starts."""
        return RecurrentState(core.step(features, core.reset(self._critic_state(state).core, episode_starts)))
