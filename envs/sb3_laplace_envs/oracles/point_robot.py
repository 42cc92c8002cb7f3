"""The most that a point which knows its goal can earn."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_laplace_envs.arguments import check_array, check_boolean, check_integer
from sb3_laplace_envs.tasks.point_robot import GOAL_RADIUS, STEP_LENGTH


def best_point_robot_return(
    goals: NDArray[Any], episode_length: int = 100, sparse: bool = False
) -> NDArray[np.float64]:
    """The highest return of an episode of PointRobot whose goal is known.

    A step moves each axis by up to 0.1, whatever the other does, and both rewards fall with the distance along either
    axis. So the best walk brings each axis nearer by 0.1 until it is there: after t steps ``max(|goal| - 0.1 t, 0)`` is
    left of it.

    :param goals: Goals (x, y), (n, 2)
    :param episode_length: Steps in the episode
    :param sparse: Whether there is a reward near the goal only
    :return: Returns (n,)
    :raises ValueError: An argument is not what is allowed
    """
    goals = check_array("goals", goals, "iuf", (len(goals), 2)).astype(np.float64)
    steps = np.arange(1, check_integer("episode_length", episode_length, 1) + 1)
    left = np.maximum(np.abs(goals)[:, np.newaxis] - STEP_LENGTH * steps[:, np.newaxis], 0.0)
    distance = np.linalg.norm(left, axis=2)
    if check_boolean("sparse", sparse):
        return np.where(distance <= GOAL_RADIUS, 1.0 - distance, 0.0).sum(axis=1)
    return -distance.sum(axis=1)
