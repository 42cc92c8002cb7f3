"""PPO's own terms: clip loss, entropy and value loss."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.vec_env import VecEnv

from sb3_laplace.algorithm import distributed
from sb3_laplace.algorithm.losses.base import LossTerm, RolloutStep, valid
from sb3_laplace.policies.distributions import components_of
from sb3_laplace.policies.types import Evaluation, SequenceRolloutBufferSamples, TensorOrDict


class PPOTerm(LossTerm):
    """``policy_coef`` (clip loss + ``ent_coef`` entropy loss + ``vf_coef`` value loss).

    With ``policy_coef=0`` its parts are still computed and logged, but nothing flows back from them.
    """

    coefficient: ClassVar[str] = "policy_coef"

    def check_arguments(self) -> None:
        super().check_arguments()
        self.value_of("ent_coef", progress_remaining=1.0)

    def begin_rollout(self, env: VecEnv) -> None:
        # Everything is in the buffer whatever the coefficient is
        self.is_stored = True

    def columns(self, step: RolloutStep) -> dict[str, TensorOrDict]:
        # Every term's distribution is masked, and this term is always there
        masks = step.acted.action_masks
        return {} if masks is None else {"action_masks": masks}

    def begin_update(self) -> None:
        super().begin_update()
        algorithm, progress = self.algorithm, self.algorithm._current_progress_remaining
        self.ent_coef = self.value_of("ent_coef")
        self.clip_range: float = algorithm.clip_range(progress)  # type: ignore[operator]
        self.clip_range_vf: float | None = None
        if algorithm.clip_range_vf is not None:
            self.clip_range_vf = algorithm.clip_range_vf(progress)  # type: ignore[operator]

    def begin_minibatch(self, samples: SequenceRolloutBufferSamples) -> None:
        self._moments: tuple[th.Tensor | float, th.Tensor | float] | None = None
        if self.algorithm.normalize_advantage:
            self._moments = distributed.mean_and_std(valid(samples.advantages, samples))

    def loss(
        self, samples: SequenceRolloutBufferSamples, evaluation: Evaluation
    ) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        advantages = valid(samples.advantages, samples)
        if self._moments is not None:
            mean, std = self._moments
            advantages = (advantages - mean) / (std + 1e-8)
        log_prob = valid(evaluation.log_prob, samples)
        log_ratio = log_prob - valid(samples.old_log_prob, samples)
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - self.clip_range, 1 + self.clip_range)
        policy_loss = -th.min(advantages * ratio, advantages * clipped).mean()

        values, returns = valid(evaluation.values.flatten(), samples), valid(samples.returns, samples)
        if self.clip_range_vf is not None:
            old_values = valid(samples.old_values, samples)
            values = old_values + (values - old_values).clamp(-self.clip_range_vf, self.clip_range_vf)
        value_loss = (returns - values).square().mean()

        # Approximated by the log-probabilities where the distribution has no closed form
        entropy_loss = log_prob.mean() if evaluation.entropy is None else -valid(evaluation.entropy, samples).mean()

        loss = policy_loss + self.algorithm.vf_coef * value_loss
        # Times 0 its gradient would be computed all the same
        if self.ent_coef > 0:
            loss = loss + self.ent_coef * entropy_loss
        logged = {"entropy_loss": entropy_loss, "policy_gradient_loss": policy_loss, "value_loss": value_loss}
        with th.no_grad():
            if self.policy.state_dependent_std:
                normal: Any = components_of(evaluation.distribution).distribution
                std = normal.stddev
                logged["std"] = valid(
                    std.view(-1, len(evaluation.log_prob), std.shape[-1]).mean((0, 2)), samples
                ).mean()
            # Schulman's low-variance estimate of the reverse KL, http://joschu.net/blog/kl-approx.html
            logged["approx_kl"] = (ratio - 1 - log_ratio).mean()
            logged["clip_fraction"] = ((ratio - 1).abs() > self.clip_range).float().mean()
        return loss, logged
