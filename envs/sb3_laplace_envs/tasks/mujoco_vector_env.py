"""What the tasks with a simulated robot share: the simulation in a batch, its start and where it blows up."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
from gymnasium import logger
from numpy.typing import NDArray

from sb3_laplace_envs.arguments import check_choice, check_integer
from sb3_laplace_envs.tasks.batches import Infos
from sb3_laplace_envs.tasks.episodes import EpisodeVectorEnv, Outcome
from sb3_laplace_envs.tasks.mujoco_simulation import Simulation, default_threads

# The noise of Gymnasium's HalfCheetah and Ant at a reset
RESET_NOISE = 0.1


class MujocoVectorEnv(EpisodeVectorEnv):
    """A batch of robots, all simulated in one call of ``mujoco.rollout``.

    The states (time, positions, velocities) are rows of one array. A control step is five MuJoCo steps under the same
    action. An episode starts as Gymnasium's does: uniform noise within 0.1 on the positions of the model, normal noise
    of standard deviation 0.1 on the velocities; and with the same seed it starts in the same state.

    **Physics that blow up.** Where a state is no longer finite, or huge, or MuJoCo warns in the middle of a control
    step, that environment's episode is truncated. It is left as it was before the step, as if the robot
    had stood still, and the metric ``physics_blow_up`` is 1. The first time in a batch is also logged as a warning.

    :param num_envs: The number of environments
    :param episode_length: Steps in an episode
    :param task_shape: The shape of one task
    :param task_in_observation: Whether the task is the last part of the observation
    :param render_mode: ``"rgb_array"`` or None
    :param num_threads: Threads that simulate; None for one for each core, at most one for each environment
    """

    asset: ClassVar[str]
    n_hidden_positions: ClassVar[int]
    """The first positions of a state are not shown: those along the ground"""

    def __init__(
        self,
        num_envs: int,
        episode_length: int,
        task_shape: tuple[int, ...],
        task_in_observation: bool,
        render_mode: str | None,
        num_threads: int | None,
    ) -> None:
        self.render_mode = check_choice("render_mode", render_mode, (None, "rgb_array"))
        check_integer("num_envs", num_envs, 1)
        threads = default_threads(num_envs) if num_threads is None else check_integer("num_threads", num_threads, 1)
        self._simulation = Simulation(self.asset, min(threads, num_envs))
        self.dt: float = self._simulation.dt
        """Seconds in a control step"""
        model = self._simulation.model
        n_shown = model.nq + model.nv - self.n_hidden_positions
        super().__init__(num_envs, episode_length, n_shown, model.nu, task_shape, task_in_observation)
        self._states = np.tile(self._simulation.initial_state, (self.num_envs, 1))
        self._has_warned = False

    @abstractmethod
    def _judge(
        self, before: NDArray[np.float64], actions: NDArray[np.float64], blew_up: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], Infos]:
        """Say what the step did that led to the present states.

        :param before: The states before it, (num_envs, n_state)
        :param actions: The actions, (num_envs, n_actions)
        :param blew_up: Where the simulation failed, (num_envs,): the state is as it was before
        :return: Rewards, where the episode is over, and metrics, arrays (num_envs,)
        """

    def _simulate(self, actions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the states after a control step, (num_envs, n_state)."""
        return self._simulation.advance(self._states, actions)

    def _start_episodes(self, indices: NDArray[np.int64]) -> None:
        nq, nv = self._simulation.model.nq, self._simulation.model.nv
        for i in indices.tolist():
            generator = self._seeded[i][0]
            self._states[i] = self._simulation.initial_state
            self._states[i, 1 : 1 + nq] += generator.uniform(-RESET_NOISE, RESET_NOISE, nq)
            self._states[i, 1 + nq :] += RESET_NOISE * generator.standard_normal(nv)

    def _apply(self, actions: NDArray[np.float64]) -> Outcome:
        before = self._states
        after = self._simulate(actions)
        blew_up = self._simulation.blew_up(before, after)
        if blew_up.any():
            after[blew_up] = before[blew_up]
            if not self._has_warned:
                self._has_warned = True
                logger.warn(
                    f"the simulation blew up in the environments {np.flatnonzero(blew_up).tolist()}: their episodes "
                    "are truncated and info['physics_blow_up'] is 1 (said once, for the first time)"
                )
        self._states = after
        rewards, terminations, metrics = self._judge(before, actions, blew_up)
        return Outcome(rewards, terminations, blew_up, {**metrics, "physics_blow_up": blew_up.astype(np.int64)})

    def _show(self) -> NDArray[np.float64]:
        return self._states[:, 1 + self.n_hidden_positions :]

    def _draw(self, i: int) -> NDArray[np.uint8]:
        return self._simulation.draw(self._states[i])

    def close_extras(self, **kwargs: object) -> None:
        """Let go of the threads and of the renderer."""
        # Called by the garbage collector too, also where the constructor raised an error
        if "_simulation" in vars(self):
            self._simulation.close()
