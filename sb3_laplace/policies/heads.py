"""From features and latents to actions and values: what the heads read, and the policy over K latents."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, MlpExtractor
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_laplace.policies.distributions import mix
from sb3_laplace.policies.latent_policy import LatentPolicy
from sb3_laplace.posteriors.gaussian import Gaussian


class HeadsPolicy(LatentPolicy):
    """The heads of :class:`~sb3_laplace.LaplaceLstmPolicy`."""

    def _build_mlp_extractor(self) -> None:
        """Heads of the sizes that actor and critic read, which may differ."""
        super()._build_mlp_extractor()
        hidden_size = self._own_parameters["lstm_hidden_size"]
        if not self.shared_lstm and self.lstm_output_dim != hidden_size:
            critic = MlpExtractor(hidden_size, self.net_arch, self.activation_fn, self.device)
            self.mlp_extractor.value_net = critic.value_net
            self.mlp_extractor.latent_dim_vf = critic.latent_dim_vf

    def _actor_features(self, obs: PyTorchObs) -> th.Tensor:
        """What the actor's core reads, shape (B, F)."""
        return self._features_of(obs, self.pi_features_extractor, 0)

    def _critic_features(self, obs: PyTorchObs) -> th.Tensor:
        """What the critic's core, or its own layer, reads, shape (B, F)."""
        return self._features_of(obs, self.vf_features_extractor, 1)

    def _features(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """Features of actor and critic, each (B, F)."""
        if self.share_features_extractor:
            features = self._actor_features(obs)
            return features, features
        return self._actor_features(obs), self._critic_features(obs)

    def _features_of(self, obs: PyTorchObs, extractor: BaseFeaturesExtractor, index: int) -> th.Tensor:
        if self.share_features_extractor:
            features = self.extract_features(obs)
        elif type(self).extract_features is not ActorCriticPolicy.extract_features:
            # A user's own, which returns those of both
            features = self.extract_features(obs)[index]
        else:
            # Only the one that is asked for, as sb3-contrib does
            features = super(ActorCriticPolicy, self).extract_features(obs, extractor)
        assert isinstance(features, th.Tensor)
        # Extractors may leave dimensions of size one between
        return features.flatten(1).to(self.latent_layer.prior_mean.dtype)

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

    def _critic_input(self, features: th.Tensor, hidden: th.Tensor | None) -> th.Tensor:
        """What a critic apart from the actor reads, shape (1, B, H): its own core's output, or its own layer."""
        if self.lstm_critic is not None:
            assert hidden is not None
            return hidden.unsqueeze(0)
        assert self.critic is not None
        return self.critic(features).unsqueeze(0)

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
        """As SB3's; with ``state_dependent_std`` both parameters of the Gaussian are read from the codes (B, .)."""
        if not self.state_dependent_std:
            return super()._get_action_dist_from_latent(latent_pi)
        assert isinstance(self.action_dist, DiagGaussianDistribution)
        log_std_net: Any = self.log_std
        return self.action_dist.proba_distribution(self.action_net(latent_pi), log_std_net(latent_pi))

    def _mixture(self, heads: th.Tensor, action_masks: th.Tensor | None = None) -> Distribution:
        """Mixture over K of the action distributions of heads (K, B, .), given that masks (B, n) allow the action."""
        latent_pi = self.mlp_extractor.forward_actor(heads.flatten(0, 1))
        return mix(self._get_action_dist_from_latent, latent_pi, len(heads), action_masks)

    def _values(self, heads: th.Tensor) -> th.Tensor:
        """Mean over K of the values of heads (K, B, .), shape (B, 1)."""
        values = self.value_net(self.mlp_extractor.forward_critic(heads.flatten(0, 1)))
        return values if len(heads) == 1 else values.view(len(heads), -1, 1).mean(0)

    def distribution_at(
        self, obs: PyTorchObs, latents: th.Tensor, hidden: th.Tensor, action_masks: th.Tensor | None = None
    ) -> Distribution:
        """Action distribution where the heads read given latents instead of draws of the policy's own.

        :param obs: observations of N environments
        :param latents: shape (K, N, D)
        :param hidden: hidden states after the observations, shape (N, H), ``hidden`` of a
            :class:`~sb3_laplace.policies.types.PolicyStep`
        :param action_masks: True for what is allowed, shape (N, n); None if all is
        :return: the mixture over the K latents
        """
        return self._mixture(self._head_input(latents, hidden, self._actor_features(obs)), action_masks)

    def to_env_actions(self, actions: np.ndarray) -> np.ndarray:
        """Actions as the environment takes them: unscaled if they were squashed, else clipped to the bounds.

        :param actions: as the policy returned them, shape (N, ...)
        """
        if not isinstance(self.action_space, spaces.Box):
            return actions
        if self.squash_output:
            return self.unscale_action(actions)
        return np.clip(actions, self.action_space.low, self.action_space.high)
