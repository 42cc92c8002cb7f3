"""minGRU, whose gates do not see its state: sequences run as a scan, and its Jacobian is diagonal."""

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_laplace.cores.base import Core, CoreState
from sb3_laplace.cores.jacobians import DiagonalJacobian
from sb3_laplace.cores.mingru_layer import unroll_mingru_layer


class MinGRU(Core):
    """minGRU (Feng et al. 2024, "Were RNNs All We Needed?", arXiv 2410.01201, section 3.1 and appendix B).

    With features e and state h: ``z = sigmoid(V_z e + b_z)``, ``h' = (1 - z) h + z g(V_g e + b_g)``, where
    ``g(x) = x + 0.5`` for x >= 0 and ``sigmoid(x)`` below. So ``dh'/dh = diag(1 - z)``.

    Several layers are a residual stream: the first layer's hidden state begins it, each further one reads it and is
    added to it, and between two layers it passes a small MLP, ``s + MLP(LayerNorm(s))``. What the latent reads is the
    top layer's hidden state itself, which is positive where it begins with zeros.

    :param input_size: number of features F
    :param hidden_size: number of hidden units H
    :param num_layers: number of layers
    :param bias: whether the gates have biases
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.hidden_size, self.num_layers = hidden_size, num_layers
        #: Of each layer V_z and V_g, one below the other
        self.gates = nn.ModuleList(
            nn.Linear(hidden_size if layer else input_size, 2 * hidden_size, bias=bias) for layer in range(num_layers)
        )
        self.mlps = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(hidden_size),
                nn.Linear(hidden_size, 2 * hidden_size),
                nn.GELU(),
                nn.Linear(2 * hidden_size, hidden_size),
            )
            for _ in range(num_layers - 1)
        )

    def _gates_of(self, layer: int) -> nn.Linear:
        gates = self.gates[layer]
        assert isinstance(gates, nn.Linear)
        return gates

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.num_layers, self.hidden_size),)

    def _next_inputs(self, layer: int, inputs: th.Tensor, hidden: th.Tensor) -> th.Tensor:
        """What the layer above reads.

        :param layer: index of a layer that is not the top one
        :param inputs: what the layer itself read, not used of the first
        :param hidden: its hidden states
        """
        stream = hidden if layer == 0 else inputs + hidden
        return stream + self.mlps[layer](stream)

    def step(self, inputs: th.Tensor, state: CoreState) -> CoreState:
        updated = []
        for layer, hidden in enumerate(state[0]):
            z, candidate = _gates(self.gates[layer](inputs))
            updated.append(th.lerp(hidden, candidate, z))
            if layer < self.num_layers - 1:
                inputs = self._next_inputs(layer, inputs, updated[-1])
        return (th.stack(updated),)

    def sequence(self, inputs: th.Tensor, state: CoreState, episode_starts: th.Tensor) -> th.Tensor:
        starts = episode_starts != 0
        (hidden,) = self.reset(state, starts[:, 0])
        # Before the first step there may be what is no number
        starts = F.pad(starts[:, 1:], (1, 0))
        for layer, initial in enumerate(hidden):
            states = self._layer_sequence(layer, inputs, initial, starts)
            if layer < self.num_layers - 1:
                inputs = self._next_inputs(layer, inputs, states)
        return states

    def _layer_sequence(self, layer: int, inputs: th.Tensor, hidden: th.Tensor, starts: th.Tensor) -> th.Tensor:
        gates = self._gates_of(layer)
        if inputs.is_cpu and not th.is_autocast_enabled("cpu"):
            keep = (~starts).to(inputs.dtype) if bool(starts.any()) else None
            return unroll_mingru_layer(inputs, hidden, keep, gates.weight, gates.bias)
        z, candidate = _gates(gates(inputs))
        return parallel_scan((1 - z).masked_fill(starts.unsqueeze(-1), 0.0), z * candidate, hidden)

    def unroll(self, inputs: th.Tensor, state: CoreState) -> th.Tensor:
        starts = inputs.new_zeros(inputs.shape[1], inputs.shape[0])
        return self.sequence(inputs.transpose(0, 1), state, starts).transpose(0, 1)

    @classmethod
    def jacobian_input_size(cls, input_size: int, hidden_size: int, num_layers: int) -> int:
        return input_size if num_layers == 1 else hidden_size

    def jacobian_inputs(self, features: th.Tensor, state: CoreState) -> th.Tensor:
        """What the top layer reads: the features, or the residual stream from the layers below, shape (N, F')."""
        inputs = features
        for layer, hidden in enumerate(state[0][:-1]):
            inputs = self._next_inputs(layer, inputs, hidden)
        return inputs

    @th.no_grad()
    def jacobian(self, inputs: th.Tensor, state: CoreState) -> DiagonalJacobian:
        """In closed form, ``diag(1 - z)``: it does not depend on the state."""
        top, n = self._gates_of(-1), self.hidden_size
        bias = None if top.bias is None else top.bias[:n]
        return DiagonalJacobian(1 - F.linear(inputs, top.weight[:n], bias).sigmoid())


def _gates(sums: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """z and the candidate g.

    :param sums: what they are functions of, side by side, shape (..., 2 H)
    """
    of_z, of_g = sums.chunk(2, dim=-1)
    return of_z.sigmoid(), th.where(of_g >= 0, of_g + 0.5, of_g.sigmoid())


def parallel_scan(a: th.Tensor, b: th.Tensor, initial: th.Tensor) -> th.Tensor:
    """``h_t = a_t * h_{t-1} + b_t``, elementwise, in about log2 T rounds, each over twice as many steps as the last.

    Nothing is divided and no logarithm is taken: any factor from 0 to 1 is fine over any number of steps.

    :param a: factors, shape (N, T, H)
    :param b: what is added, shape (N, T, H)
    :param initial: state before the first step, shape (N, H)
    :return: states after each step, shape (N, T, H)
    """
    length, step = a.shape[1], 1
    b = th.cat((th.addcmul(b[:, :1], a[:, :1], initial.unsqueeze(1)), b[:, 1:]), 1)
    while step < length:
        # Each step's pair takes in that of so many steps before
        b = th.cat((b[:, :step], th.addcmul(b[:, step:], a[:, step:], b[:, :-step])), 1)
        a = th.cat((a[:, :step], a[:, step:] * a[:, :-step]), 1)
        step *= 2
    return b
