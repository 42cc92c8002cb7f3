"""What policy, buffer and algorithm hand to one another."""

from typing import NamedTuple

import torch as th
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.distributions import Distribution

from sb3_laplace.posteriors import PosteriorStep

TensorOrDict = th.Tensor | dict[str, th.Tensor]


class PolicyStep(NamedTuple):
    """One step of acting, batch of N environments.

    :param actions: shape (N, ...)
    :param values: shape (N, 1)
    :param log_prob: log-probability of the actions, shape (N,)
    :param states: recurrent states after the step; ``states.pi`` ends with the posterior's own
    :param posterior: q_t, the state before it and what the KL penalty needs
    :param noise: noise of the drawn latents, shape (K, N, D); None if K = 0
    """

    actions: th.Tensor
    values: th.Tensor
    log_prob: th.Tensor
    states: RNNStates
    posterior: PosteriorStep
    noise: th.Tensor | None


class Evaluation(NamedTuple):
    """Actions of whole sequences under the current policy, B = n_seq * T.

    :param values: shape (B, 1)
    :param log_prob: shape (B,)
    :param entropy: entropy of the action distribution, shape (B,), or None where it has no closed form
    :param kl: KL(q_t || sg(q_{t-1})) up to terms without gradient, shape (B,), or None if not asked for
    :param latents: latents that the heads read, shape (max(K, 1), n_seq, T, D)
    :param distribution: the action distributions, batch of B
    """

    values: th.Tensor
    log_prob: th.Tensor
    entropy: th.Tensor | None
    kl: th.Tensor | None
    latents: th.Tensor
    distribution: Distribution


class SequenceRolloutBufferSamples(NamedTuple):
    """A minibatch of n_seq whole sequences of T steps, B = n_seq * T, sequence by sequence.

    :param observations: shape (B, ...), or a dict of these
    :param actions: as the policy returned them, shape (B, ...)
    :param old_values: shape (B,)
    :param old_log_prob: shape (B,)
    :param advantages: shape (B,)
    :param returns: shape (B,)
    :param lstm_states: recurrent states before each sequence, each (layers or 1, n_seq, ...)
    :param episode_starts: 1 where an episode starts, shape (B,)
    :param mask: False at the padding of sequences shorter than T, shape (B,); None if there is none
    :param noise: noise of the latents, shape (K, n_seq, T, D); None if K = 0
    :param kl_memory: what the posterior's KL needs, for each sequence, without padding, shape (T or T - 1, ...);
        None if nothing. Views of the buffer: gathering precision matrices would cost more than using them.
    :param targets: targets of the actions, as the actions, shape (B, ...); None without supervised learning
    :param decoder_rewards: rewards as the environment gave them, shape (B,); None without a reward decoder
    :param next_observations: shape (B, ...), or a dict of these; None if the reward decoder does not read them
    """

    observations: TensorOrDict
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    lstm_states: RNNStates
    episode_starts: th.Tensor
    mask: th.Tensor | None
    noise: th.Tensor | None
    kl_memory: list[th.Tensor] | None
    targets: th.Tensor | None = None
    decoder_rewards: th.Tensor | None = None
    next_observations: TensorOrDict | None = None
