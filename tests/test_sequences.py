"""Sequences with resets inside, against one step after another."""

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sb3_laplace.cores import sequences


def step_by_step(rnn: nn.RNNBase, inputs: th.Tensor, state: tuple, starts: th.Tensor) -> th.Tensor:
    output = []
    for t in range(inputs.shape[1]):
        keep = (1.0 - starts[:, t]).view(1, -1, 1)
        state = tuple(part * keep for part in state)
        hidden, state = rnn(inputs[:, t].unsqueeze(0), state if len(state) == 2 else state[0])
        state = state if isinstance(state, tuple) else (state,)
        output.append(hidden[0])
    return th.stack(output, dim=1)


@pytest.mark.parametrize("cell", sequences.RNN_TYPES)
@given(
    n_seq=st.integers(1, 5),
    length=st.integers(1, 12),
    layers=st.integers(1, 2),
    rate=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    common=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_sequences_equal_step_by_step(
    cell: str, n_seq: int, length: int, layers: int, rate: float, common: bool, seed: int
) -> None:
    th.manual_seed(seed)
    rnn = sequences.RNN_TYPES[cell](3, 4, num_layers=layers).double()
    inputs = th.randn(n_seq, length, 3, dtype=th.float64, requires_grad=True)
    state = tuple(th.randn(layers, n_seq, 4, dtype=th.float64) for _ in range(sequences.n_states(rnn)))
    starts = (th.rand(1 if common else n_seq, length) < rate).double().expand(n_seq, length)
    oracle = step_by_step(rnn, inputs, state, starts)
    weights = [inputs, *rnn.parameters()]
    oracle_gradients = th.autograd.grad(oracle.sin().sum(), weights)
    output = sequences.run_sequences(rnn, inputs, state, starts)
    th.testing.assert_close(output, oracle)
    for gradient, expected in zip(th.autograd.grad(output.sin().sum(), weights), oracle_gradients, strict=True):
        th.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("cell", sequences.RNN_TYPES)
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_one_step_equals_the_module(cell: str, layers: int, bias: bool) -> None:
    rnn = sequences.RNN_TYPES[cell](3, 4, num_layers=layers, bias=bias)
    inputs, state = th.randn(5, 3), tuple(th.randn(layers, 5, 4) for _ in range(sequences.n_states(rnn)))
    _, expected = rnn(inputs.unsqueeze(0), state if len(state) == 2 else state[0])
    expected = expected if isinstance(expected, tuple) else (expected,)
    for part, oracle in zip(sequences.step(rnn, inputs, state), expected, strict=True):
        th.testing.assert_close(part, oracle)


@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=60))
def test_groups_hold_every_fragment_once(lengths: list[int]) -> None:
    groups = list(sequences._groups_of_similar_length(np.array(lengths)))
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    for group in groups:
        assert np.array(lengths)[group].max() == np.array(lengths)[group][0]
