"""Learning to predict rewards from the latent."""

from typing import ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_laplace.algorithm import distributed
from sb3_laplace.algorithm.losses.base import LossTerm, RolloutStep
from sb3_laplace.algorithm.step_data import terminal_observations
from sb3_laplace.policies.reward_decoder import RewardDecoder, check_decode_window
from sb3_laplace.policies.types import Evaluation, SequenceRolloutBufferSamples, TensorOrDict


class RewardTerm(LossTerm):
    """``reward_coef`` negative log-likelihood, in nats, of the rewards under the policy's decoder.

    The rewards are the environment's own, before VecNormalize scales them. ``decode_window`` says how far from each
    step rewards are decoded, see :class:`~sb3_laplace.policies.reward_decoder.RewardDecoder`. (Paper, section 5.)
    """

    coefficient: ClassVar[str] = "reward_coef"

    @property
    def decoder(self) -> RewardDecoder:
        """The policy's decoder.

        :raises ValueError: if it has none
        """
        if self.policy.reward_decoder is None:
            raise ValueError(
                "reward_coef needs a reward decoder, which this policy was built without: give reward_coef to the "
                "constructor or to load()."
            )
        return self.policy.reward_decoder

    def check_arguments(self) -> None:
        super().check_arguments()
        check_decode_window(self.algorithm.decode_window)  # type: ignore[attr-defined]

    def check_policy(self) -> None:
        if self.is_on:
            _ = self.decoder

    def begin_rollout(self, env: VecEnv) -> None:
        super().begin_rollout(env)
        self._normalizer = unwrap_vec_normalize(env)

    def columns(self, step: RolloutStep) -> dict[str, TensorOrDict]:
        rewards = step.rewards if self._normalizer is None else self._normalizer.get_original_reward()
        self.decoder.observe(rewards)
        columns: dict[str, TensorOrDict] = {
            "decoder_rewards": th.as_tensor(rewards, dtype=th.float32, device=self.policy.device)
        }
        if self.decoder.next_obs:
            columns["next_observations"] = self._next_observations(step)
        return columns

    def _next_observations(self, step: RolloutStep) -> TensorOrDict:
        """Observations after the step: at the end of an episode its last, not the first of the next."""
        new_obs, ended = step.new_obs, np.flatnonzero(step.dones).tolist()
        if ended:
            last = terminal_observations(step.infos, ended, self.policy.observation_space)
            if isinstance(new_obs, dict):
                new_obs = {key: part.copy() for key, part in new_obs.items()}
                for key, part in new_obs.items():
                    part[ended] = last[key]
            else:
                new_obs = np.array(new_obs)
                new_obs[ended] = last
        return obs_as_tensor(new_obs, self.policy.device)  # type: ignore[arg-type]

    def begin_update(self) -> None:
        super().begin_update()
        if self.is_stored and distributed.size() > 1:
            # One likelihood for all ranks, whichever has seen a reward that is neither 0 nor 1
            self.decoder.gaussian.fill_(any(distributed.gather(bool(self.decoder.gaussian))))
        self._window = check_decode_window(self.algorithm.decode_window)  # type: ignore[attr-defined]

    def loss(
        self, samples: SequenceRolloutBufferSamples, evaluation: Evaluation
    ) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        rewards = samples.columns["decoder_rewards"]
        assert isinstance(rewards, th.Tensor)
        latents = evaluation.posterior.latents
        n_seq = latents.shape[1]
        steps = self.policy.encode_steps(samples.actions, samples.columns.get("next_observations"))
        loss = self.decoder.loss(
            latents,
            steps.view(n_seq, -1, steps.shape[-1]),
            rewards.view(n_seq, -1),
            samples.episode_starts.view(n_seq, -1),
            None if samples.mask is None else samples.mask.view(n_seq, -1),
            self._window,
        )
        return loss, {"reward_loss": loss}
