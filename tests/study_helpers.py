"""What the tests of studies share: a tiny study, and runs as they are when nothing was trained."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from sb3_laplace.studies.runs import RunFolder, Study, resolve, write_json
from sb3_laplace.studies.spec import read_spec
from tests.gated_env import GATED

ROOT = Path(__file__).parent.parent
#: Environment of a process that a study is run in
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "envs"), os.environ.get("PYTHONPATH", "")]),
}
HYPERPARAMS = {
    "n_envs": 2,
    "n_timesteps": 400,
    "policy": "LaplaceLstmPolicy",
    "n_steps": 10,
    "batch_size": 20,
    "n_epochs": 1,
    "policy_kwargs": "dict(lstm_hidden_size=8, latent_dim=4, net_arch=[8])",
}
#: Seconds that anything may take on a machine that has other work
PATIENCE = 300.0


def write_study(folder: Path, **changes: Any) -> Path:
    """A file of a study with one agent on one environment with two seeds, and the hyperparameters that it names."""
    (folder / "hyperparams.yml").write_text(yaml.safe_dump({GATED: HYPERPARAMS}))
    study = {
        "gym_packages": ["tests.gated_env"],
        "agents": {"laplace": {"algorithm": "laplace_ppo_lstm", "config": "hyperparams.yml"}},
        "environments": [GATED],
        "seeds": [0, 1],
        "evaluations": {"return": {"n_trials": 4}},
        **changes,
    }
    path = folder / "tiny.yml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def make_study(folder: Path, **changes: Any) -> Study:
    """A study that was saved and not run."""
    spec = read_spec(write_study(folder, **changes))
    study = Study(folder / "out", spec, resolve(spec))
    study.save()
    return study


def pretend_trained(folder: RunFolder, seconds: float = 10.0) -> None:
    """Write what a run has once its agent is trained, but for the agent."""
    agent = {
        "model": "agent.zip",
        "steps": folder.run.steps,
        "seconds": seconds,
        "versions": {"a": "1"},
        "commit": None,
    }
    if folder.run.source is None:
        agent["peak_memory"] = 500 + folder.run.seed
    write_json(folder.agent_file, agent)


def pretend_evaluated(folder: RunFolder, name: str, numbers: dict[str, float | None], seconds: float = 1.0) -> None:
    """Write what an evaluation of a run found."""
    posterior = {"policy_parameters": 1234, "covariance_parameters": 56}
    found = {"settings": folder.evaluations[name], "numbers": numbers, "seconds": seconds, "posterior": posterior}
    write_json(folder.evaluation_file(name), found)


def wait_for(condition: Callable[[], Any]) -> Any:
    """What a condition returns once it is true."""
    deadline = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return result


def files_of(folder: Path) -> dict[str, int]:
    """When each file in a folder was last written, but those that only say who looked at it."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


def json_of(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))
