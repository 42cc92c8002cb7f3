"""Training of a run by ``sb3-laplace train`` in a process of its own, resumed where an attempt before it was killed."""

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_sb3 import EnvironmentName

from sb3_laplace.studies.monitoring import steps_done
from sb3_laplace.studies.provenance import provenance
from sb3_laplace.studies.runs import Run, RunFolder, read_json, write_json
from sb3_laplace.zoo.checkpoints import Checkpoint
from sb3_laplace.zoo.configurations import write_hyperparams

#: File in the folder of an attempt that says where it began
START_FILE = "start.json"
# Checkpoints of a run: at most one part in so many is lost when it is killed
_N_CHECKPOINTS = 20
# Lines of a log that are shown of a failure
_N_LINES = 12
# The unit of ru_maxrss
_BYTES_OF_MAXRSS = 1 if sys.platform == "darwin" else 1024
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class Ended(NamedTuple):
    """How a process has ended.

    :param code: its exit code, negative if a signal ended it
    :param peak_memory: the most memory that it had at a time (resident), in MB
    """

    code: int
    peak_memory: float


class RunError(Exception):
    """A run has failed; the message says what of it, and the end of the log is kept with it.

    :param message: what failed
    :param log: its log
    """

    def __init__(self, message: str, log: Path) -> None:
        super().__init__(message)
        self.log = log
        #: The last lines of the log
        self.lines = _tail(log)


def train(folder: RunFolder, lock: int) -> None:
    """Train the agent of a run, from the last checkpoint if there is one, and write ``agent.json``.

    :param folder: the folder of the run, which this process has the lock of
    :param lock: descriptor of the lock, held by the training process too
    :raises RunError: if training fails
    """
    run = folder.run
    attempts = folder.attempts()
    checkpoint = _last_checkpoint(attempts, run)
    start: dict[str, Any] = {"steps": 0, "checkpoint": None, "attempt": None, "time": time.time()}
    if checkpoint is not None:
        steps, path = checkpoint
        attempt_of_it = path.relative_to(folder.path / "training").parts[0]
        start |= {"steps": steps, "checkpoint": str(path.relative_to(folder.path)), "attempt": int(attempt_of_it)}
    attempt = folder.path / "training" / str(int(attempts[-1].name) + 1 if attempts else 1)
    write_json(attempt / START_FILE, start)
    config = config_file(folder)
    write_hyperparams(config, run.env_id, run.configuration["hyperparams"])
    log = attempt / "train.log"
    code, peak_memory = call("sb3_laplace", _arguments(folder, attempt, config, checkpoint), log, lock)
    if code != 0:
        raise RunError(f"training {_ended(code)}", log)
    model = _zoo_folder(attempt, run) / f"{_file_name(run)}.zip"
    if not model.is_file():
        raise RunError("training wrote no agent", log)
    steps = _steps_of(model)
    if steps < run.steps:
        # RL Zoo saves the agent when it is interrupted, and says that all is well
        raise RunError(f"training was stopped after {steps:,} of {run.steps:,} steps", log)
    agent = {
        "model": str(model.relative_to(folder.path)),
        "steps": steps,
        "seconds": round(sum(_seconds(one) for one in folder.attempts()), 1),
        "attempts": len(attempts) + 1,
        "peak_memory": round(peak_memory),
        **provenance(),
    }
    write_json(folder.agent_file, agent)


def call(module: str, arguments: list[str], log: Path, lock: int) -> Ended:
    """Run a module in a process that lives no longer than this one, with one thread.

    :param module: the module
    :param arguments: of its command line
    :param log: file that its output is added to
    :param lock: descriptor of the run's lock, which it holds too
    :return: how it has ended
    """
    lifeline, ours = os.pipe()
    command = [sys.executable, "-m", "sb3_laplace.studies.child", str(lifeline), module, *arguments]
    try:
        with open(log, "ab") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_ONE_THREAD, "PYTHONUNBUFFERED": "1"},
                pass_fds=(lifeline, lock),
                # Ctrl-C is for the process that started it all: RL Zoo would take it for the end of training
                start_new_session=True,
            )
        try:
            # As process.wait() does, which does not tell what the process has used
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            return Ended(process.returncode, usage.ru_maxrss * _BYTES_OF_MAXRSS / 1e6)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    finally:
        os.close(lifeline)
        os.close(ours)


def config_file(folder: RunFolder) -> Path:
    """The configuration file of a run that is trained, as RL Zoo reads it."""
    return folder.path / "config.yml"


def fraction_trained(folder: RunFolder) -> float:
    """How much of its training a run has done, from 0 to 1, as its monitor files tell."""
    run = folder.run
    if folder.agent is not None:
        return 1.0
    attempts = folder.attempts()
    if not attempts or not run.steps:
        return 0.0
    start = read_json(attempts[-1] / START_FILE)
    # Killed before it was written
    begun = 0 if start is None else start["steps"]
    return min((begun + steps_done(_zoo_folder(attempts[-1], run))) / run.steps, 1.0)


def monitor_folders(folder: RunFolder) -> list[tuple[Path, int, int]]:
    """The attempts that led to the agent: the folder of their monitor files, their first step and their last.

    An attempt that was killed counts up to the checkpoint that the next one began with.
    """
    attempts = {int(path.name): path for path in folder.attempts()}
    number = max(attempts, default=None)
    last = folder.run.steps
    found = []
    while number is not None:
        start = read_json(attempts[number] / START_FILE)
        found.append((_zoo_folder(attempts[number], folder.run), start["steps"], last))
        number, last = start["attempt"], start["steps"]
    return found[::-1]


# -- details -------------------------------------------------------------------------------------------------


def _arguments(folder: RunFolder, attempt: Path, config: Path, checkpoint: tuple[int, Path] | None) -> list[str]:
    run = folder.run
    options: dict[str, Any] = {
        "--algo": run.configuration["algorithm"],
        "--env": run.env_id,
        "--seed": run.seed,
        "-n": run.steps,
        "-conf": config,
        "-f": attempt,
        "--save-freq": max(1, run.steps // _N_CHECKPOINTS),
        # The study evaluates the agent at its end; how it learned is in the monitor files
        "--eval-freq": -1,
        "--num-threads": 1,
    }
    if checkpoint is not None:
        options["-i"] = checkpoint[1]
    words = ["train", *(str(word) for option in options.items() for word in option)]
    packages = run.configuration["gym_packages"]
    return [*words, "--gym-packages", *packages] if packages else words


def _file_name(run: Run) -> str:
    return str(EnvironmentName(run.env_id))


def _zoo_folder(attempt: Path, run: Run) -> Path:
    """Where RL Zoo keeps a run of a log folder in which it is the first."""
    return attempt / run.configuration["algorithm"] / f"{_file_name(run)}_1"


def _last_checkpoint(attempts: list[Path], run: Run) -> tuple[int, Path] | None:
    """Number of steps and path of the checkpoint that is furthest of those with steps left."""
    found = []
    for attempt in attempts:
        for path in _zoo_folder(attempt, run).glob("rl_model_*_steps.zip"):
            if Checkpoint.is_one(str(path)):
                found.append((Checkpoint(str(path), _file_name(run)).n_steps, path))
    return max((one for one in found if one[0] < run.steps), default=None)


def _steps_of(model: Path) -> int:
    """Number of steps of training, read without running code that is pickled in the zip."""
    with zipfile.ZipFile(model) as archive:
        return int(json.loads(archive.read("data"))["num_timesteps"])


def _seconds(attempt: Path) -> float:
    """How long an attempt took: until something was last written, as one that was killed can say nothing."""
    start = read_json(attempt / START_FILE)
    if start is None:
        return 0.0
    written = [path.stat().st_mtime for path in attempt.rglob("*") if path.name != START_FILE]
    return max([0.0, *(one - start["time"] for one in written)])


def _ended(code: int) -> str:
    return f"failed with exit code {code}" if code > 0 else f"was killed by signal {-code}"


def _tail(log: Path) -> list[str]:
    try:
        return log.read_text("utf-8", errors="replace").splitlines()[-_N_LINES:]
    except OSError:
        return []
