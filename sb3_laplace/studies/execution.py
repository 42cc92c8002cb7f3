"""Execution of a study by submitit: workers on this machine or under SLURM that take one run after another."""

import re
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_laplace.errors import InputError
from sb3_laplace.studies.runs import RunFolder, Study, write_json
from sb3_laplace.studies.training import RunError, call, train

if TYPE_CHECKING:
    from submitit import Executor, Job
    from submitit.helpers import DelayedSubmission

# Seconds between two looks at what others are at
_POLL = 2.0
# A local worker is no job with a limit to its time: minutes of ten years
_NO_TIMEOUT = 60 * 24 * 3650
# Seconds that local workers get to end after an interrupt
_GRACE = 15.0
_SLURM_COMMANDS = ("sbatch", "srun")
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


class Worker:
    """What a job of submitit calls: takes runs that nobody is at, one after another, until none is left.

    When SLURM preempts the job, or its time is over, submitit puts it in the queue again and it goes on.

    :param study: folder of the study
    :param invocation: names the command that started it: what failed under it is not tried again
    :param waits: whether to stay while other workers have runs, to take over those of one that dies
    """

    def __init__(self, study: str, invocation: str, waits: bool) -> None:
        self._study, self._invocation, self._waits = study, invocation, waits

    def __call__(self) -> None:
        study = Study.load(self._study)
        while True:
            states = [self._take(study, folder) for folder in study.folders.values()]
            if "done" in states:
                # What waited for it may be possible now
                continue
            if not (self._waits and "taken" in states):
                return
            time.sleep(_POLL)

    def checkpoint(self) -> "DelayedSubmission":
        """What submitit puts in the queue again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _take(self, study: Study, folder: RunFolder) -> str:
        """Do what a run still needs: "done" if something was, "taken" if another worker has it, else "nothing"."""
        if not self._is_to_do(study, folder):
            return "nothing"
        with folder.lock.held() as lock:
            if lock is None:
                return "taken"
            # Someone may have done it in between
            if not self._is_to_do(study, folder):
                return "nothing"
            folder.failure_file.unlink(missing_ok=True)
            print(f"{time.strftime('%H:%M:%S')} {folder.run.name}", flush=True)
            try:
                if folder.agent is None and folder.run.source is None:
                    train(folder, lock)
                _evaluate(study, folder, lock)
            except RunError as error:
                self._fail(folder, str(error), str(error.log.relative_to(folder.path)), error.lines)
            except OSError as error:
                self._fail(folder, str(error), None, [])
        return "done"

    def _is_to_do(self, study: Study, folder: RunFolder) -> bool:
        if folder.is_finished():
            return False
        failure, source = folder.failure, study.source_of(folder)
        has_failed = failure is not None and failure["invocation"] == self._invocation
        return not has_failed and (source is None or source.agent is not None)

    def _fail(self, folder: RunFolder, message: str, log: str | None, lines: list[str]) -> None:
        print(f"{folder.run.title}: {message}", file=sys.stderr, flush=True)
        failure = {"message": message, "log": log, "lines": lines, "invocation": self._invocation}
        write_json(folder.failure_file, failure)


def _evaluate(study: Study, folder: RunFolder, lock: int) -> None:
    log = folder.path / "evaluations.log"
    code, _ = call("sb3_laplace.studies.evaluate", [str(study.path), folder.run.name], log, lock)
    if code != 0:
        missing = folder.missing_evaluations() if folder.agent is not None else ["making the agent"]
        ended = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
        raise RunError(f"{', '.join(missing)} failed ({ended})", log)
    if not folder.is_finished():
        raise RunError("evaluations were left out", log)


def run_locally(study: Study, n_workers: int, tell: Callable[[], None]) -> list[str]:
    """Run a study with workers on this machine, and wait for them. An interrupt ends them.

    :param study: the study, saved
    :param n_workers: number of workers
    :param tell: called every few seconds meanwhile
    :return: what became of workers that did not end by themselves, a line for each
    :raises InputError: if submitit is not installed
    """
    submitit = _submitit()
    executor = submitit.LocalExecutor(study.path / "workers")
    executor.update_parameters(timeout_min=_NO_TIMEOUT)
    jobs = _submit(executor, study, n_workers, waits=True)
    try:
        while not all(job.done() for job in jobs):
            tell()
            time.sleep(min(_POLL, 1.0))
    except BaseException:
        for job in jobs:
            job.cancel()
        deadline = time.monotonic() + _GRACE
        while time.monotonic() < deadline and not all(job.done() for job in jobs):
            time.sleep(0.1)
        raise
    return [text for job in jobs if (text := _end_of(job))]


def submit_to_slurm(study: Study, parameters: dict[str, Any], n_workers: int) -> list[str]:
    """Queue workers under SLURM, as one array of jobs, and return.

    :param study: the study, saved; its folder has to be on a filesystem that the nodes share
    :param parameters: those of ``sbatch`` as submitit has them, see :func:`parse_slurm`
    :param n_workers: number of workers
    :return: ids of the jobs
    :raises InputError: if submitit is not installed, or it or SLURM refuses
    """
    submitit = _submitit()
    executor = submitit.SlurmExecutor(study.path / "workers")
    executor.update_parameters(**{"job_name": "sb3-laplace", **parameters})
    try:
        return [job.job_id for job in _submit(executor, study, n_workers, waits=False)]
    except (OSError, RuntimeError) as error:
        raise InputError(f"--slurm: {error}") from error


def parse_slurm(text: str) -> dict[str, Any]:
    """What ``--slurm`` was given: NAME=VALUE, separated by commas; ``time`` as SLURM writes it (minutes, h:m:s, d-h).

    :param text: the option's value
    :raises InputError: if it cannot be read, submitit has no such parameter, or there is no SLURM on this machine
    """
    missing = [command for command in _SLURM_COMMANDS if shutil.which(command) is None]
    if missing:
        raise InputError(f"--slurm: there is no {' and no '.join(missing)} on PATH: is this machine part of a cluster?")
    known = sorted(_submitit().SlurmExecutor._valid_parameters())
    parameters: dict[str, Any] = {}
    for item in text.split(","):
        name, separator, value = item.partition("=")
        if not separator or not value:
            raise InputError(f"--slurm takes NAME=VALUE,..., got {item!r} (partition=gpu,time=4:00:00, say)")
        if name not in known:
            raise InputError(f"--slurm: there is no {name!r}; known are {', '.join(known)}")
        if name == "time":
            parameters[name] = _minutes(value)
        else:
            parameters[name] = int(value) if value.isdigit() else value
    return parameters


def _minutes(value: str) -> int:
    match = _TIME.fullmatch(value)
    if match is None:
        raise InputError(f"--slurm: time must be minutes, hours:minutes:seconds or days-hours, got {value!r}")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
        hours += 24 * int(days)
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, (*numbers, 0)[:2]
    total = -(-(3600 * hours + 60 * minutes + seconds) // 60)
    if total < 1:
        raise InputError(f"--slurm: time must be a minute at least, got {value!r}")
    return total


def _submitit() -> Any:
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise InputError('study run needs submitit: pip install "sb3-laplace[study]"') from error
    return submitit


def _submit(executor: "Executor", study: Study, n_workers: int, waits: bool) -> "list[Job[Any]]":
    invocation = uuid.uuid4().hex
    path = str(Path(study.path).resolve())
    with executor.batch():
        return [executor.submit(Worker(path, invocation, waits)) for _ in range(n_workers)]


def _end_of(job: "Job[Any]") -> str | None:
    """How a worker ended if it was not by itself."""
    if job.paths.result_pickle.is_file() and (error := job.exception()) is None:
        return None
    if job.paths.result_pickle.is_file():
        return f"a worker failed: {str(error).strip().splitlines()[-1]} (its log is {job.paths.stderr})"
    return f"a worker was killed (its log is {job.paths.stderr})"
