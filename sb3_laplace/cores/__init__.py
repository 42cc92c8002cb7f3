"""Recurrent memories: a step, whole sequences and Jacobians with respect to the hidden state, behind one interface."""

from typing import Any

from torch import nn

from sb3_laplace.cores.base import Core, CoreState
from sb3_laplace.cores.gru import GRU
from sb3_laplace.cores.gtrxl import GTrXL
from sb3_laplace.cores.jacobians import (
    DenseJacobian,
    DiagonalJacobian,
    GateSumJacobian,
    JacobianOperator,
    PullbackJacobian,
)
from sb3_laplace.cores.lstm import LSTM
from sb3_laplace.cores.mingru import MinGRU
from sb3_laplace.cores.rnn import RNN
from sb3_laplace.cores.torch_cell import TorchCell

__all__ = [
    "CORES",
    "GRU",
    "LSTM",
    "RNN",
    "Core",
    "CoreState",
    "DenseJacobian",
    "DiagonalJacobian",
    "GTrXL",
    "GateSumJacobian",
    "JacobianOperator",
    "MinGRU",
    "PullbackJacobian",
    "TorchCell",
    "core_class",
]

#: Names that ``rnn_type`` takes
CORES: dict[str, type[Core]] = {"lstm": LSTM, "gru": GRU, "rnn": RNN, "mingru": MinGRU, "gtrxl": GTrXL}


def core_class(rnn_type: Any) -> type[Core]:
    """The class that ``rnn_type`` asks for.

    :param rnn_type: a name, a :class:`~sb3_laplace.Core` class, or a subclass of torch's LSTM, GRU or RNN that
        changes nothing of what its module computes (its initialisation, say)
    :raises ValueError: if it is none of these
    """
    if isinstance(rnn_type, str) and rnn_type in CORES:
        return CORES[rnn_type]
    if isinstance(rnn_type, type):
        if issubclass(rnn_type, Core):
            return rnn_type
        for torch_class, ours in ((nn.LSTM, LSTM), (nn.GRU, GRU), (nn.RNN, RNN)):
            if issubclass(rnn_type, torch_class):
                if rnn_type.forward is not torch_class.forward:
                    raise ValueError(
                        f"rnn_type: {rnn_type.__name__} has a forward of its own, whose step and Jacobian are not "
                        f"those of torch's {torch_class.__name__}: make it a sb3_laplace.Core."
                    )
                # Our methods, then the user's class
                own = {"__module__": rnn_type.__module__, "is_torch_lstm": False}
                return type(rnn_type.__name__, (ours, rnn_type), own)
    raise ValueError(f"rnn_type must be one of {list(CORES)} or a sb3_laplace.Core class, got {rnn_type!r}.")
