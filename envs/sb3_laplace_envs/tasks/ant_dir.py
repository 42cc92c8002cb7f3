"""An ant with four legs that finds out which way to run."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_laplace_envs.arguments import check_choice
from sb3_laplace_envs.tasks.batches import Infos
from sb3_laplace_envs.tasks.episodes import EpisodeEnv
from sb3_laplace_envs.tasks.mujoco_vector_env import MujocoVectorEnv

CONTROL_COST, CONTACT_COST, SURVIVAL_REWARD = 0.5, 0.0005, 1.0
# A torso below or above this has fallen over or taken off
MIN_HEIGHT, MAX_HEIGHT = 0.2, 1.0
TORSO, HEIGHT = 1, 3  # the body's number in the model, the height's place in a state


class AntDirVectorEnv(MujocoVectorEnv):
    """A batch of ants: `AntDirEnv` describes the task and its arguments."""

    asset = "ant.xml"
    n_hidden_positions = 2

    def __init__(
        self,
        num_envs: int = 1,
        episode_length: int = 200,
        directions: str = "forward_backward",
        task_in_observation: bool = False,
        render_mode: str | None = None,
        num_threads: int | None = None,
    ) -> None:
        self.directions = check_choice("directions", directions, ("forward_backward", "circle"))
        task_shape = (2,) if self.directions == "circle" else (1,)
        super().__init__(num_envs, episode_length, task_shape, task_in_observation, render_mode, num_threads)
        # Where Gymnasium sees the torso, (num_envs, 2), before and after a control step
        self._torso = self._states[:, 1:3].copy()
        self._next_torso = self._torso.copy()
        self._contact_forces = np.zeros((self.num_envs, self._simulation.model.nbody, 6))

    def sample_tasks(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw tasks as a reset does.

        :param n: How many
        :param rng: The generator to draw from
        :return: Signs (n, 1), or unit vectors (n, 2) where any direction may be drawn
        """
        if self.directions == "forward_backward":
            return rng.choice([-1.0, 1.0], (n, 1))
        angles = rng.uniform(-np.pi, np.pi, n)
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)

    def _check_task(self, task: NDArray[Any]) -> None:
        if self.directions == "forward_backward":
            if not np.isin(task, (-1.0, 1.0)).all():
                raise ValueError(f"options['task'] must be a direction, 1 (forward) or -1 (backward), got {task}")
        elif not np.allclose(np.linalg.norm(task, axis=-1), 1.0, rtol=0.0, atol=1e-6):  # False for NaN
            raise ValueError(f"options['task'] must be a direction (x, y) of length 1, got {task}")

    def _start_episodes(self, indices: NDArray[np.int64]) -> None:
        super()._start_episodes(indices)
        self._torso[indices] = self._states[indices, 1:3]

    def _simulate(self, actions: NDArray[np.float64]) -> NDArray[np.float64]:
        states, positions, forces = self._simulation.advance_with_forces(self._states, actions)
        self._next_torso, self._contact_forces = positions[:, TORSO, :2], forces
        return states

    def _judge(
        self, before: NDArray[np.float64], actions: NDArray[np.float64], blew_up: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], Infos]:
        self._next_torso[blew_up], self._contact_forces[blew_up] = self._torso[blew_up], 0.0
        velocity = (self._next_torso - self._torso) / self.dt
        self._torso = self._next_torso
        # Forward is along x, so a sign is a vector without y
        along = (velocity[:, : self._task.shape[1]] * self._task).sum(axis=1)
        control_cost = CONTROL_COST * np.square(actions).sum(axis=1)
        contact_cost = CONTACT_COST * np.square(np.clip(self._contact_forces, -1.0, 1.0)).sum(axis=(1, 2))
        height = self._states[:, HEIGHT]
        metrics = {"velocity": along, "control_cost": control_cost, "contact_cost": contact_cost}
        rewards = along - control_cost - contact_cost + SURVIVAL_REWARD
        return rewards, (height < MIN_HEIGHT) | (height > MAX_HEIGHT), metrics


class AntDirEnv(EpisodeEnv):
    """
    ## Description

    The ant of Gymnasium's `Ant-v5` has to run in a direction that it is not told, drawn at each reset: forward or
    backward along x, both as likely, or any direction. The reward is all that says what it is.

    The robot, its start and its motion are Gymnasium's: the same model, five simulation steps of 0.01 s for each
    action, the same noise at a reset.

    ## Action Space

    `Box(-1, 1, (8,), float32)`: torques at the hip and the ankle of the back right, the front left, the front right
    and the back left leg.

    ## Observation Space

    `Box`, float32, of shape `(27,)`, with `task_in_observation` followed by the task:

    | index | content | unit |
    | --- | --- | --- |
    | 0 | height of the torso | m |
    | 1 ... 4 | orientation of the torso, a quaternion (w, x, y, z) | |
    | 5 ... 12 | angles of hip and ankle of the front left, front right, back left and back right leg | rad |
    | 13 ... 15 | velocity of the torso along x, y and z | m/s |
    | 16 ... 18 | angular velocity of the torso | rad/s |
    | 19 ... 26 | angular velocities of the joints, in the order of their angles | rad/s |
    | 27 | the direction, 1 or -1, with `task_in_observation` | |
    | 27, 28 | the direction (x, y) instead, with `directions="circle"` | |

    ## Rewards

    `v - 0.5 * sum(action**2) - 0.0005 * sum(clip(forces, -1, 1)**2) + 1`, where

    - v is the change of the torso's (x, y) in the step along the direction, divided by 0.05 s;
    - the forces are the external forces and torques on all bodies, contacts with the ground.

    Position and forces are those that `Ant-v5` computes its reward from. The 1 is given in every step, also in one that
    ends the episode, where `Ant-v5` leaves it out.

    ## Starting State

    The model's initial state, with uniform noise within 0.1 on all positions and normal noise of standard deviation
    0.1 on all velocities.

    ## Episode End

    Termination where the torso's height leaves 0.2 to 1.0 m. Truncation after `episode_length` steps; also where the
    simulation blows up, which does not happen in ordinary play: the robot is then left as it was before the step.

    ## Info

    - `velocity`: v, in m/s, along the direction.
    - `control_cost`: `0.5 * sum(action**2)`.
    - `contact_cost`: `0.0005 * sum(clip(forces, -1, 1)**2)`.
    - `physics_blow_up`: 1 where the simulation blew up, else 0.

    ## Arguments

    ```python
    AntDirEnv(
        episode_length=200,
        directions="forward_backward",
        task_in_observation=False,
        render_mode=None,
        num_threads=None,
    )
    AntDirVectorEnv(num_envs=128)
    ```

    - `directions`: `"forward_backward"`, or `"circle"` for any direction, uniform in its angle.
    - The others: as in `HalfCheetahVelEnv`.

    `reset(options={"task": task})` fixes the direction until the next reset. A task is `(1,)`: 1 (forward) or -1
    (backward); with `directions="circle"` it is `(2,)`: a direction (x, y) of length 1. A batch also takes one for each
    environment, `(num_envs, 1)` or `(num_envs, 2)`. The attribute `task` holds the present direction in the same shape;
    `sample_tasks(n, rng)` draws directions.

    Needs mujoco: `pip install 'sb3-laplace[mujoco]'`.

    ## Version History

    * v0: Initial version
    """

    vector_env_type = AntDirVectorEnv
