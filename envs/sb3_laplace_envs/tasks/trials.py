"""What all tasks share: trials of a fixed length, in a batch (`TrialVectorEnv`) or alone (`TrialEnv`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from sb3_laplace_envs.arguments import check_array, check_integer, check_seeds
from sb3_laplace_envs.tasks.batches import check_reset_options, final_infos
from sb3_laplace_envs.wrappers.fields import TrialFields

Observations = NDArray[np.float32]
Infos = dict[str, Any]


class TrialVectorEnv(VectorEnv[Observations, NDArray[Any], NDArray[Any]], ABC):
    """A batch of environments that each play one trial after another, a hidden task fixed in each trial.

    An observation is a flat float32 vector: what the task shows, the previous action (one-hot where
    actions are discrete, as it is otherwise), the previous reward and a flag. On the first step of a
    trial the flag is 1 and the previous action and reward are 0; on the others the flag is 0.

    **End of a trial.** Trials never terminate; they are truncated after ``trial_length`` steps. The batch
    then resets itself in the same step (``AutoresetMode.SAME_STEP``): the observation returned is the
    first of the next trial, `task` is the next task, and ``infos`` holds, as Gymnasium's own vector
    environments do, ``final_obs`` (an object array: the last observation of the trials that ended, None
    elsewhere), ``final_info`` (the metrics of their last step) and the masks ``_final_obs`` and
    ``_final_info``.

    **Metrics.** ``infos`` holds what measures the agent, one array (num_envs,) for each metric. The values are
    those of the step just taken, also where that step ended a trial.

    **Seeds.** Each environment has its own generator, used only when a trial starts, for the task and for
    all the chance in the trial. So an environment's trials depend on its seed and actions alone, not on
    the size of the batch, and steps are plain array look-ups.

    :param num_envs: The number of environments
    :param trial_length: Steps in a trial
    :param shown: Bounds of what the task shows, the first part of an observation
    :param action_space: The actions of one environment: Discrete, or Box of shape (1,)
    :param reward_range: The lowest and the highest reward
    :param task_shape: The shape of one task
    :param task_dtype: The dtype of a task, integer or float
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int,
        trial_length: int,
        shown: spaces.Box,
        action_space: spaces.Discrete | spaces.Box,
        reward_range: tuple[float, float],
        task_shape: tuple[int, ...],
        task_dtype: type[np.generic],
    ) -> None:
        self.num_envs = check_integer("num_envs", num_envs, 1)
        self.trial_length = check_integer("trial_length", trial_length, 1)

        self._fields = TrialFields(
            self.num_envs, action_space, reward_range=reward_range, episode_start=False, trial_start=True
        )
        self.single_observation_space = spaces.Box(
            np.concatenate([shown.low, self._fields.low]), np.concatenate([shown.high, self._fields.high])
        )
        self.single_action_space: spaces.Discrete | spaces.Box = action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

        self._n_shown = shown.shape[0]
        self._rows = np.arange(self.num_envs)
        self._seeded = [seeding.np_random() for _ in range(self.num_envs)]
        self._elapsed = np.zeros(self.num_envs, dtype=np.int64)
        self._task: NDArray[Any] = np.zeros((self.num_envs, *task_shape), dtype=task_dtype)
        self._task_is_given = np.zeros(self.num_envs, dtype=np.bool_)
        # The latest observations. A partial reset returns them again for the environments that it leaves alone.
        self._observations: Observations | None = None

    @abstractmethod
    def _draw_trials(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Draw all that is random in the next trial of some environments, each from its own generator.

        :param indices: The environments
        :return: Their tasks (len(indices), \\*task_shape). What else was drawn stays in the instance, for the steps.
        """

    @abstractmethod
    def _start_trials(self, indices: NDArray[np.int64]) -> None:
        """Put some environments at the start of a trial of their (drawn or given) task."""

    @abstractmethod
    def _apply(self, actions: NDArray[Any]) -> tuple[NDArray[np.float64], Infos]:
        """Move all environments on by one step.

        :param actions: Valid actions, one for each environment
        :return: Rewards (num_envs,) and the step's metrics, arrays (num_envs,)
        """

    @abstractmethod
    def _show(self, shown: Observations) -> None:
        """Write what the task shows now into ``shown``: (num_envs, n_shown), zeros where a trial starts."""

    @abstractmethod
    def _check_task(self, task: NDArray[Any]) -> None:
        """Raise ValueError where the values of a given task, or of a batch of tasks, are not allowed."""

    @property
    def task(self) -> NDArray[Any]:
        """The hidden task of each environment's present trial, (num_envs, \\*task_shape): a copy."""
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
        """Start a new trial in all environments, or in some.

        :param seed: An int seeds environment i with ``seed + i``, a sequence gives each its own seed. Without
            a seed an environment goes on with its generator.
        :param options: ``"task"``: one task for all environments or a batch of tasks; the class says what a
            task is. It holds for all trials until the next reset, and a reset without it draws tasks again.
            ``"reset_mask"``: booleans (num_envs,), which environments to reset.
        :return: The first observations of the trials, (num_envs, ...), and an empty info
        :raises ValueError: Wrong seeds or options
        """
        seeds = check_seeds(seed, self.num_envs)
        mask, task = check_reset_options(options or {}, self._task, self._check_task)
        observations = self._observations
        if observations is None:
            if not mask.all():
                raise ResetNeeded("options['reset_mask'] must select all environments at the first reset")
            observations = np.zeros(self.observation_space.shape or (), dtype=np.float32)

        indices = np.flatnonzero(mask)
        for i in indices.tolist():
            if seeds[i] is not None:
                self._seeded[i] = seeding.np_random(seeds[i])
        self._task_is_given[indices] = task is not None
        if task is not None:
            self._task[indices] = task[indices]
        self._observations = observations
        self._begin_trials(indices, observations)
        return observations.copy(), {}

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Observations, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Infos]:
        """Step all environments, those at the end of their trial into the next trial.

        :param actions: One action for each environment
        :return: Observations, rewards, terminations (never), truncations, infos
        :raises ValueError: An action outside of the action space
        """
        observations, rewards, truncations, infos = self.advance(actions)
        if truncations.any():
            infos.update(final_infos(truncations, observations, infos))
            self._begin_trials(np.flatnonzero(truncations), observations)
        self._observations = observations
        return observations.copy(), rewards, np.zeros(self.num_envs, dtype=np.bool_), truncations, infos

    def advance(self, actions: NDArray[Any]) -> tuple[Observations, NDArray[np.float64], NDArray[np.bool_], Infos]:
        """Step all environments without the autoreset.

        :param actions: One action for each environment
        :return: Observations, rewards, truncations and the step's metrics
        :raises ValueError: An action outside of the action space
        :raises ResetNeeded: A trial is over, or none has begun
        """
        if self._observations is None or self._elapsed.max() >= self.trial_length:
            raise ResetNeeded("call reset before the first step and after the last step of a trial")
        actions = self._check_actions(actions)
        rewards, metrics = self._apply(actions)
        self._elapsed += 1

        observations = np.zeros(self._observations.shape, dtype=np.float32)
        self._show(observations[:, : self._n_shown])
        self._fields.write_step(observations[:, self._n_shown :], actions, rewards)
        return observations, rewards, self._elapsed == self.trial_length, metrics

    def _begin_trials(self, indices: NDArray[np.int64], observations: Observations) -> None:
        """Begin the next trial of some environments and write its first observation into theirs."""
        tasks = self._draw_trials(indices)
        # A task is drawn also where one is given, and then thrown away: so the other random numbers of the trial
        # do not depend on whether a task was given.
        drawn = ~self._task_is_given[indices]
        self._task[indices[drawn]] = tasks[drawn]
        self._elapsed[indices] = 0
        self._start_trials(indices)
        observations[indices, : self._n_shown] = 0.0
        self._fields.write_trial_starts(observations[:, self._n_shown :], indices)
        self._show(observations[:, : self._n_shown])

    def _check_actions(self, actions: NDArray[Any]) -> NDArray[Any]:
        space = self.single_action_space
        if isinstance(space, spaces.Discrete):
            actions = check_array("actions", actions, "iu", (self.num_envs,))
            if actions.min() < 0 or actions.max() >= space.n:
                wrong = actions[(actions < 0) | (actions >= space.n)]
                raise ValueError(f"actions must lie in 0 to {space.n - 1}, got {wrong}")
            return actions.astype(np.int64, copy=False)  # indices are computed from them: no overflow
        given = check_array("actions", actions, "iuf", (self.num_envs, 1))
        actions = given.astype(np.float32)
        inside = np.abs(actions) <= space.high  # False for NaN
        if not inside.all():
            raise ValueError(f"actions must lie in {space.low[0]} to {space.high[0]}, got {given[~inside]}")
        return actions


class TrialEnv(gym.Env[Observations, Any]):
    """One environment, whose episodes are trials. Inside, it is a batch of one.

    :param kwargs: The arguments of the task, those of `vector_env_type` but ``num_envs``
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012
    vector_env_type: ClassVar[type[TrialVectorEnv]]
    batch: TrialVectorEnv

    def __init__(self, **kwargs: Any) -> None:
        self.batch = self.vector_env_type(num_envs=1, **kwargs)
        self.observation_space = self.batch.single_observation_space
        self.action_space = self.batch.single_action_space
        self.render_mode = self.batch.render_mode

    @property
    def task(self) -> NDArray[Any]:
        """The hidden task of the present trial: a copy."""
        return self.batch.task[0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observations, Infos]:
        """Start a trial.

        :param seed: Seeds `np_random`, all the chance in the environment
        :param options: ``"task"``: the task of this trial
        :return: The first observation and an empty info
        """
        super().reset(seed=seed)
        self.batch._seeded[0] = (self.np_random, self.np_random_seed or 0)
        observations, infos = self.batch.reset(options=options)
        return observations[0], infos

    def step(self, action: Any) -> tuple[Observations, float, bool, bool, Infos]:
        """Take one step.

        :param action: The action
        :return: Observation, reward, terminated (never), truncated and the step's metrics
        :raises ValueError: An action outside of the action space
        :raises ResetNeeded: The trial is over, or none has begun
        """
        observations, rewards, truncations, metrics = self.batch.advance(np.asarray(action)[np.newaxis])
        infos = {key: metric[0].item() for key, metric in metrics.items()}
        return observations[0], float(rewards[0]), False, bool(truncations[0]), infos

    def render(self) -> Any:
        """Draw the environment as its `render_mode` says."""
        frames = self.batch.render()
        return None if frames is None else frames[0]
