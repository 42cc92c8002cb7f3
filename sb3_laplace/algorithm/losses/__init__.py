"""The loss of an update: a list of terms, one class in one file each."""

import math
from collections.abc import Sequence

import torch as th

from sb3_laplace.algorithm.losses.base import LossTerm, RolloutStep
from sb3_laplace.algorithm.losses.kl import KLTerm
from sb3_laplace.algorithm.losses.ppo import PPOTerm
from sb3_laplace.algorithm.losses.reward import RewardTerm
from sb3_laplace.algorithm.losses.target import TargetTerm
from sb3_laplace.policies.types import Evaluation, SequenceRolloutBufferSamples

__all__ = ["TERMS", "KLTerm", "LossTerm", "PPOTerm", "RewardTerm", "RolloutStep", "TargetTerm", "total_loss"]

#: All terms of the loss
TERMS: tuple[type[LossTerm], ...] = (PPOTerm, KLTerm, TargetTerm, RewardTerm)


def total_loss(
    terms: Sequence[LossTerm], samples: SequenceRolloutBufferSamples, evaluation: Evaluation
) -> tuple[th.Tensor, dict[str, float]]:
    """Loss of a minibatch: the sum of its terms, each with its coefficient.

    A term whose coefficient has come to 0 is still computed and logged, but nothing flows back from it.

    :param terms: the terms
    :param samples: the minibatch
    :param evaluation: the minibatch under the current policy
    :return: the loss, and what to log by name
    :raises ValueError: if the loss is not finite
    """
    total = evaluation.log_prob.new_zeros(())
    logged: dict[str, th.Tensor] = {}
    for term in terms:
        with th.set_grad_enabled(term.weight > 0):
            loss, parts = term.loss(samples, evaluation)
        logged |= parts
        if term.weight > 0:
            total = total + term.weight * loss
    logged["loss"] = total
    # One transfer from the device for all of them
    numbers = dict(zip(logged, th.stack([part.detach() for part in logged.values()]).tolist(), strict=True))
    if not math.isfinite(numbers["loss"]):
        raise ValueError(
            f"The loss is not finite ({numbers}). Lower learning_rate or max_grad_norm, or normalize observations and "
            "rewards (VecNormalize). The weights are still those before this step: model.save() works."
        )
    return total, numbers
