"""Closed-form Jacobians of recurrent cells with respect to their hidden state.

The Jacobian of a gated cell is a sum of its recurrent weight matrices with rescaled rows,
``S = dh'/dh = sum_g diag(a_g) U_g``, so it is kept factored (:class:`HiddenJacobian`): what a posterior
needs of it (a projection ``W S``, a diagonal of ``S S^T``) is far cheaper than the dense S by autodiff.

Gradients never flow through these functions' results: a precision must not be optimised by shaping the
network's curvature (paper, section 4).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F

# Numbers in a block of dense Jacobians: 2 MB in float32
_BLOCK_SIZE = 2**19


class CellWeights(NamedTuple):
    """Parameters of one recurrent cell, gates stacked along the rows as in ``torch.nn.LSTM``.

    :param ih: input weights, shape (G H, F)
    :param hh: recurrent weights, shape (G H, H)
    :param bias_ih: shape (G H,), or None
    :param bias_hh: shape (G H,), or None
    """

    ih: th.Tensor
    hh: th.Tensor
    bias_ih: th.Tensor | None
    bias_hh: th.Tensor | None

    @classmethod
    def of_layer(cls, rnn: nn.RNNBase, layer: int) -> "CellWeights":
        """Parameters of one layer of a torch recurrent module.

        :param rnn: the module
        :param layer: index of the layer, -1 for the top one
        """
        weights: list[th.Tensor] = rnn.all_weights[layer]  # type: ignore[assignment]
        return cls(weights[0], weights[1], *(weights[2:] if rnn.bias else (None, None)))


class HiddenJacobian(NamedTuple):
    """``S = sum_g diag(coefficients[g]) weights[g]`` for G gates, H hidden units and any batch ``...`` of inputs.

    :param coefficients: row factors a, shape (G, ..., H)
    :param weights: recurrent weights U, shape (G, H, H)
    """

    coefficients: th.Tensor
    weights: th.Tensor

    def blocks(self, projection: th.Tensor | None, dtype: th.dtype | None = None) -> Iterator[tuple[slice, th.Tensor]]:
        """``J = W S`` for a flat batch of N inputs, in blocks that stay in the processor's cache.

        Writing S for all of many inputs and reading it again costs as much as the products themselves, and
        so does fresh memory for every block.

        :param projection: the latent projection W, shape (D, H); None for the identity
        :param dtype: floating point type of the products, the weights' own by default
        :return: the indices of a block of n inputs and their J, shape (n, D, H), overwritten by the next block
        """
        rows, weights = self.coefficients.permute(2, 1, 0).contiguous(), self.weights.transpose(0, 1)
        if dtype is not None:
            rows, weights = rows.to(dtype), weights.to(dtype)
        n_hidden, n_inputs, _ = rows.shape
        size = min(n_inputs, max(8, _BLOCK_SIZE // n_hidden**2)) if rows.device.type == "cpu" else n_inputs
        dense = rows.new_empty(n_hidden, size, n_hidden)
        if projection is not None:
            projection = projection.detach().to(rows.dtype).expand(size, -1, -1)
            projected = rows.new_empty(projection.shape)
        for begin in range(0, n_inputs, size):
            block = slice(begin, min(begin + size, n_inputs))
            n = block.stop - begin
            # One matrix product per hidden unit, (n, G) x (G, H): 30 to 60 times faster than the same sum over
            # gates written as an einsum over (n, G, H)
            jacobian = th.bmm(rows[:, block], weights, out=dense[:, :n]).transpose(0, 1)
            if projection is not None:
                jacobian = th.bmm(projection[:n], jacobian, out=projected[:n])
            yield block, jacobian

    def row_norms_squared(self) -> th.Tensor:
        """The diagonal of ``S S^T``, shape (..., H), without ever forming S: 16 H flops per input.

        ``(S S^T)_jj = a_j^T (U U^T)_j a_j`` with one G x G Gram matrix per hidden unit.
        """
        a, n_gates = self.coefficients, len(self.coefficients)
        unit_rows = self.weights.transpose(0, 1)
        gram = th.bmm(unit_rows, unit_rows.mT).permute(1, 2, 0).contiguous()
        total = th.zeros_like(a[0])
        for g in range(n_gates):
            # Row g of the Gram matrix times a, each pair of gates once
            product = a[g] * gram[g, g]
            for h in range(g + 1, n_gates):
                product.addcmul_(a[h], 2.0 * gram[g, h])
            total.addcmul_(product, a[g])
        return total

    def projected_gram(self, projection: th.Tensor) -> th.Tensor:
        """The matrix M with ``||W S||_F^2 = a^T M a``, shape (G H, G H), for a with its G gates one after another.

        ``M_gh = (W^T W) * (U_g U_h^T)``, elementwise. It depends on the weights alone, and is far cheaper to apply
        than J is to form.

        :param projection: the latent projection W, shape (D, H)
        """
        rows = self.weights.flatten(0, 1)
        return (rows @ rows.T) * (projection.T @ projection).repeat(len(self.weights), len(self.weights))

    def scale(self, factor: th.Tensor) -> "HiddenJacobian":
        """Each input's Jacobian times a number.

        :param factor: shape (...)
        """
        return self._replace(coefficients=self.coefficients * factor.unsqueeze(-1))

    def summed_outer_product(self) -> th.Tensor:
        """``sum_l S_nl S_nl^T`` over L inputs for each of N environments (batch (N, L)), shape (N, H, H).

        By ``sum_l S_l S_l^T = sum_gh (sum_l a_gl a_hl^T) * (U_g U_h^T)``, elementwise: no Jacobian is ever
        formed, and the sum over inputs is a matrix product.
        """
        a, u = self.coefficients, self.weights
        half = a.new_zeros(a.shape[1], a.shape[3], a.shape[3])
        for g in range(len(a)):
            half.addcmul_(a[g].mT @ a[g], u[g] @ u[g].T, value=0.5)
            for h in range(g + 1, len(a)):
                half.addcmul_(a[g].mT @ a[h], u[g] @ u[h].T)
        # The pair (h, g) is the transpose of (g, h)
        return half + half.mT


def _tanh_(values: th.Tensor) -> th.Tensor:
    """tanh in place, as ``2 sigmoid(2 x) - 1``: torch's own takes three times as long on a CPU."""
    return values.mul_(2).sigmoid_().mul_(2).sub_(1)


def _lstm_jacobian(
    inputs: th.Tensor, state: tuple[th.Tensor, ...], weights: CellWeights
) -> tuple[th.Tensor, th.Tensor]:
    """Row factors and matrices of an LSTM cell, the cell state held fixed.

    With ``c' = f c + i g``, ``h' = o tanh(c')`` and ``k = o (1 - tanh(c')^2)`` the row factors of the gates
    i, f, g, o are ``k g i (1-i)``, ``k c f (1-f)``, ``k i (1-g^2)`` and ``tanh(c') o (1-o)``. Gate by gate in
    contiguous memory and in few passes: with a diagonal precision these products are most of a posterior step.
    """
    hidden, cell = state
    gates = F.linear(inputs, weights.ih, weights.bias_ih) + F.linear(hidden, weights.hh, weights.bias_hh)
    gates = gates.unflatten(-1, (4, -1)).movedim(-2, 0).contiguous()
    i, f, g, o = gates
    g.mul_(2)
    gates.sigmoid_()
    g.mul_(2).sub_(1)
    squashed = _tanh_((f * cell).addcmul_(i, g))
    factors = th.empty_like(gates)
    a_i, a_f, a_g, a_o = factors
    th.mul(squashed, o, out=a_o)
    k = o.addcmul(a_o, squashed, value=-1)
    a_o.addcmul_(a_o, o, value=-1)
    k_i = k * i
    th.mul(k_i, g, out=a_i)
    th.addcmul(k_i, a_i, g, value=-1, out=a_g)
    a_i.addcmul_(a_i, i, value=-1)
    k_f_c = k.mul_(f).mul_(cell)
    th.addcmul(k_f_c, k_f_c, f, value=-1, out=a_f)
    return factors, weights.hh


def _gru_jacobian(inputs: th.Tensor, state: tuple[th.Tensor, ...], weights: CellWeights) -> tuple[th.Tensor, th.Tensor]:
    """Row factors and matrices of a GRU cell.

    With ``q = U_n h + b``, ``n = tanh(V_n e + r q)``, ``h' = (1 - z) n + z h`` and ``k = (1 - z) (1 - n^2)`` the row
    factors of r, z, n are ``k q r (1-r)``, ``(h - n) z (1-z)`` and ``k r``; the direct path adds ``diag(z)``, a
    fourth term with the identity matrix.
    """
    (hidden,) = state
    of_input = F.linear(inputs, weights.ih, weights.bias_ih).chunk(3, dim=-1)
    of_hidden = F.linear(hidden, weights.hh, weights.bias_hh).chunk(3, dim=-1)
    r, z = (of_input[0] + of_hidden[0]).sigmoid(), (of_input[1] + of_hidden[1]).sigmoid()
    n = (of_input[2] + r * of_hidden[2]).tanh()
    k = (1 - z) * (1 - n.square())
    factors = [k * of_hidden[2] * r * (1 - r), (hidden - n) * z * (1 - z), k * r, z]
    identity = th.eye(hidden.shape[-1], dtype=hidden.dtype, device=hidden.device)
    return th.stack(th.broadcast_tensors(*factors)), th.cat((weights.hh, identity))


def _rnn_jacobian(inputs: th.Tensor, state: tuple[th.Tensor, ...], weights: CellWeights) -> tuple[th.Tensor, th.Tensor]:
    """Row factor ``1 - h'^2`` and matrix U of a tanh cell ``h' = tanh(V e + U h + b)``."""
    (hidden,) = state
    updated = (F.linear(inputs, weights.ih, weights.bias_ih) + F.linear(hidden, weights.hh, weights.bias_hh)).tanh()
    return (1 - updated.square()).unsqueeze(0), weights.hh


_JACOBIANS = {nn.LSTM: _lstm_jacobian, nn.GRU: _gru_jacobian, nn.RNN: _rnn_jacobian}


@th.no_grad()
def hidden_jacobian(rnn: nn.RNNBase, inputs: th.Tensor, state: tuple[th.Tensor, ...]) -> HiddenJacobian:
    """Jacobian of the top layer's hidden state with respect to itself, its input held fixed.

    Evaluated where the caller says, for the posterior at the *updated* state (paper, section 4).

    :param rnn: the recurrent module, an LSTM, a GRU or a tanh RNN
    :param inputs: inputs of the top layer, shape (..., F): the features, or the hidden state of the layer below
    :param state: state of the top layer, each of a shape (..., H) that fits the inputs' batch:
        (hidden, cell) for an LSTM, (hidden,) otherwise
    :return: the Jacobian in factored form
    """
    factors, matrices = _JACOBIANS[type(rnn)](inputs, state, CellWeights.of_layer(rnn, -1))
    n_hidden = rnn.hidden_size
    return HiddenJacobian(factors, matrices.detach().view(len(factors), n_hidden, n_hidden))
