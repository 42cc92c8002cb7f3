"""What policy, buffer and algorithm hand to one another."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch as th
from stable_baselines3.common.distributions import Distribution

from sb3_laplace.cores import CoreState
from sb3_laplace.posteriors import PosteriorState, PosteriorStep, Replay

TensorOrDict = th.Tensor | dict[str, th.Tensor]


class RecurrentState(NamedTuple):
    """What an actor remembers of N environments.

    :param core: its core's state, each (layers, N, ...)
    :param posterior: the posterior's own, each (N, ...)
    """

    core: CoreState
    posterior: PosteriorState = ()

    def with_posterior(self, parts: Iterable[th.Tensor]) -> "RecurrentState":
        """The same with other tensors in the posterior's state, whose type stays.

        :param parts: as many tensors as it has
        """
        make = getattr(self.posterior, "_make", tuple)
        return self._replace(posterior=make(parts))

    def select(self, index: th.Tensor) -> "RecurrentState":
        """The state of some environments.

        :param index: which ones, shape (n,)
        """
        core = tuple(part[:, index] for part in self.core)
        return RecurrentState(core, self.posterior).with_posterior(part[index] for part in self.posterior)

    def flatten(self) -> tuple[th.Tensor, ...]:
        """As ``predict`` returns it: the core's tensors, then the posterior's, each (layers or 1, N, ...)."""
        return (*self.core, *(part.unsqueeze(0) for part in self.posterior))


class RecurrentStates(NamedTuple):
    """What a policy remembers, in the place of sb3-contrib's ``RNNStates``.

    :param pi: the actor's state
    :param vf: the state of the critic's own core, the actor's if it has none
    """

    pi: RecurrentState
    vf: RecurrentState

    def select(self, index: th.Tensor) -> "RecurrentStates":
        """The states of some environments, in the order of the index and as often as it names them.

        :param index: which ones, shape (n,)
        """
        return RecurrentStates(self.pi.select(index), self.vf.select(index))

    def to(self, like: th.Tensor) -> "RecurrentStates":
        """The same on another tensor's device and in its floating point type.

        :param like: the tensor
        """

        def moved(part: th.Tensor) -> th.Tensor:
            # A state may also count: whole numbers stay what they are
            return part.to(like) if part.is_floating_point() else part.to(like.device)

        pi, vf = (
            RecurrentState(tuple(map(moved, one.core)), one.posterior).with_posterior(map(moved, one.posterior))
            for one in self
        )
        return RecurrentStates(pi, vf)


class PolicyStep(NamedTuple):
    """One step of acting, batch of N environments.

    :param actions: shape (N, ...)
    :param values: shape (N, 1)
    :param log_prob: log-probability of the actions, shape (N,)
    :param states: recurrent states after the step
    :param posterior: q_t and what came before it
    :param noise: noise of the drawn latents, shape (K, N, D); None if K = 0
    :param hidden: hidden states of the actor's core after the step, shape (N, H)
    :param features: features that it read, shape (N, F)
    :param action_masks: True for the actions that were allowed, shape (N, n); None if all were
    """

    actions: th.Tensor
    values: th.Tensor
    log_prob: th.Tensor
    states: RecurrentStates
    posterior: PosteriorStep
    noise: th.Tensor | None
    hidden: th.Tensor
    features: th.Tensor
    action_masks: th.Tensor | None = None


class Evaluation(NamedTuple):
    """Actions of whole sequences under the current policy, B = n_seq * T.

    :param values: shape (B, 1)
    :param log_prob: shape (B,)
    :param entropy: entropy of the action distribution, shape (B,), or None where it has no closed form
    :param posterior: the posterior under the current weights: the latents that the heads read, shape
        (max(K, 1), n_seq, T, D), and the KL between successive posteriors, (n_seq, T), which is computed when asked for
    :param distribution: the action distributions, batch of B
    """

    values: th.Tensor
    log_prob: th.Tensor
    entropy: th.Tensor | None
    posterior: Replay
    distribution: Distribution


class SequenceRolloutBufferSamples(NamedTuple):
    """A minibatch of n_seq whole sequences of T steps, B = n_seq * T, sequence by sequence.

    :param observations: shape (B, ...), or a dict of these
    :param actions: as the policy returned them, shape (B, ...)
    :param old_values: shape (B,)
    :param old_log_prob: shape (B,)
    :param advantages: shape (B,)
    :param returns: shape (B,)
    :param lstm_states: recurrent states before each sequence, as far as
        :meth:`~sb3_laplace.LaplaceLstmPolicy.sequence_states` keeps them
    :param episode_starts: 1 where an episode starts, shape (B,)
    :param mask: False at the padding of sequences shorter than T, shape (B,); None if there is none
    :param noise: noise of the latents, shape (K, n_seq, T, D); None if K = 0
    :param columns: what the terms of the loss had stored of every step, by name, shape (B, ...) or a dict of these
    :param memory: what the posterior had stored of every step for its KL, by name; of each name a list of n_seq
        tensors (T or T - 1, ...), without padding. They are views of the buffer: gathering precision matrices would
        cost more than using them.
    """

    observations: TensorOrDict
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    lstm_states: RecurrentStates
    episode_starts: th.Tensor
    mask: th.Tensor | None
    noise: th.Tensor | None
    columns: Mapping[str, TensorOrDict]
    memory: Mapping[str, Sequence[th.Tensor]]
