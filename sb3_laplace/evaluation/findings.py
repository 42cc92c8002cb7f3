"""What a verdict is made of: the trials that count, and the answer to one question about them."""

from dataclasses import dataclass

import numpy as np

from sb3_laplace.evaluation.bootstrap import Bootstrap, Estimate
from sb3_laplace.evaluation.traces import PosteriorTrace

#: Fewest complete trials that a verdict is given on
MIN_TRIALS = 30
#: Fewest steps of a trial that has an early and a late part
MIN_STEPS = 7
#: The verdict where there are too few trials, or too short ones
NOT_ENOUGH_DATA = "not enough data"
#: The verdict where the trace does not hold what the question is about
NOT_APPLICABLE = "not applicable"
#: The verdict where the confidence interval lies on both sides, and what it means
UNDECIDED = "undecided"
MORE_TRIALS = "More trials are needed to tell."


@dataclass
class Finding:
    """The answer to one question.

    :param question: the question
    :param verdict: the answer, one of those that the question's function lists
    :param numbers: what it rests on, by name
    :param meaning: what the verdict says, in a sentence
    :param space: of numbers that depend on it, what of the posterior they are of: "task" for its linear read-out of
        the task, "latent" for all of it
    """

    question: str
    verdict: str
    numbers: dict[str, Estimate]
    meaning: str
    space: str | None = None


class Trials:
    """The trials of a trace that count, their parts, and the bootstrap over them."""

    def __init__(self, trace: PosteriorTrace, bootstrap: Bootstrap) -> None:
        self.trace = trace
        self._chosen = trace.complete & (trace.lengths >= MIN_STEPS)
        self.n_trials = int(self._chosen.sum())
        #: Complete trials that are left out because they are short
        self.n_short = int(trace.complete.sum()) - self.n_trials
        self.enough = self.n_trials >= MIN_TRIALS
        self._lengths = trace.lengths[self._chosen, None]
        self.bootstrap = bootstrap
        steps = np.arange(trace.n_steps)
        third = (self._lengths - 1) // 3
        updates = (steps < self._lengths) & (self.get(trace.episode_start) != 1.0) & (steps >= 1)
        #: Which steps are in which part of a trial, each of shape (n_trials, T)
        self.parts = {
            "all": updates,
            "early": updates & (steps <= third),
            "middle": updates & (steps > third) & (steps < self._lengths - third),
            "late": updates & (steps >= self._lengths - third),
        }

    def get(self, array: np.ndarray) -> np.ndarray:
        """The rows of an array of the trace that count, in double precision."""
        return array[self._chosen].astype(np.float64)

    def exists(self, array: np.ndarray | None) -> bool:
        """Whether the array has a number in every step of the trials that count."""
        return array is not None and bool(np.isfinite(self.get(array)[self.parts["all"]]).all())

    def whole(self, array: np.ndarray) -> np.ndarray:
        """Trials in which an array of the trace has a number at every update, shape (n_trials,), bool."""
        return (np.isfinite(self.get(array)) | ~self.parts["all"]).all(1)

    def sum(self, values: np.ndarray, part: str) -> np.ndarray:
        """Sums over a part of each trial, shape (n_trials,)."""
        return np.where(self.parts[part], values, 0.0).sum(1)

    def mean(self, values: np.ndarray, part: str) -> np.ndarray:
        """Means over a part of each trial, shape (n_trials,)."""
        return self.sum(values, part) / self.parts[part].sum(1)

    def average(self, column: np.ndarray) -> Estimate:
        """The average over trials of a number for each of them, shape (n_trials,)."""
        return self.bootstrap.ratio(column)

    def ratio(self, above: np.ndarray, below: np.ndarray) -> Estimate:
        """Ratio of two averages over trials, each of a number for each of them, shape (n_trials,)."""
        return self.bootstrap.ratio(above, below)

    def no_verdict(self, question: str) -> Finding:
        return Finding(
            question,
            NOT_ENOUGH_DATA,
            {},
            f"A verdict takes {MIN_TRIALS} complete trials of at least {MIN_STEPS} steps, here are {self.n_trials}.",
        )
