"""The loss of an update: PPO's terms and the penalty on the KL between successive posteriors."""

import math
from typing import NamedTuple

import torch as th

from sb3_laplace.type_aliases import Evaluation, SequenceRolloutBufferSamples


class LossSettings(NamedTuple):
    """Coefficients of the loss, see :class:`~sb3_laplace.LaplaceRecurrentPPO`."""

    clip_range: float
    clip_range_vf: float | None
    normalize_advantage: bool
    ent_coef: float
    vf_coef: float
    kl_coef: float


def ppo_loss(
    evaluation: Evaluation, samples: SequenceRolloutBufferSamples, settings: LossSettings
) -> tuple[th.Tensor, dict[str, float]]:
    """PPO clip loss + entropy loss + value loss + ``kl_coef`` times the mean KL(q_t || sg(q_{t-1})).

    :param evaluation: the minibatch under the current policy
    :param samples: the minibatch
    :param settings: coefficients
    :return: the loss, and the terms to log by name
    :raises ValueError: if the loss is not finite
    """

    def valid(tensor: th.Tensor) -> th.Tensor:
        return tensor if samples.mask is None else tensor[samples.mask]

    advantages = valid(samples.advantages)
    if settings.normalize_advantage and len(advantages) > 1:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    log_prob = valid(evaluation.log_prob)
    log_ratio = log_prob - valid(samples.old_log_prob)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - settings.clip_range, 1 + settings.clip_range)
    policy_loss = -th.min(advantages * ratio, advantages * clipped).mean()

    values, returns = valid(evaluation.values.flatten()), valid(samples.returns)
    if settings.clip_range_vf is not None:
        old_values = valid(samples.old_values)
        values = old_values + (values - old_values).clamp(-settings.clip_range_vf, settings.clip_range_vf)
    value_loss = (returns - values).square().mean()

    # Approximated by the log-probabilities where the distribution has no closed form
    entropy_loss = log_prob.mean() if evaluation.entropy is None else -valid(evaluation.entropy).mean()

    loss = policy_loss + settings.ent_coef * entropy_loss + settings.vf_coef * value_loss
    terms = {"entropy_loss": entropy_loss, "policy_gradient_loss": policy_loss, "value_loss": value_loss}
    if evaluation.kl is not None:
        terms["kl_loss"] = valid(evaluation.kl).mean()
        loss = loss + settings.kl_coef * terms["kl_loss"]
    with th.no_grad():
        # Schulman's low-variance estimate of the reverse KL, http://joschu.net/blog/kl-approx.html
        terms["approx_kl"] = (ratio - 1 - log_ratio).mean()
        terms["clip_fraction"] = ((ratio - 1).abs() > settings.clip_range).float().mean()
    terms["loss"] = loss
    # One transfer from the device for all of them
    numbers = dict(zip(terms, th.stack([term.detach() for term in terms.values()]).tolist(), strict=True))
    if not math.isfinite(numbers["loss"]):
        raise ValueError(
            f"The loss is not finite ({numbers}). Lower learning_rate or max_grad_norm, or normalize observations and "
            "rewards (VecNormalize). The weights are still those before this step: model.save() works."
        )
    return loss, numbers
