"""Recurrent actor-critic policies with a posterior between the LSTM and the heads."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_laplace.checks import check_integer, check_no_nan
from sb3_laplace.cores import sequences as recurrent
from sb3_laplace.policies.latent_policy import LatentPolicy
from sb3_laplace.policies.types import Evaluation, PolicyStep
from sb3_laplace.posteriors import PosteriorStep, SequenceInputs, StepInputs


class LaplaceLstmPolicy(LatentPolicy):
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
        :class:`~sb3_laplace.policies.reward_decoder.RewardDecoder`: ``net_arch``, ``next_obs``, ``likelihood``;
        None for no decoder
    :param detach_critic: with ``shared_lstm=True``, keep the critic's gradient out of the LSTM, as
        RecurrentPPO does
    :param rnn_type: "lstm", "gru" or "rnn" (tanh). The keywords that name an LSTM (``lstm_hidden_size``,
        ``n_lstm_layers``, ``lstm_kwargs``, ``shared_lstm``, ``enable_critic_lstm``) hold for every type.
    :raises ValueError: if an argument is out of range
    """

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
        step = self.latent_layer.step(StepInputs(self.lstm_actor, inputs, previous_hidden, top, own, episode_starts))
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

    def distribution_at(self, obs: PyTorchObs, latents: th.Tensor, hidden: th.Tensor) -> Distribution:
        """Action distribution where the heads read given latents instead of draws of the policy's own.

        :param obs: observations of N environments
        :param latents: shape (K, N, D)
        :param hidden: hidden states of the top layer after the observations, shape (N, H): ``states.pi[0][-1]`` of
            what :meth:`act` returns
        :return: the mixture over the K latents
        """
        return self._mixture(self._head_input(latents, hidden, self._features_of(obs, self.pi_features_extractor)))

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
        if isinstance(self.action_space, spaces.Box):
            actions = actions.flatten(1)
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
        next_tensor = None
        if next_observations is not None:
            check_no_nan(next_observations)
            next_tensor = self.obs_to_tensor(next_observations)[0]
            n_given = len(next(iter(next_tensor.values())) if isinstance(next_tensor, dict) else next_tensor)
            if n_given != n_envs:
                raise ValueError(f"next_observations must be {n_envs}, as the states are, got {n_given}.")
        if actions is not None:
            chosen = self._check_actions(actions, n_envs)
            steps = self.encode_steps(th.as_tensor(chosen, device=self.device), next_tensor)
            return self.reward_decoder(latents, steps).mean(0).cpu().numpy()
        if not isinstance(self.action_space, spaces.Discrete):
            raise ValueError(f"actions must be given: {self.action_space} has no list of all actions.")
        if next_tensor is not None or self.reward_decoder.next_obs:
            raise ValueError("actions must be given where the reward decoder reads what they lead to (next_obs=True).")
        steps = self.encode_steps(th.arange(int(self.action_space.n), device=self.device), None)
        return self.reward_decoder(latents.unsqueeze(2), steps).mean(0).cpu().numpy()

    def _check_actions(self, actions: np.ndarray, n_envs: int) -> np.ndarray:
        """Actions as the environment takes them, checked, as the policy returns them, shape (n_envs, ...)."""
        chosen, shape = np.asarray(actions), (n_envs, *self.action_space.shape)  # type: ignore[misc]
        if chosen.shape == shape[1:] and n_envs == 1:
            chosen = chosen[None]
        if chosen.shape != shape or chosen.dtype.kind not in "biuf" or not np.isfinite(chosen).all():
            raise ValueError(f"actions must be finite numbers of shape {shape}, got {chosen.dtype} of {chosen.shape}.")
        if isinstance(self.action_space, spaces.Box):
            return self.scale_action(chosen) if self.squash_output else chosen
        for action in chosen:
            if action not in self.action_space:
                raise ValueError(f"actions must lie in {self.action_space}, got {action}.")
        return chosen

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
