"""What all batches of environments do alike: the options of a reset, and the infos where episodes ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_laplace_envs.arguments import check_array


def check_reset_options(
    options: dict[str, Any], tasks: NDArray[Any], check_task: Callable[[NDArray[Any]], None]
) -> tuple[NDArray[np.bool_], NDArray[Any] | None]:
    """Return which environments to reset, (num_envs,), and their tasks in the shape of ``tasks`` where given.

    :param options: ``"reset_mask"`` and ``"task"``, both optional
    :param tasks: The present tasks (num_envs, \\*task_shape), for the shape and the dtype
    :param check_task: Raises ValueError where the values of a task, or of a batch of tasks, are not allowed
    :raises ValueError: Other options, or values that are not allowed
    """
    unknown = sorted(set(options) - {"task", "reset_mask"})
    if unknown:
        raise ValueError(f"options must be 'task' or 'reset_mask', got {unknown}")
    mask = np.ones(len(tasks), dtype=np.bool_)
    if options.get("reset_mask") is not None:
        mask = check_array("options['reset_mask']", options["reset_mask"], "b", (len(tasks),))
        if not mask.any():
            raise ValueError("options['reset_mask'] must select at least one environment, got none")
    if options.get("task") is None:
        return mask, None
    kinds = "iu" if tasks.dtype.kind == "i" else "iuf"
    task = check_array("options['task']", options["task"], kinds, tasks.shape[1:], tasks.shape)
    check_task(task)
    return mask, np.broadcast_to(task, tasks.shape)


def final_infos(ended: NDArray[np.bool_], observations: NDArray[Any], metrics: dict[str, Any]) -> dict[str, Any]:
    """Return what a batch that resets itself in the same step says of the episodes that ended, as Gymnasium's do.

    :param ended: Where an episode ended, (num_envs,)
    :param observations: The observations after the step and before the reset, (num_envs, ...)
    :param metrics: The metrics of the step, arrays (num_envs,)
    :return: ``final_obs`` (an object array, None where the episode goes on), ``final_info`` and the masks
    """
    final_info: dict[str, Any] = {}
    for key, metric in metrics.items():
        final_info[key] = np.where(ended, metric, 0)
        final_info[f"_{key}"] = ended.copy()
    final_obs = np.full(len(ended), None, dtype=object)
    for i, observation in zip(np.flatnonzero(ended).tolist(), observations[ended], strict=True):
        final_obs[i] = observation
    return {
        "final_obs": final_obs,
        "_final_obs": ended.copy(),
        "final_info": final_info,
        "_final_info": ended.copy(),
    }
