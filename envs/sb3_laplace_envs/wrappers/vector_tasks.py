"""Resetting the environments of a batch, each with its own task."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from sb3_laplace_envs.wrappers.infos import Infos, Mask, fill
from sb3_laplace_envs.wrappers.observations import are_equal, choose
from sb3_laplace_envs.wrappers.tasks import CALLABLE, KEYWORDS, Probe, TaskRule, as_array


class VectorTasks:
    """Begins trials and episodes in some environments of a batch while the others are left alone.

    The environments are told their tasks one by one in a `SyncVectorEnv`, and all at once otherwise: a callable
    ``set_task(env, tasks)`` is then given the tasks of all, stacked where they are arrays.

    :param env: The batch
    :param rule_arguments: Those of `TaskRule`, without the number of environments and what is to be probed
    :raises ValueError: An argument is not what is allowed, or this kind of batch cannot be told tasks that way
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], **rule_arguments: Any) -> None:
        self.env = env
        self._base = env.unwrapped
        self._n = env.num_envs
        self._mode = AutoresetMode(env.metadata["autoreset_mode"])
        self._singles = self._base.envs if isinstance(self._base, SyncVectorEnv) else None
        self._is_made_of_singles = isinstance(self._base, SyncVectorEnv | AsyncVectorEnv)
        # Only a batch with a generator for each environment can be given a seed for each
        self._takes_seeds = self._is_made_of_singles or isinstance(self._base.np_random, tuple)
        self.rule = TaskRule(self._n, self._probe(), **rule_arguments)
        # Those of the single environments, before anything is put in their place
        self._specs = [env.unwrapped.spec for env in self._singles or ()]
        self._check()
        self._seeds = np.zeros(self._n, dtype=np.int64)
        #: The task of each environment's present trial, None where it does not tell
        self.tasks: list[Any] = [None] * self._n
        # What the first reset of a trial has drawn beside constructor keywords
        self._drawn: list[Any] = [None] * self._n
        #: Given to every reset of the environments
        self.options: dict[str, Any] = {}

    def _probe(self) -> Probe:
        if isinstance(self._base, SyncVectorEnv):
            return Probe(self._base.envs[0])
        if isinstance(self._base, AsyncVectorEnv):
            example = self._base.env_fns[0]()
            try:
                return Probe(example)
            finally:
                example.close()
        return Probe(self.env, self._n)

    def _check(self) -> None:
        protocol = self.rule.protocol
        if protocol in (KEYWORDS, "set_task", "reset_task") and self._singles is None:
            what = "task_kwargs" if protocol == KEYWORDS else protocol
            raise ValueError(
                f"env must be a SyncVectorEnv for {what}, which single environments have, got {self._base}. Give "
                "set_task(env, tasks), or put Trial into the single environments."
            )
        if protocol == KEYWORDS and self._singles is not None and self._specs[0] is None:
            raise ValueError(f"task_kwargs must be used with environments made by gymnasium.make, got {self._base}")
        if protocol == "seed" and not self._takes_seeds:
            raise ValueError(
                f"env must have a way to set a task, got {self._base}: it is no batch of single environments and has "
                "one generator for all, so that no seed can be held either. Give set_task(env, tasks)."
            )

    def seed(self, rows: NDArray[np.int64], seeds: list[int | None]) -> None:
        """Start the generators of some environments' trials, from the seeds or else from the environments' own."""
        parents: Any = [None] * self._n
        if any(seeds[row] is None for row in rows):
            own = self._base.np_random
            parents = own if isinstance(own, tuple) else own.spawn(self._n)
        for row in rows.tolist():
            self.rule.seed(row, seeds[row], parents[row])

    def begin_trials(self, mask: Mask, latest: Any) -> tuple[Any, Infos]:
        """Draw and set tasks, and reset the environments.

        :param mask: Which environments, (num_envs,)
        :param latest: The latest observations of all, None at the first reset
        :return: Observations of all, and what the resets report
        """
        rows = np.flatnonzero(mask).tolist()
        for row in rows:
            self._seeds[row], self.tasks[row] = self.rule.begin(row)
        seeds: list[int | None] | None = [int(seed) for seed in self._seeds]
        protocol = self.rule.protocol
        if protocol == "options":
            return self._begin_with_options(mask, latest, seeds)
        if self._singles is not None:
            asked = [row for row in rows if self.rule.asks_env and self.tasks[row] is None]
            if asked:
                self._reset(mask, latest, seeds)
                seeds = None
            for row in rows:
                if row in asked:
                    self.tasks[row] = self.rule.ask(self._singles[row])
                elif protocol == KEYWORDS:
                    self._singles[row] = self.rule.remake(self._singles[row], self._specs[row], self.tasks[row])
                elif protocol != "seed":
                    self.rule.tell(self._singles[row], self.tasks[row])
        elif protocol == CALLABLE and self.rule.set_task is not None:
            self.rule.set_task(self.env, _stacked(self.tasks))
        observations, infos = self._reset(mask, latest, seeds)
        if self.rule.holds_task and self._singles is not None:
            for row in rows:
                self._drawn[row] = np.copy(self._singles[row].get_wrapper_attr("task"))
        return observations, infos

    def _begin_with_options(self, mask: Mask, latest: Any, seeds: list[int | None] | None) -> tuple[Any, Infos]:
        """As :meth:`begin_trials`, where the options of a reset set the task or else the reset draws it."""
        given = mask & np.array([task is not None for task in self.tasks])
        drawn = mask & ~given
        infos: Infos = {}
        observations = latest
        # The first reset of a batch has to be one of all
        if drawn.any() and given.any() and latest is None:
            observations, _ = self._reset(mask, None, seeds)
        if drawn.any():
            observations, infos = self._reset(drawn, observations, seeds)
            tasks = self.env.get_attr("task") if self._is_made_of_singles else self._base.task  # type: ignore[attr-defined]
            for row in np.flatnonzero(drawn):
                self.tasks[row] = np.copy(tasks[row])
        if given.any():
            observations, others = self._reset(given, observations, seeds, with_tasks=True)
            infos = fill(infos, others, given)
        return observations, infos

    def begin_episodes(self, mask: Mask, latest: Any, episodes: NDArray[np.int64]) -> tuple[Any, Infos] | None:
        """Reset environments whose tasks stay the same.

        :param mask: Which environments, (num_envs,)
        :param latest: The latest observations of all
        :param episodes: The number of each environment's episode in its trial, (num_envs,)
        :return: Observations of all and what the resets report; None if the batch has done that itself
        """
        if not self.rule.is_seeded_by_episode:
            return None if self._mode == AutoresetMode.SAME_STEP else self._reset(mask, latest, None)
        if self.rule.protocol == "seed":
            return self._reset(mask, latest, [int(seed) for seed in self._seeds])
        seeds: list[int | None] = [int(seed) for seed in self._seeds + episodes]
        return self._reset(mask, latest, seeds, with_tasks=True)

    def _reset(
        self, mask: Mask, latest: Any, seeds: list[int | None] | None, with_tasks: bool = False
    ) -> tuple[Any, Infos]:
        """Reset some environments, in one call where that can say each its task."""
        if not with_tasks:
            return self._reset_once(mask, latest, seeds, {})
        tasks = self._drawn if self.rule.protocol == KEYWORDS else self.tasks
        if not self._is_made_of_singles:
            # Those of the others are not looked at, but have to be tasks
            anyone = tasks[int(np.flatnonzero(mask)[0])]
            stacked = np.stack([anyone if task is None else task for task in tasks])
            return self._reset_once(mask, latest, seeds, {"task": stacked})
        infos: Infos = {}
        if latest is None:
            latest, _ = self._reset_once(mask, None, seeds, {"task": tasks[0]})
        for row in np.flatnonzero(mask).tolist():
            one = np.arange(self._n) == row
            latest, others = self._reset_once(one, latest, seeds, {"task": tasks[row]})
            infos = fill(infos, others, one)
        return latest, infos

    def _reset_once(
        self, mask: Mask, latest: Any, seeds: list[int | None] | None, options: dict[str, Any]
    ) -> tuple[Any, Infos]:
        options = {**self.options, **options}
        if mask.all():
            # A batch with one generator is seeded as a whole
            seed: Any = seeds if self._takes_seeds or seeds is None else seeds[0]
            return self.env.reset(seed=seed, options=options or None)
        if seeds is not None:
            seeds = [seed if chosen else None for seed, chosen in zip(seeds, mask.tolist(), strict=True)]
        observations, infos = self.env.reset(
            seed=seeds if self._takes_seeds else None,  # type: ignore[arg-type]
            options={**options, "reset_mask": mask.copy()},
        )
        if latest is None:
            return observations, infos
        # What resets all when it is asked for some would go unnoticed. Without autoreset the mask is the contract.
        is_bound = self._is_made_of_singles or self._mode == AutoresetMode.DISABLED
        if not is_bound and not are_equal(observations, latest, ~mask):
            raise ValueError(
                "env must heed options['reset_mask'] and return the other environments' observations as they were, "
                f"{self._base} does not: take a SyncVectorEnv of single environments"
            )
        return choose(self._base.single_observation_space, mask, observations, latest), infos


def _stacked(tasks: list[Any]) -> Any:
    """The tasks as one array where they are arrays of one shape (or tuples of numbers), else as a list."""
    arrays = [as_array(task) for task in tasks]
    shapes = {None if array is None else array.shape for array in arrays}
    if None in shapes or len(shapes) > 1:
        return list(tasks)
    return np.stack(arrays)  # type: ignore[arg-type]
