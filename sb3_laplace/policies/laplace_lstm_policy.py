"""Recurrent actor-critic policies with a posterior between the LSTM and the heads."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_laplace.checks import check_action_masks, check_no_nan
from sb3_laplace.policies.reward_prediction import RewardPredictionPolicy
from sb3_laplace.policies.types import Evaluation, PolicyStep, RecurrentState, RecurrentStates
from sb3_laplace.posteriors import SequenceInputs


class LaplaceLstmPolicy(RewardPredictionPolicy):
    """sb3-contrib's recurrent actor-critic policy whose actor reads a posterior over the task latent.

    The latent layer stands between the actor's LSTM and the heads. With the identity latent and
    ``n_posterior_samples=0`` actions, values and log-probabilities are those of RecurrentPPO's policy with
    the same weights. A separate critic LSTM, or a critic without LSTM, stays a point estimate.

    Every keyword of :class:`~sb3_contrib.common.recurrent.policies.RecurrentActorCriticPolicy` is taken too.

    :param observation_space: observation space
    :param action_space: action space
    :param lr_schedule: learning rate schedule
    :param latent_dim: number of latent units D, linear in the hidden state; None for the identity latent (D = H).
        "auto" is at most 64 units, and the identity for a point, which has no width to be in proportion to.
    :param posterior: "laplace", "point" (RL^2), "constant_variance", "variational" (VRNN), or a
        :class:`~sb3_laplace.LatentPosterior` class
    :param posterior_kwargs: keywords of the posterior's class, for Laplace those of
        :class:`~sb3_laplace.LaplacePosterior`
    :param n_posterior_samples: number of latents K drawn at each step; the policy is the mixture of the K
        action distributions and the value their mean. 0 acts on the posterior's mean.
    :param head_inputs: what the heads read beside the latent: any of "hidden" (the LSTM's output) and
        "features" (the extracted features)
    :param reward_decoder_kwargs: keywords of a decoder that predicts rewards from the latent, see
        :class:`~sb3_laplace.policies.reward_decoder.RewardDecoder`: ``net_arch``, ``next_obs``, ``likelihood``;
        None for no decoder
    :param detach_critic: with ``shared_lstm=True``, keep the critic's gradient out of the LSTM, as
        RecurrentPPO does
    :param state_dependent_std: of Gaussian actions, learn the standard deviation as a function of what the heads read,
        not one number for all steps. It starts from ``log_std_init`` everywhere; its logarithm is kept in [-20, 2].
    :param lstm_hidden_size: number of hidden units H, of the actor's core and of the critic's
    :param n_lstm_layers: number of layers of each
    :param lstm_kwargs: further keywords of their class
    :param rnn_type: what it remembers with: "lstm", "gru", "rnn" (tanh), "mingru", "gtrxl" (attention, see
        :class:`~sb3_laplace.cores.GTrXL`) or a :class:`~sb3_laplace.Core` class. The keywords that name an LSTM
        (``lstm_hidden_size``, ``n_lstm_layers``, ``lstm_kwargs``, ``shared_lstm``, ``enable_critic_lstm``) hold for
        every type.
    :raises ValueError: if an argument is out of range
    """

    # -- one step ---------------------------------------------------------------------------------------

    def act(
        self,
        obs: PyTorchObs,
        states: RecurrentStates | RNNStates,
        episode_starts: th.Tensor,
        deterministic: bool = False,
        action_masks: th.Tensor | None = None,
    ) -> PolicyStep:
        """One step of acting, with everything that a rollout stores.

        :param obs: observations of N environments
        :param states: recurrent states, see :meth:`initial_states`; RecurrentPPO's, (h, c), are taken for ones whose
            posterior is the prior
        :param episode_starts: 1 where an episode starts, shape (N,)
        :param deterministic: act on the posterior's mean and take the mode
        :param action_masks: True for the actions that are allowed, in sb3-contrib's order, shape (N, n); None if all
            are. They are taken as they are, :meth:`predict` checks them.
        """
        pi_features, vf_features = self._features(obs)
        hidden, step, pi_state = self._advance(pi_features, self._actor_state(states.pi), episode_starts)
        latents, noise = self._draw(step.posterior, deterministic)
        heads = self._head_input(latents, hidden, pi_features)
        distribution = self._mixture(heads, action_masks)
        vf_state = pi_state
        if self.shared_lstm:
            values = self._values(heads)
        else:
            vf_hidden = None
            if self.lstm_critic is not None:
                vf_state = self._critic_step(self.lstm_critic, vf_features, states.vf, episode_starts)
                vf_hidden = self.lstm_critic.hidden(vf_state.core)
            values = self._values(self._critic_input(vf_features, vf_hidden))
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)
        actions = actions.reshape((-1, *self.action_space.shape))  # type: ignore[misc]
        after = RecurrentStates(pi_state, vf_state)
        return PolicyStep(actions, values, log_prob, after, step, noise, hidden, pi_features, action_masks)

    def forward(  # type: ignore[override]
        self,
        obs: th.Tensor,
        lstm_states: RecurrentStates | RNNStates,
        episode_starts: th.Tensor,
        deterministic: bool = False,
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor, RecurrentStates]:
        """RecurrentPPO's interface: actions, values, log-probabilities and the new states.

        :param obs: observations of N environments
        :param lstm_states: recurrent states, see :meth:`initial_states`
        :param episode_starts: 1 where an episode starts, shape (N,)
        :param deterministic: act on the posterior's mean and take the mode
        :raises ValueError: if the states are RecurrentPPO's, which have no room for the posterior
        """
        if not isinstance(lstm_states, RecurrentStates):
            raise ValueError(
                "forward() takes the states of initial_states(n_envs), got RecurrentPPO's, which have no room for the "
                "posterior. (RecurrentPPO cannot train an agent of LaplaceRecurrentPPO: use LaplaceRecurrentPPO.load.)"
            )
        return self.act(obs, lstm_states, episode_starts, deterministic)[:4]

    def get_distribution(  # type: ignore[override]
        self,
        obs: PyTorchObs,
        lstm_states: RecurrentState | tuple[th.Tensor, ...],
        episode_starts: th.Tensor,
        deterministic: bool = False,
        action_masks: th.Tensor | None = None,
    ) -> tuple[Distribution, RecurrentState]:
        """Action distribution given the observations.

        :param obs: observations of N environments
        :param lstm_states: the actor's state, ``pi`` of :meth:`initial_states`
        :param episode_starts: 1 where an episode starts, shape (N,)
        :param deterministic: whether to stay at the posterior's mean instead of drawing latents
        :param action_masks: True for the actions that are allowed, shape (N, n); None if all are
        :return: the distribution and the new state
        """
        features = self._actor_features(obs)
        hidden, step, state = self._advance(features, self._actor_state(lstm_states), episode_starts)
        latents, _ = self._draw(step.posterior, deterministic)
        return self._mixture(self._head_input(latents, hidden, features), action_masks), state

    def predict_values(  # type: ignore[override]
        self, obs: PyTorchObs, lstm_states: RecurrentState | tuple[th.Tensor, ...], episode_starts: th.Tensor
    ) -> th.Tensor:
        """Values of the observations at the posterior's mean: bootstrapping draws no random number.

        :param obs: observations of N environments
        :param lstm_states: the critic's state, ``vf`` of :meth:`initial_states`
        :param episode_starts: 1 where an episode starts, shape (N,)
        :return: shape (N, 1)
        """
        features = self._critic_features(obs)
        if not self.shared_lstm:
            hidden = None
            if self.lstm_critic is not None:
                state = self._critic_step(self.lstm_critic, features, lstm_states, episode_starts)
                hidden = self.lstm_critic.hidden(state.core)
            return self._values(self._critic_input(features, hidden))
        state = self._actor_state(lstm_states)
        core_state = self.lstm_actor.step(features, self.lstm_actor.reset(state.core, episode_starts))
        hidden = self.lstm_actor.hidden(core_state)
        own = self.latent_layer.reset(state.posterior, episode_starts)
        latents = self.latent_layer.next_mean(hidden, own).unsqueeze(0)
        return self._values(self._head_input(latents, hidden, features))

    # -- whole sequences --------------------------------------------------------------------------------

    def evaluate_sequences(
        self,
        obs: PyTorchObs,
        actions: th.Tensor,
        states: RecurrentStates,
        episode_starts: th.Tensor,
        noise: th.Tensor | None = None,
        memory: Mapping[str, Sequence[th.Tensor]] | None = None,
        action_masks: th.Tensor | None = None,
    ) -> Evaluation:
        """Evaluate the actions of whole sequences, at the latents of the rollout.

        The latent is ``z_k = m + delta_k`` with the mean m under the current weights and the displacement
        of the rollout, so that log-probabilities equal the rollout's before the first gradient step.

        :param obs: observations, sequence by sequence, shape (n_seq * T, ...)
        :param actions: shape (n_seq * T, ...)
        :param states: recurrent states before the first step of each sequence, see :meth:`sequence_states`
        :param episode_starts: 1 where an episode starts, shape (n_seq * T,)
        :param noise: noise of the rollout, shape (K, n_seq, T, D); None to stay at the mean
        :param memory: what the posterior stored of every step for its KL, by name, a tensor (T or T - 1, ...) for each
            sequence; None if the KL is not asked for
        :param action_masks: True for the actions that were allowed, shape (n_seq * T, n); None if all were
        """
        pi = states.pi
        n_seq = pi.core[0].shape[1]
        starts = episode_starts.view(n_seq, -1)
        pi_features, vf_features = self._features(obs)
        n_steps = len(pi_features)
        hidden = self.lstm_actor.sequence(pi_features.view(*starts.shape, -1), pi.core, starts)
        initial_hidden = self.lstm_actor.hidden(pi.core)
        replay = self.latent_layer.replay(
            SequenceInputs(hidden, initial_hidden, pi.posterior, starts, noise, memory or {})
        )
        latents = replay.latents.reshape(-1, n_steps, replay.latents.shape[-1])
        heads = self._head_input(latents, hidden.reshape(n_steps, -1), pi_features)
        distribution = self._mixture(heads, action_masks)
        if self.shared_lstm:
            values = self._values(heads.detach() if self.detach_critic else heads)
        else:
            vf_hidden = None
            if self.lstm_critic is not None:
                vf_hidden = self.lstm_critic.sequence(vf_features.view(*starts.shape, -1), states.vf.core, starts)
                vf_hidden = vf_hidden.reshape(n_steps, -1)
            values = self._values(self._critic_input(vf_features, vf_hidden))
        if isinstance(self.action_space, spaces.Box):
            actions = actions.reshape(n_steps, -1)
        return Evaluation(values, distribution.log_prob(actions), distribution.entropy(), replay, distribution)

    def evaluate_actions(  # type: ignore[override]
        self, obs: PyTorchObs, actions: th.Tensor, lstm_states: RecurrentStates | RNNStates, episode_starts: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """RecurrentPPO's interface: values, log-probabilities and entropy at the posterior's mean.

        :param obs: observations, sequence by sequence
        :param actions: the actions taken, likewise
        :param lstm_states: recurrent states before the first step of each sequence; without the posterior's own part,
            as RecurrentPPO's, they are ones whose posterior is the prior
        :param episode_starts: 1 where an episode starts
        """
        states = RecurrentStates(self._actor_state(lstm_states.pi), self._critic_state(lstm_states.vf))
        return self.evaluate_sequences(obs, actions, self.sequence_states(states), episode_starts)[:3]

    # -- predict ----------------------------------------------------------------------------------------

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Actions for observations, and the recurrent state with the posterior in it.

        :param observation: observation of one environment or of N
        :param state: the state returned by the last call; None before the first
        :param episode_start: True where an episode starts, shape (N,)
        :param deterministic: act on the posterior's mean and take the mode
        :param action_masks: True for the actions that are allowed, in sb3-contrib's order, shape (N, n), or (n,) of one
            environment; None if all are
        :return: actions, and the state: (h, c, then the posterior's own, each (layers or 1, N, ...)), see
            :meth:`posterior`
        :raises ValueError: if the observation holds NaN, the state is not one of this policy, or the masks do not fit
            the action space or leave no action
        """
        self.set_training_mode(False)
        if isinstance(observation, tuple):
            raise ValueError(
                "observation must be an array or a dict of arrays, got a tuple: a Gymnasium environment's reset() "
                "returns (observation, info), pass the first of them."
            )
        check_no_nan(observation)
        obs_tensor, vectorized = self.obs_to_tensor(observation)
        first = next(iter(obs_tensor.values())) if isinstance(obs_tensor, dict) else obs_tensor
        n_envs = len(first)
        masks = None
        if action_masks is not None:
            masks = th.as_tensor(check_action_masks(action_masks, self.action_space, n_envs), device=self.device)
        with th.no_grad():
            before = self.initial_states(n_envs).pi if state is None else self._restore_state(state, n_envs)
            starts = np.zeros(n_envs) if episode_start is None else np.asarray(episode_start)
            if starts.size != n_envs:
                raise ValueError(f"episode_start must have shape {(n_envs,)}, got {starts.shape}.")
            episode_starts = th.as_tensor(starts).to(self.latent_layer.prior_mean).view(n_envs)
            distribution, after = self.get_distribution(obs_tensor, before, episode_starts, deterministic, masks)
            actions = distribution.get_actions(deterministic=deterministic).cpu().numpy()
        actions = actions.reshape((-1, *self.action_space.shape))  # type: ignore[misc]
        actions = self.to_env_actions(actions)
        new_state = tuple(part.cpu().numpy() for part in after.flatten())
        return actions if vectorized else actions.squeeze(axis=0), new_state


class LaplaceCnnLstmPolicy(LaplaceLstmPolicy):
    """:class:`LaplaceLstmPolicy` for images, with all of its keywords.

    :param features_extractor_class: the features extractor, by default SB3's NatureCNN
    """

    def __init__(self, *args: Any, features_extractor_class: type = NatureCNN, **kwargs: Any) -> None:
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)


class LaplaceMultiInputLstmPolicy(LaplaceLstmPolicy):
    """:class:`LaplaceLstmPolicy` for Dict observations, with all of its keywords.

    :param features_extractor_class: the features extractor, by default SB3's CombinedExtractor
    """

    def __init__(self, *args: Any, features_extractor_class: type = CombinedExtractor, **kwargs: Any) -> None:
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)
