"""Checks of arguments: each error names the argument, what was given and what is allowed."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray


def check_integer(name: str, value: object, minimum: int) -> int:
    """Return ``value`` as an int. It must be an integer already, numpy's included; 16.0 is refused.

    :param name: The argument's name, for the message
    :param value: What was given
    :param minimum: The smallest value allowed
    :raises ValueError: ``value`` is no integer, or too small
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value!r}")
    return int(value)


def check_positive(name: str, value: object) -> float:
    """Return ``value`` as a float.

    :param name: The argument's name, for the message
    :param value: What was given
    :raises ValueError: ``value`` is no finite number above zero
    """
    if not _is_finite(value) or float(value) <= 0.0:
        raise ValueError(f"{name} must be a positive finite number, got {value!r}")
    return float(value)


def check_not_negative(name: str, value: object) -> float:
    """Return ``value`` as a float.

    :param name: The argument's name, for the message
    :param value: What was given
    :raises ValueError: ``value`` is no finite number of at least zero
    """
    if not _is_finite(value) or float(value) < 0.0:
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")
    return float(value)


def check_flag(name: str, value: object) -> bool:
    """Return ``value`` as a bool.

    :param name: The argument's name, for the message
    :param value: What was given
    :raises ValueError: ``value`` is no bool
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def _is_finite(value: object) -> TypeGuard[numbers.Real]:
    return not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(float(value))


def check_array(name: str, value: object, kinds: str, *shapes: tuple[int, ...]) -> NDArray[Any]:
    """Return ``value`` as an array.

    :param name: The argument's name, for the message
    :param value: What was given, anything that numpy makes an array of
    :param kinds: The kinds of dtype allowed, a subset of "biuf" (``numpy.dtype.kind``)
    :param shapes: The shapes allowed
    :raises ValueError: ``value`` has another dtype or shape
    """
    try:
        array = np.asarray(value)
    except ValueError as error:  # ragged sequences
        raise ValueError(f"{name} must be an array, got {value!r}") from error
    if array.dtype.kind not in kinds or array.shape not in shapes:
        content = {"b": "booleans", "iu": "integers", "iuf": "real numbers"}[kinds]
        raise ValueError(
            f"{name} must hold {content} in the shape {' or '.join(map(str, shapes))}, "
            f"got {array.dtype} in the shape {array.shape}"
        )
    return array


def check_boolean(name: str, value: object) -> bool:
    """Return ``value`` as a bool.

    :param name: The argument's name, for the message
    :param value: What was given
    :raises ValueError: ``value`` is neither True nor False, numpy's included
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def check_choice(name: str, value: object, allowed: Sequence[str | None]) -> Any:
    """Return ``value``.

    :param name: The argument's name, for the message
    :param value: What was given
    :param allowed: The values allowed
    :raises ValueError: ``value`` is another
    """
    if not (value is None or isinstance(value, str)) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def check_seeds(seed: int | Sequence[int | None] | None, num_envs: int) -> list[int | None]:
    """Return one seed for each environment, None where it goes on with its generator.

    :param seed: An int gives environment i the seed ``seed + i``, a sequence gives each its own
    :param num_envs: The number of environments
    :raises ValueError: A seed that is no integer of at least 0, or a sequence of another length
    """
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, Sequence | np.ndarray):
        if len(seed) != num_envs:
            raise ValueError(f"seed must hold one seed for each of {num_envs} environments, got {len(seed)}")
        return [None if one is None else check_integer("seed", one, 0) for one in seed]
    first = check_integer("seed", seed, 0)
    return [first + i for i in range(num_envs)]
