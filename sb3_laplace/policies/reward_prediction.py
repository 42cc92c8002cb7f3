"""What the latent says about rewards: the policy's decoder, in training and for those who ask."""

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_laplace.checks import check_integer, check_no_nan, is_no_choice
from sb3_laplace.policies.heads import HeadsPolicy
from sb3_laplace.policies.reward_decoder import RewardDecoder, make_reward_decoder


class RewardPredictionPolicy(HeadsPolicy):
    """The reward decoder of :class:`~sb3_laplace.LaplaceLstmPolicy`, None without ``reward_decoder_kwargs``."""

    reward_decoder: RewardDecoder | None

    def _build_latent_layer(self) -> None:
        super()._build_latent_layer()
        kwargs = self._own_parameters["reward_decoder_kwargs"]
        self.reward_decoder = None
        if kwargs is not None:
            self.reward_decoder = make_reward_decoder(
                self.latent_layer.latent_dim, self.action_space, self.features_dim, kwargs
            )

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
            features = self._actor_features(next_observations)
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
        wrong = is_no_choice(chosen, self.action_space)
        if wrong.any():
            raise ValueError(f"actions must lie in {self.action_space}, counted from 0, got {chosen[wrong][0]:g}.")
        return chosen
