"""A point in a plane that looks for a hidden goal on a semicircle."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_laplace_envs.arguments import check_boolean, check_choice
from sb3_laplace_envs.tasks.episodes import EpisodeEnv, EpisodeVectorEnv, Outcome

STEP_LENGTH = 0.1
GOAL_RADIUS = 0.2

IMAGE_PIXELS = 192
IMAGE_HALF_WIDTH = 1.5  # the image shows -1.5 to 1.5 along x and along y
WHITE, GREY, GREEN, RED = (255, 255, 255), (170, 170, 170), (90, 180, 90), (215, 60, 50)


class PointRobotVectorEnv(EpisodeVectorEnv):
    """A batch of points: `PointRobotEnv` describes the task and its arguments."""

    def __init__(
        self,
        num_envs: int = 1,
        episode_length: int = 100,
        sparse: bool = False,
        task_in_observation: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.sparse = check_boolean("sparse", sparse)
        self.render_mode = check_choice("render_mode", render_mode, (None, "rgb_array"))
        super().__init__(num_envs, episode_length, 2, 2, (2,), task_in_observation)
        self._position = np.zeros((self.num_envs, 2))

    def sample_tasks(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw tasks as a reset does.

        :param n: How many
        :param rng: The generator to draw from
        :return: Goals (x, y), (n, 2)
        """
        angles = rng.uniform(0.0, np.pi, n)
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)

    def _start_episodes(self, indices: NDArray[np.int64]) -> None:
        self._position[indices] = 0.0

    def _apply(self, actions: NDArray[np.float64]) -> Outcome:
        self._position = self._position + STEP_LENGTH * actions
        distance = np.linalg.norm(self._position - self._task, axis=1)
        rewards = np.where(distance <= GOAL_RADIUS, 1.0 - distance, 0.0) if self.sparse else -distance
        never = np.zeros(self.num_envs, dtype=np.bool_)
        return Outcome(rewards, never, never.copy(), {"distance": distance})

    def _show(self) -> NDArray[np.float64]:
        return self._position

    def _check_task(self, task: NDArray[Any]) -> None:
        if not np.isfinite(task).all():
            raise ValueError(f"options['task'] must be a finite goal (x, y), got {task}")

    def _draw(self, i: int) -> NDArray[np.uint8]:
        """Draw the semicircle, a green goal and a red disc for the agent, at the edge where it is farther out."""
        axis = ((np.arange(IMAGE_PIXELS) + 0.5) / IMAGE_PIXELS * 2.0 - 1.0) * IMAGE_HALF_WIDTH
        x, y = np.meshgrid(axis, -axis)  # the first row of an image is its top
        image = np.full((IMAGE_PIXELS, IMAGE_PIXELS, 3), WHITE, dtype=np.uint8)
        image[(np.abs(np.hypot(x, y) - 1.0) < 0.01) & (y >= 0.0)] = GREY
        agent = np.clip(self._position[i], -IMAGE_HALF_WIDTH, IMAGE_HALF_WIDTH)
        for centre, radius, colour in ((self._task[i], GOAL_RADIUS, GREEN), (agent, 0.06, RED)):
            image[np.hypot(x - centre[0], y - centre[1]) <= radius] = colour
        return image


class PointRobotEnv(EpisodeEnv):
    """
    ## Description

    A point in the plane looks for a goal that it cannot see. The goal lies on the upper half of the unit circle, its
    angle drawn uniformly at each reset; the point starts in the circle's centre. The reward is all that says where
    the goal is: the distance to it, or, with `sparse`, nothing until the point is close.

    ## Action Space

    `Box(-1, 1, (2,), float32)`: the move along x and y, in tenths.

    ## Observation Space

    `Box`, float32, of shape `(2,)`, or `(4,)` with `task_in_observation`:

    | index | content |
    | --- | --- |
    | 0, 1 | the position (x, y) |
    | 2, 3 | the goal (x, y), with `task_in_observation` |

    The plane has no walls.

    ## Rewards

    With d the distance to the goal after the move `position + 0.1 * action`: `-d`. With `sparse`: `1 - d` where d is at
    most 0.2, else 0.

    ## Starting State

    The position is (0, 0).

    ## Episode End

    Truncation after `episode_length` steps.

    ## Info

    - `distance`: d.

    ## Arguments

    ```python
    PointRobotEnv(episode_length=100, sparse=False, task_in_observation=False, render_mode=None)
    PointRobotVectorEnv(num_envs=128)
    ```

    - `episode_length`: steps in an episode.
    - `sparse`: reward only near the goal.
    - `task_in_observation`: show the goal at the end of the observation.
    - `render_mode`: `"rgb_array"` (an image) or None.

    `reset(options={"task": (x, y)})` fixes the goal until the next reset: `(2,)`, or `(num_envs, 2)` for a batch, any
    finite point. The attribute `task` holds the present goal in the same shape; `sample_tasks(n, rng)` draws goals,
    `(n, 2)`.

    ## Version History

    * v0: Initial version
    """

    vector_env_type = PointRobotVectorEnv
