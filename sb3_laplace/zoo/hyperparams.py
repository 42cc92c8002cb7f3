"""Hyperparameters of a configuration or of ``-params``: names that are not known, values of the wrong type."""

import collections.abc
import difflib
import inspect
import types
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any, Union, get_args, get_origin, get_type_hints

from sb3_laplace.algorithm.losses.kl import initial_auto
from sb3_laplace.errors import InputError

#: Says where a hyperparameter comes from, for messages
Source = Callable[[str], str]

# Keywords of algorithms that RL Zoo passes itself, from the options of these names
_FROM_OPTIONS = ("device", "env", "seed", "tensorboard_log", "verbose")
_KINDS = {
    bool: "true or false",
    collections.abc.Callable: "lin_<number>",
    dict: "a dictionary",
    float: "a number",
    int: "an integer",
    str: "text",
    types.NoneType: "None",
}


def check_run(hyperparams: dict[str, Any], n_timesteps: int, source: Source) -> None:
    """Check what RL Zoo needs and takes for itself.

    :param hyperparams: the hyperparameters, as they were given
    :param n_timesteps: number of steps of the command line; none if it is not positive
    :param source: where a hyperparameter comes from
    :raises InputError: if something is missing or of no use
    """
    for name in ("policy", "n_timesteps"):
        if name not in hyperparams:
            raise InputError(f"{source(name)}: there is no {name}")
    if not isinstance(hyperparams["policy"], str):
        raise InputError(f"{source('policy')}: policy must be text, got {hyperparams['policy']!r}")
    n_envs = hyperparams.get("n_envs", 1)
    if not isinstance(n_envs, int) or n_envs < 1:
        raise InputError(f"{source('n_envs')}: n_envs must be an integer of at least 1, got {n_envs!r}")
    if n_timesteps <= 0:
        total = hyperparams["n_timesteps"]
        if not isinstance(total, Real) or total < 1:
            raise InputError(f"{source('n_timesteps')}: n_timesteps must be a number of at least 1, got {total!r}")


def check_names(algo: str, algorithm: type, names: Iterable[str], source: Source) -> None:
    """Check that an algorithm has the keywords that it is given.

    :param algo: name of the algorithm
    :param algorithm: its class
    :param names: the keywords
    :param source: where a hyperparameter comes from
    :raises InputError: if there is no such keyword, or an option sets it
    """
    keywords = [name for name in inspect.signature(algorithm).parameters if not name.startswith("_")]
    known = [name for name in keywords if name not in _FROM_OPTIONS] + ["noise_type", "noise_std"]
    for name in names:
        if name in known:
            continue
        if name in _FROM_OPTIONS:
            raise InputError(f"{source(name)}: {name} is what --{name.replace('_', '-')} sets")
        closest = difflib.get_close_matches(name, known, n=1)
        hint = f", you maybe meant {closest[0]!r}" if closest else ""
        raise InputError(f"{source(name)}: {algo} has no keyword {name!r}{hint}")


def check_schedule(name: str, value: str, source: Source) -> None:
    """Check the text of a schedule, which RL Zoo takes apart at "_".

    :param name: name of the hyperparameter
    :param value: ``lin_<number>``
    :param source: where a hyperparameter comes from
    :raises InputError: if it is no schedule
    """
    try:
        float(value.split("_")[1])
    except (IndexError, ValueError) as error:
        raise InputError(f"{source(name)}: {name} must be a number or lin_<number>, got {value!r}") from error


def check_types(algorithm: type, hyperparams: dict[str, Any], source: Source) -> None:
    """Check values against the annotations of an algorithm: it may use one only when it has trained for a while.

    :param algorithm: class of the algorithm
    :param hyperparams: its keyword arguments, with schedules made
    :param source: where a hyperparameter comes from
    :raises InputError: if a value is of another type
    """
    annotations = get_type_hints(algorithm.__init__)  # type: ignore[misc]
    for name, value in hyperparams.items():
        kinds = _members(annotations.get(name, Any))
        if not any(_is(value, kind) for kind in kinds):
            expected = " or ".join(_KINDS.get(kind, str(kind)) for kind in kinds)
            raise InputError(f"{source(name)}: {name} must be {expected}, got {value!r}")
    try:
        # The one coefficient that may be a text of its own. A search samples it, but would not say so of a wrong one.
        initial_auto(hyperparams.get("kl_coef"))
    except ValueError as error:
        raise InputError(f"{source('kl_coef')}: {error}") from error


def _members(annotation: Any) -> list[Any]:
    """Types of which an annotation is the union, without their own arguments."""
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return [get_origin(member) or member for member in members]


def _is(value: Any, kind: Any) -> bool:
    if kind in (float, int):
        return isinstance(value, Real if kind is float else Integral) and not isinstance(value, bool)
    return not isinstance(kind, type) or isinstance(value, kind)
