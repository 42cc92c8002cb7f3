"""What all batches of environments do alike (`TaskVectorEnv`), and one environment as a batch of one (`TaskEnv`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from sb3_laplace_envs.arguments import check_array, check_integer, check_seeds

Observations = NDArray[np.float32]
Infos = dict[str, Any]


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


class TaskVectorEnv(VectorEnv[Observations, NDArray[Any], NDArray[Any]], ABC):
    """A batch of environments with a task each, that resets those that ended in the same step.

    :param num_envs: The number of environments
    :param task_shape: The shape of one task
    :param task_dtype: The dtype of a task, integer or float
    """

    def __init__(self, num_envs: int, task_shape: tuple[int, ...], task_dtype: type[np.generic]) -> None:
        self.num_envs = check_integer("num_envs", num_envs, 1)
        self._seeded = [seeding.np_random() for _ in range(self.num_envs)]
        self._elapsed = np.zeros(self.num_envs, dtype=np.int64)
        self._task: NDArray[Any] = np.zeros((self.num_envs, *task_shape), dtype=task_dtype)
        self._task_is_given = np.zeros(self.num_envs, dtype=np.bool_)
        self._has_begun = False

    @abstractmethod
    def advance(
        self, actions: NDArray[Any]
    ) -> tuple[Observations, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Infos]:
        """Step all environments without the autoreset.

        :param actions: One action for each environment
        :return: Observations, rewards, terminations, truncations and the step's metrics
        :raises ValueError: An action outside of the action space
        :raises gymnasium.error.ResetNeeded: An episode is over, or none has begun
        """

    @abstractmethod
    def _begin(self, indices: NDArray[np.int64]) -> None:
        """Begin the next episode of some environments."""

    @abstractmethod
    def _observe(self) -> Observations:
        """Return the present observations, a new array."""

    @abstractmethod
    def _check_task(self, task: NDArray[Any]) -> None:
        """Raise ValueError where the values of a given task, or of a batch of tasks, are not allowed."""

    @property
    def task(self) -> NDArray[Any]:
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
        self._begin(indices)
        self._has_begun = True
        return self._observe(), {}

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Observations, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Infos]:
        """Step all environments, those at the end of their episode into the next episode.

        :param actions: One action for each environment
        :return: Observations, rewards, terminations, truncations, infos
        :raises ValueError: An action outside of the action space
        """
        observations, rewards, terminations, truncations, infos = self.advance(actions)
        ended = terminations | truncations
        if ended.any():
            infos.update(final_infos(ended, observations, infos))
            self._begin(np.flatnonzero(ended))
            observations = self._observe()
        return observations, rewards, terminations, truncations, infos


class TaskEnv(gym.Env[Observations, Any]):
    """One environment. Inside, it is a batch of one.

    :param kwargs: The arguments of the task, those of `vector_env_type` but ``num_envs``
    """

    vector_env_type: ClassVar[type[TaskVectorEnv]]
    batch: TaskVectorEnv

    def __init__(self, **kwargs: Any) -> None:
        self.batch = self.vector_env_type(num_envs=1, **kwargs)
        self.observation_space = self.batch.single_observation_space
        self.action_space = self.batch.single_action_space
        self.render_mode = self.batch.render_mode

    @property
    def task(self) -> NDArray[Any]:
        """The task of the present episode: a copy."""
        return self.batch.task[0]

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
        :raises gymnasium.error.ResetNeeded: The episode is over, or none has begun
        """
        observations, rewards, terminations, truncations, metrics = self.batch.advance(np.asarray(action)[np.newaxis])
        infos = {key: metric[0].item() for key, metric in metrics.items()}
        return observations[0], float(rewards[0]), bool(terminations[0]), bool(truncations[0]), infos

    def render(self) -> Any:
        """Draw the environment as its `render_mode` says."""
        frames = self.batch.render()
        return None if frames is None else frames[0]
