"""A model's settings as JSON, from which it is built again without running code that a file brings along.

SB3 saves what is no tensor by pickling it, and unpickling runs whatever the file says. Beside that, our zips hold
``sb3_laplace.json``: the arguments of the algorithm, its spaces and its counters, made of numbers, text, lists and the
names of a few known classes. Anything else is refused, when it is read as when it is written. (What a file may ask for
is memory: sizes are not bounded.)
"""

import inspect
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import stable_baselines3.common.torch_layers as sb3_layers
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import open_path
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from torch import nn

import sb3_laplace.cores as our_cores
import sb3_laplace.policies as our_policies
import sb3_laplace.posteriors as our_posteriors

#: Name of the settings in a zip
MEMBER = "sb3_laplace.json"
_FORMAT = 1
# Attributes beside the constructor's arguments that make the model what it is
_STATE = ("num_timesteps", "_n_updates", "_episode_num", "_total_timesteps", "_current_progress_remaining", "n_envs")
_OWN_STATE = (
    "posterior_settings",
    "has_reward_decoder",
    "settled_latent_dim",
    "was_normalized",
    "kl_multiplier",
    "prior_narrowed",
    "use_masking",
)
# Arguments of the constructor that are the reader's to choose
_NOT_SETTINGS = ("self", "policy", "env", "device", "_init_setup_model", "verbose", "tensorboard_log")
#: Attributes that hold arguments of the constructor under another name
ATTRIBUTES = {"stats_window_size": "_stats_window_size", "policy": "policy_class"}


def _classes(module: Any, parent: type) -> dict[str, type]:
    """Classes of a kind that a module offers, by a name that says where they are from."""
    found = {name: value for name, value in vars(module).items() if isinstance(value, type)}
    return {f"{module.__name__}.{name}": value for name, value in found.items() if issubclass(value, parent)}


#: Classes that may stand in settings
KNOWN_CLASSES: dict[str, type] = {
    **_classes(nn, nn.Module),
    **_classes(th.optim, th.optim.Optimizer),
    **_classes(sb3_layers, sb3_layers.BaseFeaturesExtractor),
    **_classes(our_cores, our_cores.Core),
    **_classes(our_posteriors, our_posteriors.LatentPosterior),
    **_classes(our_policies, nn.Module),
}
# Schedules of SB3's, and the attributes that hold their arguments
_SCHEDULES: dict[type, tuple[str, ...]] = {
    FloatSchedule: ("value_schedule",),
    LinearSchedule: ("start", "end", "end_fraction"),
    ConstantSchedule: ("val",),
}
_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Dict)


# What the file holds, and of which kind some settings have to be
_DOCUMENT = ("format", "settings", "missing", "approximated")
_KINDS: dict[str, type | tuple[type, ...]] = {
    "observation_space": _SPACES,
    "action_space": _SPACES,
    "policy": type,
    "policy_kwargs": dict,
    "posterior_settings": dict,
    "n_envs": int,
}


class NotPlainError(ValueError):
    """A setting is made of something that JSON and :data:`KNOWN_CLASSES` do not cover."""


# -- values -------------------------------------------------------------------------------------------------


def encode(value: Any, name: str = "value") -> Any:
    """A setting in what JSON can hold: what is no number, text or list becomes ``{kind: content}``.

    :param value: the setting
    :param name: its name, for the message
    :raises NotPlainError: naming what cannot be written
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return {"array": _encode_array(value)}
    if isinstance(value, (list, tuple)):
        items = [encode(item, f"{name}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: encode(item, f"{name}[{key!r}]") for key, item in value.items()}}
    if isinstance(value, type):
        for known, its_class in KNOWN_CLASSES.items():
            if value is its_class:
                return {"class": known}
    if type(value) in _SPACES:
        return {"space": [type(value).__name__, encode(_arguments_of(value), name)]}
    if type(value) in _SCHEDULES:
        arguments = [encode(getattr(value, argument), name) for argument in _SCHEDULES[type(value)]]
        return {"schedule": [type(value).__name__, arguments]}
    raise NotPlainError(f"{name} = {value!r} (a {type(value).__name__})")


def _encode_array(value: np.ndarray) -> list[Any]:
    # Bounds are mostly one number, which images have by the ten thousand
    same = value.size > 0 and bool((value == value.flat[0]).all())
    return [value.flat[0].item() if same else value.tolist(), list(value.shape), value.dtype.str]


def _arguments_of(space: spaces.Space) -> dict[str, Any]:
    if isinstance(space, spaces.Box):
        return {"low": space.low, "high": space.high, "dtype": space.dtype.str}
    if isinstance(space, spaces.Discrete):
        return {"n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"nvec": space.nvec, "start": space.start, "dtype": space.dtype.str}
    if isinstance(space, spaces.MultiBinary):
        return {"n": space.n if isinstance(space.n, int) else [int(size) for size in space.n]}
    assert isinstance(space, spaces.Dict)
    return {"spaces": {"keys": list(space.spaces), "parts": list(space.spaces.values())}}


def decode(content: Any) -> Any:
    """What :func:`encode` wrote. Nothing is looked up by a name that is not in the tables of this module.

    :param content: from JSON
    :raises ValueError: if it holds anything else
    """
    if content is None or isinstance(content, (bool, int, float, str)):
        return content
    if isinstance(content, list):
        return [decode(item) for item in content]
    if isinstance(content, dict) and len(content) == 1:
        ((kind, inner),) = content.items()
        if kind in _DECODERS:
            return _DECODERS[kind](inner)
    raise ValueError(f"{str(content)[:200]} is no setting that this version knows")


def _decode_array(inner: Any) -> np.ndarray:
    content, shape, dtype = inner
    type_ = np.dtype(dtype)
    if type_.kind not in "biuf":
        raise ValueError(f"arrays of {dtype!r} are no setting")
    return np.broadcast_to(np.asarray(content, dtype=type_), shape).copy()


def _decode_class(inner: Any) -> type:
    if inner not in KNOWN_CLASSES:
        raise ValueError(f"the class {inner!r} is not among those that settings may name")
    return KNOWN_CLASSES[inner]


def _decode_space(inner: Any) -> spaces.Space:
    name, content = inner
    arguments = decode(content)
    if name == "Box":
        return spaces.Box(arguments["low"], arguments["high"], dtype=np.dtype(arguments["dtype"]).type)
    if name == "Discrete":
        return spaces.Discrete(arguments["n"], start=arguments["start"])
    if name == "MultiDiscrete":
        return spaces.MultiDiscrete(arguments["nvec"], np.dtype(arguments["dtype"]).type, start=arguments["start"])
    if name == "MultiBinary":
        return spaces.MultiBinary(arguments["n"])
    if name == "Dict":
        parts = arguments["spaces"]
        return spaces.Dict(dict(zip(parts["keys"], parts["parts"], strict=True)))
    raise ValueError(f"{name!r} is no space that settings may hold")


def _decode_schedule(inner: Any) -> Any:
    name, arguments = inner
    known = {schedule.__name__: schedule for schedule in _SCHEDULES}
    if name not in known:
        raise ValueError(f"{name!r} is no schedule that settings may hold")
    return known[name](*decode(arguments))


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "array": _decode_array,
    "tuple": lambda inner: tuple(decode(item) for item in inner),
    "dict": lambda inner: {key: decode(item) for key, item in inner.items()},
    "class": _decode_class,
    "space": _decode_space,
    "schedule": _decode_schedule,
}


# -- models -------------------------------------------------------------------------------------------------


def _names_of(algorithm: type[BaseAlgorithm]) -> list[str]:
    """What settings hold: arguments of the constructor, and attributes beside them.

    A subclass may have a constructor that passes on what it does not name: its parents' are looked at too.
    """
    arguments: dict[str, None] = {}
    for one in algorithm.__mro__:
        if "__init__" in vars(one) and issubclass(one, BaseAlgorithm):
            for parameter in inspect.signature(one.__init__).parameters.values():
                if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                    arguments[parameter.name] = None
        if one.__module__.startswith("sb3_laplace."):
            # Those of SB3's own classes are ours
            break
    names = [name for name in arguments if name not in _NOT_SETTINGS]
    return [*names, *_STATE, *_OWN_STATE, "observation_space", "action_space", "policy"]


def settings_of(model: BaseAlgorithm) -> dict[str, Any]:
    """All settings of a model, encoded.

    A schedule that is a function of the user's own is written as its present value, and named under "approximated":
    predictions do not depend on it. What else cannot be written is named under "missing".

    :param model: the model
    """
    attributes = {name: ATTRIBUTES.get(name, name) for name in _names_of(type(model))}
    values = {name: getattr(model, attribute) for name, attribute in attributes.items() if hasattr(model, attribute)}
    encoded: dict[str, Any] = {}
    missing = [f"{name} (the model has no attribute of this name)" for name in attributes if name not in values]
    approximated: list[str] = []
    for name, value in values.items():
        try:
            encoded[name] = encode(value, name)
        except NotPlainError as error:
            if callable(value) and not isinstance(value, type):
                # A schedule still: it may have come to a value that is refused as a number
                present = float(value(max(0.0, model._current_progress_remaining)))
                encoded[name] = encode(ConstantSchedule(present), name)
                approximated.append(name)
            else:
                missing.append(str(error))
    return {"format": _FORMAT, "settings": encoded, "missing": missing, "approximated": approximated}


def add_to_zip(buffer: io.BytesIO, model: BaseAlgorithm) -> None:
    """Write a model's settings into the zip that SB3 has made of it.

    :param buffer: the zip
    :param model: the model
    """
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(MEMBER, json.dumps(settings_of(model)))


def read_settings(
    path: str | Path | io.BufferedIOBase, algorithm: type[BaseAlgorithm]
) -> tuple[dict[str, Any], list[str]]:
    """The settings in a zip; nothing in it is run.

    :param algorithm: the class of the model
    :param path: path of the zip, with or without its ending, or a file object
    :return: settings by name, and the names of schedules that are only the values they had when it was saved
    :raises ValueError: if there are none, or they are incomplete or hold what settings may not
    """
    file = open_path(path, "r", verbose=0, suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            if MEMBER not in archive.namelist():
                raise ValueError(
                    f"{path} holds no settings that can be read without running its code: it was saved by an earlier "
                    "version, or by another algorithm. If you trust the file, load it without weights_only and save it."
                )
            document = json.loads(archive.read(MEMBER))
        version, encoded, missing, approximated = (document[name] for name in _DOCUMENT)
        if version != _FORMAT:
            raise ValueError(f"{path} has settings of format {version!r}, this version reads {_FORMAT}.")
        if missing:
            raise ValueError(
                f"{path} cannot be loaded with weights_only, as its settings hold what is no plain value: "
                f"{'; '.join(missing)}. If you trust the file, load it without weights_only."
            )
        names = _names_of(algorithm)
        if set(encoded) != set(names):
            raise ValueError(
                f"{path} holds settings that this version does not know: {sorted(set(encoded) - set(names))}; "
                f"or lacks some: {sorted(set(names) - set(encoded))}."
            )
        values = {}
        for name, content in encoded.items():
            try:
                values[name] = decode(content)
            except ValueError as error:
                raise ValueError(f"{path} holds settings whose {name} cannot be read: {error}") from error
        for name, kind in _KINDS.items():
            if not isinstance(values[name], kind):
                raise ValueError(f"{path} holds settings whose {name} is {values[name]!r}.")
    except (KeyError, TypeError, AttributeError, RecursionError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} holds no settings of this version ({type(error).__name__}: {error}).") from error
    finally:
        if isinstance(path, (str, Path)):
            file.close()
        else:
            path.seek(0)
    return values, list(approximated)
