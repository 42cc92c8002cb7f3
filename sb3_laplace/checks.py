"""Checks of what a user passes in, each with an error that names the argument and what is allowed."""

from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_laplace_envs.arguments import check_integer, check_not_negative, check_positive

__all__ = [
    "check_choice",
    "check_integer",
    "check_no_nan",
    "check_not_negative",
    "check_observation_space",
    "check_positive",
    "check_state",
    "is_no_choice",
]


def check_choice(name: str, value: Any, choices: tuple[str | None, ...]) -> None:
    """Check that an argument is one of a few.

    :raises ValueError: naming the argument
    """
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}.")


def is_no_choice(actions: np.ndarray, space: spaces.Space) -> np.ndarray:
    """Which numbers are no action of a discrete space as SB3 has them: counted from 0, whatever the space starts at.

    :param actions: numbers, shape (n, *space.shape)
    :param space: Discrete, MultiDiscrete or MultiBinary
    :return: booleans of the same shape
    """
    most: Any = 2 if isinstance(space, spaces.MultiBinary) else getattr(space, "nvec", getattr(space, "n", 0))
    return (actions < 0) | (actions >= most) | (actions % 1 != 0)


def check_no_nan(
    observation: np.ndarray | dict[str, np.ndarray] | tuple | None, where: str = "", infinity_too: bool = False
) -> None:
    """Refuse observations with NaN.

    :param observation: observations of one environment or of several
    :param where: where they come from, for the message
    :param infinity_too: refuse infinity too; a features extractor may clip it
    :raises ValueError: naming the key (of a Dict space) and the first index concerned
    """
    parts = observation.items() if isinstance(observation, dict) else [("", observation)]
    for key, value in parts:
        array = np.asarray(value)
        if array.dtype.kind != "f":
            continue
        refused = ~np.isfinite(array) if infinity_too else np.isnan(array)
        if refused.any():
            of_key = f" (key {key!r})" if key else ""
            first = tuple(int(i) for i in np.argwhere(refused)[0])
            what = "NaN" if np.isnan(array[first]) else "infinity"
            raise ValueError(
                f"observation{of_key}{where} holds {what}, first at index {first}; check the environment's output."
            )


def check_observation_space(space: spaces.Space) -> None:
    """Refuse observation spaces that Stable-Baselines3 cannot turn into tensors.

    :param space: observation space
    :raises ValueError: naming the part concerned
    """
    for key, part in space.spaces.items() if isinstance(space, spaces.Dict) else [("", space)]:
        # Dict spaces inside of Dict spaces too
        if not isinstance(part, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
            of_key = f" under key {key!r}" if key else ""
            raise ValueError(
                f"the observation space holds {part}{of_key}, which no policy reads: drop, encode or flatten it with a "
                "wrapper (gymnasium.wrappers.FilterObservation, TransformObservation, FlattenObservation)."
            )


def check_state(state: Any, shapes: list[tuple[int, ...]], n_envs: int | None) -> None:
    """Check a recurrent state that was passed to ``predict``.

    :param state: a tuple of arrays, each (layers or 1, n_envs, ...)
    :param shapes: their shapes for one environment; a dimension of size 0 is one that grows
    :param n_envs: number of environments, None for as many as the state has
    :raises ValueError: if the number of arrays or a shape is wrong
    """
    if not isinstance(state, (tuple, list)) or len(state) != len(shapes):
        got = f"{len(state)} arrays" if isinstance(state, (tuple, list)) else type(state).__name__
        raise ValueError(
            f"state must be the tuple of {len(shapes)} arrays that predict() of this policy returns, got {got}."
        )
    if n_envs is None:
        n_envs = np.shape(state[0])[1] if np.ndim(state[0]) >= 2 else 1
    for index, (array, one) in enumerate(zip(state, shapes, strict=True)):
        found = np.shape(array)
        expected = (one[0], n_envs, *one[2:])
        if len(found) == len(expected):
            expected = tuple(actual if size == 0 else size for actual, size in zip(found, expected, strict=True))
        if found != expected:
            raise ValueError(
                f"state[{index}] must have shape {expected}, got {found}: is it of another policy, "
                "or of another number of environments?"
            )
