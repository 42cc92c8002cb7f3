"""The command ``study``: run many agents with many seeds, look how far they are, and report what they say."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_laplace.errors import InputError

if TYPE_CHECKING:
    from sb3_laplace.studies.runs import Study

# Seconds after which progress is told though nothing has finished
_INTERVAL = 60.0
#: Exit code where runs have failed, or were left unfinished
UNFINISHED = 1


def add_study(commands: Any) -> None:
    parser = commands.add_parser(
        "study",
        help="run agents x environments x seeds, evaluate and compare them: study {run,status,report}",
        description="Train and evaluate agents on environments with several seeds, as a YAML file says "
        "(docs/studies.md has its format), and compare them.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    run = actions.add_parser(
        "run",
        help="train and evaluate what is not finished",
        description="Train and evaluate what is not finished. The same command goes on where an earlier one was "
        "stopped; runs that failed are tried again.",
    )
    run.add_argument("file", metavar="STUDY.yml", help="the study")
    run.add_argument("--out", metavar="DIR", help="folder of the study (default: studies/STUDY)")
    run.add_argument(
        "--workers", type=int, metavar="N", help="runs at a time (default: 1; with --slurm as many as runs)"
    )
    run.add_argument(
        "--slurm",
        metavar="NAME=VALUE,...",
        help="queue the workers under SLURM with these parameters of sbatch (partition=...,time=...), and return",
    )
    run.add_argument("--dry-run", action="store_true", help="check everything and list the runs, and start nothing")
    run.set_defaults(run=_with_packages(_run))
    status = actions.add_parser("status", help="say how far a study is, and what failed")
    status.add_argument("folder", metavar="DIR", help="folder of the study")
    status.set_defaults(run=_with_packages(_status))
    report = actions.add_parser(
        "report",
        help="compare the agents",
        description="Compare the agents of the runs that are finished: report.md, report.html, scores.csv, "
        "results.json and figures in the folder report of the study.",
    )
    report.add_argument("folder", metavar="DIR", help="folder of the study")
    report.add_argument(
        "--docs",
        metavar="FOLDER",
        help="also write FOLDER/results/STUDY.json, and the tables between <!-- begin STUDY.TABLE --> and "
        "<!-- end STUDY.TABLE --> of the Markdown documents in FOLDER",
    )
    report.set_defaults(run=_with_packages(_report))


def _with_packages(action: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """The same, with one line where an optional package is missing."""

    def checked(options: argparse.Namespace) -> int:
        try:
            return action(options)
        except ModuleNotFoundError as error:
            package = str(error.name).split(".")[0]
            if package == "fcntl":
                message = "study needs locks of files that Windows does not have: run it under Linux, macOS or WSL"
                raise InputError(message) from error
            if package not in ("matplotlib", "rl_zoo3", "submitit", "yaml"):
                raise
            raise InputError(f'study needs {package}: pip install "sb3-laplace[study]"') from error

    return checked


def _run(options: argparse.Namespace) -> int:
    from sb3_laplace.studies.execution import parse_slurm, run_locally, submit_to_slurm
    from sb3_laplace.studies.progress import progress, table
    from sb3_laplace.studies.runs import FINISHED, Study, resolve
    from sb3_laplace.studies.spec import read_spec

    if options.workers is not None and options.workers < 1:
        raise InputError(f"--workers must be at least 1, got {options.workers}")
    slurm = None if options.slurm is None else parse_slurm(options.slurm)
    spec = read_spec(options.file)
    out = Path("studies") / spec.name if options.out is None else Path(options.out)
    study = Study(out, spec, resolve(spec))
    _check(study)
    if options.dry_run:
        print(table(progress(study)))
        print(_summary(study, options.workers or 1))
        return 0
    study.save()
    n_left = sum(run.state != FINISHED for run in progress(study))
    if n_left == 0:
        print(_summary(study, 1))
        return 0
    if slurm is not None:
        ids = submit_to_slurm(study, slurm, min(n_left, options.workers or n_left))
        print(f"Queued {len(ids)} workers for {n_left} runs: {', '.join(ids)}")
        print(f"sb3-laplace study status {out} says how far they are")
        return 0
    n_workers = min(n_left, options.workers or 1)
    try:
        ends = run_locally(study, n_workers, _Ticker(study, n_workers).tick)
    except KeyboardInterrupt:
        print(f"{_summary(study, n_workers)}. The same command goes on.", file=sys.stderr)
        raise
    return _tell_end(study, ends)


def _check(study: "Study") -> None:
    """Set up what is still to be trained once for each agent and environment, before hours are spent on the first."""
    from sb3_laplace.zoo.configurations import check_experiment

    checked = set()
    for folder in study.folders.values():
        run = folder.run
        kind = (run.agent, run.env_id)
        if run.source is not None or folder.agent is not None or kind in checked:
            continue
        checked.add(kind)
        configuration = run.configuration
        try:
            check_experiment(configuration["algorithm"], run.env_id, configuration["hyperparams"], run.seed)
        except InputError as error:
            raise InputError(f"agents.{run.agent} on {run.env_id}: {error}") from error


def _summary(study: "Study", n_workers: int) -> str:
    from sb3_laplace.studies.progress import progress, summary

    return summary(progress(study), n_workers)


def _tell_end(study: "Study", ends: list[str]) -> int:
    from sb3_laplace.studies.progress import failure, progress
    from sb3_laplace.studies.runs import FINISHED

    runs = progress(study)
    print(_summary(study, 1))
    for run in runs:
        for line in [f"{run.folder.run.name} failed:", *failure(run.folder)] if run.folder.failure else ():
            print(line, file=sys.stderr)
    for text in ends:
        print(text, file=sys.stderr)
    if all(run.state == FINISHED for run in runs):
        print(f"sb3-laplace study report {study.path} compares the agents")
        return 0
    print("The same command goes on with what is not finished.", file=sys.stderr)
    return UNFINISHED


class _Ticker:
    """Prints the progress when a run has ended, and now and then between."""

    def __init__(self, study: "Study", n_workers: int) -> None:
        self._study, self._n_workers = study, n_workers
        self._unfinished = list(study.folders.values())
        self._n_ended = -1
        self._told = -_INTERVAL

    def tick(self) -> None:
        # Whether a run is finished its evaluations tell, which are long: what is, is not asked again
        self._unfinished = [folder for folder in self._unfinished if not folder.is_finished()]
        n_failed = sum(folder.failure is not None for folder in self._unfinished)
        n_ended = len(self._study.folders) - len(self._unfinished) + n_failed
        if n_ended != self._n_ended or time.monotonic() - self._told > _INTERVAL:
            self._n_ended, self._told = n_ended, time.monotonic()
            print(_summary(self._study, self._n_workers), flush=True)


def _status(options: argparse.Namespace) -> int:
    from sb3_laplace.studies.progress import progress, summary, table
    from sb3_laplace.studies.runs import Study

    study = Study.load(options.folder)
    runs = progress(study)
    print(table(runs))
    print(summary(runs, 1))
    return 0


def _report(options: argparse.Namespace) -> int:
    from sb3_laplace.studies.report import write_docs, write_report
    from sb3_laplace.studies.results import collect
    from sb3_laplace.studies.runs import Study

    results = collect(Study.load(options.folder))
    folder = Path(options.folder) / "report"
    written = write_report(results, folder)
    if options.docs is not None:
        written += write_docs(results, Path(options.docs))
    print("Wrote " + ", ".join(str(path) for path in written))
    return 0
