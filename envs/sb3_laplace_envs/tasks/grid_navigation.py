"""A grid on which an agent finds a hidden goal, and then returns to it as often as it can."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import logger, spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from sb3_laplace_envs.arguments import check_integer
from sb3_laplace_envs.tasks.batches import Infos, Observations
from sb3_laplace_envs.tasks.trials import TrialEnv, TrialVectorEnv

# Up, down, left, right, as changes of (row, column); row 0 is the top one.
MOVES = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])

RENDER_MODES = ["ansi", "rgb_array"]
CELL_PIXELS = 32
WHITE, GREY, BLUE, GREEN, RED = (255, 255, 255), (170, 170, 170), (190, 215, 245), (90, 180, 90), (215, 60, 50)


class GridNavigationVectorEnv(TrialVectorEnv):
    """A batch of grids: `GridNavigationEnv` describes the task and its arguments."""

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": RENDER_MODES,
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        trial_length: int = 100,
        size: int = 5,
        max_attempt_steps: int = 15,
        render_mode: str | None = None,
    ) -> None:
        self.size = check_integer("size", size, 2)
        self.max_attempt_steps = check_integer("max_attempt_steps", max_attempt_steps, 1)
        farthest = 2 * (self.size - 1)
        if self.max_attempt_steps < farthest:
            raise ValueError(
                f"max_attempt_steps must be at least {farthest}, the way to the farthest goal "
                f"on a grid of size {self.size}, got {max_attempt_steps}"
            )
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ValueError(f"render_mode must be None or one of {RENDER_MODES}, got {render_mode!r}")
        self.render_mode = render_mode
        super().__init__(
            num_envs,
            trial_length,
            shown=spaces.Box(0.0, 1.0, (self.size**2,)),
            action_space=spaces.Discrete(len(MOVES)),
            reward_range=(0.0, 1.0),
            task_shape=(2,),
            task_dtype=np.int64,
        )
        self._position = np.zeros((self.num_envs, 2), dtype=np.int64)
        self._attempt_steps = np.zeros(self.num_envs, dtype=np.int64)

    def _draw_trials(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        # Cell 0 is the start.
        cells = [self._seeded[i][0].integers(1, self.size**2) for i in indices.tolist()]
        return np.stack(np.divmod(cells, self.size), axis=1)

    def _start_trials(self, indices: NDArray[np.int64]) -> None:
        self._position[indices] = 0
        self._attempt_steps[indices] = 0

    def _apply(self, actions: NDArray[np.int64]) -> tuple[NDArray[np.float64], Infos]:
        position = np.clip(self._position + MOVES[actions], 0, self.size - 1)
        self._attempt_steps += 1
        reached = (position == self._task).all(axis=1)
        # The start is the origin: the shortest path to the goal has as many steps as row + column.
        excess_steps = np.where(reached, self._attempt_steps - self._task.sum(axis=1), 0)
        attempt_ends = reached | (self._attempt_steps == self.max_attempt_steps)
        position[attempt_ends] = 0
        self._attempt_steps[attempt_ends] = 0
        self._position = position
        return reached.astype(np.float64), {"goals_reached": reached.astype(np.int64), "excess_steps": excess_steps}

    def _show(self, shown: Observations) -> None:
        shown[self._rows, self._position @ (self.size, 1)] = 1.0

    def _check_task(self, task: NDArray[np.int64]) -> None:
        inside = ((task >= 0) & (task < self.size)).all()
        if not inside or (task == 0).all(axis=-1).any():
            raise ValueError(
                f"options['task'] must be a goal cell (row, column), each in 0 to {self.size - 1}, "
                f"but not the start (0, 0), got {task}"
            )

    def render(self) -> tuple[Any, ...] | None:
        """Draw each environment: text for the mode "ansi", an RGB image for "rgb_array"."""
        if self.render_mode is None:
            logger.warn("render needs a render_mode, given where the environment is made: 'ansi' or 'rgb_array'")
            return None
        if not self._has_begun:
            raise ResetNeeded("call reset before render")
        draw = self._draw_text if self.render_mode == "ansi" else self._draw_image
        return tuple(draw(i) for i in range(self.num_envs))

    def _draw_text(self, i: int) -> str:
        """Draw cells as ``.``, the start as ``S`` and the goal as ``G``, with brackets around the agent's cell."""
        cells = np.full((self.size, self.size), " . ")
        cells[0, 0] = " S "
        cells[tuple(self._task[i])] = " G "
        agent = tuple(self._position[i])
        cells[agent] = f"[{cells[agent][1]}]"
        return "\n".join("".join(row) for row in cells) + "\n"

    def _draw_image(self, i: int) -> NDArray[np.uint8]:
        """Draw a blue start, a green goal and a red disc for the agent, small enough to show its cell too."""
        image = np.empty((self.size * CELL_PIXELS + 1, self.size * CELL_PIXELS + 1, 3), dtype=np.uint8)
        image[:] = WHITE
        for (row, column), colour in (((0, 0), BLUE), (self._task[i] * CELL_PIXELS, GREEN)):
            image[row : row + CELL_PIXELS, column : column + CELL_PIXELS] = colour
        image[::CELL_PIXELS] = GREY
        image[:, ::CELL_PIXELS] = GREY
        rows, columns = np.indices(image.shape[:2])
        row, column = (self._position[i] + 0.5) * CELL_PIXELS
        image[(rows - row) ** 2 + (columns - column) ** 2 <= (0.3 * CELL_PIXELS) ** 2] = RED
        return image


class GridNavigationEnv(TrialEnv):
    """
    ## Description

    An agent on a grid looks for a goal cell that it cannot see. At the start of a trial the goal is drawn
    uniformly from all cells but the start, the top left corner. An attempt begins at the start; the agent
    is put back there when it reaches the goal or after `max_attempt_steps` steps, and a new attempt begins.
    The goal stays where it is until the trial's end, so an agent that has found it can return to it on the
    shortest path.

    ## Action Space

    `Discrete(4)`: a move by one cell; a move into a wall leaves the agent where it is.

    - 0: up
    - 1: down
    - 2: left
    - 3: right

    ## Observation Space

    `Box`, float32, of shape `(size**2 + 6,)`:

    | index | content | range |
    | --- | --- | --- |
    | 0 ... size**2 - 1 | the agent's cell `row * size + column`, one-hot | 0 or 1 |
    | size**2 ... size**2 + 3 | previous action, one-hot (zeros on the first step of a trial) | 0 or 1 |
    | size**2 + 4 | previous reward (0 on the first step) | 0 or 1 |
    | size**2 + 5 | 1 on the first step of a trial | 0 or 1 |

    Where the step ended an attempt, the cell shown is the start, to which the agent was put back. So an agent
    never sees itself in the goal: on reaching it, it sees the start and a reward.

    ## Rewards

    1 on reaching the goal, else 0.

    ## Episode End

    Truncation after `trial_length` steps.

    ## Info

    - `goals_reached`: 1 where this step reached the goal, else 0. Summed over a trial: the goals reached.
    - `excess_steps`: where this step reached the goal, the steps of the attempt that it ends less those of
      the shortest path from the start to the goal, else 0. Attempts that failed do not count.

    ## Arguments

    ```python
    gymnasium.make("sb3_laplace/GridNavigation-v0", trial_length=100, size=5, max_attempt_steps=15)
    gymnasium.make_vec("sb3_laplace/GridNavigation-v0", num_envs=256)
    ```

    - `trial_length`: steps in a trial.
    - `size`: cells along each side, at least 2.
    - `max_attempt_steps`: steps in an attempt, at least `2 * (size - 1)`, so that every goal is in reach.
    - `render_mode`: `"ansi"` (text), `"rgb_array"` (an image) or None.

    `reset(options={"task": (row, column)})` fixes the goal until the next reset: `(2,)`, or `(num_envs, 2)`
    for a batch, integers. The attribute `task` holds the goal of the present trial in the same shape.

    ## Version History

    * v0: Initial version
    """

    metadata: dict[str, Any] = {"render_modes": RENDER_MODES, "render_fps": 4}  # noqa: RUF012
    vector_env_type = GridNavigationVectorEnv
