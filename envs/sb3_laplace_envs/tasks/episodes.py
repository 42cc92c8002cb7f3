"""Tasks whose episodes are those of the environment itself, in a batch (`EpisodeVectorEnv`) or alone (`EpisodeEnv`)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
from gymnasium import logger, spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from sb3_laplace_envs.arguments import check_array, check_boolean, check_integer
from sb3_laplace_envs.tasks.batches import Infos, Observations, TaskEnv, TaskVectorEnv


class Outcome(NamedTuple):
    """What a step did, one value for each environment (num_envs,)."""

    rewards: NDArray[np.float64]
    """The rewards"""
    terminations: NDArray[np.bool_]
    """Where the episode is over, as the task has it"""
    failures: NDArray[np.bool_]
    """Where the episode cannot go on, which is not the agent's doing: it is truncated"""
    metrics: Infos
    """The step's metrics, arrays (num_envs,)"""


class EpisodeVectorEnv(TaskVectorEnv):
    """A batch of environments with actions in [-1, 1], a task fixed in each episode.

    An observation is a flat float32 vector: what the task shows and, with ``task_in_observation``, the task.

    **End of an episode.** An episode is truncated after ``episode_length`` steps; a task may end it before. The
    batch then resets that environment in the same step (``AutoresetMode.SAME_STEP``): the observation returned is
    the first of the next episode, and ``infos`` holds ``final_obs``, ``final_info`` and their masks, as
    Gymnasium's own vector environments do.

    **Tasks.** Each reset draws a task, the autoreset too. One given by ``reset(options={"task": ...})`` is kept
    over the autoresets, until the next call of reset.

    **Metrics.** ``infos`` holds what measures the agent, one array (num_envs,) for each metric, of the step just
    taken.

    **Seeds.** Each environment has its own generator, used only at its resets: first for the state, then for the
    task. So its episodes depend on its seed and actions alone, not on the size of the batch.

    :param num_envs: The number of environments
    :param episode_length: Steps in an episode
    :param n_shown: The length of what the task shows
    :param n_actions: The length of an action
    :param task_shape: The shape of one task
    :param task_in_observation: Whether the task is the last part of the observation
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 20,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int,
        episode_length: int,
        n_shown: int,
        n_actions: int,
        task_shape: tuple[int, ...],
        task_in_observation: bool,
    ) -> None:
        super().__init__(num_envs, task_shape, np.float64)
        self.episode_length = check_integer("episode_length", episode_length, 1)
        self.task_in_observation = check_boolean("task_in_observation", task_in_observation)
        width = n_shown + int(np.prod(task_shape)) * self.task_in_observation
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (width,))
        self.single_action_space = spaces.Box(-1.0, 1.0, (n_actions,))
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

        self._n_shown = n_shown
        self._is_over = np.ones(self.num_envs, dtype=np.bool_)

    @abstractmethod
    def sample_tasks(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw tasks as a reset does.

        :param n: How many
        :param rng: The generator to draw from
        :return: The tasks (n, \\*task_shape)
        """

    @abstractmethod
    def _start_episodes(self, indices: NDArray[np.int64]) -> None:
        """Put some environments at the start of an episode, drawing from their own generators."""

    @abstractmethod
    def _apply(self, actions: NDArray[np.float64]) -> Outcome:
        """Move all environments on by one step.

        :param actions: Valid actions (num_envs, n_actions)
        """

    @abstractmethod
    def _show(self) -> NDArray[np.float64]:
        """Return what the task shows now, (num_envs, n_shown)."""

    def advance(
        self, actions: NDArray[Any]
    ) -> tuple[Observations, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Infos]:
        """Step all environments without the autoreset.

        :param actions: One action for each environment, (num_envs, n_actions)
        :return: Observations, rewards, terminations, truncations and the step's metrics
        :raises ValueError: An action outside of the action space
        :raises gymnasium.error.ResetNeeded: An episode is over, or none has begun
        """
        if self._is_over.any():
            raise ResetNeeded("call reset before the first step and after the last step of an episode")
        rewards, terminations, failures, metrics = self._apply(self._check_actions(actions))
        self._elapsed += 1
        truncations = failures | (self._elapsed >= self.episode_length)
        self._is_over = terminations | truncations
        return self._observe(), rewards, terminations, truncations, metrics

    def _begin(self, indices: NDArray[np.int64]) -> None:
        self._start_episodes(indices)
        # A task is drawn also where one is given, and then thrown away: so the later episodes' random numbers do
        # not depend on whether a task was given.
        for i in indices.tolist():
            task = self.sample_tasks(1, self._seeded[i][0])[0]
            if not self._task_is_given[i]:
                self._task[i] = task
        self._elapsed[indices] = 0
        self._is_over[indices] = False

    @abstractmethod
    def _draw(self, i: int) -> NDArray[np.uint8]:
        """Draw one environment as an RGB image."""

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Draw each environment as an RGB image, for the render mode "rgb_array"."""
        if self.render_mode is None:
            logger.warn("render needs render_mode='rgb_array', given where the environment is made")
            return None
        if not self._has_begun:
            raise ResetNeeded("call reset before render")
        return tuple(self._draw(i) for i in range(self.num_envs))

    def _observe(self) -> Observations:
        observations = np.empty(self.observation_space.shape or (), dtype=np.float32)
        observations[:, : self._n_shown] = self._show()
        if self.task_in_observation:
            observations[:, self._n_shown :] = self._task.reshape(self.num_envs, -1)
        return observations

    def _check_actions(self, actions: NDArray[Any]) -> NDArray[np.float64]:
        actions = check_array("actions", actions, "iuf", self.action_space.shape or ()).astype(np.float64)
        inside = np.abs(actions) <= 1.0  # False for NaN
        if not inside.all():
            raise ValueError(f"actions must lie in -1.0 to 1.0, got {actions[~inside]}")
        return actions


class EpisodeEnv(TaskEnv):
    """One environment. Inside, it is a batch of one.

    :param kwargs: The arguments of the task, those of `vector_env_type` but ``num_envs``
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    vector_env_type: ClassVar[type[EpisodeVectorEnv]]
    batch: EpisodeVectorEnv

    def sample_tasks(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw tasks as a reset does.

        :param n: How many
        :param rng: The generator to draw from
        :return: The tasks (n, \\*task_shape)
        """
        return self.batch.sample_tasks(n, rng)

    def close(self) -> None:
        """Let go of threads and of the renderer."""
        self.batch.close()
