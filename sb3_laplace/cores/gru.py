"""The GRU, with its Jacobian in closed form."""

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_laplace.cores.base import CoreState
from sb3_laplace.cores.gru_layer import unroll_gru_layer
from sb3_laplace.cores.torch_cell import CellWeights, TorchCell


class GRU(TorchCell, nn.GRU):
    """``torch.nn.GRU`` as a core. Of one layer, with features e and state h:

    ``r = sigmoid(V_r e + U_r h + b_r)``, ``z = sigmoid(V_z e + U_z h + b_z)``, ``q = U_n h + b_q``,
    ``n = tanh(V_n e + b_n + r q)``, ``h' = (1 - z) n + z h``.

    With ``k = (1 - z) (1 - n^2)``, ``dh'/dh = diag(a_r) U_r + diag(a_z) U_z + diag(a_n) U_n + diag(z)`` where
    ``a_r = k q r (1 - r)``, ``a_z = (h - n) z (1 - z)``, ``a_n = k r``; the last term is one with the identity matrix.

    Sequences on a CPU run several times faster than by the module itself, and can be differentiated once only.
    """

    @staticmethod
    def cell(inputs: th.Tensor, state: tuple[th.Tensor, ...], weights: CellWeights) -> tuple[th.Tensor, ...]:
        return (th.gru_cell(inputs, state[0], *weights),)

    def unroll(self, inputs: th.Tensor, state: CoreState) -> th.Tensor:
        if not inputs.is_cpu or th.is_autocast_enabled("cpu"):
            return super().unroll(inputs, state)
        for layer, hidden in enumerate(state[0]):
            if layer:
                inputs = F.dropout(inputs, self.dropout, self.training)
            inputs = unroll_gru_layer(inputs, hidden, self.weights_of_layer(layer))
        return inputs

    @staticmethod
    def row_factors(
        inputs: th.Tensor, state: tuple[th.Tensor, ...], weights: CellWeights
    ) -> tuple[th.Tensor, th.Tensor]:
        (hidden,) = state
        of_input = F.linear(inputs, weights.ih, weights.bias_ih).chunk(3, dim=-1)
        of_hidden = F.linear(hidden, weights.hh, weights.bias_hh).chunk(3, dim=-1)
        r, z = (of_input[0] + of_hidden[0]).sigmoid(), (of_input[1] + of_hidden[1]).sigmoid()
        n = (of_input[2] + r * of_hidden[2]).tanh()
        k = (1 - z) * (1 - n.square())
        factors = [k * of_hidden[2] * r * (1 - r), (hidden - n) * z * (1 - z), k * r, z]
        identity = th.eye(hidden.shape[-1], dtype=hidden.dtype, device=hidden.device)
        return th.stack(th.broadcast_tensors(*factors)), th.cat((weights.hh, identity))
