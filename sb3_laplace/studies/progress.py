"""How far a study is: what each run is at, how much of all of it is done, and what is left in hours."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from sb3_laplace.studies.runs import FAILED, FINISHED, RUNNING, STOPPED, TO_DO, WAITING, RunFolder, Study
from sb3_laplace.studies.training import fraction_trained

_STATES = (FINISHED, RUNNING, STOPPED, WAITING, TO_DO, FAILED)


@dataclass(frozen=True)
class RunProgress:
    """One run.

    :param folder: its folder
    :param state: its state
    :param fraction: how much of its training is done, from 0 to 1
    :param seconds: how long it took, once it is finished
    """

    folder: RunFolder
    state: str
    fraction: float
    seconds: float | None

    @property
    def kind(self) -> tuple[str, str]:
        """Runs that differ in the seed alone take about as long as one another."""
        return self.folder.run.agent, self.folder.run.env_id


def progress(study: Study) -> list[RunProgress]:
    """How far each run is, in the study's order."""
    return [_progress(folder, study.state(folder)) for folder in study.folders.values()]


def _progress(folder: RunFolder, state: str) -> RunProgress:
    seconds = None
    agent = folder.agent
    if state == FINISHED and agent is not None:
        found = [folder.evaluation(name) for name in folder.evaluations]
        seconds = agent["seconds"] + sum(one["seconds"] for one in found if one is not None)
    return RunProgress(folder, state, fraction_trained(folder), seconds)


def seconds_left(runs: Iterable[RunProgress], n_workers: int) -> float | None:
    """How long a number of workers needs for what is left; None while no run is finished to judge by.

    A run takes what others of its kind took, else its steps times what a step took in the runs that are finished. Of
    a run under way that part counts which it has not trained. What has failed is not counted.

    :param runs: the runs
    :param n_workers: number of workers
    """
    runs = list(runs)
    finished = [run for run in runs if run.seconds is not None]
    if not finished:
        return None
    steps = sum(run.folder.run.steps for run in finished)
    by_step = sum(run.seconds or 0.0 for run in finished) / steps if steps else 0.0
    left = 0.0
    for run in runs:
        if run.state in (FINISHED, FAILED):
            continue
        alike = [other.seconds for other in finished if other.kind == run.kind and other.seconds is not None]
        whole = fmean(alike) if alike else by_step * run.folder.run.steps
        left += (1.0 - run.fraction) * whole
    return left / max(1, n_workers)


def summary(runs: Iterable[RunProgress], n_workers: int) -> str:
    """The study in a line: how many runs are in each state, how many steps are done, and the time left.

    :param runs: the runs
    :param n_workers: number of workers; if more runs are under way, as other commands may have workers too, so many
    """
    runs = list(runs)
    counts = Counter(run.state for run in runs)
    parts = [f"{counts[FINISHED]} of {len(runs)} runs finished"]
    parts += [f"{counts[state]} {state}" for state in _STATES[1:] if counts[state]]
    total = sum(run.folder.run.steps for run in runs)
    if total:
        done = sum(run.fraction * run.folder.run.steps for run in runs)
        parts.append(f"{done / total:.0%} of the steps")
    left = seconds_left(runs, max(n_workers, counts[RUNNING]))
    is_over = not any(run.state not in (FINISHED, FAILED) for run in runs)
    if left is not None and not is_over:
        parts.append(f"about {duration(left)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """A time as "2 d 3 h", "1 h 20 min", "5 min" or "40 s"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def table(runs: Iterable[RunProgress]) -> str:
    """A line for each run; below those that failed, the end of their logs."""
    lines = []
    for run in runs:
        note = f"{run.fraction:.0%} trained" if run.state not in (FINISHED, TO_DO) else ""
        if run.seconds is not None:
            note = duration(run.seconds)
        if run.state == WAITING:
            note = f"for {run.folder.run.source}"
        lines.append(f"{run.state:<9} {run.folder.run.name}  {note}".rstrip())
        if run.state == FAILED:
            lines += failure(run.folder)
    return "\n".join(lines)


def failure(folder: RunFolder) -> list[str]:
    """What failed in a run, and the end of its log, as lines of text."""
    found = folder.failure
    if found is None:
        return []
    where = "" if found["log"] is None else f" ({folder.path / found['log']})"
    return [f"    {found['message']}{where}", *(f"    | {line}" for line in found["lines"])]
