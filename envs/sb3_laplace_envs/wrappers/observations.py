"""The agent's view of a trial: what the environment shows, joined with the fields of the trial."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_laplace_envs.wrappers.fields import Block, TrialFields


class TrialObservations:
    """Joins observations and the fields of a trial, of one environment or of a batch.

    - A Box becomes one flat float32 Box: the observation's numbers, then the fields.
    - An image (a uint8 Box of two or more dimensions), Discrete and every other space becomes a Dict: the
      observation under ``"observation"``, each field under its own name. A Dict keeps its own keys and is
      given the fields'; the parts of a Tuple stand under ``"observation_0"``, ``"observation_1"``, ...

    :param space: What one environment shows
    :param fields: The fields of the trial
    :raises ValueError: A Dict has a field's key already
    """

    def __init__(self, space: spaces.Space[Any], fields: TrialFields) -> None:
        self._inner = space
        self._fields = fields
        self._is_flat = isinstance(space, spaces.Box) and not (space.dtype == np.uint8 and len(space.shape) >= 2)
        self.space: spaces.Space[Any]
        if self._is_flat:
            assert isinstance(space, spaces.Box)
            low, high = (bound.astype(np.float32).ravel() for bound in (space.low, space.high))
            self.space = spaces.Box(np.concatenate([low, fields.low]), np.concatenate([high, fields.high]))
            return
        shown = self._parts(space)
        taken = sorted(set(shown) & set(fields.spaces))
        if taken:
            raise ValueError(f"env must not have observations under {taken}, the names of the trial's own")
        self.space = spaces.Dict({**shown, **fields.spaces})

    def _parts(self, observation: Any) -> dict[str, Any]:
        """What stands under its own key: of an observation, a batch of them, or their space."""
        if isinstance(self._inner, spaces.Dict):
            return dict(observation.items())
        if isinstance(self._inner, spaces.Tuple):
            return {f"observation_{i}": part for i, part in enumerate(observation)}
        return {"observation": observation}

    def join(self, observations: Any, block: Block) -> Any:
        """The agent's view, in new arrays where it is flat.

        :param observations: An observation, or a batch of them
        :param block: Its fields, (width,), or theirs, (num_envs, width): the view keeps parts of it
        """
        if not self._is_flat:
            return {**self._parts(observations), **{key: block[..., part] for key, part in self._fields.slices.items()}}
        shown = np.asarray(observations, dtype=np.float32)
        n_shown = self.space.shape[0] - block.shape[-1]  # type: ignore[index]
        return np.concatenate([shown.reshape(*block.shape[:-1], n_shown), block], axis=-1)


def row_of(space: spaces.Space[Any], observations: Any, row: int) -> Any:
    """The observation of one environment out of a batch.

    :param space: The space of one
    :param observations: A batch
    :param row: The environment
    """
    if isinstance(space, spaces.Dict):
        return {key: row_of(part, observations[key], row) for key, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(row_of(part, observations[i], row) for i, part in enumerate(space))
    return observations[row].copy() if isinstance(observations, np.ndarray) else observations[row]


def choose(space: spaces.Space[Any], mask: NDArray[np.bool_], chosen: Any, others: Any) -> Any:
    """A batch with the observations of two.

    :param space: The space of one observation
    :param mask: Which environments' are those of ``chosen``, (num_envs,)
    :param chosen: A batch
    :param others: A batch
    """
    if isinstance(space, spaces.Dict):
        return {key: choose(part, mask, chosen[key], others[key]) for key, part in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(choose(part, mask, chosen[i], others[i]) for i, part in enumerate(space))
    if isinstance(others, np.ndarray):
        return np.where(mask.reshape(-1, *[1] * (others.ndim - 1)), chosen, others)
    return tuple(one if is_chosen else other for is_chosen, one, other in zip(mask, chosen, others, strict=True))


def are_equal(one: Any, other: Any, rows: NDArray[np.bool_]) -> bool:
    """Whether two batches have the same observations in some environments, (num_envs,)."""
    if isinstance(one, dict):
        return all(are_equal(part, other[key], rows) for key, part in one.items())
    if isinstance(one, tuple):
        # Of a Tuple, or of a space that is not stacked: then there is an entry for each environment
        return len(one) == len(rows) or all(are_equal(part, other[i], rows) for i, part in enumerate(one))
    return np.array_equal(one[rows], other[rows], equal_nan=one.dtype.kind == "f")
