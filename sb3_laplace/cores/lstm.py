"""The LSTM, with its Jacobian in closed form."""

from typing import ClassVar

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_laplace.cores.base import CoreState
from sb3_laplace.cores.torch_cell import CellWeights, TorchCell


class LSTM(TorchCell, nn.LSTM):
    """``torch.nn.LSTM`` as a core. Of one layer, with features e and state (h, c):

    ``i, f, o = sigmoid(V e + U h + b)``, ``g = tanh(V e + U h + b)``, each gate with its own V, U and b,
    ``c' = f c + i g``, ``h' = o tanh(c')``.

    With ``k = o (1 - tanh(c')^2)``, the cell state c held fixed,
    ``dh'/dh = diag(a_i) U_i + diag(a_f) U_f + diag(a_g) U_g + diag(a_o) U_o`` where
    ``a_i = k g i (1 - i)``, ``a_f = k c f (1 - f)``, ``a_g = k i (1 - g^2)``, ``a_o = tanh(c') o (1 - o)``.
    """

    is_torch_lstm: ClassVar[bool] = True

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.num_layers, self.hidden_size),) * 2

    @staticmethod
    def cell(inputs: th.Tensor, state: tuple[th.Tensor, ...], weights: CellWeights) -> tuple[th.Tensor, ...]:
        return th.lstm_cell(inputs, state, *weights)

    def unroll(self, inputs: th.Tensor, state: CoreState) -> th.Tensor:
        return self(inputs, state)[0]

    @staticmethod
    def row_factors(
        inputs: th.Tensor, state: tuple[th.Tensor, ...], weights: CellWeights
    ) -> tuple[th.Tensor, th.Tensor]:
        # Gate by gate in contiguous memory and in few passes: with a diagonal precision these products are most of a
        # posterior step
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


def _tanh_(values: th.Tensor) -> th.Tensor:
    """tanh in place, as ``2 sigmoid(2 x) - 1``: torch's own takes three times as long on a CPU."""
    return values.mul_(2).sigmoid_().mul_(2).sub_(1)
