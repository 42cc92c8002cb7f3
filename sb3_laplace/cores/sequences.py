"""Whole sequences with episode starts inside, without a loop over time."""

from collections.abc import Callable, Iterator

import numpy as np
import torch as th

# Serial steps cost about as much as this many extra sequences side by side (2 cores, H = 64 to 128):
# decides how many groups the episode fragments of a minibatch are padded in.
_STEP_OVERHEAD = 16.0


def run_sequences(
    unroll: Callable[[th.Tensor, tuple[th.Tensor, ...]], th.Tensor],
    inputs: th.Tensor,
    state: tuple[th.Tensor, ...],
    episode_starts: th.Tensor,
) -> th.Tensor:
    """Hidden states over whole sequences, the state set back to zero wherever an episode starts.

    There is no Python loop over time. Sequences with an episode start inside are cut there into
    fragments; the fragments are sorted by length and run side by side, padded in a few groups of similar
    length, which is exact because nothing passes an episode start and the padding comes last.

    :param unroll: hidden states (T, n_seq, H) of inputs (T, n_seq, F) and a state, for sequences without resets
    :param inputs: features, shape (n_seq, T, F)
    :param state: state before the first step, each of shape (layers, n_seq, ...)
    :param episode_starts: 1 where an episode starts, shape (n_seq, T)
    :return: hidden states of the top layer, shape (n_seq, T, H)
    """
    n_seq, length = episode_starts.shape
    starts = episode_starts.detach().cpu().numpy() != 0
    if starts[:, 0].any():
        at_start = episode_starts[:, 0] != 0
        state = tuple(part.masked_fill(_along_batch(at_start, part), 0.0) for part in state)
    if not starts[:, 1:].any():
        # Contiguous, as the policy reads it flat, and the latent's linear layer is slower on a transposed view
        return unroll(inputs.transpose(0, 1).contiguous(), state).transpose(0, 1).contiguous()

    starts[:, 0] = True
    # Flat positions of each fragment: sequence * T + step, fragments in order
    begin = np.flatnonzero(starts)
    lengths = np.diff(np.append(begin, n_seq * length))
    flat_inputs = inputs.reshape(n_seq * length, -1)
    output = []
    order = []
    for group in _groups_of_similar_length(lengths):
        longest = int(lengths[group].max())
        steps = np.arange(longest)[:, None]
        inside = steps < lengths[group]
        # Padding repeats the last step of the fragment: any finite input would do
        positions = begin[group] + np.minimum(steps, lengths[group] - 1)
        padded = flat_inputs[th.as_tensor(positions, device=inputs.device)]
        sequences = th.as_tensor(begin[group] // length, device=inputs.device)
        # Only fragments at a sequence's own start inherit a state
        is_later = th.as_tensor(begin[group] % length != 0, device=inputs.device)
        initial = tuple(part[:, sequences].masked_fill(_along_batch(is_later, part), 0.0) for part in state)
        hidden = unroll(padded, initial).reshape(positions.size, -1)
        output.append(hidden[th.as_tensor(np.flatnonzero(inside), device=inputs.device)])
        order.append(positions[inside])
    back = th.as_tensor(np.argsort(np.concatenate(order)), device=inputs.device)
    return th.cat(output)[back].view(n_seq, length, -1)


def _along_batch(flags: th.Tensor, part: th.Tensor) -> th.Tensor:
    """Flags of n sequences, in a shape that broadcasts over a state's tensor (layers, n, ...)."""
    return flags.view(1, -1, *[1] * (part.dim() - 2))


def _groups_of_similar_length(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Split fragments into groups so that running each group padded to its longest is cheap in all.

    :param lengths: lengths of the fragments, shape (n,)
    :return: indices of the fragments of each group, longest group first
    """
    pending = [np.argsort(-lengths, kind="stable")]
    while pending:
        group = pending.pop()
        sizes = lengths[group]
        # Cost of cutting before each fragment, against not cutting at all (k = 0)
        k = np.arange(len(group))
        cost = sizes[0] * (k + _STEP_OVERHEAD) + sizes * (len(group) - k + _STEP_OVERHEAD)
        cost[0] = sizes[0] * (len(group) + _STEP_OVERHEAD)
        best = int(cost.argmin())
        if cost[best] < 0.9 * cost[0]:
            pending += [group[best:], group[:best]]
        else:
            yield group
