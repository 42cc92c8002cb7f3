"""A minGRU layer over whole sequences on a CPU.

Both passes go through the sequence in blocks of steps, see :mod:`sb3_laplace.cores.blocks`: a step itself is one
operation forward and one backward, which on a CPU is faster than a scan in logarithmic depth. There are no logarithms
and no divisions: any gate from 0 to 1 is fine over any number of steps.
"""

from typing import Any, NamedTuple

import torch as th
from torch.autograd.function import once_differentiable

from sb3_laplace.cores.blocks import Steps, block_length, per_step, used_again


def unroll_mingru_layer(
    inputs: th.Tensor, hidden: th.Tensor, keep: th.Tensor | None, weight: th.Tensor, bias: th.Tensor | None
) -> th.Tensor:
    """Hidden states of one layer over sequences; :class:`~sb3_laplace.cores.MinGRU` has the equations.

    It can be differentiated once: a second derivative raises a RuntimeError.

    :param inputs: shape (N, T, F)
    :param hidden: state before the first step, shape (N, H)
    :param keep: 0 where nothing is left of the state before a step, 1 elsewhere, shape (N, T); None if it is 1
    :param weight: of z and the candidate, shape (2 H, F)
    :param bias: shape (2 H,), or None
    :return: shape (N, T, H)
    """
    return _MinGRULayer.apply(inputs, hidden, keep, weight, bias)


class _Block(NamedTuple):
    """Buffers of B steps.

    :param sums: sums of the gates, or their gradients, shape (B, N, 2 H)
    :param kept: what is kept of the state before a step, 1 - z where no episode starts, shape (B, N, H)
    :param z: shape (B, N, H)
    :param states: the state before the block and after each step, or their gradients, shape (B + 1, N, H)
    :param steps: of each step kept, and the states before and after it
    """

    sums: th.Tensor
    kept: th.Tensor
    z: th.Tensor
    states: th.Tensor
    steps: Steps


@used_again
def _block(size: int, n: int, n_hidden: int, dtype: th.dtype) -> _Block:
    sums, states = th.empty(size, n, 2 * n_hidden, dtype=dtype), th.empty(size + 1, n, n_hidden, dtype=dtype)
    kept, z = th.empty(2, size, n, n_hidden, dtype=dtype)
    return _Block(sums, kept, z, states, per_step(kept, states[:-1], states[1:]))


class _MinGRULayer(th.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: th.Tensor,
        hidden: th.Tensor,
        keep: th.Tensor | None,
        weight: th.Tensor,
        bias: th.Tensor | None,
    ) -> th.Tensor:
        (n, length, _), n_hidden = inputs.shape, hidden.shape[1]
        size = block_length(2 * n * n_hidden)
        sums, kept, z, states, steps = _block(size, n, n_hidden, inputs.dtype)
        of_z, of_candidate = sums.chunk(2, dim=-1)
        output = inputs.new_empty(n, length, n_hidden)
        all_z, all_candidates = inputs.new_empty(2, length, n, n_hidden)
        offset = inputs.new_zeros(2 * n_hidden) if bias is None else bias
        states[0] = hidden
        for begin in range(0, length, size):
            k = min(size, length - begin)
            now = slice(begin, begin + k)
            rows = inputs[:, now].transpose(0, 1).reshape(k * n, -1)
            th.addmm(offset, rows, weight.t(), out=sums[:k].view(k * n, -1))
            th.sigmoid(of_z[:k], out=z[:k])
            th.sub(1.0, z[:k], out=kept[:k])
            if keep is not None:
                kept[:k] *= keep[:, now].t().unsqueeze(-1)
            candidates = all_candidates[now]
            th.sigmoid(of_candidate[:k], out=candidates)
            # The larger of the two is x + 0.5 for x >= 0, sigmoid(x) below
            th.maximum(candidates, of_candidate[:k].add_(0.5), out=candidates)
            th.mul(z[:k], candidates, out=states[1 : k + 1])
            for kept_t, before, after in steps[:k]:
                after.addcmul_(kept_t, before)
            all_z[now], output[:, now] = z[:k], states[1 : k + 1].transpose(0, 1)
            states[0] = states[k]
        ctx.save_for_backward(inputs, hidden, keep, weight, all_z, all_candidates, output)
        ctx.has_bias = bias is not None
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: th.Tensor) -> tuple[th.Tensor | None, ...]:
        inputs, hidden, keep, weight, all_z, all_candidates, output = ctx.saved_tensors
        n, length, n_hidden = output.shape
        size = block_length(2 * n * n_hidden)
        d_sums, kept, own_z, d_states, steps = _block(size, n, n_hidden, inputs.dtype)
        d_inputs = th.empty_like(inputs, memory_format=th.contiguous_format) if ctx.needs_input_grad[0] else None
        d_weight, d_bias = th.zeros_like(weight), inputs.new_zeros(2 * n_hidden)
        # The next number below
        below_half = 0.5 - th.finfo(inputs.dtype).eps / 4
        d_states[0] = 0.0
        for begin in reversed(range(0, length, size)):
            k = min(size, length - begin)
            now = slice(begin, begin + k)
            z, candidates, after = all_z[now], all_candidates[now], d_states[1 : k + 1]
            th.sub(1.0, z, out=kept[:k])
            # What a change of z changes in the state: the candidate less what there was before
            change = own_z[:k]
            change[1:] = output[:, begin : begin + k - 1].transpose(0, 1)
            change[0] = output[:, begin - 1] if begin else hidden
            if keep is not None:
                starts_less = keep[:, now].t().unsqueeze(-1)
                kept[:k] *= starts_less
                change *= starts_less
            th.sub(candidates, change, out=change)
            carried = d_states[0].clone()
            after.copy_(grad[:, now].transpose(0, 1))
            after[-1] += carried
            # What follows adds to it, step by step
            d_states[0] = 0.0
            for kept_t, d_before, d_after in reversed(steps[:k]):
                d_before.addcmul_(d_after, kept_t)
            of_z, of_candidate = d_sums[:k].chunk(2, dim=-1)
            th.ops.aten.sigmoid_backward.grad_input(change.mul_(after), z, grad_input=of_z)
            # The slope is 1 for candidates of at least 0.5 and the sigmoid's below: comparing and choosing takes longer
            # than all of the rest
            d_candidates = th.mul(after, z, out=change)
            linear = th.ops.aten.threshold_backward(d_candidates, candidates, below_half)
            d_candidates -= linear
            th.ops.aten.sigmoid_backward.grad_input(d_candidates, candidates, grad_input=of_candidate)
            of_candidate += linear
            flat = d_sums[:k].view(k * n, -1)
            d_weight.addmm_(flat.t(), inputs[:, now].transpose(0, 1).reshape(k * n, -1))
            d_bias += flat.sum(0)
            if d_inputs is not None:
                d_inputs[:, now] = (flat @ weight).view(k, n, -1).transpose(0, 1)
        return d_inputs, d_states[0].clone(), None, d_weight, d_bias if ctx.has_bias else None
