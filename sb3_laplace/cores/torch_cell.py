"""What the cores made of torch's own recurrent modules share: steps by fused cells, sequences by the module."""

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch as th
from torch import nn

from sb3_laplace.cores.base import Core, CoreState
from sb3_laplace.cores.jacobians import GateSumJacobian


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


class TorchCell(Core, nn.RNNBase):
    """A core whose layers are cells of torch's, with the parameters of torch's module under their names.

    A subclass says what its cell is: :meth:`cell`, one step of a layer, and :meth:`row_factors`, its Jacobian.
    """

    #: Keywords that are taken beside sizes and layers
    keywords: ClassVar[tuple[str, ...]] = ("bias", "dropout")

    @staticmethod
    @abstractmethod
    def cell(inputs: th.Tensor, state: tuple[th.Tensor, ...], weights: CellWeights) -> tuple[th.Tensor, ...]:
        """One step of one layer.

        :param inputs: shape (N, F)
        :param state: state of the layer, each (N, H)
        :param weights: the layer's parameters
        :return: its updated state
        """

    @staticmethod
    @abstractmethod
    def row_factors(
        inputs: th.Tensor, state: tuple[th.Tensor, ...], weights: CellWeights
    ) -> tuple[th.Tensor, th.Tensor]:
        """The Jacobian of one layer's hidden state with respect to itself, ``S = sum_g diag(a_g) U_g``.

        :param inputs: shape (..., F)
        :param state: state of the layer, each of a shape (..., H) that fits the inputs' batch
        :param weights: the layer's parameters
        :return: the row factors a, shape (G, ..., H), and the matrices U one below the other, shape (G H, H)
        """

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.num_layers, self.hidden_size),)

    def weights_of_layer(self, layer: int) -> CellWeights:
        """Parameters of one layer.

        :param layer: its index, -1 for the top one
        """
        # all_weights asks for every attribute of the module, which takes as long as a cell of a few environments
        parameters = self._parameters
        weights: list[th.Tensor] = [
            parameters[name] if name in parameters else getattr(self, name)  # type: ignore[misc]
            for name in self._all_weights[layer]
        ]
        return CellWeights(weights[0], weights[1], *(weights[2:] if self.bias else (None, None)))

    def step(self, inputs: th.Tensor, state: CoreState) -> CoreState:
        # The fused cell, because a call of the module itself on sequences of length one mostly pays for its set-up.
        # There is no dropout here: this is the rollout.
        layers: list[tuple[th.Tensor, ...]] = []
        for layer in range(self.num_layers):
            updated = self.cell(inputs, tuple(part[layer] for part in state), self.weights_of_layer(layer))
            layers.append(updated)
            inputs = updated[0]
        if len(layers) == 1:
            return tuple(part.unsqueeze(0) for part in updated)
        return tuple(th.stack(parts) for parts in zip(*layers, strict=True))

    def unroll(self, inputs: th.Tensor, state: CoreState) -> th.Tensor:
        return self(inputs, state[0])[0]

    @classmethod
    def jacobian_input_size(cls, input_size: int, hidden_size: int, num_layers: int) -> int:
        return input_size if num_layers == 1 else hidden_size

    def jacobian_inputs(self, features: th.Tensor, state: CoreState) -> th.Tensor:
        """Inputs of the top layer: the features, or the hidden state of the layer below, shape (N, F')."""
        return features if self.num_layers == 1 else state[0][-2]

    @th.no_grad()
    def jacobian(self, inputs: th.Tensor, state: CoreState) -> GateSumJacobian:
        """In closed form: that of the top layer's cell, its input held fixed.

        See :meth:`~sb3_laplace.Core.jacobian`.
        """
        top = tuple(part[-1] for part in state)
        if inputs.dim() > top[0].dim():
            top = tuple(part.unsqueeze(1) for part in top)
        factors, matrices = self.row_factors(inputs, top, self.weights_of_layer(-1))
        return GateSumJacobian(factors, matrices.detach().view(len(factors), self.hidden_size, self.hidden_size))

    @classmethod
    def check_keywords(cls, keywords: dict[str, Any]) -> None:
        """Check that the module steps through time and that its output is its hidden state.

        :param keywords: ``lstm_kwargs`` of the policy
        :raises ValueError: naming a keyword that is not supported
        """
        for name, value in keywords.items():
            if name in ("proj_size", "bidirectional", "batch_first"):
                if value:
                    raise ValueError(f"lstm_kwargs[{name!r}] = {value!r} is not supported; leave it out.")
            elif name not in cls.keywords:
                raise ValueError(f"lstm_kwargs[{name!r}] = {value!r}: {cls.__name__} takes {list(cls.keywords)}.")
