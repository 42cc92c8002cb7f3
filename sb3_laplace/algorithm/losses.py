"""The loss of an update: PPO's terms, the penalty on the posterior's KL, and the auxiliary terms."""

import math
from typing import NamedTuple

import torch as th

from sb3_laplace.policies.laplace_lstm_policy import LaplaceLstmPolicy
from sb3_laplace.policies.types import Evaluation, SequenceRolloutBufferSamples


class LossSettings(NamedTuple):
    """Coefficients of the loss, see :class:`~sb3_laplace.LaplaceRecurrentPPO`."""

    clip_range: float
    clip_range_vf: float | None
    normalize_advantage: bool
    policy_coef: float
    ent_coef: float
    vf_coef: float
    kl_coef: float
    target_coef: float
    reward_coef: float
    decode_window: int | str


def total_loss(
    policy: LaplaceLstmPolicy, evaluation: Evaluation, samples: SequenceRolloutBufferSamples, settings: LossSettings
) -> tuple[th.Tensor, dict[str, float]]:
    """Loss of a minibatch: the sum of its terms, each with its coefficient.

    ``policy_coef`` (clip loss + ``ent_coef`` entropy loss + ``vf_coef`` value loss) + ``kl_coef`` mean
    KL(q_t || sg(q_{t-1})) + ``target_coef`` negative log-likelihood of the targets + ``reward_coef`` negative
    log-likelihood of the rewards.

    :param policy: the policy that evaluated the minibatch
    :param evaluation: the minibatch under the current policy
    :param samples: the minibatch
    :param settings: coefficients
    :return: the loss, and the terms to log by name
    :raises ValueError: if the loss is not finite, or a coefficient was switched on after the rollout
    """
    # With policy_coef = 0 PPO's terms are still logged, but nothing flows back from them
    with th.set_grad_enabled(settings.policy_coef > 0):
        ppo, terms = ppo_loss(evaluation, samples, settings)
    loss = settings.policy_coef * ppo if settings.policy_coef > 0 else ppo.new_zeros(())
    if evaluation.kl is not None:
        terms["kl_loss"] = _valid(evaluation.kl, samples).mean()
        loss = loss + settings.kl_coef * terms["kl_loss"]
    if settings.target_coef > 0:
        targets = _held(samples.targets, "target_coef", settings.target_coef)
        terms["target_loss"] = -_valid(evaluation.distribution.log_prob(targets), samples).mean()
        loss = loss + settings.target_coef * terms["target_loss"]
    if settings.reward_coef > 0:
        rewards = _held(samples.decoder_rewards, "reward_coef", settings.reward_coef)
        terms["reward_loss"] = reward_loss(policy, evaluation, samples, rewards, settings.decode_window)
        loss = loss + settings.reward_coef * terms["reward_loss"]
    terms["loss"] = loss
    # One transfer from the device for all of them
    numbers = dict(zip(terms, th.stack([term.detach() for term in terms.values()]).tolist(), strict=True))
    if not math.isfinite(numbers["loss"]):
        raise ValueError(
            f"The loss is not finite ({numbers}). Lower learning_rate or max_grad_norm, or normalize observations and "
            "rewards (VecNormalize). The weights are still those before this step: model.save() works."
        )
    return loss, numbers


def ppo_loss(
    evaluation: Evaluation, samples: SequenceRolloutBufferSamples, settings: LossSettings
) -> tuple[th.Tensor, dict[str, th.Tensor]]:
    """PPO clip loss + entropy loss + value loss.

    :param evaluation: the minibatch under the current policy
    :param samples: the minibatch
    :param settings: coefficients
    :return: the loss, and the terms by name
    """
    advantages = _valid(samples.advantages, samples)
    if settings.normalize_advantage and len(advantages) > 1:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    log_prob = _valid(evaluation.log_prob, samples)
    log_ratio = log_prob - _valid(samples.old_log_prob, samples)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - settings.clip_range, 1 + settings.clip_range)
    policy_loss = -th.min(advantages * ratio, advantages * clipped).mean()

    values, returns = _valid(evaluation.values.flatten(), samples), _valid(samples.returns, samples)
    if settings.clip_range_vf is not None:
        old_values = _valid(samples.old_values, samples)
        values = old_values + (values - old_values).clamp(-settings.clip_range_vf, settings.clip_range_vf)
    value_loss = (returns - values).square().mean()

    # Approximated by the log-probabilities where the distribution has no closed form
    entropy_loss = log_prob.mean() if evaluation.entropy is None else -_valid(evaluation.entropy, samples).mean()

    loss = policy_loss + settings.vf_coef * value_loss
    # Times 0 its gradient would be computed all the same
    if settings.ent_coef > 0:
        loss = loss + settings.ent_coef * entropy_loss
    terms = {"entropy_loss": entropy_loss, "policy_gradient_loss": policy_loss, "value_loss": value_loss}
    with th.no_grad():
        # Schulman's low-variance estimate of the reverse KL, http://joschu.net/blog/kl-approx.html
        terms["approx_kl"] = (ratio - 1 - log_ratio).mean()
        terms["clip_fraction"] = ((ratio - 1).abs() > settings.clip_range).float().mean()
    return loss, terms


def reward_loss(
    policy: LaplaceLstmPolicy,
    evaluation: Evaluation,
    samples: SequenceRolloutBufferSamples,
    rewards: th.Tensor,
    window: int | str,
) -> th.Tensor:
    """Negative log-likelihood of the rewards under the policy's decoder, in nats.

    :param policy: a policy with a reward decoder
    :param evaluation: the minibatch under the current policy
    :param samples: the minibatch
    :param rewards: rewards as the environment gave them, shape (B,)
    :param window: how far from each step rewards are decoded, see
        :class:`~sb3_laplace.policies.reward_decoder.RewardDecoder`
    """
    decoder = policy.reward_decoder
    assert decoder is not None
    n_seq = evaluation.latents.shape[1]
    steps = policy.encode_steps(samples.actions, samples.next_observations)
    mask = None if samples.mask is None else samples.mask.view(n_seq, -1)
    return decoder.loss(
        evaluation.latents,
        steps.view(n_seq, -1, steps.shape[-1]),
        rewards.view(n_seq, -1),
        samples.episode_starts.view(n_seq, -1),
        mask,
        window,
    )


def _held(column: th.Tensor | None, name: str, coefficient: float) -> th.Tensor:
    """What a rollout holds for a term of the loss."""
    if column is None:
        raise ValueError(f"{name} = {coefficient} was set after the rollout had begun, which holds nothing for it.")
    return column


def _valid(tensor: th.Tensor, samples: SequenceRolloutBufferSamples) -> th.Tensor:
    """The entries that are no padding."""
    return tensor if samples.mask is None else tensor[samples.mask]
