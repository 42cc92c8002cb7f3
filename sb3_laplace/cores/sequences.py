"""Running a recurrent module: one step of many environments, or whole sequences with resets inside."""

from collections.abc import Iterator

import numpy as np
import torch as th
from torch import nn

from sb3_laplace.cores.jacobians import CellWeights

# Serial steps cost about as much as this many extra sequences side by side (2 cores, H = 64 to 128):
# decides how many groups the episode fragments of a minibatch are padded in.
_STEP_OVERHEAD = 16.0


#: What ``rnn_type`` names
RNN_TYPES: dict[str, type[nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def n_states(rnn: nn.RNNBase) -> int:
    """Number of tensors in the module's state: 2 (hidden, cell) for an LSTM, else 1 (hidden)."""
    return 2 if isinstance(rnn, nn.LSTM) else 1


def step(rnn: nn.RNNBase, inputs: th.Tensor, state: tuple[th.Tensor, ...]) -> tuple[th.Tensor, ...]:
    """One time step of all layers.

    The fused cell is used because a call of the module itself on sequences of length one mostly pays for
    its set-up. There is no dropout here: this is the rollout.

    :param rnn: the recurrent module
    :param inputs: features, shape (N, F)
    :param state: hidden states, and cell states of an LSTM, each of shape (layers, N, H)
    :return: the updated state, each of shape (layers, N, H)
    """
    layers: list[tuple[th.Tensor, ...]] = []
    for layer in range(rnn.num_layers):
        weights = CellWeights.of_layer(rnn, layer)
        updated: tuple[th.Tensor, ...]
        if isinstance(rnn, nn.LSTM):
            updated = th.lstm_cell(inputs, (state[0][layer], state[1][layer]), *weights)
        else:
            cell = th.gru_cell if isinstance(rnn, nn.GRU) else th.rnn_tanh_cell
            updated = (cell(inputs, state[0][layer], *weights),)
        layers.append(updated)
        inputs = updated[0]
    if len(layers) == 1:
        return tuple(part.unsqueeze(0) for part in updated)
    return tuple(th.stack(parts) for parts in zip(*layers, strict=True))


def _run(rnn: nn.RNNBase, inputs: th.Tensor, state: tuple[th.Tensor, ...]) -> th.Tensor:
    """Hidden states of the top layer over a sequence (T, n_seq, F), by the module itself."""
    return rnn(inputs, state if isinstance(rnn, nn.LSTM) else state[0])[0]


def run_sequences(
    rnn: nn.RNNBase,
    inputs: th.Tensor,
    state: tuple[th.Tensor, ...],
    episode_starts: th.Tensor,
) -> th.Tensor:
    """Run whole sequences, the state set back to zero wherever an episode starts.

    There is no Python loop over time. Sequences with an episode start inside are cut there into
    fragments; the fragments are sorted by length and run side by side, padded in a few groups of similar
    length, which is exact because nothing passes an episode start and the padding comes last.

    :param rnn: the recurrent module
    :param inputs: features, shape (n_seq, T, F)
    :param state: state before the first step, each of shape (layers, n_seq, H)
    :param episode_starts: 1 where an episode starts, shape (n_seq, T)
    :return: hidden states of the top layer, shape (n_seq, T, H)
    """
    n_seq, length = episode_starts.shape
    starts = episode_starts.detach().cpu().numpy() != 0
    if starts[:, 0].any():
        keep = (1.0 - episode_starts[:, 0]).view(1, n_seq, 1)
        state = tuple(part * keep for part in state)
    if not starts[:, 1:].any():
        # Contiguous, as the policy reads it flat, and the latent's linear layer is slower on a transposed view
        return _run(rnn, inputs.transpose(0, 1).contiguous(), state).transpose(0, 1).contiguous()

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
        inherits = th.as_tensor(begin[group] % length == 0, device=inputs.device).view(1, -1, 1)
        initial = tuple((part[:, sequences] * inherits).contiguous() for part in state)
        hidden = _run(rnn, padded, initial).reshape(positions.size, -1)
        output.append(hidden[th.as_tensor(np.flatnonzero(inside), device=inputs.device)])
        order.append(positions[inside])
    back = th.as_tensor(np.argsort(np.concatenate(order)), device=inputs.device)
    return th.cat(output)[back].view(n_seq, length, -1)


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
