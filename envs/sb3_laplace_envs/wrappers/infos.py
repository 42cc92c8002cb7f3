"""Batched infos: arrays (num_envs, ...) with a mask "_key" of the environments that report "key", nested in dicts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Infos = dict[str, Any]
Mask = NDArray[np.bool_]


def _entries(infos: Infos, num_envs: int) -> Iterator[tuple[str, Any, Mask]]:
    """Keys, values and which environments report them, without the masks' own keys."""
    for key, values in infos.items():
        if not (key.startswith("_") and key[1:] in infos):
            yield key, values, infos.get(f"_{key}", np.ones(num_envs, dtype=np.bool_))


def without(infos: Infos, key: str) -> Infos:
    """The infos without an entry."""
    return {name: values for name, values in infos.items() if name not in (key, f"_{key}")}


def restrict(infos: Infos, mask: Mask) -> Infos:
    """The infos of some environments.

    :param infos: Batched infos
    :param mask: Which, (num_envs,)
    """
    restricted: Infos = {}
    for key, values, reported in _entries(infos, len(mask)):
        if (reported & mask).any():
            restricted[key] = restrict(values, mask) if isinstance(values, dict) else values
            restricted[f"_{key}"] = reported & mask
    return restricted


def fill(infos: Infos, others: Infos, mask: Mask) -> Infos:
    """The infos, and for some environments what they do not report but others do.

    :param infos: Batched infos
    :param others: Batched infos
    :param mask: Which environments' infos are filled in, (num_envs,)
    """
    filled = dict(infos)
    for key, values, reported in _entries(others, len(mask)):
        present = infos.get(f"_{key}", np.full(len(mask), key in infos))
        known = infos.get(key)
        if isinstance(values, dict):
            merged = fill(known if isinstance(known, dict) else {}, values, mask & reported)
            present = present if isinstance(known, dict) else np.zeros_like(present)
        else:
            missing = mask & reported & ~present
            merged = _put(known if present.any() else None, values, missing)
        if (mask & reported & ~present).any():
            filled[f"_{key}"] = present | (mask & reported)
            if filled[f"_{key}"].all() and f"_{key}" not in infos and key in infos:
                del filled[f"_{key}"]
        if merged is not None and (merged is not known or key not in filled):
            filled[key] = merged
    return filled


def _put(known: Any, values: Any, rows: Mask) -> Any:
    """The known values with others in some rows; None where there are none."""
    if not rows.any():
        return known
    if not isinstance(values, np.ndarray):
        return values
    if not isinstance(known, np.ndarray) or known.shape != values.shape:
        known = np.zeros_like(values)
    return np.where(rows.reshape(-1, *[1] * (values.ndim - 1)), values, known)
