"""Trials from a batch of environments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from sb3_laplace_envs.arguments import check_array, check_seeds
from sb3_laplace_envs.wrappers.infos import Infos, Mask, fill, restrict, without
from sb3_laplace_envs.wrappers.observations import TrialObservations, row_of
from sb3_laplace_envs.wrappers.progress import NEXT_EPISODE, Progress
from sb3_laplace_envs.wrappers.tasks import SampleTask, as_array
from sb3_laplace_envs.wrappers.trial import longest_trial, trial_fields
from sb3_laplace_envs.wrappers.vector_tasks import VectorTasks


class VectorTrial(VectorWrapper):
    """
    `Trial` for a batch of environments, whose arguments and fields these are: several episodes of one hidden task,
    played as one episode. The same seeds and actions give the trials that single environments give.

    **Resets.** From outside, a trial that ends is followed by the next in the same step (``AutoresetMode.SAME_STEP``),
    with ``final_obs`` and ``final_info`` as in Gymnasium's vector environments. Inside, no step is lost or played
    twice, whatever the batch does itself when an episode ends:

    - ``DISABLED`` and ``NEXT_STEP``: the environments whose episode ended are reset at once, with
      ``options={"reset_mask": mask}``. (That also calls off the reset that ``NEXT_STEP`` would make of the next step.)
    - ``SAME_STEP``: within a trial the batch's own reset begins the next episode. It is made once more where the
      next trial begins, and where a reset has to say what the task is ("options" and "seed").

    So the batch must heed ``reset_mask``, as `SyncVectorEnv` and `AsyncVectorEnv` do. One that resets all its
    environments instead (as Gymnasium's CartPoleVectorEnv) is refused where that shows.

    **The task.** In a `SyncVectorEnv` the single environments are told their tasks, as in `Trial`. Any other batch is
    told by ``reset(options={"task": tasks})``, by seeds (if it has a generator for each environment) or by
    ``set_task(env, tasks)``, which is called with the tasks of all environments, stacked where they are
    arrays, whenever some have changed. ``reset(options={"task": tasks})`` fixes the tasks of all trials until
    the next reset, one for each environment.

    **Infos.** As in `Trial`; ``final_info`` holds ``episode_returns``, ``episode_lengths``, ``episodes_ended`` and
    ``task`` of the trials that ended.

    :param env: The batch
    :param n_episodes: As for `Trial`, and so are all others
    :raises ValueError: An argument is not what is allowed, or this batch cannot be told a task that way
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        n_episodes: int | None = None,
        trial_steps: int | None = None,
        on_termination: str = NEXT_EPISODE,
        sample_task: SampleTask | str | None = None,
        set_task: Callable[[Any, Any], Any] | str | None = None,
        task_kwargs: Callable[[np.random.Generator], dict[str, Any]] | Mapping[str, Sequence[Any]] | str | None = None,
        tasks: Sequence[Any] | None = None,
        task_order: str = "random",
        task_protocol: str = "auto",
        previous_action: bool = True,
        previous_reward: bool = True,
        reward_scale: float = 1.0,
        episode_start: bool = True,
        trial_start: bool = False,
        step_number: bool = False,
        episode_number: bool = False,
    ) -> None:
        if not isinstance(env, VectorEnv):
            raise ValueError(f"env must be a gymnasium.vector.VectorEnv, got {type(env)}: Trial takes single ones")
        if "autoreset_mode" not in env.metadata:
            raise ValueError(f"env must say how it resets in metadata['autoreset_mode'], which {env} does not")
        super().__init__(env)
        self.metadata = {**env.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
        self._progress = Progress(self.num_envs, n_episodes, trial_steps, on_termination)
        self._tasks = VectorTasks(
            env,
            sample_task=sample_task,
            set_task=set_task,
            task_kwargs=task_kwargs,
            tasks=tasks,
            task_order=task_order,
            task_protocol=task_protocol,
        )
        switches = {
            "previous_action": previous_action,
            "previous_reward": previous_reward,
            "episode_start": episode_start,
            "trial_start": trial_start,
            "step_number": step_number,
            "episode_number": episode_number,
        }
        self._fields = trial_fields(
            self.num_envs, env, env.single_action_space, self._progress, reward_scale, **switches
        )
        self._inner_space = env.single_observation_space
        self._view = TrialObservations(self._inner_space, self._fields)
        self.single_observation_space = self._view.space
        self.observation_space = batch_space(self._view.space, self.num_envs)
        self._inner_resets = AutoresetMode(env.metadata["autoreset_mode"]) == AutoresetMode.SAME_STEP
        self._is_seeded = False
        # The latest observations of the batch and the fields beside them, None before the first reset
        self._latest: Any = None
        self._block: NDArray[np.float32] = np.zeros((self.num_envs, self._fields.width), dtype=np.float32)

    @property
    def task(self) -> Any:
        """The hidden tasks of the present trials, stacked where they are arrays, else a list."""
        arrays = [as_array(task) for task in self._tasks.tasks]
        if any(array is None for array in arrays):
            return list(self._tasks.tasks)
        return np.stack(arrays)  # type: ignore[arg-type]

    @property
    def trial_length(self) -> int | None:
        """The most steps in a trial, None where no limit is known."""
        return longest_trial(self.env, self._progress)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, Infos]:
        """Start a new trial in all environments, or in some.

        :param seed: An int seeds environment i with ``seed + i``, a sequence gives each its own seed
        :param options: ``"task"``: a task for each environment, for all trials until the next reset.
            ``"reset_mask"``: booleans (num_envs,), which environments to reset. Others go to every reset of the batch.
        :return: Observations of all environments, and what the resets report
        :raises ValueError: Wrong seeds or options
        """
        options = dict(options or {})
        mask = np.ones(self.num_envs, dtype=np.bool_)
        if options.get("reset_mask") is not None:
            mask = check_array("options['reset_mask']", options["reset_mask"], "b", (self.num_envs,))
            if not mask.any():
                raise ValueError("options['reset_mask'] must select at least one environment, got none")
            if self._latest is None and not mask.all():
                raise ResetNeeded("options['reset_mask'] must select all environments at the first reset")
        rows = np.flatnonzero(mask)
        seeds = check_seeds(seed, self.num_envs)
        unseeded = [row for row in rows.tolist() if seeds[row] is None]
        seeded = [row for row in rows.tolist() if seeds[row] is not None]
        self._tasks.seed(np.array(seeded if self._is_seeded else [*seeded, *unseeded], dtype=np.int64), seeds)
        self._is_seeded = True
        self._give(options.get("task"), rows)
        self._tasks.options = {key: value for key, value in options.items() if key not in ("task", "reset_mask")}
        self._latest, infos = self._tasks.begin_trials(mask, self._latest)
        self._start(rows)
        return self._view.join(self._latest, self._block.copy()), without(infos, "episode")

    def step(self, actions: Any) -> tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Infos]:
        """Step all environments, those whose episode ends into the next, those whose trial ends into the next trial.

        :param actions: One action for each environment
        :return: Observations, rewards, whether trials terminated, whether they were truncated, infos
        :raises gymnasium.error.ResetNeeded: There was no reset
        """
        if self._latest is None:
            raise ResetNeeded("call reset before the first step")
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        rewards = np.array(rewards, dtype=np.float64)
        counted = self._progress.count(rewards, np.asarray(terminations), np.asarray(truncations))
        next_episode, terminated, truncated = counted
        ended = terminated | truncated
        self._block = np.zeros_like(self._block)
        self._fields.write_step(self._block, np.asarray(actions), rewards)
        self._fields.write_numbers(self._block, self._progress.steps, self._progress.episodes)
        self._latest = observations
        if infos:
            infos = without(infos, "episode")
        if next_episode.any() or ended.any():
            infos = self._move_on(next_episode, ended, np.asarray(terminations) | np.asarray(truncations), infos)
        return self._view.join(self._latest, self._block.copy()), rewards, terminated, truncated, infos

    def _move_on(self, next_episode: Mask, ended: Mask, inner_ended: Mask, infos: Infos) -> Infos:
        """Begin the next episodes and the next trials.

        :param next_episode: Where the next episode begins
        :param ended: Where the trial ended
        :param inner_ended: Where the batch's own episode ended
        :param infos: The infos of the step
        :return: The same with what the resets report
        """
        infos, last = self._own_step(infos, inner_ended, ended)
        if next_episode.any():
            begun = self._tasks.begin_episodes(next_episode, self._latest, self._progress.episodes)
            if begun is not None:
                self._latest = begun[0]
                infos = fill(infos, without(begun[1], "episode"), next_episode)
            self._fields.write_episode_starts(self._block, next_episode)
        if ended.any():
            rows = np.flatnonzero(ended)
            final_obs = np.full(self.num_envs, None, dtype=object)
            for row in rows.tolist():
                final_obs[row] = self._view.join(last(row), self._block[row].copy())
            final_info = fill(restrict(infos, ended), self._report(ended), ended)
            self._latest, reset_infos = self._tasks.begin_trials(ended, self._latest)
            # What some report is of the next trial from here on; what all report stays what the step was
            infos = {
                key: value & ~ended if key.startswith("_") and key[1:] in infos else value
                for key, value in infos.items()
            }
            infos = fill(infos, without(reset_infos, "episode"), ended)
            infos |= {
                "final_obs": final_obs,
                "_final_obs": ended,
                "final_info": final_info,
                "_final_info": ended.copy(),
            }
            self._start(rows)
        return infos

    def _own_step(self, infos: Infos, inner_ended: Mask, ended: Mask) -> tuple[Infos, Callable[[int], Any]]:
        """What the step itself reported and showed, where the batch has reset itself in the same step too.

        :return: Infos, and a function that gives the last observation of an environment
        """
        latest, space = self._latest, self._inner_space
        if not self._inner_resets:
            return infos, lambda row: row_of(space, latest, row)
        shown, final_info = infos.get("final_obs"), infos.get("final_info", {})
        infos = without(without(infos, "final_obs"), "final_info")
        if inner_ended.any():
            # What the batch's own reset reported, where there will be no other
            is_kept = ~inner_ended if self._tasks.rule.is_seeded_by_episode else ~(ended & inner_ended)
            infos = fill(restrict(without(final_info, "episode"), inner_ended), infos, is_kept)
        return infos, lambda row: shown[row] if inner_ended[row] else row_of(space, latest, row)  # type: ignore[index]

    def _start(self, rows: NDArray[np.int64]) -> None:
        self._progress.start(rows)
        self._fields.write_trial_starts(self._block, rows)

    def _report(self, ended: Mask) -> Infos:
        """What is told of the trials that ended, with a mask for each entry."""
        report: Infos = dict(self._progress.report(np.arange(self.num_envs)))
        arrays = [as_array(task) for task in self._tasks.tasks]
        example = next((array for row, array in enumerate(arrays) if ended[row] and array is not None), None)
        if example is not None:
            filled = [np.zeros_like(example) if array is None else array for array in arrays]
            report["task"] = np.stack(filled)
        return {
            name: entry for key, values in report.items() for name, entry in ((key, values), (f"_{key}", ended.copy()))
        }

    def _give(self, tasks: Any, rows: NDArray[np.int64]) -> None:
        """Fix the tasks of some environments, or have them drawn."""
        if tasks is not None and len(tasks) != self.num_envs:
            raise ValueError(
                f"options['task'] must hold a task for each of {self.num_envs} environments, got {tasks!r}"
            )
        for row in rows.tolist():
            if tasks is None:
                self._tasks.rule.take_back(row)
            else:
                self._tasks.rule.give(row, tasks[row])
