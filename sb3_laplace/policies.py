"""Recurrent actor-critic policies with a posterior between the LSTM and the heads."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, MlpExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_laplace import recurrent
from sb3_laplace.checks import check_integer, check_lstm_kwargs, check_no_nan, check_state
from sb3_laplace.distributions import UncheckedCategorical, mix
from sb3_laplace.gaussian import Gaussian
from sb3_laplace.posteriors import LatentPosterior, PosteriorStep, SequenceInputs, make_posterior
from sb3_laplace.reward_decoder import make_reward_decoder
from sb3_laplace.type_aliases import Evaluation, PolicyStep

HEAD_INPUTS = ("hidden", "features")


class LaplaceLstmPolicy(RecurrentActorCriticPolicy):
    """sb3-contrib's recurrent actor-critic policy whose actor reads a posterior over the task latent.

    The latent layer stands between the actor's LSTM and the heads. With the identity latent and
    ``n_posterior_samples=0`` actions, values and log-probabilities are those of RecurrentPPO's policy with
    the same weights. A separate critic LSTM, or a critic without LSTM, stays a point estimate.

    Every keyword of :class:`~sb3_contrib.common.recurrent.policies.RecurrentActorCriticPolicy` is taken too.

    :param observation_space: observation space
    :param action_space: action space
    :param lr_schedule: learning rate schedule
    :param latent_dim: number of latent units D; None for the identity latent (D = H)
    :param posterior: "laplace", "point" (RL^2), "constant_variance", "variational" (VRNN), or a
        :class:`~sb3_laplace.posteriors.LatentPosterior` class
    :param posterior_kwargs: keywords of the posterior's class, see :mod:`sb3_laplace.posteriors`
    :param n_posterior_samples: number of latents K drawn at each step; the policy is the mixture of the K
        action distributions and the value their mean. 0 acts on the posterior's mean.
    :param head_inputs: what the heads read beside the latent: any of "hidden" (the LSTM's output) and
        "features" (the extracted features)
    :param reward_decoder_kwargs: keywords of a decoder that predicts rewards from the latent, see
        :class:`~sb3_laplace.reward_decoder.RewardDecoder`: ``net_arch``, ``next_obs``, ``likelihood``; None for no
        decoder
    :param detach_critic: with ``shared_lstm=True``, keep the critic's gradient out of the LSTM, as
        RecurrentPPO does
    :param rnn_type: "lstm", "gru" or "rnn" (tanh). The keywords that name an LSTM (``lstm_hidden_size``,
        ``n_lstm_layers``, ``lstm_kwargs``, ``shared_lstm``, ``enable_critic_lstm``) hold for every type.
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
            self.action_dist = UncheckedCategorical(self.action_dist.action_dim)
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

    # -- one step ---------------------------------------------------------------------------------------

    def _advance(
        self, features: th.Tensor, state: tuple[th.Tensor, ...], episode_starts: th.Tensor
    ) -> tuple[th.Tensor, PosteriorStep, tuple[th.Tensor, ...]]:
        """Take in one observation: actor LSTM and posterior.

        :return: hidden states of the top layer (N, H), the posterior step and the new state
        """
        of_network, own = state[: self._n_states], state[self._n_states :]
        if bool(episode_starts.any()):
            keep = (1.0 - episode_starts).view(1, -1, 1)
            of_network = tuple(part * keep for part in of_network)
            own = self.latent_layer.reset(own, episode_starts)
        previous_hidden = of_network[0][-1]
        of_network = recurrent.step(self.lstm_actor, features, of_network)
        hidden = of_network[0]
        inputs = features if len(hidden) == 1 else hidden[-2]
        top = tuple(part[-1] for part in of_network)
        step = self.latent_layer.step(self.lstm_actor, inputs, previous_hidden, top, own, episode_starts)
        return hidden[-1], step, (*of_network, *step.state)

    def act(
        self, obs: PyTorchObs, states: RNNStates, episode_starts: th.Tensor, deterministic: bool = False
    ) -> PolicyStep:
        """One step of acting, with everything that a rollout stores.

        :param obs: observations of N environments
        :param states: recurrent states, see :meth:`initial_states`
        :param episode_starts: 1 where an episode starts, shape (N,)
        :param deterministic: act on the posterior's mean and take the mode
        """
        pi_features, vf_features = self._features(obs)
        hidden, step, pi_state = self._advance(pi_features, states.pi, episode_starts)
        latents, noise = self._draw(step.posterior, deterministic)
        heads = self._head_input(latents, hidden, pi_features)
        distribution = self._mixture(heads)
        vf_state = pi_state
        if self.lstm_critic is not None:
            vf_state = self._critic_step(self.lstm_critic, vf_features, states.vf, episode_starts)
        values = self._values(heads if self.shared_lstm else self._critic_input(vf_features, vf_state[0][-1]))
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)
        actions = actions.reshape((-1, *self.action_space.shape))  # type: ignore[misc]
        return PolicyStep(actions, values, log_prob, RNNStates(pi_state, vf_state), step, noise)

    def forward(  # type: ignore[override]
        self, obs: th.Tensor, lstm_states: RNNStates, episode_starts: th.Tensor, deterministic: bool = False
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor, RNNStates]:
        return self.act(obs, lstm_states, episode_starts, deterministic)[:4]

    def get_distribution(  # type: ignore[override]
        self,
        obs: PyTorchObs,
        lstm_states: tuple[th.Tensor, ...],
        episode_starts: th.Tensor,
        deterministic: bool = False,
    ) -> tuple[Distribution, tuple[th.Tensor, ...]]:
        """Action distribution given the observations.

        :param obs: observations of N environments
        :param lstm_states: the actor's state, ``pi`` of :meth:`initial_states`
        :param episode_starts: 1 where an episode starts, shape (N,)
        :param deterministic: whether to stay at the posterior's mean instead of drawing latents
        :return: the distribution and the new state
        """
        features = self._features_of(obs, self.pi_features_extractor)
        hidden, step, state = self._advance(features, lstm_states, episode_starts)
        latents, _ = self._draw(step.posterior, deterministic)
        return self._mixture(self._head_input(latents, hidden, features)), state

    def predict_values(  # type: ignore[override]
        self, obs: PyTorchObs, lstm_states: tuple[th.Tensor, ...], episode_starts: th.Tensor
    ) -> th.Tensor:
        """Values of the observations at the posterior's mean: bootstrapping draws no random number.

        :param obs: observations of N environments
        :param lstm_states: the critic's state, ``vf`` of :meth:`initial_states`
        :param episode_starts: 1 where an episode starts, shape (N,)
        :return: shape (N, 1)
        """
        features = self._features_of(obs, self.vf_features_extractor)
        rnn = self.lstm_actor if self.lstm_critic is None else self.lstm_critic
        hidden = self._critic_step(rnn, features, lstm_states[: self._n_states], episode_starts)[0][-1]
        if not self.shared_lstm:
            return self._values(self._critic_input(features, hidden))
        own = self.latent_layer.reset(lstm_states[self._n_states :], episode_starts)
        latents = self.latent_layer.next_mean(hidden, own).unsqueeze(0)
        return self._values(self._head_input(latents, hidden, features))

    # -- whole sequences --------------------------------------------------------------------------------

    def evaluate_sequences(
        self,
        obs: PyTorchObs,
        actions: th.Tensor,
        states: RNNStates,
        episode_starts: th.Tensor,
        noise: th.Tensor | None = None,
        kl_memory: list[th.Tensor] | None = None,
        with_kl: bool = False,
    ) -> Evaluation:
        """Evaluate the actions of whole sequences, at the latents of the rollout.

        The latent is ``z_k = m + delta_k`` with the mean m under the current weights and the displacement
        of the rollout, so that log-probabilities equal the rollout's before the first gradient step.

        :param obs: observations, sequence by sequence, shape (n_seq * T, ...)
        :param actions: shape (n_seq * T, ...)
        :param states: recurrent states before the first step of each sequence, see :meth:`sequence_states`
        :param episode_starts: 1 where an episode starts, shape (n_seq * T,)
        :param noise: noise of the rollout, shape (K, n_seq, T, D); None to stay at the mean
        :param kl_memory: what the posterior stored for its KL, for each sequence, shape (T or T - 1, ...)
        :param with_kl: whether to compute the KL between successive posteriors
        """
        n_seq = states.pi[0].shape[1]
        starts = episode_starts.view(n_seq, -1)
        pi_features, vf_features = self._features(obs)
        in_sequences = pi_features.view(n_seq, starts.shape[1], -1)
        hidden = recurrent.run_sequences(self.lstm_actor, in_sequences, states.pi[: self._n_states], starts)
        own = states.pi[self._n_states :]
        replay = self.latent_layer.replay(
            SequenceInputs(hidden, states.pi[0][-1], own, starts, noise, kl_memory, with_kl)
        )
        flat_hidden = hidden.reshape(len(pi_features), -1)
        latents = replay.latents.reshape(-1, len(pi_features), replay.latents.shape[-1])
        heads = self._head_input(latents, flat_hidden, pi_features)
        distribution = self._mixture(heads)
        if self.shared_lstm:
            values = self._values(heads.detach() if self.detach_critic else heads)
        else:
            vf_hidden = None
            if self.lstm_critic is not None:
                vf_sequences = vf_features.view(n_seq, starts.shape[1], -1)
                vf_hidden = recurrent.run_sequences(self.lstm_critic, vf_sequences, states.vf, starts)
                vf_hidden = vf_hidden.reshape(len(vf_features), -1)
            values = self._values(self._critic_input(vf_features, vf_hidden))
        kl = None if replay.kl is None else replay.kl.reshape(-1)
        return Evaluation(
            values, distribution.log_prob(actions), distribution.entropy(), kl, replay.latents, distribution
        )

    def evaluate_actions(  # type: ignore[override]
        self, obs: PyTorchObs, actions: th.Tensor, lstm_states: RNNStates, episode_starts: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """RecurrentPPO's interface: values, log-probabilities and entropy at the posterior's mean.

        A state without the posterior's own part, as RecurrentPPO's, is one whose posterior is the prior.
        """
        of_network, own = lstm_states.pi[: self._n_states], lstm_states.pi[self._n_states :]
        own = own or self.latent_layer.initial_state(of_network[0].shape[1])
        states = self.sequence_states(RNNStates((*of_network, *own), lstm_states.vf))
        return self.evaluate_sequences(obs, actions, states, episode_starts)[:3]

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

    # -- rewards ----------------------------------------------------------------------------------------

    def encode_steps(self, actions: th.Tensor, next_observations: PyTorchObs | None) -> th.Tensor:
        """What the reward decoder reads beside the latent, shape (B, A).

        :param actions: as the policy returned them, shape (B, ...)
        :param next_observations: shape (B, ...), or None if the decoder does not read them
        """
        assert self.reward_decoder is not None
        if isinstance(self.action_space, spaces.Box) and not self.squash_output:
            # What the environment answered
            low, high = (
                th.as_tensor(x, device=actions.device) for x in (self.action_space.low, self.action_space.high)
            )
            actions = actions.clamp(low, high)
        features = None
        if next_observations is not None:
            features = self._features_of(next_observations, self.pi_features_extractor)
        return self.reward_decoder.encode(actions, features)

    @th.no_grad()
    def predict_reward(
        self,
        state: tuple[np.ndarray, ...],
        actions: np.ndarray | None = None,
        next_observations: np.ndarray | dict[str, np.ndarray] | None = None,
        n_posterior_samples: int = 0,
    ) -> np.ndarray:
        """Rewards that the reward decoder expects of the next step; of 0/1 rewards, their success probabilities.

        :param state: the state returned by :meth:`predict`, for N environments
        :param actions: actions as the environment takes them, shape (N, ...); None for all of a Discrete space
        :param next_observations: what each action leads to, batch of N, if the decoder reads it
        :param n_posterior_samples: number of latents to average over; 0 for the posterior's mean
        :return: shape (N,), or (N, number of actions) if ``actions`` is None
        :raises ValueError: if there is no decoder, or an argument does not fit it
        """
        if self.reward_decoder is None:
            raise ValueError(
                "The policy has no reward decoder: build the model with reward_coef > 0, or with "
                "policy_kwargs={'reward_decoder_kwargs': {}}."
            )
        check_integer("n_posterior_samples", n_posterior_samples, minimum=0)
        self.set_training_mode(False)
        posterior = self.posterior(state)
        latents = posterior.mean.unsqueeze(0)
        if n_posterior_samples > 0 and not self.latent_layer.is_point:
            latents, _ = self.latent_layer.draw(posterior, n_posterior_samples)
        n_envs = latents.shape[1]
        next_tensor = None if next_observations is None else self.obs_to_tensor(next_observations)[0]
        if actions is not None:
            chosen = np.asarray(actions)
            if chosen.shape != (n_envs, *self.action_space.shape):  # type: ignore[misc]
                raise ValueError(
                    f"actions must have shape {(n_envs, *self.action_space.shape)}, got {chosen.shape}."  # type: ignore[misc]
                )
            if self.squash_output:
                chosen = self.scale_action(chosen)
            steps = self.encode_steps(th.as_tensor(chosen, device=self.device), next_tensor)
            return self.reward_decoder(latents, steps).mean(0).cpu().numpy()
        if not isinstance(self.action_space, spaces.Discrete):
            raise ValueError(f"actions must be given: {self.action_space} has no list of all actions.")
        if next_tensor is not None or self.reward_decoder.next_obs:
            raise ValueError("actions must be given where the reward decoder reads what they lead to (next_obs=True).")
        steps = self.encode_steps(th.arange(int(self.action_space.n), device=self.device), None)
        return self.reward_decoder(latents.unsqueeze(2), steps).mean(0).cpu().numpy()

    # -- predict ----------------------------------------------------------------------------------------

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Actions for observations, and the recurrent state with the posterior in it.

        :param observation: observation of one environment or of N
        :param state: the state returned by the last call; None before the first
        :param episode_start: True where an episode starts, shape (N,)
        :param deterministic: act on the posterior's mean and take the mode
        :return: actions, and the state: (h, c, then the posterior's own, each (layers or 1, N, ...)), see
            :meth:`posterior`
        :raises ValueError: if the observation holds NaN or the state is not one of this policy
        """
        self.set_training_mode(False)
        check_no_nan(observation)
        obs_tensor, vectorized = self.obs_to_tensor(observation)
        first = next(iter(obs_tensor.values())) if isinstance(obs_tensor, dict) else obs_tensor
        n_envs = len(first)
        with th.no_grad():
            states = self.initial_states(n_envs).pi if state is None else self._state_to_tensors(state, n_envs)
            starts = np.zeros(n_envs) if episode_start is None else np.asarray(episode_start)
            if starts.size != n_envs:
                raise ValueError(f"episode_start must have shape {(n_envs,)}, got {starts.shape}.")
            episode_starts = th.as_tensor(starts).to(self.latent_layer.prior_mean).view(n_envs)
            distribution, states = self.get_distribution(obs_tensor, states, episode_starts, deterministic)
            actions = distribution.get_actions(deterministic=deterministic).cpu().numpy()
        actions = actions.reshape((-1, *self.action_space.shape))  # type: ignore[misc]
        actions = self.to_env_actions(actions)
        return actions if vectorized else actions.squeeze(axis=0), tuple(part.cpu().numpy() for part in states)

    def to_env_actions(self, actions: np.ndarray) -> np.ndarray:
        """Actions as the environment takes them: unscaled if they were squashed, else clipped to the bounds."""
        if not isinstance(self.action_space, spaces.Box):
            return actions
        if self.squash_output:
            return self.unscale_action(actions)
        return np.clip(actions, self.action_space.low, self.action_space.high)


class LaplaceCnnLstmPolicy(LaplaceLstmPolicy):
    """:class:`LaplaceLstmPolicy` for images: the features extractor is SB3's NatureCNN by default."""

    def __init__(self, *args: Any, features_extractor_class: type = NatureCNN, **kwargs: Any) -> None:
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)


class LaplaceMultiInputLstmPolicy(LaplaceLstmPolicy):
    """:class:`LaplaceLstmPolicy` for Dict observations: SB3's CombinedExtractor by default."""

    def __init__(self, *args: Any, features_extractor_class: type = CombinedExtractor, **kwargs: Any) -> None:
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)
