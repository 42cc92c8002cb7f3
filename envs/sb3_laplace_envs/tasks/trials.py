"""What all tasks share: trials of a fixed length, in a batch (`TrialVectorEnv`) or alone (`TrialEnv`)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from sb3_laplace_envs.arguments import check_array, check_integer
from sb3_laplace_envs.tasks.batches import Infos, Observations, TaskEnv, TaskVectorEnv
from sb3_laplace_envs.wrappers.fields import TrialFields


class TrialVectorEnv(TaskVectorEnv):
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
        super().__init__(num_envs, task_shape, task_dtype)
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
        # The latest observations. A partial reset returns them again for the environments that it leaves alone.
        self._observations: Observations = np.zeros(self.observation_space.shape or (), dtype=np.float32)

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

    def advance(
        self, actions: NDArray[Any]
    ) -> tuple[Observations, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Infos]:
        """Step all environments without the autoreset.

        :param actions: One action for each environment
        :return: Observations, rewards, terminations (there are none), truncations and the step's metrics
        :raises ValueError: An action outside of the action space
        :raises gymnasium.error.ResetNeeded: A trial is over, or none has begun
        """
        if not self._has_begun or self._elapsed.max() >= self.trial_length:
            raise ResetNeeded("call reset before the first step and after the last step of a trial")
        actions = self._check_actions(actions)
        rewards, metrics = self._apply(actions)
        self._elapsed += 1

        observations = np.zeros(self._observations.shape, dtype=np.float32)
        self._show(observations[:, : self._n_shown])
        self._fields.write_step(observations[:, self._n_shown :], actions, rewards)
        self._observations = observations
        never = np.zeros(self.num_envs, dtype=np.bool_)
        return observations.copy(), rewards, never, self._elapsed == self.trial_length, metrics

    def _begin(self, indices: NDArray[np.int64]) -> None:
        tasks = self._draw_trials(indices)
        # A task is drawn also where one is given, and then thrown away: so the other random numbers of the trial
        # do not depend on whether a task was given.
        drawn = ~self._task_is_given[indices]
        self._task[indices[drawn]] = tasks[drawn]
        self._elapsed[indices] = 0
        self._start_trials(indices)
        shown, fields = self._observations[:, : self._n_shown], self._observations[:, self._n_shown :]
        shown[indices] = 0.0
        self._fields.write_trial_starts(fields, indices)
        self._show(shown)

    def _observe(self) -> Observations:
        return self._observations.copy()

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


class TrialEnv(TaskEnv):
    """One environment, whose episodes are trials. Inside, it is a batch of one.

    :param kwargs: The arguments of the task, those of `vector_env_type` but ``num_envs``
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012
    vector_env_type: ClassVar[type[TrialVectorEnv]]
    batch: TrialVectorEnv

    @property
    def trial_length(self) -> int:
        """Steps in a trial."""
        return self.batch.trial_length
