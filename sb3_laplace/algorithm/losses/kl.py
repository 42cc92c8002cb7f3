"""The penalty on the KL between successive posteriors."""

from typing import ClassVar

import torch as th

from sb3_laplace.algorithm.losses.base import LossTerm, RolloutStep, valid
from sb3_laplace.policies.types import Evaluation, SequenceRolloutBufferSamples


class KLTerm(LossTerm):
    """``kl_coef`` mean KL(q_t || sg(q_{t-1})), in nats (paper, section 4)."""

    coefficient: ClassVar[str] = "kl_coef"

    def check_arguments(self) -> None:
        # None is a default that depends on the policy
        if self.algorithm.kl_coef is not None:  # type: ignore[attr-defined]
            super().check_arguments()

    def check_policy(self) -> None:
        if self.is_on and self.policy.latent_layer.is_point:
            given = getattr(self.algorithm, self.coefficient)
            raise ValueError(f"kl_coef must be 0 with posterior='point', which has no KL; got {given!r}.")

    def memory(self, step: RolloutStep) -> dict[str, th.Tensor]:
        return self.policy.latent_layer.memory(step.acted.posterior)

    def loss(
        self, samples: SequenceRolloutBufferSamples, evaluation: Evaluation
    ) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        loss = valid(evaluation.posterior.kl().reshape(-1), samples).mean()
        return loss, {"kl_loss": loss}
