"""Trials of a search that train several agents, so that its value is no accident of one seed."""

from collections.abc import Callable
from statistics import fmean
from typing import Any

import optuna


class SeedOfTrial:
    """A trial as the training of one of its seeds sees it: evaluations are reported as the mean over seeds so far.

    With E evaluations of each agent, the i-th (from 1) of the k-th seed (from 0) is reported at step ``k E + i``, as
    the mean of the i-th evaluations of the seeds 0 to k. So a pruner compares what is comparable: means over as many
    seeds after as many steps of training. A bad trial is stopped while its first seed trains, as without seeds; one
    that was lucky with that, at the next.

    Everything else is the trial's own. Optuna samples a hyperparameter once in a trial: all seeds have the same.

    :param trial: the trial
    :param seed: which of its seeds this is, from 0
    :param n_evaluations: number of evaluations E of each agent
    :param before: evaluations of the seeds before, in their order
    """

    def __init__(self, trial: optuna.Trial, seed: int, n_evaluations: int, before: list[list[float]]) -> None:
        self._trial, self._seed, self._n_evaluations, self._before = trial, seed, n_evaluations, before
        #: Evaluations of this seed
        self.evaluations: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    @property
    def number(self) -> str:
        """What logs of the trial are filed under; each seed has its own."""
        return f"{self._trial.number}_seed_{self._seed}"

    def report(self, value: float, step: int) -> None:
        """Report the mean over seeds of an evaluation.

        :param value: mean return of the evaluation
        :param step: which evaluation of the agent it is, from 1
        """
        self.evaluations.append(value)
        # Rounding can give an agent one evaluation more than was asked for, and another one less
        same = [one[step - 1] for one in (*self._before, self.evaluations) if len(one) >= step]
        if step <= self._n_evaluations:
            self._trial.report(fmean(same), self._seed * self._n_evaluations + step)


def mean_over_seeds(
    trial: optuna.Trial, n_seeds: int, n_evaluations: int, objective: Callable[[int, SeedOfTrial], float]
) -> float:
    """Train an agent for each seed, one after another.

    :param trial: the trial
    :param n_seeds: number of seeds
    :param n_evaluations: number of evaluations of each agent
    :param objective: trains one, given the number of the seed and what it has for a trial
    :return: the mean of the agents' values
    :raises optuna.TrialPruned: if the trial is pruned
    """
    values: list[float] = []
    evaluations: list[list[float]] = []
    for number in range(n_seeds):
        seed = SeedOfTrial(trial, number, n_evaluations, evaluations)
        values.append(objective(number, seed))
        evaluations.append(seed.evaluations)
    return fmean(values)
