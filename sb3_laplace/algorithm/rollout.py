"""Collecting rollouts with a policy that has a posterior."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_laplace.algorithm import distributed
from sb3_laplace.algorithm.buffers import SequenceRolloutBuffer
from sb3_laplace.algorithm.losses import LossTerm, RolloutStep
from sb3_laplace.algorithm.masking import ActionMasks, MaskedPPO
from sb3_laplace.algorithm.step_data import check_step, truncated_values
from sb3_laplace.checks import check_no_nan
from sb3_laplace.policies import LaplaceLstmPolicy
from sb3_laplace.policies.types import PolicyStep, RecurrentStates

_PLAYED = (
    "The training environment was reset or played inside learn(), by a callback, so that the rollout cannot go on. "
    "Give the callback an environment of its own."
)


class PosteriorRollouts(MaskedPPO):
    """RecurrentPPO whose rollouts act on a posterior, and store what the terms of the loss need of every step."""

    policy: LaplaceLstmPolicy
    rollout_buffer: SequenceRolloutBuffer
    loss_terms: list[LossTerm]
    _last_lstm_states: RecurrentStates  # type: ignore[assignment]

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        # Where rollouts do not fit into total_timesteps exactly, the last one ends beyond it. SB3's progress is below 0
        # then, and so is a learning rate that falls to 0 with it: the last update would climb the loss.
        super()._update_current_progress_remaining(min(num_timesteps, total_timesteps), total_timesteps)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fill the rollout buffer by acting on (draws of) the posterior.

        Callbacks find in their ``locals`` what SB3's have, and ``step``, the
        :class:`~sb3_laplace.policies.types.PolicyStep` with the posterior; ``action_masks`` as in MaskablePPO's.

        :param env: the training environment
        :param callback: called at each step, and at the beginning and end of the rollout
        :param rollout_buffer: the buffer to fill
        :param n_rollout_steps: number of steps to collect per environment
        :return: False if the callback ended the rollout prematurely
        :raises ValueError: if an observation holds NaN, a reward or a value is not finite, K changes meanwhile, or
            action masks are missing or leave no action
        """
        assert isinstance(rollout_buffer, SequenceRolloutBuffer), f"{rollout_buffer} holds no sequences"
        if self._last_obs is None:
            raise ValueError(_PLAYED)
        assert self._last_episode_starts is not None
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)
        callback.on_rollout_start()
        # The policy's type may have been changed, as by policy.double()
        lstm_states = self._last_lstm_states.to(self.policy.latent_layer.prior_mean)
        for term in self.loss_terms:
            term.begin_rollout(env)
        stored_terms = [term for term in self.loss_terms if term.is_stored]
        n_samples = self.policy.n_posterior_samples
        if self.use_sde and n_samples > 1:
            raise ValueError(f"use_sde=True (gSDE) takes n_posterior_samples <= 1, got {n_samples!r}.")
        check_no_nan(self._last_obs)
        masks = ActionMasks(env, self.use_masking)

        for n_steps in range(n_rollout_steps):
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                self.policy.reset_noise(env.num_envs)
            episode_starts: np.ndarray = self._last_episode_starts
            obs_tensor = obs_as_tensor(self._last_obs, self.device)  # type: ignore[arg-type]
            action_masks = masks.read(f" at step {n_steps} of the rollout")
            step = self._act(obs_tensor, lstm_states, episode_starts, n_steps, action_masks)
            values, log_probs = step.values, step.log_prob
            actions = step.actions.cpu().numpy()
            clipped_actions = self.policy.to_env_actions(actions)
            new_obs, rewards, dones, infos = env.step(clipped_actions)
            self.num_timesteps += env.num_envs * distributed.size()

            callback.update_locals(locals())
            if not callback.on_step():
                return False
            if self._last_obs is None:
                raise ValueError(_PLAYED)
            check_step(new_obs, rewards, dones, infos, n_steps)
            if self.policy.n_posterior_samples != n_samples:
                raise ValueError(
                    f"n_posterior_samples was changed from {n_samples} to {self.policy.n_posterior_samples} inside a "
                    "rollout; change it between rollouts (_on_rollout_start or _on_rollout_end of a callback)."
                )
            taken = RolloutStep(step, new_obs, rewards, dones, infos)
            with th.no_grad():
                columns = {name: column for term in stored_terms for name, column in term.columns(taken).items()}
                memory = {name: tensor for term in stored_terms for name, tensor in term.memory(taken).items()}
                if dones.any():
                    self._update_info_buffer(infos, dones)
                    truncated, last_values = truncated_values(self.policy, dones, infos, step.states)
                    rewards = rewards.copy()
                    rewards[truncated] += self.gamma * last_values
                rollout_buffer.add(
                    obs_tensor,
                    step.actions,
                    rewards,
                    episode_starts,
                    values,
                    log_probs,
                    lstm_states=self.policy.sequence_states(lstm_states),
                    noise=step.noise,
                    columns=columns,
                    memory=memory,
                )
            lstm_states = step.states
            self._last_obs = new_obs  # type: ignore[assignment]
            self._last_episode_starts = dones
            self._last_lstm_states = lstm_states

        with th.no_grad():
            starts_tensor = th.as_tensor(dones, dtype=th.float32, device=self.device)
            obs_tensor = obs_as_tensor(new_obs, self.device)  # type: ignore[arg-type]
            values = self.policy.predict_values(obs_tensor, lstm_states.vf, starts_tensor)
        if not (np.isfinite(rollout_buffer.values).all() and values.isfinite().all()):
            raise ValueError(
                "The policy's values are not finite any more: the weights have diverged. "
                "Lower learning_rate or max_grad_norm, or normalize observations and rewards (VecNormalize)."
            )
        rollout_buffer.compute_returns_and_advantage(last_values=values, dones=dones)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    # Not inference_mode: callbacks may use the tensors in what they differentiate
    @th.no_grad()
    def _act(
        self,
        obs: Any,
        states: RecurrentStates,
        episode_starts: np.ndarray,
        n_steps: int,
        action_masks: np.ndarray | None,
    ) -> PolicyStep:
        starts = th.as_tensor(episode_starts, dtype=th.float32, device=self.device)
        # Only where there are any: a policy of the user's that overrides act() need not know of them
        masked: dict[str, Any] = {}
        if action_masks is not None:
            masked["action_masks"] = th.as_tensor(action_masks, device=self.device)
        try:
            return self.policy.act(obs, states, starts, **masked)
        except ValueError:
            # Of infinity, which a features extractor may clip, the policy made NaN
            check_no_nan(self._last_obs, f" before step {n_steps} of the rollout", infinity_too=True)
            raise
