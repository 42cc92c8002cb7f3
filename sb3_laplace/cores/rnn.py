"""The tanh RNN, with its Jacobian in closed form."""

from typing import Any, ClassVar

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_laplace.cores.torch_cell import CellWeights, TorchCell


class RNN(TorchCell, nn.RNN):
    """``torch.nn.RNN`` as a core. Of one layer, with features e and state h:

    ``h' = tanh(V e + U h + b)``, and ``dh'/dh = diag(1 - h'^2) U``.
    """

    keywords: ClassVar[tuple[str, ...]] = (*TorchCell.keywords, "nonlinearity")

    @staticmethod
    def cell(inputs: th.Tensor, state: tuple[th.Tensor, ...], weights: CellWeights) -> tuple[th.Tensor, ...]:
        return (th.rnn_tanh_cell(inputs, state[0], *weights),)

    @staticmethod
    def row_factors(
        inputs: th.Tensor, state: tuple[th.Tensor, ...], weights: CellWeights
    ) -> tuple[th.Tensor, th.Tensor]:
        (hidden,) = state
        updated = (F.linear(inputs, weights.ih, weights.bias_ih) + F.linear(hidden, weights.hh, weights.bias_hh)).tanh()
        return (1 - updated.square()).unsqueeze(0), weights.hh

    @classmethod
    def check_keywords(cls, keywords: dict[str, Any]) -> None:
        super().check_keywords(keywords)
        if keywords.get("nonlinearity", "tanh") != "tanh":
            raise ValueError(f"lstm_kwargs['nonlinearity'] must be 'tanh', got {keywords['nonlinearity']!r}.")
