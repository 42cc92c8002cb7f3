"""What a recurrent policy with a posterior is made of: networks, the latent layer, recurrent state, heads."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_laplace.checks import check_integer, check_lstm_kwargs, check_state
from sb3_laplace.cores import sequences as recurrent
from sb3_laplace.policies.distributions import LogSoftmaxCategoricalDistribution, mix
from sb3_laplace.policies.reward_decoder import make_reward_decoder
from sb3_laplace.posteriors import LatentPosterior, make_posterior
from sb3_laplace.posteriors.gaussian import Gaussian

HEAD_INPUTS = ("hidden", "features")


class LatentPolicy(RecurrentActorCriticPolicy):
    """The parts of :class:`~sb3_laplace.policies.laplace_lstm_policy.LaplaceLstmPolicy`, whose arguments it takes.

    :raises ValueError: if an argument is out of range
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        latent_dim: int | None = None,
        posterior: str | type[LatentPosterior] = "laplace",
        posterior_kwargs: dict[str, Any] | None = None,
        n_posterior_samples: int = 1,
        head_inputs: Sequence[str] = (),
        reward_decoder_kwargs: dict[str, Any] | None = None,
        detach_critic: bool = False,
        lstm_hidden_size: int = 256,
        n_lstm_layers: int = 1,
        lstm_kwargs: dict[str, Any] | None = None,
        rnn_type: str = "lstm",
        **kwargs: Any,
    ) -> None:
        check_lstm_kwargs(lstm_kwargs)
        check_integer("n_posterior_samples", n_posterior_samples, minimum=0)
        if kwargs.get("use_sde", False) and n_posterior_samples > 1:
            raise ValueError(f"use_sde=True (gSDE) takes n_posterior_samples <= 1, got {n_posterior_samples!r}.")
        if isinstance(head_inputs, str) or not set(head_inputs) <= set(HEAD_INPUTS):
            raise ValueError(f"head_inputs must be a sequence of any of {HEAD_INPUTS}, got {head_inputs!r}.")
        if rnn_type not in recurrent.RNN_TYPES:
            raise ValueError(f"rnn_type must be one of {list(recurrent.RNN_TYPES)}, got {rnn_type!r}.")
        if kwargs.get("optimizer_class", th.optim.Adam) is th.optim.Adam and kwargs.get("optimizer_kwargs") is None:
            # SB3's own choice of eps; the fused step, four times faster on small networks, exists from torch 2.4
            kwargs["optimizer_kwargs"] = {"eps": 1e-5, "fused": th.__version__ >= "2.4"}
        self.head_inputs = tuple(head_inputs)
        self.n_posterior_samples = n_posterior_samples
        self.detach_critic = detach_critic
        # Read by _build_mlp_extractor, which the parent class calls before it sets any of its own
        self.shared_lstm = kwargs.get("shared_lstm", False)
        self._own_parameters = {
            "latent_dim": latent_dim,
            "posterior": posterior,
            "posterior_kwargs": posterior_kwargs or {},
            "n_posterior_samples": n_posterior_samples,
            "head_inputs": self.head_inputs,
            "reward_decoder_kwargs": reward_decoder_kwargs,
            "detach_critic": detach_critic,
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
            lstm_kwargs=lstm_kwargs,
            **kwargs,
        )
        if rnn_type != "lstm":
            self._replace_lstm(recurrent.RNN_TYPES[rnn_type])
            self.optimizer = self.optimizer_class(  # type: ignore[call-arg]
                self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs
            )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self._own_parameters}

    def _replace_lstm(self, rnn_class: type[nn.RNNBase]) -> None:
        """Put another recurrent network where the parent class has built an LSTM."""
        for name in ("lstm_actor", "lstm_critic"):
            lstm = getattr(self, name)
            if lstm is not None:
                rnn = rnn_class(lstm.input_size, lstm.hidden_size, num_layers=lstm.num_layers, **self.lstm_kwargs)
                setattr(self, name, rnn)

    def _build_mlp_extractor(self) -> None:
        """The latent layer, and heads of the sizes that actor and critic read, which may differ."""
        # SB3 counts the features of MultiDiscrete observations in numpy integers, which torch's LSTM refuses
        self.features_dim = int(self.features_dim)
        if type(self.action_dist) is CategoricalDistribution:
            self.action_dist = LogSoftmaxCategoricalDistribution(self.action_dist.action_dim)
        own = self._own_parameters
        hidden_size = own["lstm_hidden_size"]
        top_inputs = self.features_dim if own["n_lstm_layers"] == 1 else hidden_size
        self.latent_layer = make_posterior(
            own["posterior"], hidden_size, top_inputs, own["latent_dim"], own["posterior_kwargs"]
        )
        latent_dim = self.latent_layer.latent_dim
        self.reward_decoder = None
        if own["reward_decoder_kwargs"] is not None:
            self.reward_decoder = make_reward_decoder(
                latent_dim, self.action_space, self.features_dim, own["reward_decoder_kwargs"]
            )
        extra = {"hidden": hidden_size, "features": self.features_dim}
        actor_dim = latent_dim + sum(extra[name] for name in self.head_inputs)
        self.lstm_output_dim = actor_dim
        super()._build_mlp_extractor()
        if not self.shared_lstm and actor_dim != hidden_size:
            critic = MlpExtractor(hidden_size, self.net_arch, self.activation_fn, self.device)
            self.mlp_extractor.value_net = critic.value_net
            self.mlp_extractor.latent_dim_vf = critic.latent_dim_vf

    # -- recurrent state --------------------------------------------------------------------------------

    def initial_states(self, n_envs: int) -> RNNStates:
        """Recurrent states before any observation.

        :param n_envs: number of environments N
        :return: ``pi`` is the state of the actor's network, (h, c) of an LSTM or (h,), each (layers, N, H), then the
            posterior's own, each (1, N, ...); ``vf`` is the state of the critic's own network, or ``pi`` if it has
            none
        """
        shape = (self.lstm_hidden_state_shape[0], n_envs, self.lstm_hidden_state_shape[2])
        zeros = self.latent_layer.prior_mean.new_zeros(shape)
        of_network = (zeros,) * self._n_states
        pi_state = (*of_network, *self.latent_layer.initial_state(n_envs))
        return RNNStates(pi_state, pi_state if self.lstm_critic is None else of_network)

    def sequence_states(self, states: RNNStates) -> RNNStates:
        """What of the recurrent states :meth:`evaluate_sequences` needs before a sequence.

        :param states: recurrent states as :meth:`act` takes them
        """
        own = self.latent_layer.sequence_state(states.pi[self._n_states :])
        return RNNStates((*states.pi[: self._n_states], *own), states.vf if self.lstm_critic is not None else ())

    @property
    def _n_states(self) -> int:
        """Number of tensors in the state of one network."""
        return recurrent.n_states(self.lstm_actor)

    def posterior(self, state: tuple[np.ndarray, ...]) -> Gaussian:
        """The posterior q_t that a state returned by :meth:`predict` holds.

        :param state: the state, for N environments
        :return: a batch of N Gaussians: mean, variance, precision, entropy(), kl(), sample()
        :raises ValueError: if the state is not one of this policy
        """
        tensors = self._state_to_tensors(state)
        with th.no_grad():
            return self.latent_layer.from_state(tensors[0][-1], tensors[self._n_states :])

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

    def _state_to_tensors(self, state: tuple[np.ndarray, ...], n_envs: int | None = None) -> tuple[th.Tensor, ...]:
        """Check a state of :meth:`predict` and convert it."""
        expected = self.initial_states(1).pi
        check_state(state, [tuple(part.shape) for part in expected], n_envs)
        return tuple(th.as_tensor(array).to(first) for array, first in zip(state, expected, strict=True))

    # -- parts ------------------------------------------------------------------------------------------

    def _features_of(self, obs: PyTorchObs, extractor: Any) -> th.Tensor:
        # Skips ActorCriticPolicy, which warns about an extractor of its own choice (as sb3-contrib does)
        features = super(ActorCriticPolicy, self).extract_features(obs, extractor)
        return features.to(self.latent_layer.prior_mean.dtype)

    def _features(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """Features of actor and critic, each (B, F)."""
        features = self._features_of(obs, self.pi_features_extractor)
        if self.share_features_extractor:
            return features, features
        return features, self._features_of(obs, self.vf_features_extractor)

    def _draw(self, posterior: Gaussian, deterministic: bool) -> tuple[th.Tensor, th.Tensor | None]:
        """Latents (max(K, 1), N, D) and their noise."""
        if deterministic or self.n_posterior_samples == 0 or self.latent_layer.is_point:
            return posterior.mean.unsqueeze(0), None
        return self.latent_layer.draw(posterior, self.n_posterior_samples)

    def _head_input(self, latents: th.Tensor, hidden: th.Tensor, features: th.Tensor) -> th.Tensor:
        """What the heads read, shape (K, B, .)."""
        if not self.head_inputs:
            return latents
        extra = {"hidden": hidden, "features": features}
        beside = [extra[name].expand(len(latents), -1, -1) for name in self.head_inputs]
        return th.cat((latents, *beside), dim=-1)

    @staticmethod
    def _critic_step(
        rnn: nn.RNNBase, features: th.Tensor, state: tuple[th.Tensor, ...], episode_starts: th.Tensor
    ) -> tuple[th.Tensor, ...]:
        """One step of the network that the critic reads, reset where an episode starts."""
        keep = (1.0 - episode_starts).view(1, -1, 1)
        return recurrent.step(rnn, features, tuple(part * keep for part in state))

    def _critic_input(self, features: th.Tensor, hidden: th.Tensor | None) -> th.Tensor:
        """What a critic apart from the actor reads, shape (1, B, H): its own LSTM's output, or its own layer."""
        if self.lstm_critic is not None:
            assert hidden is not None
            return hidden.unsqueeze(0)
        assert self.critic is not None
        return self.critic(features).unsqueeze(0)

    def _mixture(self, heads: th.Tensor) -> Distribution:
        """Mixture over K of the action distributions of heads (K, B, .)."""
        latent_pi = self.mlp_extractor.forward_actor(heads.flatten(0, 1))
        return mix(self._get_action_dist_from_latent, latent_pi, len(heads))

    def _values(self, heads: th.Tensor) -> th.Tensor:
        """Mean over K of the values of heads (K, B, .), shape (B, 1)."""
        values = self.value_net(self.mlp_extractor.forward_critic(heads.flatten(0, 1)))
        return values if len(heads) == 1 else values.view(len(heads), -1, 1).mean(0)
