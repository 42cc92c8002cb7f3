"""Jacobians of every form against forward-mode autodiff (invariant 4)."""

from collections.abc import Callable

import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sb3_laplace.cores import (
    CORES,
    Core,
    CoreState,
    DenseJacobian,
    DiagonalJacobian,
    GateSumJacobian,
    JacobianOperator,
    TorchCell,
    jacobians,
)

TORCH_CELLS = [name for name, core in CORES.items() if issubclass(core, TorchCell)]


def autodiff_jacobian(core: TorchCell, inputs: th.Tensor, state: CoreState) -> th.Tensor:
    """dh'/dh of the top layer by torch's own cells, shape (N, H, H)."""
    weights = list(core.all_weights[-1]) + ([] if core.bias else [None, None])

    def step(h: th.Tensor, e: th.Tensor, *c: th.Tensor) -> th.Tensor:
        if isinstance(core, nn.LSTM):
            return th.lstm_cell(e[None], (h[None], c[0][None]), *weights)[0][0]
        cell = th.gru_cell if isinstance(core, nn.GRU) else th.rnn_tanh_cell
        return cell(e[None], h[None], *weights)[0]

    arguments = zip(state[0][-1], inputs, *(part[-1] for part in state[1:]), strict=True)
    return th.stack([th.func.jacfwd(step)(*one) for one in arguments])


def formed(jacobian: JacobianOperator, projection: th.Tensor | None = None) -> th.Tensor:
    """W S, or S, of all inputs."""
    return th.cat([block.clone() for _, block in jacobian.blocks(projection)])


def random_case(
    name: str, n: int, n_inputs: int, n_hidden: int, layers: int, bias: bool, seed: int, dtype: th.dtype
) -> tuple[TorchCell, th.Tensor, CoreState]:
    """A core with random weights, inputs of its top layer, and a state."""
    th.manual_seed(seed)
    core = CORES[name](n_inputs, n_hidden, num_layers=layers, bias=bias).to(dtype)
    assert isinstance(core, TorchCell)
    for parameter in core.parameters():
        nn.init.normal_(parameter, std=0.7)
    inputs = th.randn(n, n_inputs if layers == 1 else n_hidden, dtype=dtype)
    hidden = th.rand(layers, n, n_hidden, dtype=dtype) * 2 - 1
    return core, inputs, (hidden, *(th.randn_like(hidden) for _ in core.state_shapes[1:]))


@pytest.mark.parametrize(("dtype", "tolerance"), [(th.float32, 1e-5), (th.float64, 1e-12)])
@pytest.mark.parametrize("name", TORCH_CELLS)
@given(
    n=st.integers(1, 4),
    n_inputs=st.integers(1, 5),
    n_hidden=st.integers(1, 6),
    layers=st.integers(1, 2),
    bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_closed_form_is_autodiffs(
    name: str,
    dtype: th.dtype,
    tolerance: float,
    n: int,
    n_inputs: int,
    n_hidden: int,
    layers: int,
    bias: bool,
    seed: int,
) -> None:
    core, inputs, state = random_case(name, n, n_inputs, n_hidden, layers, bias, seed, dtype)
    oracle = autodiff_jacobian(core, inputs, state)
    th.testing.assert_close(formed(core.jacobian(inputs, state)), oracle, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", TORCH_CELLS)
def test_closed_form_of_past_inputs_at_one_state(name: str, layers: int) -> None:
    """What a window asks for: L inputs for each of N environments, all at its present state."""
    core, inputs, state = random_case(name, 5, 3, 4, layers, True, 0, th.float64)
    past = th.randn(5, 2, inputs.shape[1], dtype=th.float64)
    found = matrix_of(core.jacobian(past, state))
    assert found.shape == (5, 2, 4, 4)
    for i in range(2):
        th.testing.assert_close(found[:, i], autodiff_jacobian(core, past[:, i], state))


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("name", TORCH_CELLS)
def test_inputs_of_the_jacobian_are_those_of_the_top_layer(name: str, layers: int) -> None:
    core, _, state = random_case(name, 5, 3, 4, layers, True, 0, th.float64)
    features = th.randn(5, 3, dtype=th.float64)
    updated = core.step(features, state)
    inputs = core.jacobian_inputs(features, updated)
    assert inputs.shape == (5, core.jacobian_input_size(3, 4, layers))
    # From them the top layer's cell makes its new state
    top = core.cell(inputs, tuple(part[-1] for part in state), core.weights_of_layer(-1))
    for part, expected in zip(top, updated, strict=True):
        th.testing.assert_close(part, expected[-1])


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", TORCH_CELLS)
def test_any_core_has_a_jacobian_by_autodiff(name: str, inference: bool) -> None:
    """What a core without a closed form gets, of those that have one: in one step, and of past inputs at one state."""
    core, inputs, state = random_case(name, 5, 3, 4, 1, True, 0, th.float64)
    past = th.randn(5, 3, 3, dtype=th.float64)
    with th.inference_mode(inference):
        given = tuple(part + 0.0 for part in state)
        found, found_past = Core.jacobian(core, inputs, given), Core.jacobian(core, past, given)
    assert isinstance(found, DenseJacobian)
    th.testing.assert_close(found.matrix, autodiff_jacobian(core, inputs, state))
    for i in range(3):
        th.testing.assert_close(found_past.matrix[:, i], autodiff_jacobian(core, past[:, i], state))


# -- operators ----------------------------------------------------------------------------------------------


def gate_sum(*batch: int) -> GateSumJacobian:
    return GateSumJacobian(th.randn(3, *batch, 4, dtype=th.float64), th.randn(3, 4, 4, dtype=th.float64))


def diagonal(*batch: int) -> DiagonalJacobian:
    return DiagonalJacobian(th.randn(*batch, 4, dtype=th.float64))


def dense(*batch: int) -> DenseJacobian:
    return DenseJacobian(th.randn(*batch, 4, 4, dtype=th.float64))


FORMS: dict[str, Callable[..., JacobianOperator]] = {"gate sum": gate_sum, "diagonal": diagonal, "dense": dense}


def matrix_of(operator: JacobianOperator) -> th.Tensor:
    """S by its definition, shape (..., H, H)."""
    if isinstance(operator, GateSumJacobian):
        return th.einsum("g...i,gij->...ij", operator.coefficients, operator.weights)
    return operator.diagonal.diag_embed() if isinstance(operator, DiagonalJacobian) else operator.matrix


@pytest.mark.parametrize("form", FORMS)
def test_what_an_operator_is_asked(form: str) -> None:
    operator, projection = FORMS[form](5), th.randn(2, 4, dtype=th.float64)
    matrix = matrix_of(operator)
    projected = projection @ matrix
    th.testing.assert_close(formed(operator), matrix)
    th.testing.assert_close(formed(operator, projection), projected)
    th.testing.assert_close(operator.row_norms_squared(), matrix.square().sum(-1))
    th.testing.assert_close(operator.projected_row_norms_squared(projection), projected.square().sum(-1))
    norms = operator.projected_norm_squared(operator.projected_gram(projection))
    th.testing.assert_close(norms, projected.square().sum((-2, -1)))
    small = operator.scale(th.full((5,), 1e-2, dtype=th.float64))
    th.testing.assert_close(small.projected_norm_squared(small.projected_gram(projection)), 1e-4 * norms)
    factor = th.rand(5, dtype=th.float64)
    th.testing.assert_close(matrix_of(operator.scale(factor)), matrix * factor.view(5, 1, 1))


@pytest.mark.parametrize("form", FORMS)
def test_sums_over_past_inputs(form: str) -> None:
    operator, weight = FORMS[form](3, 6), th.rand(3, 6, dtype=th.float64)
    matrix = matrix_of(operator) * weight[..., None, None]
    scaled = operator.scale(weight)
    th.testing.assert_close(scaled.summed_outer_product(), (matrix @ matrix.mT).sum(1))
    th.testing.assert_close(scaled.row_norms_squared(), matrix.square().sum(-1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", [1, 8, 17, 40])
# Numbers in a block: for 8 inputs, the fewest, and for 17.5
@pytest.mark.parametrize("block_size", [1, 280])
def test_blocks_cover_every_input_once(form: str, n: int, block_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jacobians, "_BLOCK_SIZE", block_size)
    operator, projection = FORMS[form](n), th.randn(2, 4, dtype=th.float64)
    matrix = matrix_of(operator).clone()
    covered = [index for block, _ in operator.blocks(None) for index in range(n)[block]]
    assert covered == list(range(n))
    th.testing.assert_close(formed(operator, projection), projection @ matrix)
    # The caller may write over a block
    for _, block in operator.blocks(None):
        block.zero_()
    th.testing.assert_close(formed(operator), matrix)


@pytest.mark.parametrize("form", FORMS)
def test_blocks_in_another_type(form: str) -> None:
    operator, projection = FORMS[form](5), th.randn(2, 4, dtype=th.float64)
    for one in (None, projection):
        found = th.cat([block.clone() for _, block in operator.blocks(one, th.bfloat16)])
        assert found.dtype == th.bfloat16
        th.testing.assert_close(found.double(), formed(operator, one), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", TORCH_CELLS)
def test_no_gradient_flows_through_a_jacobian(name: str) -> None:
    core, inputs, state = random_case(name, 2, 3, 4, 1, True, 0, th.float32)
    state[0].requires_grad_()
    for jacobian in (core.jacobian(inputs, state), Core.jacobian(core, inputs, state)):
        projection = nn.Parameter(th.rand(2, 4))
        assert not formed(jacobian).requires_grad
        assert not formed(jacobian, projection).requires_grad
        assert not jacobian.row_norms_squared().requires_grad
