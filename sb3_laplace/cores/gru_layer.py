"""A GRU layer over whole sequences on a CPU, where torch has fused kernels for the LSTM alone.

Both passes go through the sequence in blocks of steps, see :mod:`sb3_laplace.cores.blocks`. A step itself is five
operations forward and three backward.
"""

from typing import Any, NamedTuple

import torch as th
from torch.autograd.function import once_differentiable

from sb3_laplace.cores.blocks import Steps, block_length, per_step, used_again
from sb3_laplace.cores.torch_cell import CellWeights


def unroll_gru_layer(inputs: th.Tensor, hidden: th.Tensor, weights: CellWeights) -> th.Tensor:
    """Hidden states of one layer of ``torch.nn.GRU`` over sequences; :class:`~sb3_laplace.cores.GRU` has the equations.

    It can be differentiated once: a second derivative raises a RuntimeError.

    :param inputs: shape (T, N, F)
    :param hidden: state before the first step, shape (N, H)
    :param weights: the layer's parameters
    :return: shape (T, N, H)
    """
    return _GRULayer.apply(inputs, hidden, *weights)


class _ForwardBlock(NamedTuple):
    """Buffers of B steps.

    :param gates: r, z and q side by side, shape (B, N, 3 H)
    :param candidates: ``V_n e + b_n``, which becomes n, shape (B, N, H)
    :param states: the state before the block, then that after each step, shape (B + 1, N, H)
    :param steps: of each step its sums (N, 3 H), rz, r, z, q, n, and the state before and after it
    """

    gates: th.Tensor
    candidates: th.Tensor
    states: th.Tensor
    steps: Steps


class _BackwardBlock(NamedTuple):
    """Buffers of B steps.

    :param d_sums: ``a_r``, ``a_z`` and ``a_n``, which times the gradient of the state after the step become the
        gradients of the sums r, z and q, shape (B, N, 3, H)
    :param k: ``(1 - z) (1 - n^2)``, shape (B, N, H)
    :param z: shape (B, N, H)
    :param d_states: gradients of the state before the block, and after each step, shape (B + 1, N, H)
    :param steps: of each step its d_sums, also as (N, 3 H), the gradient of the state after it, also as (N, 1, H), that
        of the state before it, and z
    """

    d_sums: th.Tensor
    k: th.Tensor
    z: th.Tensor
    d_states: th.Tensor
    steps: Steps


@used_again
def _forward_block(size: int, n: int, n_hidden: int, dtype: th.dtype) -> _ForwardBlock:
    gates, states = th.empty(size, n, 3 * n_hidden, dtype=dtype), th.empty(size + 1, n, n_hidden, dtype=dtype)
    candidates = th.empty(size, n, n_hidden, dtype=dtype)
    rz, q = gates[..., : 2 * n_hidden], gates[..., 2 * n_hidden :]
    r, z = rz.chunk(2, dim=-1)
    steps = per_step(gates, rz, r, z, q, candidates, states[:-1], states[1:])
    return _ForwardBlock(gates, candidates, states, steps)


@used_again
def _backward_block(size: int, n: int, n_hidden: int, dtype: th.dtype) -> _BackwardBlock:
    d_sums = th.empty(size, n, 3, n_hidden, dtype=dtype)
    k, z = th.empty(2, size, n, n_hidden, dtype=dtype)
    d_states = th.empty(size + 1, n, n_hidden, dtype=dtype)
    after = d_states[1:]
    steps = per_step(d_sums, d_sums.flatten(2), after, after.unsqueeze(2), d_states[:-1], z)
    return _BackwardBlock(d_sums, k, z, d_states, steps)


class _GRULayer(th.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: th.Tensor,
        hidden: th.Tensor,
        weight_ih: th.Tensor,
        weight_hh: th.Tensor,
        bias_ih: th.Tensor | None,
        bias_hh: th.Tensor | None,
    ) -> th.Tensor:
        (length, n, _), n_hidden = inputs.shape, hidden.shape[1]
        # All that is added to the state's products; of the candidate only its own bias, as r scales their sum
        bias, bias_q = inputs.new_zeros(3 * n_hidden), inputs.new_zeros(n_hidden)
        if bias_ih is not None and bias_hh is not None:
            bias += bias_ih
            bias[: 2 * n_hidden] += bias_hh[: 2 * n_hidden]
            bias_q = bias_hh[2 * n_hidden :]
        size = block_length(3 * n * n_hidden)
        gates, candidates, states, steps = _forward_block(size, n, n_hidden, inputs.dtype)
        q = gates[..., 2 * n_hidden :]
        all_gates, all_candidates = (inputs.new_empty(length, n, i * n_hidden) for i in (3, 1))
        all_states = inputs.new_empty(length + 1, n, n_hidden)
        output = all_states[1:]
        all_states[0] = hidden
        # Row-major in the order that they are read in: faster on few rows
        of_inputs, of_states = weight_ih.t().contiguous(), weight_hh.t().contiguous()
        flat_inputs = inputs.reshape(length * n, -1)
        states[0] = hidden
        for begin in range(0, length, size):
            k = min(size, length - begin)
            now = slice(begin, begin + k)
            th.addmm(bias, flat_inputs[begin * n : (begin + k) * n], of_inputs, out=gates[:k].view(k * n, -1))
            candidates[:k] = q[:k]
            q[:k] = bias_q
            for sums, rz_t, r_t, z_t, q_t, n_t, before, after in steps[:k]:
                sums.addmm_(before, of_states)
                rz_t.sigmoid_()
                n_t.addcmul_(r_t, q_t).tanh_()
                th.lerp(n_t, before, z_t, out=after)
            all_gates[now], all_candidates[now], output[now] = gates[:k], candidates[:k], states[1 : k + 1]
            states[0] = states[k]
        ctx.save_for_backward(inputs, weight_ih, weight_hh, all_gates, all_candidates, all_states)
        ctx.has_bias = bias_ih is not None
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: th.Tensor) -> tuple[th.Tensor | None, ...]:
        inputs, weight_ih, weight_hh, all_gates, all_candidates, all_states = ctx.saved_tensors
        length, n, n_hidden = all_candidates.shape
        size = block_length(3 * n * n_hidden)
        buffers = _backward_block(size, n, n_hidden, inputs.dtype)
        d_sums, k_n, _, d_states, steps = buffers
        d_inputs = th.empty_like(inputs, memory_format=th.contiguous_format) if ctx.needs_input_grad[0] else None
        d_weight_ih, d_weight_hh = th.zeros_like(weight_ih), th.zeros_like(weight_hh)
        d_bias_ih, d_bias_hh = inputs.new_zeros(2, 3 * n_hidden)
        flat_inputs = inputs.reshape(length * n, -1)
        d_states[0] = 0.0
        for begin in reversed(range(0, length, size)):
            k = min(size, length - begin)
            now, rows = slice(begin, begin + k), slice(begin * n, (begin + k) * n)
            _set_factors(buffers, all_gates[now], all_candidates[now], all_states[1:][now])
            carried = d_states[0].clone()
            d_states[1 : k + 1] = grad[now]
            d_states[k] += carried
            # What follows adds to it, step by step
            d_states[0] = 0.0
            for d_sums_t, flat_t, d_after, wide_d_after, d_before, z_t in reversed(steps[:k]):
                d_sums_t.mul_(wide_d_after)
                d_before.addcmul_(d_after, z_t).addmm_(flat_t, weight_hh)
            flat = d_sums[:k].view(k * n, -1)
            d_weight_hh.addmm_(flat.t(), all_states[now].view(k * n, -1))
            d_bias_hh += flat.sum(0)
            # The candidate's sum with the inputs, which r does not scale
            th.mul(k_n[:k], d_states[1 : k + 1], out=d_sums[:k, :, 2])
            d_weight_ih.addmm_(flat.t(), flat_inputs[rows])
            d_bias_ih += flat.sum(0)
            if d_inputs is not None:
                th.mm(flat, weight_ih, out=d_inputs[now].view(k * n, -1))
        d_biases = (d_bias_ih, d_bias_hh) if ctx.has_bias else (None, None)
        return d_inputs, d_states[0].clone(), d_weight_ih, d_weight_hh, *d_biases


def _set_factors(buffers: _BackwardBlock, gates: th.Tensor, candidates: th.Tensor, after: th.Tensor) -> None:
    """Fill the buffers with what a block's gradients do not change, see :class:`~sb3_laplace.cores.GRU`."""
    n_steps, _, n_hidden = candidates.shape
    r, z, q = gates.unflatten(-1, (3, n_hidden)).unbind(2)
    a_r, a_z, a_n = buffers.d_sums[:n_steps].unbind(2)
    k = buffers.k[:n_steps]
    buffers.z[:n_steps] = z
    new_part = 1 - z
    # (h - n) z is what is left of h - n in the new state
    th.mul(after - candidates, new_part, out=a_z)
    th.ops.aten.tanh_backward.grad_input(new_part, candidates, grad_input=k)
    th.mul(k, r, out=a_n)
    th.ops.aten.sigmoid_backward.grad_input(k * q, r, grad_input=a_r)
