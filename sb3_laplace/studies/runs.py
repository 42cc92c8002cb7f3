"""Runs of a study: what each is, the folder that it has, who is at it, and how far it is."""

import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from sb3_laplace.errors import InputError
from sb3_laplace.studies.spec import Agent, Environment, Spec
from sb3_laplace.zoo.configurations import read_hyperparams, with_policy

#: States of a run. "stopped": it was begun, nobody is at it, and it will go on from its last checkpoint.
FINISHED, RUNNING, FAILED, STOPPED, WAITING, TO_DO = "finished", "running", "failed", "stopped", "waiting", "to do"

_FORMAT = 1
_FILE = "study.json"
# Seconds that a process asks for a lock: one that only looks whether it is taken holds it for an instant
_PATIENCE = 0.5


@dataclass(frozen=True)
class Run:
    """One agent on one environment with one seed.

    :param agent: name of the row
    :param env_id: id of the environment
    :param seed: the seed
    :param configuration: everything that decides what comes out, resolved, as JSON can hold it
    :param source: name of the folder of the run whose agent this one is made from; None if it is trained
    """

    agent: str
    env_id: str
    seed: int
    configuration: dict[str, Any]
    source: str | None = None

    @property
    def name(self) -> str:
        """Name of the folder: readable, then a hash of the configuration, so that another one is another run."""
        text = json.dumps(self.configuration, sort_keys=True)
        return f"{self.title}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.agent}-{self.env_id.replace('/', '-')}-{self.seed}"

    @property
    def steps(self) -> int:
        """Number of environment steps of training; 0 if the agent is made from another."""
        return int(self.configuration.get("steps", 0))


def resolve(spec: Spec) -> list[Run]:
    """All runs of a study, each trained one directly before those that are made from its agent.

    All agents are compared with the first seed before there is a second, so that a study that is not finished says
    something too.

    :param spec: the study
    :raises InputError: if there are no hyperparameters for an agent on an environment
    """
    trained_rows = {row: agent for row, agent in spec.agents.items() if agent.source is None}
    configurations = {
        (row, env_id): _configuration(spec, row, agent, env_id)
        for row, agent in trained_rows.items()
        for env_id in spec.environments
    }
    runs = []
    for seed, env_id, row in product(spec.seeds, spec.environments, trained_rows):
        trained = Run(row, env_id, seed, {**configurations[row, env_id], "seed": seed})
        runs.append(trained)
        for name, other in spec.agents.items():
            if other.source == row:
                made = {"from": trained.configuration, "convert": other.convert, "calibrate": other.calibrate}
                runs.append(Run(name, env_id, seed, made, trained.name))
    return runs


def _configuration(spec: Spec, row: str, agent: Agent, env_id: str) -> dict[str, Any]:
    assert agent.algorithm is not None
    environment = spec.environments[env_id]
    try:
        hyperparams = read_hyperparams(agent.algorithm, env_id, agent.config)
    except InputError as error:
        raise InputError(f"agents.{row} on {env_id}: {error}") from error
    hyperparams = with_policy({**hyperparams, **agent.arguments}, agent.policy)
    env_kwargs = {**environment.env_kwargs, **agent.env_kwargs}
    if env_kwargs:
        hyperparams["env_kwargs"] = {**hyperparams.get("env_kwargs", {}), **env_kwargs}
    steps = agent.steps or environment.steps or spec.steps or hyperparams.get("n_timesteps")
    if not isinstance(steps, (int, float)) or steps < 1:
        raise InputError(f"agents.{row} on {env_id}: its hyperparameters have no n_timesteps; say `steps`")
    hyperparams["n_timesteps"] = int(steps)
    return {
        "algorithm": agent.algorithm,
        "environment": env_id,
        "steps": int(steps),
        "hyperparams": hyperparams,
        "gym_packages": list(spec.gym_packages),
    }


# -- files ---------------------------------------------------------------------------------------------------


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file that appears complete or not at all.

    :param path: the file
    :param document: what it holds
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{socket.gethostname()}-{os.getpid()}")
    try:
        temporary.write_text(json.dumps(document, indent=1), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Read a JSON file; None if there is none."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None


class Lock:
    """A run that is taken, by a lock of the operating system on a file: it goes when the last process with it dies.

    The file stays, and says who has (or had) the run. ``flock`` is used, which Linux also grants on NFS between
    machines; a shared filesystem has to be mounted with locks.

    :param path: the file
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def acquire(self) -> int | None:
        """Take it.

        :return: an open file descriptor that holds the lock until it is closed here, and in every process that it is
            passed to; None if another process has it
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        deadline = time.monotonic() + _PATIENCE
        while not _flock(descriptor, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                os.close(descriptor)
                return None
            time.sleep(0.05)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
        return descriptor

    @contextmanager
    def held(self) -> Iterator[int | None]:
        """Take it for a while; see :meth:`acquire` for what is yielded."""
        descriptor = self.acquire()
        try:
            yield descriptor
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def is_taken(self) -> bool:
        """Whether a process has it."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            return not _flock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)


def _flock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class RunFolder:
    """The folder of a run.

    ===================  =====================================================================================
    run.json             the run, with its whole configuration
    lock                 held by the process that is at it
    training/K/          what ``sb3-laplace train`` wrote in the K-th attempt, each from the last checkpoint of those
                         before it, with its output in train.log
    agent.json           where the agent is, once it is complete, with steps, seconds, versions and machine
    evaluations/         a JSON file for each evaluation
    evaluations.log      their output
    failure.json         what failed last, with the end of its log; away when the run goes on
    ===================  =====================================================================================

    :param path: the folder
    :param run: the run
    :param evaluations: settings of the evaluations to make, by name
    """

    def __init__(self, path: Path, run: Run, evaluations: dict[str, dict[str, Any]]) -> None:
        self.path = path
        self.run = run
        self.evaluations = evaluations
        self.lock = Lock(path / "lock")
        self.failure_file = path / "failure.json"
        self.agent_file = path / "agent.json"

    @property
    def agent(self) -> dict[str, Any] | None:
        """Where the agent is and what it took, once it is complete."""
        return read_json(self.agent_file)

    @property
    def failure(self) -> dict[str, Any] | None:
        """What failed last; None if the run went on since."""
        return read_json(self.failure_file)

    def evaluation_file(self, name: str) -> Path:
        """The file of an evaluation."""
        return self.path / "evaluations" / f"{name}.json"

    def evaluation(self, name: str) -> dict[str, Any] | None:
        """What an evaluation found; None if it has not been made with the settings of today."""
        found = read_json(self.evaluation_file(name))
        return found if found is not None and found["settings"] == self.evaluations[name] else None

    def missing_evaluations(self) -> list[str]:
        """Those that are still to be made."""
        return [name for name in self.evaluations if self.evaluation(name) is None]

    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.agent_file.is_file() and not self.missing_evaluations()

    def attempts(self) -> list[Path]:
        """Folders of the attempts at training, in their order."""
        return sorted((self.path / "training").glob("[0-9]*"), key=lambda path: int(path.name))


class Study:
    """A folder with a study that has been run, or is about to be.

    :param path: the folder
    :param spec: the study
    :param runs: its runs
    """

    def __init__(self, path: Path, spec: Spec, runs: list[Run]) -> None:
        self.path = path
        self.spec = spec
        self.folders = {
            run.name: RunFolder(path / "runs" / run.name, run, spec.evaluations_on(run.env_id)) for run in runs
        }

    def save(self) -> None:
        """Write what the study is; runs of other configurations that are in the folder stay.

        :raises InputError: if the folder cannot be written to
        """
        try:
            for folder in self.folders.values():
                if not (folder.path / "run.json").is_file():
                    write_json(folder.path / "run.json", asdict(folder.run))
            runs = [asdict(folder.run) for folder in self.folders.values()]
            write_json(self.path / _FILE, {"format": _FORMAT, "spec": asdict(self.spec), "runs": runs})
        except OSError as error:
            raise InputError(f"the folder of the study: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> "Study":
        """Read a folder.

        :param path: the folder
        :raises InputError: if it is not that of a study
        """
        path = Path(path)
        document = read_json(path / _FILE) if path.is_dir() else None
        if document is None:
            raise InputError(f"{str(path)!r} is not the folder of a study: there is no {str(path / _FILE)!r}")
        if document["format"] != _FORMAT:
            raise InputError(f"{str(path)!r} has format {document['format']!r}, this version reads {_FORMAT}")
        return cls(path, _spec_of(document["spec"]), [Run(**run) for run in document["runs"]])

    def source_of(self, folder: RunFolder) -> RunFolder | None:
        """The run whose agent another one is made from; None if it is trained."""
        return None if folder.run.source is None else self.folders[folder.run.source]

    def state(self, folder: RunFolder) -> str:
        """One of the states of a run."""
        if folder.is_finished():
            return FINISHED
        if folder.lock.is_taken():
            return RUNNING
        if folder.failure is not None:
            return FAILED
        source = self.source_of(folder)
        if source is not None and source.agent is None:
            return WAITING
        return STOPPED if folder.attempts() or folder.agent is not None else TO_DO


def _spec_of(document: dict[str, Any]) -> Spec:
    agents = {name: Agent(**agent) for name, agent in document["agents"].items()}
    environments = {
        env_id: Environment(**{**one, "reference": one["reference"] and tuple(one["reference"])})
        for env_id, one in document["environments"].items()
    }
    lists = {name: tuple(document[name]) for name in ("seeds", "gym_packages")}
    return Spec(**{**document, **lists, "agents": agents, "environments": environments})
