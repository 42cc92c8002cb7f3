"""
The infos of Gymnasium's vector environments: a dict of arrays (num_envs, ...), each with an optional
mask under "_key" of the environments that reported "key", nested where the infos are.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

#: The entries with which SAME_STEP autoreset hands over what the reset would have hidden
FINAL_KEYS = ("final_obs", "final_info")


def entries(infos: dict[str, Any]) -> Iterator[tuple[str, Any, np.ndarray | None]]:
    """
    Walk through batched infos.

    :return: Key, values and mask, (num_envs,), or None where all environments have the key;
        without the masks' own keys and those of ``FINAL_KEYS``
    """
    for key, values in infos.items():
        if key not in FINAL_KEYS and not (key.startswith("_") and key[1:] in infos):
            yield key, values, infos.get(f"_{key}")


def metrics(infos: dict[str, Any], num_envs: int) -> Iterator[tuple[str, np.ndarray]]:
    """
    Walk through the entries that are one number for each environment.

    :return: Key and numbers, (num_envs,), 0 where an environment does not report the key
    """
    for key, values, mask in entries(infos):
        if isinstance(values, np.ndarray) and values.shape == (num_envs,) and values.dtype.kind in "biuf":
            yield key, values if mask is None else np.where(mask, values, 0)


def entries_of(values: Any, indices: Sequence[int] | np.ndarray, num_envs: int) -> list[Any]:
    """
    What a value says about some environments.

    :param values: An array or sequence of length num_envs has an entry for each environment, anything
        else holds for all
    :param indices: Which environments, (n,)
    :return: n entries, numbers as Python's own
    """
    if isinstance(values, np.ndarray) and values.ndim > 0 and len(values) == num_envs:
        chosen = values[np.asarray(indices, dtype=np.int64)]
        return chosen.tolist() if chosen.ndim == 1 else list(chosen)
    if isinstance(values, list | tuple) and len(values) == num_envs:
        return [values[i] for i in indices]
    return [values] * len(indices)


def unbatch(infos: dict[str, Any], indices: np.ndarray, num_envs: int) -> list[dict[str, Any]]:
    """
    The infos of some environments, as single environments give them.

    :param infos: Batched infos
    :param indices: Which environments, (n,)
    :return: n dicts, without the keys that their environments did not report
    """
    chosen: list[dict[str, Any]] = [{} for _ in indices]
    for key, values, mask in entries(infos):
        nested = isinstance(values, dict)
        column = unbatch(values, indices, num_envs) if nested else entries_of(values, indices, num_envs)
        present = [True] * len(indices) if mask is None else mask[indices].tolist()
        for info, value, is_present in zip(chosen, column, present, strict=True):
            if is_present:
                info[key] = value
    return chosen


def with_final_infos(infos: dict[str, Any], final: dict[str, Any], dones: np.ndarray) -> dict[str, Any]:
    """
    The infos of a step in which some environments reset themselves, as if they had not.

    With SAME_STEP autoreset ``final_info`` has what they reported at the end of their episode, and a
    masked entry outside of it comes from their reset. An entry without mask is the step's for all.

    :param infos: Batched infos of the step
    :param final: Their ``final_info``
    :param dones: The environments that reset themselves, (num_envs,)
    :return: Batched infos without ``FINAL_KEYS``
    """
    merged: dict[str, Any] = {}
    for key, values, mask in entries(infos):
        if key not in final:
            merged[key] = values
            if mask is not None:
                merged[f"_{key}"] = mask & ~dones
    for key, values, mask in entries(final):
        others, reported_before = infos.get(key), infos.get(f"_{key}", key in infos)
        if isinstance(values, dict):
            merged[key] = with_final_infos(others if isinstance(others, dict) else {}, values, dones)
        elif isinstance(others, np.ndarray) and isinstance(values, np.ndarray) and others.shape == values.shape:
            merged[key] = np.where(dones.reshape(-1, *[1] * (values.ndim - 1)), values, others)
        else:
            merged[key], reported_before = values, False
        reported = np.where(dones, True if mask is None else mask, reported_before)
        if not reported.all():
            merged[f"_{key}"] = reported
    return merged


def from_reset(infos: dict[str, Any]) -> dict[str, Any]:
    """
    What environments that reset themselves in the step (SAME_STEP) report of their reset: the masked entries.

    :param infos: Batched infos of the step
    :return: Batched infos
    """
    return {
        k: v for key, values, mask in entries(infos) if mask is not None for k, v in ((key, values), (f"_{key}", mask))
    }


def observations_of(observations: Any, indices: np.ndarray) -> list[Any]:
    """
    The observations of some environments, copied.

    :param observations: Stacked observations (num_envs, ...), a dict of these, or an object array
        (num_envs,) with an observation for each of the environments asked for
    :param indices: Which environments, (n,)
    :return: n observations
    """
    if isinstance(observations, dict):
        columns = {key: values[indices] for key, values in observations.items()}
        return [{key: column[row] for key, column in columns.items()} for row in range(len(indices))]
    chosen = observations[indices]
    return deepcopy(list(chosen)) if chosen.dtype == object else list(chosen)


def column_of(env: VecEnv, infos: list[dict[str, Any]], key: str) -> tuple[Any, list[int]]:
    """
    One entry of the infos of all environments in the step just made.

    :param env: The environments: those with ``step_infos`` (``GymnasiumVecEnv``) report there, others in ``infos``
    :param infos: One dict per environment
    :param key: The entry
    :return: Values, (num_envs, ...), None if no environment reported it; and the environments that did not
    """
    batched = getattr(env, "step_infos", None)
    if batched is None:
        missing = [i for i, info in enumerate(infos) if key not in info]
        return (None if len(missing) == len(infos) else [info.get(key) for info in infos]), missing
    mask = batched.get(f"_{key}")
    return batched.get(key), [] if mask is None else np.flatnonzero(~mask).tolist()


def ignored_steps(env: VecEnv) -> np.ndarray:
    """
    Which environments ignored the action of the step just made and only reset themselves.

    :param env: The environments: ``GymnasiumVecEnv`` tells, others have no such steps
    :return: (num_envs,), bool
    """
    return getattr(env, "ignored", np.zeros(env.num_envs, dtype=bool))


def attribute_of(env: VecEnv, name: str, default: Any) -> Any:
    """
    An attribute that all environments share.

    :param env: The environments
    :param name: Its name
    :param default: Its value where they do not have it
    """
    return env.get_attr(name)[0] if env.has_attr(name) else default
