"""The GRU over sequences on a CPU against torch's own module: outputs, gradients of every argument, resets, layers."""

import copy
from typing import Any

import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sb3_laplace.cores import GRU, blocks
from sb3_laplace.cores.gru_layer import unroll_gru_layer


@pytest.fixture(params=[1, 2**17], ids=["one step a block", "long blocks"])
def block_size(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_BLOCK_SIZE", request.param)


def make(n_inputs: int, n_hidden: int, dtype: th.dtype = th.float64, **kwargs: Any) -> GRU:
    core = GRU(n_inputs, n_hidden, **kwargs).to(dtype)
    for parameter in core.parameters():
        nn.init.normal_(parameter, std=0.5)
    return core


def output_and_gradients(core: GRU, ours: bool, inputs: th.Tensor, hidden: th.Tensor) -> list[th.Tensor]:
    arguments = [inputs.clone().requires_grad_(), hidden.clone().requires_grad_()]
    output = core.unroll(arguments[0], (arguments[1],)) if ours else core(*arguments)[0]
    return [output, *th.autograd.grad(output.sin().sum(), [*arguments, *core.parameters()])]


@pytest.mark.parametrize(("dtype", "tolerance"), [(th.float32, 1e-5), (th.float64, 1e-10)])
@given(
    length=st.integers(1, 20),
    n=st.integers(1, 5),
    n_inputs=st.integers(1, 5),
    n_hidden=st.integers(1, 9),
    layers=st.integers(1, 3),
    bias=st.booleans(),
    block_size=st.sampled_from([1, 100, 2**17]),
    seed=st.integers(0, 2**31),
)
def test_it_is_torchs(
    dtype: th.dtype,
    tolerance: float,
    length: int,
    n: int,
    n_inputs: int,
    n_hidden: int,
    layers: int,
    bias: bool,
    block_size: int,
    seed: int,
) -> None:
    th.manual_seed(seed)
    core = make(n_inputs, n_hidden, dtype, num_layers=layers, bias=bias)
    inputs, hidden = th.randn(length, n, n_inputs, dtype=dtype), th.randn(layers, n, n_hidden, dtype=dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_BLOCK_SIZE", block_size)
        found = output_and_gradients(core, True, inputs, hidden)
    for mine, oracle in zip(found, output_and_gradients(core, False, inputs, hidden), strict=True):
        # Of gradients, sums over all steps, relative to the largest
        assert (mine - oracle).detach().abs().max() <= tolerance * oracle.detach().abs().max().clamp(min=1.0)


@pytest.mark.usefixtures("block_size")
def test_numerical_gradients() -> None:
    th.manual_seed(0)
    core = make(2, 3)
    inputs, hidden = th.randn(4, 2, 2, dtype=th.float64), th.randn(2, 3, dtype=th.float64)
    arguments = [part.detach().requires_grad_() for part in (inputs, hidden, *core.parameters())]
    assert th.autograd.gradcheck(lambda x, h, *w: unroll_gru_layer(x, h, type(core.weights_of_layer(0))(*w)), arguments)


def test_only_what_needs_a_gradient_has_one() -> None:
    core = make(2, 3)
    core.weight_ih_l0.requires_grad_(False)
    inputs = th.randn(4, 2, 2, dtype=th.float64)
    core.unroll(inputs, core.initial_state(2)).sum().backward()
    assert inputs.grad is core.weight_ih_l0.grad is None
    assert core.weight_hh_l0.grad is not None
    with th.no_grad():
        assert not core.unroll(inputs, core.initial_state(2)).requires_grad


def test_dropout_between_layers_is_torchs() -> None:
    core = make(2, 5, num_layers=3, dropout=0.5)
    inputs, hidden = th.randn(7, 4, 2, dtype=th.float64), th.randn(3, 4, 5, dtype=th.float64)
    found = []
    for ours in (True, False):
        th.manual_seed(1)
        found.append(output_and_gradients(core, ours, inputs, hidden))
    for mine, oracle in zip(*found, strict=True):
        th.testing.assert_close(mine, oracle)
    core.eval()
    th.testing.assert_close(core.unroll(inputs, (hidden,)), core(inputs, hidden)[0])


def test_a_parametrized_weight() -> None:
    core = make(2, 3)
    nn.utils.parametrizations.weight_norm(core, "weight_hh_l0")
    inputs, hidden = th.randn(5, 2, 2, dtype=th.float64), th.randn(1, 2, 3, dtype=th.float64)
    for mine, oracle in zip(*(output_and_gradients(core, ours, inputs, hidden) for ours in (True, False)), strict=True):
        th.testing.assert_close(mine, oracle)


def test_buffers_are_shared_by_nothing_that_is_kept() -> None:
    """Calls of the same shape, one within another's forward and backward, and first of all in inference mode."""
    core = make(2, 13)
    inputs = [th.randn(6, 7, 2, dtype=th.float64) for _ in range(2)]
    with th.inference_mode():
        core.unroll(inputs[0], core.initial_state(7))
    outputs = [core.unroll(one, core.initial_state(7)) for one in inputs]
    (outputs[0].sin().sum() + outputs[1].sin().sum()).backward()
    oracle = copy.deepcopy(core)
    oracle.zero_grad()
    sum(oracle(one)[0].sin().sum() for one in inputs).backward()
    for parameter, expected in zip(core.parameters(), oracle.parameters(), strict=True):
        th.testing.assert_close(parameter.grad, expected.grad)


def test_a_second_derivative_is_refused() -> None:
    core = make(2, 3)
    inputs = th.randn(4, 2, 2, dtype=th.float64, requires_grad=True)
    output = core.unroll(inputs, core.initial_state(2))
    (gradient,) = th.autograd.grad(output.sin().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_autocast_is_torchs() -> None:
    core = make(2, 3, th.float32)
    inputs = th.randn(4, 2, 2)
    with th.autocast("cpu", th.bfloat16):
        th.testing.assert_close(core.unroll(inputs, core.initial_state(2)), core(inputs)[0])
