"""Closed-form Jacobians against forward-mode autodiff (invariant 4)."""

import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sb3_laplace.cores import jacobians
from sb3_laplace.cores.jacobians import HiddenJacobian, hidden_jacobian

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def autodiff_jacobian(rnn: nn.RNNBase, inputs: th.Tensor, state: tuple[th.Tensor, ...]) -> th.Tensor:
    """dh'/dh of the top layer, shape (N, H, H)."""
    weights = list(rnn.all_weights[-1]) + ([] if rnn.bias else [None, None])

    def step(h: th.Tensor, e: th.Tensor, *c: th.Tensor) -> th.Tensor:
        if isinstance(rnn, nn.LSTM):
            return th.lstm_cell(e[None], (h[None], c[0][None]), *weights)[0][0]
        cell = th.gru_cell if isinstance(rnn, nn.GRU) else th.rnn_tanh_cell
        return cell(e[None], h[None], *weights)[0]

    arguments = zip(state[0], inputs, *state[1:], strict=True)
    return th.stack([th.func.jacfwd(step)(*one) for one in arguments])


def formed(jacobian: HiddenJacobian, projection: th.Tensor | None = None) -> th.Tensor:
    """W S, or S, of all inputs."""
    return th.cat([block.clone() for _, block in jacobian.blocks(projection)])


def random_case(
    cell: str, n: int, n_inputs: int, n_hidden: int, layers: int, bias: bool, seed: int, dtype: th.dtype
) -> tuple[nn.RNNBase, th.Tensor, tuple[th.Tensor, ...]]:
    th.manual_seed(seed)
    rnn = CELLS[cell](n_inputs, n_hidden, num_layers=layers, bias=bias).to(dtype)
    for parameter in rnn.parameters():
        nn.init.normal_(parameter, std=0.7)
    inputs = th.randn(n, n_inputs if layers == 1 else n_hidden, dtype=dtype)
    state = (th.rand(n, n_hidden, dtype=dtype) * 2 - 1, th.randn(n, n_hidden, dtype=dtype))
    return rnn, inputs, state if cell == "lstm" else state[:1]


@pytest.mark.parametrize(("dtype", "tolerance"), [(th.float32, 1e-5), (th.float64, 1e-12)])
@pytest.mark.parametrize("cell", CELLS)
@given(
    n=st.integers(1, 4),
    n_inputs=st.integers(1, 5),
    n_hidden=st.integers(1, 6),
    layers=st.integers(1, 2),
    bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_jacobian_is_autodiffs(
    cell: str,
    dtype: th.dtype,
    tolerance: float,
    n: int,
    n_inputs: int,
    n_hidden: int,
    layers: int,
    bias: bool,
    seed: int,
) -> None:
    rnn, inputs, state = random_case(cell, n, n_inputs, n_hidden, layers, bias, seed, dtype)
    oracle = autodiff_jacobian(rnn, inputs, state)
    jacobian = hidden_jacobian(rnn, inputs, state)
    projection = th.randn(3, n_hidden, dtype=dtype)
    th.testing.assert_close(formed(jacobian), oracle, rtol=tolerance, atol=tolerance)
    th.testing.assert_close(formed(jacobian, projection), projection @ oracle, rtol=tolerance, atol=5 * tolerance)
    squares = oracle.square().sum(-1)
    th.testing.assert_close(jacobian.row_norms_squared(), squares, rtol=tolerance, atol=5 * tolerance)


@pytest.mark.parametrize("n", [1, 8, 17, 40])
def test_blocks_cover_every_input_once(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jacobians, "_BLOCK_SIZE", 1)
    rnn, inputs, state = random_case("lstm", n, 3, 4, 1, True, 0, th.float64)
    jacobian, projection = hidden_jacobian(rnn, inputs, state), th.randn(2, 4, dtype=th.float64)
    covered = [index for block, _ in jacobian.blocks(None) for index in range(n)[block]]
    assert covered == list(range(n))
    oracle = autodiff_jacobian(rnn, inputs, state)
    th.testing.assert_close(formed(jacobian), oracle)
    th.testing.assert_close(formed(jacobian, projection), projection @ oracle)


@pytest.mark.parametrize("cell", CELLS)
@given(n=st.integers(1, 3), length=st.integers(1, 5), n_hidden=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_windows_of_inputs_at_one_state(cell: str, n: int, length: int, n_hidden: int, seed: int) -> None:
    rnn, _, state = random_case(cell, n, 3, n_hidden, 1, True, seed, th.float64)
    past, weight = th.randn(n, length, 3, dtype=th.float64), th.rand(n, length, dtype=th.float64)
    oracle = th.stack([autodiff_jacobian(rnn, past[:, i], state) for i in range(length)], 1)
    oracle = oracle * weight[..., None, None]
    jacobian = hidden_jacobian(rnn, past, tuple(part.unsqueeze(1) for part in state)).scale(weight)
    th.testing.assert_close(jacobian.summed_outer_product(), (oracle @ oracle.mT).sum(1))
    th.testing.assert_close(jacobian.row_norms_squared(), oracle.square().sum(-1))


def test_no_gradient_flows_through_a_jacobian() -> None:
    rnn, inputs, state = random_case("lstm", 2, 3, 4, 1, True, 0, th.float32)
    state[0].requires_grad_()
    jacobian = hidden_jacobian(rnn, inputs, state)
    assert not formed(jacobian).requires_grad
    assert not formed(jacobian, nn.Parameter(th.rand(2, 4))).requires_grad
    assert not jacobian.row_norms_squared().requires_grad
