"""Checks of what a user passes in, each with an error that names the argument and what is allowed."""

import math
from typing import Any

import numpy as np


def check_integer(name: str, value: Any, minimum: int) -> int:
    """Check that an argument is a whole number of at least ``minimum``.

    :raises ValueError: naming the argument
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or value != int(value):
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value!r}.")
    if value < minimum:
        raise ValueError(f"{name} must be >= {minimum}, got {value!r}.")
    return int(value)


def check_positive(name: str, value: Any) -> float:
    """Check that an argument is a positive finite number.

    :raises ValueError: naming the argument
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive finite number, got {value!r}.")
    return float(value)


def check_not_negative(name: str, value: Any) -> float:
    """Check that an argument is a finite number of at least zero.

    :raises ValueError: naming the argument
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}.")
    return float(value)


def check_no_nan(observation: np.ndarray | dict[str, np.ndarray] | tuple | None) -> None:
    """Refuse observations with NaN.

    :raises ValueError: naming the key (of a Dict space) and the first index concerned
    """
    parts = observation.items() if isinstance(observation, dict) else [("", observation)]
    for key, value in parts:
        array = np.asarray(value)
        if array.dtype.kind == "f" and np.isnan(array).any():
            where = f" (key {key!r})" if key else ""
            first = tuple(int(i) for i in np.argwhere(np.isnan(array))[0])
            raise ValueError(f"observation{where} holds NaN, first at index {first}; check the environment's output.")


def check_lstm_kwargs(lstm_kwargs: dict[str, Any] | None) -> None:
    """Check that the recurrent module steps through time and that its output is its hidden state.

    :raises ValueError: naming the keyword
    """
    for name, value in (lstm_kwargs or {}).items():
        if name in ("proj_size", "bidirectional", "batch_first") and value:
            raise ValueError(f"lstm_kwargs[{name!r}] = {value!r} is not supported; leave it out.")
