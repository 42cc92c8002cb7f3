"""A cheetah in a plane that finds out how fast to run, or which way."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_laplace_envs.tasks.batches import Infos
from sb3_laplace_envs.tasks.episodes import EpisodeEnv
from sb3_laplace_envs.tasks.mujoco_vector_env import MujocoVectorEnv

CONTROL_COST = 0.05
MAX_TARGET = 3.0


class HalfCheetahVectorEnv(MujocoVectorEnv):
    """A batch of Gymnasium's cheetahs, whose task is one number that says how to judge their velocity.

    :param num_envs: The number of environments
    :param episode_length: Steps in an episode
    :param task_in_observation: Whether the task is the last part of the observation
    :param render_mode: ``"rgb_array"`` or None
    :param num_threads: Threads that simulate; None for one for each core
    """

    asset = "half_cheetah.xml"
    n_hidden_positions = 1

    def __init__(
        self,
        num_envs: int = 1,
        episode_length: int = 200,
        task_in_observation: bool = False,
        render_mode: str | None = None,
        num_threads: int | None = None,
    ) -> None:
        super().__init__(num_envs, episode_length, (1,), task_in_observation, render_mode, num_threads)

    @abstractmethod
    def _judge_velocity(self, velocity: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the reward for a velocity along x and what to report as the velocity, all (num_envs,)."""

    def _judge(
        self, before: NDArray[np.float64], actions: NDArray[np.float64], blew_up: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], Infos]:
        reward, velocity = self._judge_velocity((self._states[:, 1] - before[:, 1]) / self.dt)
        control_cost = CONTROL_COST * np.square(actions).sum(axis=1)
        metrics = {"velocity": velocity, "control_cost": control_cost}
        return reward - control_cost, np.zeros(self.num_envs, dtype=np.bool_), metrics


class HalfCheetahVelVectorEnv(HalfCheetahVectorEnv):
    """A batch of cheetahs with a velocity to keep: `HalfCheetahVelEnv` describes the task and its arguments."""

    def sample_tasks(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw tasks as a reset does.

        :param n: How many
        :param rng: The generator to draw from
        :return: Target velocities, (n, 1)
        """
        return rng.uniform(0.0, MAX_TARGET, (n, 1))

    def _judge_velocity(self, velocity: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return -np.abs(velocity - self._task[:, 0]), velocity

    def _check_task(self, task: NDArray[Any]) -> None:
        if not np.isfinite(task).all():
            raise ValueError(f"options['task'] must be a finite target velocity, got {task}")


class HalfCheetahDirVectorEnv(HalfCheetahVectorEnv):
    """A batch of cheetahs with a way to run: `HalfCheetahDirEnv` describes the task and its arguments."""

    def sample_tasks(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw tasks as a reset does.

        :param n: How many
        :param rng: The generator to draw from
        :return: Directions, (n, 1)
        """
        return rng.choice([-1.0, 1.0], (n, 1))

    def _judge_velocity(self, velocity: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        along = self._task[:, 0] * velocity
        return along, along

    def _check_task(self, task: NDArray[Any]) -> None:
        if not np.isin(task, (-1.0, 1.0)).all():
            raise ValueError(f"options['task'] must be a direction, 1 (forward) or -1 (backward), got {task}")


class HalfCheetahVelEnv(EpisodeEnv):
    """
    ## Description

    The cheetah of Gymnasium's `HalfCheetah-v5` has to run at a velocity that it is not told. The target is drawn
    uniformly from 0 to 3 m/s at each reset; the reward is all that says what it is.

    The robot, its start and its motion are Gymnasium's: the same model, five simulation steps of 0.01 s for each
    action, the same noise at a reset.

    ## Action Space

    `Box(-1, 1, (6,), float32)`: torques at the back thigh, back shin, back foot, front thigh, front shin and front
    foot.

    ## Observation Space

    `Box`, float32, of shape `(17,)`, or `(18,)` with `task_in_observation`:

    | index | content | unit |
    | --- | --- | --- |
    | 0 | height of the torso, less 0.7 | m |
    | 1 | angle of the torso | rad |
    | 2 ... 7 | angles of the joints, in the order of the actions | rad |
    | 8, 9 | velocity of the torso along x and z | m/s |
    | 10 | angular velocity of the torso | rad/s |
    | 11 ... 16 | angular velocities of the joints | rad/s |
    | 17 | the target velocity, with `task_in_observation` | m/s |

    ## Rewards

    `-abs(v - target) - 0.05 * sum(action**2)`, where v is the change of the torso's x in the step, divided by 0.05 s.

    ## Starting State

    The model's initial state, with uniform noise within 0.1 on all positions and normal noise of standard deviation
    0.1 on all velocities.

    ## Episode End

    Truncation after `episode_length` steps. Also where the simulation blows up, which does not happen in ordinary
    play: the robot is then left as it was before the step.

    ## Info

    - `velocity`: v, in m/s.
    - `control_cost`: `0.05 * sum(action**2)`.
    - `physics_blow_up`: 1 where the simulation blew up, else 0.

    ## Arguments

    ```python
    HalfCheetahVelEnv(episode_length=200, task_in_observation=False, render_mode=None, num_threads=None)
    HalfCheetahVelVectorEnv(num_envs=128)
    ```

    - `episode_length`: steps in an episode.
    - `task_in_observation`: show the target at the end of the observation.
    - `render_mode`: `"rgb_array"` (an image; without a screen MuJoCo needs the environment variable `MUJOCO_GL` to be
      `egl` or `osmesa`) or None.
    - `num_threads`: threads that simulate a batch. None: one for each core. It changes no result.

    `reset(options={"task": (target,)})` fixes the target until the next reset: `(1,)`, or `(num_envs, 1)` for a batch,
    any finite number. The attribute `task` holds the present target in the same shape; `sample_tasks(n, rng)` draws
    targets, `(n, 1)`.

    Needs mujoco: `pip install 'sb3-laplace[mujoco]'`.

    ## Version History

    * v0: Initial version
    """

    vector_env_type = HalfCheetahVelVectorEnv


class HalfCheetahDirEnv(EpisodeEnv):
    """
    ## Description

    The cheetah of Gymnasium's `HalfCheetah-v5` has to run forward or backward, and is not told which. The direction
    is drawn at each reset, both as likely; the reward is all that says what it is.

    The robot, its start and its motion are Gymnasium's: the same model, five simulation steps of 0.01 s for each
    action, the same noise at a reset.

    ## Action Space

    `Box(-1, 1, (6,), float32)`: torques at the back thigh, back shin, back foot, front thigh, front shin and front
    foot.

    ## Observation Space

    `Box`, float32, of shape `(17,)`, or `(18,)` with `task_in_observation`:

    | index | content | unit |
    | --- | --- | --- |
    | 0 ... 16 | as in `HalfCheetahVelEnv` | |
    | 17 | the direction, 1 or -1, with `task_in_observation` | |

    ## Rewards

    `direction * v - 0.05 * sum(action**2)`, where v is the change of the torso's x in the step, divided by 0.05 s, and
    the direction is 1 (forward) or -1 (backward).

    ## Starting State

    As in `HalfCheetahVelEnv`.

    ## Episode End

    As in `HalfCheetahVelEnv`.

    ## Info

    - `velocity`: `direction * v`, in m/s.
    - `control_cost`: `0.05 * sum(action**2)`.
    - `physics_blow_up`: 1 where the simulation blew up, else 0.

    ## Arguments

    ```python
    HalfCheetahDirEnv(episode_length=200, task_in_observation=False, render_mode=None, num_threads=None)
    HalfCheetahDirVectorEnv(num_envs=128)
    ```

    As in `HalfCheetahVelEnv`. `reset(options={"task": (direction,)})` fixes the direction until the next reset:
    `(1,)`, or `(num_envs, 1)` for a batch, 1 or -1. The attribute `task` holds the present direction in the same shape;
    `sample_tasks(n, rng)` draws directions, `(n, 1)`.

    Needs mujoco: `pip install 'sb3-laplace[mujoco]'`.

    ## Version History

    * v0: Initial version
    """

    vector_env_type = HalfCheetahDirVectorEnv
