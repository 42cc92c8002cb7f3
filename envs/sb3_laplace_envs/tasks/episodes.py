"""Tasks whose episodes are those of the environment itself, in a batch (`EpisodeVectorEnv`) or alone (`EpisodeEnv`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from sb3_laplace_envs.arguments import check_array, check_boolean, check_integer, check_seeds
from sb3_laplace_envs.tasks.batches import check_reset_options, final_infos
from sb3_laplace_envs.tasks.trials import Infos, Observations


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


class EpisodeVectorEnv(VectorEnv[Observations, NDArray[Any], NDArray[Any]], ABC):
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
        self.num_envs = check_integer("num_envs", num_envs, 1)
        self.episode_length = check_integer("episode_length", episode_length, 1)
        self.task_in_observation = check_boolean("task_in_observation", task_in_observation)
        width = n_shown + int(np.prod(task_shape)) * self.task_in_observation
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (width,))
        self.single_action_space = spaces.Box(-1.0, 1.0, (n_actions,))
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

        self._n_shown = n_shown
        self._seeded = [seeding.np_random() for _ in range(self.num_envs)]
        self._elapsed = np.zeros(self.num_envs, dtype=np.int64)
        self._is_over = np.ones(self.num_envs, dtype=np.bool_)
        self._task: NDArray[np.float64] = np.zeros((self.num_envs, *task_shape))
        self._task_is_given = np.zeros(self.num_envs, dtype=np.bool_)
        self._has_begun = False

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

    @abstractmethod
    def _check_task(self, task: NDArray[Any]) -> None:
        """Raise ValueError where the values of a given task, or of a batch of tasks, are not allowed."""

    @property
    def task(self) -> NDArray[np.float64]:
        """The task of each environment's present episode, (num_envs, \\*task_shape): a copy."""
        return self._task.copy()

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generators of all environments, as in Gymnasium's SyncVectorEnv."""
        return tuple(generator for generator, _ in self._seeded)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seeds of all environments, as in Gymnasium's SyncVectorEnv."""
        return tuple(seed for _, seed in self._seeded)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, Infos]:
        """Start a new episode in all environments, or in some.

        :param seed: An int seeds environment i with ``seed + i``, a sequence gives each its own seed. Without
            a seed an environment goes on with its generator.
        :param options: ``"task"``: one task for all environments or a batch of tasks; the class says what a
            task is. It holds for all episodes until the next reset, and a reset without it draws tasks again.
            ``"reset_mask"``: booleans (num_envs,), which environments to reset.
        :return: The first observations of the episodes, (num_envs, ...), and an empty info
        :raises ValueError: Wrong seeds or options
        """
        seeds = check_seeds(seed, self.num_envs)
        mask, task = check_reset_options(options or {}, self._task, self._check_task)
        if not (self._has_begun or mask.all()):
            raise ResetNeeded("options['reset_mask'] must select all environments at the first reset")

        indices = np.flatnonzero(mask)
        for i in indices.tolist():
            if seeds[i] is not None:
                self._seeded[i] = seeding.np_random(seeds[i])
        self._task_is_given[indices] = task is not None
        if task is not None:
            self._task[indices] = task[indices]
        self._begin_episodes(indices)
        self._has_begun = True
        return self._observe(), {}

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Observations, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Infos]:
        """Step all environments, those at the end of their episode into the next episode.

        :param actions: One action for each environment, (num_envs, n_actions)
        :return: Observations, rewards, terminations, truncations, infos
        :raises ValueError: An action outside of the action space
        """
        observations, rewards, terminations, truncations, infos = self.advance(actions)
        ended = terminations | truncations
        if ended.any():
            infos.update(final_infos(ended, observations, infos))
            self._begin_episodes(np.flatnonzero(ended))
            observations = self._observe()
        return observations, rewards, terminations, truncations, infos

    def advance(
        self, actions: NDArray[Any]
    ) -> tuple[Observations, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Infos]:
        """Step all environments without the autoreset.

        :param actions: One action for each environment, (num_envs, n_actions)
        :return: Observations, rewards, terminations, truncations and the step's metrics
        :raises ValueError: An action outside of the action space
        :raises ResetNeeded: An episode is over, or none has begun
        """
        if self._is_over.any():
            raise ResetNeeded("call reset before the first step and after the last step of an episode")
        rewards, terminations, failures, metrics = self._apply(self._check_actions(actions))
        self._elapsed += 1
        truncations = failures | (self._elapsed >= self.episode_length)
        self._is_over = terminations | truncations
        return self._observe(), rewards, terminations, truncations, metrics

    def _begin_episodes(self, indices: NDArray[np.int64]) -> None:
        """Begin the next episode of some environments."""
        self._start_episodes(indices)
        # A task is drawn also where one is given, and then thrown away: so the later episodes' random numbers do
        # not depend on whether a task was given.
        for i in indices.tolist():
            task = self.sample_tasks(1, self._seeded[i][0])[0]
            if not self._task_is_given[i]:
                self._task[i] = task
        self._elapsed[indices] = 0
        self._is_over[indices] = False

    def _observe(self) -> Observations:
        """Return the present observations, a new array."""
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


class EpisodeEnv(gym.Env[Observations, Any]):
    """One environment. Inside, it is a batch of one.

    :param kwargs: The arguments of the task, those of `vector_env_type` but ``num_envs``
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    vector_env_type: ClassVar[type[EpisodeVectorEnv]]
    batch: EpisodeVectorEnv

    def __init__(self, **kwargs: Any) -> None:
        self.batch = self.vector_env_type(num_envs=1, **kwargs)
        self.observation_space = self.batch.single_observation_space
        self.action_space = self.batch.single_action_space
        self.render_mode = self.batch.render_mode

    @property
    def task(self) -> NDArray[np.float64]:
        """The task of the present episode: a copy."""
        return self.batch.task[0]

    def sample_tasks(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw tasks as a reset does.

        :param n: How many
        :param rng: The generator to draw from
        :return: The tasks (n, \\*task_shape)
        """
        return self.batch.sample_tasks(n, rng)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observations, Infos]:
        """Start an episode.

        :param seed: Seeds `np_random`, all the chance in the environment
        :param options: ``"task"``: the task of this episode
        :return: The first observation and an empty info
        """
        super().reset(seed=seed)
        self.batch._seeded[0] = (self.np_random, self.np_random_seed or 0)
        observations, infos = self.batch.reset(options=options)
        return observations[0], infos

    def step(self, action: Any) -> tuple[Observations, float, bool, bool, Infos]:
        """Take one step.

        :param action: The action
        :return: Observation, reward, terminated, truncated and the step's metrics
        :raises ValueError: An action outside of the action space
        :raises ResetNeeded: The episode is over, or none has begun
        """
        observations, rewards, terminations, truncations, metrics = self.batch.advance(np.asarray(action)[np.newaxis])
        infos = {key: metric[0].item() for key, metric in metrics.items()}
        return observations[0], float(rewards[0]), bool(terminations[0]), bool(truncations[0]), infos

    def render(self) -> Any:
        """Draw the environment as its `render_mode` says."""
        frames = self.batch.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        """Let go of threads and of the renderer."""
        self.batch.close()
