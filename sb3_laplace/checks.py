"""Checks of what a user passes in, each with an error that names the argument and what is allowed."""

from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_laplace_envs.arguments import check_integer, check_not_negative, check_positive

__all__ = [
    "MASKED_SPACES",
    "check_action_masks",
    "check_choice",
    "check_integer",
    "check_no_nan",
    "check_not_negative",
    "check_observation_space",
    "check_positive",
    "check_state",
    "is_masked_out",
    "is_no_choice",
]

#: Action spaces whose actions can be masked, as MaskablePPO has them
MASKED_SPACES = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


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


def _choice_sizes(space: spaces.Space) -> np.ndarray:
    """Numbers of values of the choices that an action is made of, in the order in which sb3-contrib masks them."""
    if isinstance(space, spaces.MultiBinary):
        return np.full(int(np.prod(space.shape)), 2)
    return np.ravel(space.nvec if isinstance(space, spaces.MultiDiscrete) else space.n)  # type: ignore[attr-defined]


def check_action_masks(masks: Any, space: spaces.Space, n_envs: int, where: str = "") -> np.ndarray:
    """Masks of actions as sb3-contrib has them: True, or 1, for what is allowed.

    A mask lists the values of a Discrete action, or of all choices of a MultiDiscrete one after another; of each bit of
    a MultiBinary one the values 0 and 1.

    :param masks: shape (n_envs, n), or (n,) of one environment; booleans, or integers 0 and 1
    :param space: action space
    :param n_envs: number of environments
    :param where: where they come from, for the message
    :return: booleans, shape (n_envs, n)
    :raises ValueError: if actions of the space cannot be masked, the shape or the type is another, or an environment is
        left without a valid action; it names the first environment concerned
    """
    if not isinstance(space, MASKED_SPACES):
        raise ValueError(f"action_masks are for Discrete, MultiDiscrete and MultiBinary actions, got {space}.")
    sizes = _choice_sizes(space)
    shape = (n_envs, int(sizes.sum()))
    try:
        array = np.asarray(masks)
    except ValueError:
        shapes = [np.shape(mask) for mask in masks]
        raise ValueError(f"action_masks{where} must have shape {shape} for {space}, got {shapes}.") from None
    if array.shape == shape[1:] and n_envs == 1:
        array = array[np.newaxis]
    if array.shape != shape:
        raise ValueError(f"action_masks{where} must have shape {shape} for {space}, got {array.shape}.")
    if array.dtype.kind not in "biu" or (array.dtype.kind != "b" and ((array != 0) & (array != 1)).any()):
        raise ValueError(
            f"action_masks{where} must be booleans, or integers 0 and 1, got {array.dtype} such as {array.flat[0]!r}."
        )
    array = array.astype(bool)
    is_possible = np.logical_or.reduceat(array, np.cumsum(sizes) - sizes, axis=1)
    if not is_possible.all():
        env, choice = np.argwhere(~is_possible)[0]
        of_choice = f" for choice {choice}" if len(sizes) > 1 else ""
        raise ValueError(f"action_masks{where} leave environment {env} without one valid action{of_choice} of {space}.")
    return array


def is_masked_out(actions: np.ndarray, masks: np.ndarray, space: spaces.Space) -> np.ndarray:
    """Which environments' actions their masks do not allow, shape (n,), bool.

    :param actions: actions counted from 0, shape (n, *space.shape)
    :param masks: as :func:`check_action_masks` returns them, shape (n, .)
    :param space: action space
    """
    sizes = _choice_sizes(space)
    columns = actions.reshape(len(actions), -1).astype(np.int64) + (np.cumsum(sizes) - sizes)
    return np.logical_not(np.take_along_axis(masks, columns, axis=1)).any(axis=1)


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
