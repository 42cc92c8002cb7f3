"""Closed-form Jacobians against forward-mode autodiff (invariant 4)."""

import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sb3_laplace.jacobians import hidden_jacobian


def autodiff_jacobian(rnn: nn.LSTM, inputs: th.Tensor, hidden: th.Tensor, cell: th.Tensor) -> th.Tensor:
    """dh'/dh of the top layer, shape (N, H, H)."""
    weights = list(rnn.all_weights[-1]) + ([] if rnn.bias else [None, None])

    def step(h: th.Tensor, e: th.Tensor, c: th.Tensor) -> th.Tensor:
        return th.lstm_cell(e.unsqueeze(0), (h.unsqueeze(0), c.unsqueeze(0)), *weights)[0].squeeze(0)

    return th.stack([th.func.jacfwd(step)(hidden[n], inputs[n], cell[n]) for n in range(len(inputs))])


def random_case(n: int, n_inputs: int, n_hidden: int, layers: int, bias: bool, seed: int, dtype: th.dtype) -> tuple:
    th.manual_seed(seed)
    rnn = nn.LSTM(n_inputs, n_hidden, num_layers=layers, bias=bias).to(dtype)
    for parameter in rnn.parameters():
        nn.init.normal_(parameter, std=0.7)
    top_inputs = n_inputs if layers == 1 else n_hidden
    return (
        rnn,
        th.randn(n, top_inputs, dtype=dtype),
        th.rand(n, n_hidden, dtype=dtype) * 2 - 1,
        th.randn(n, n_hidden, dtype=dtype),
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(th.float32, 1e-5), (th.float64, 1e-12)])
@given(
    n=st.integers(1, 4),
    n_inputs=st.integers(1, 5),
    n_hidden=st.integers(1, 6),
    layers=st.integers(1, 2),
    bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_lstm_jacobian_is_autodiffs(
    dtype: th.dtype, tolerance: float, n: int, n_inputs: int, n_hidden: int, layers: int, bias: bool, seed: int
) -> None:
    rnn, inputs, hidden, cell = random_case(n, n_inputs, n_hidden, layers, bias, seed, dtype)
    oracle = autodiff_jacobian(rnn, inputs, hidden, cell)
    jacobian = hidden_jacobian(rnn, inputs, (hidden, cell))
    projection = th.randn(3, n_hidden, dtype=dtype)
    th.testing.assert_close(jacobian.dense(), oracle, rtol=tolerance, atol=tolerance)
    th.testing.assert_close(jacobian.project(projection), projection @ oracle, rtol=tolerance, atol=5 * tolerance)
    squares = oracle.square().sum(-1)
    th.testing.assert_close(jacobian.row_norms_squared(), squares, rtol=tolerance, atol=5 * tolerance)


def test_no_gradient_flows_through_a_jacobian() -> None:
    rnn, inputs, hidden, cell = random_case(2, 3, 4, 1, True, 0, th.float32)
    hidden.requires_grad_()
    jacobian = hidden_jacobian(rnn, inputs, (hidden, cell))
    assert not jacobian.dense().requires_grad
    assert not jacobian.row_norms_squared().requires_grad
