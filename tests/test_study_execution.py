"""Studies are run: by two workers of which one is killed, under a SLURM that is none, and again."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sb3_laplace.cli.main import main
from sb3_laplace.studies.results import collect
from sb3_laplace.studies.runs import RunFolder, Study
from sb3_laplace.studies.training import START_FILE
from tests.gated_env import GATE, GATE_STEP
from tests.study_helpers import ENVIRONMENT, PATIENCE, files_of, json_of, wait_for, write_study
from tests.zoo_helpers import one_line

TRAINED = {"algorithm": "laplace_ppo_lstm", "config": "hyperparams.yml"}
AGENTS = {
    "laplace": TRAINED,
    # No info["target"] in this environment: what nobody knows before it is trained
    "broken": {**TRAINED, "arguments": {"target_coef": 1.0}},
    "calibrated": {"from": "laplace", "calibrate": {"n_trials": 24}},
}
SBATCH = """#!{python}
# Runs the jobs of an array at once, as if there were a free node for each
import os, re, subprocess, sys
text = open(sys.argv[1]).read()
last = re.search(r"--array=0-(\\d+)", text)
for task in range(1 if last is None else int(last[1]) + 1):
    names = {{"SLURM_JOB_ID": str(700 + task), "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}}
    if last is not None:
        names |= {{"SLURM_ARRAY_JOB_ID": "700", "SLURM_ARRAY_TASK_ID": str(task)}}
    quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # The text, as SLURM keeps it: the file may be gone when the job starts
    subprocess.Popen(["bash", "-c", text], env={{**os.environ, **names}}, start_new_session=True, **quiet)
print("Submitted batch job 700")
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do
    case $1 in --output|--error) shift 2 ;; *) shift ;; esac
done
exec "$@" > /dev/null 2>&1
"""


def study_command(*words: Any) -> list[str]:
    return [sys.executable, "-m", "sb3_laplace", "study", *map(str, words)]


def folders(path: Path) -> dict[tuple[str, int], RunFolder]:
    return {(one.run.agent, one.run.seed): one for one in Study.load(path).folders.values()}


def has_passed_the_gate(folder: RunFolder) -> bool:
    """Whether its training waits, with checkpoints before."""
    return any(folder.path.glob(f"training/1/*/*/rl_model_{GATE_STEP - 20}_steps.zip"))


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """A study whose two workers are both at a training when one of them is killed; and its end."""
    folder = tmp_path_factory.mktemp("killed")
    gate, out = folder / "gate", folder / "out"
    command = study_command("run", write_study(folder, agents=AGENTS, baseline="laplace"), "--out", out, "--workers", 2)
    environment = {**ENVIRONMENT, GATE: str(gate)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: (out / "study.json").exists() or process.poll() is not None)
        runs = folders(out)
        both = [runs["laplace", 0], runs["laplace", 1]]
        wait_for(lambda: all(map(has_passed_the_gate, both)) or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        holders = [json_of(one.path / "lock")["pid"] for one in both]
        assert holders[0] != holders[1]
        os.kill(holders[0], signal.SIGKILL)
        # Its training waits at the gate and would for ever: it ends because its worker did
        wait_for(lambda: not both[0].lock.is_taken())
        assert both[1].lock.is_taken()
        gate.touch()
        output, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return out, subprocess.CompletedProcess(command, process.returncode, output, errors)


def test_the_other_worker_takes_over_from_the_checkpoint(killed: Any) -> None:
    out, _ = killed
    runs = folders(out)
    resumed, other = runs["laplace", 0], runs["laplace", 1]
    assert [path.name for path in resumed.attempts()] == ["1", "2"]
    start = json_of(resumed.path / "training" / "2" / START_FILE)
    assert 100 <= start["steps"] <= GATE_STEP
    assert start["attempt"] == 1
    assert (resumed.path / start["checkpoint"]).is_file()
    assert [path.name for path in other.attempts()] == ["1"]
    for folder in (resumed, other):
        agent = folder.agent
        assert agent is not None
        assert agent["steps"] == 400
        assert agent["attempts"] == len(folder.attempts())
        assert agent["versions"]["sb3-laplace"]
        assert 0 < agent["seconds"] < PATIENCE
        # A process with torch in it, in MB
        assert 50 < agent["peak_memory"] < 50_000
        assert folder.is_finished()
        # A diagonal Laplace posterior learns nothing for its covariance
        posterior = folder.evaluation("return")["posterior"]  # type: ignore[index]
        assert posterior["covariance_parameters"] == 0 < posterior["policy_parameters"]
        assert 0.0 <= folder.evaluation("return")["numbers"]["return"] <= 5.0  # type: ignore[index]


def test_what_is_made_after_the_fact_is_made(killed: Any) -> None:
    out, _ = killed
    for seed in (0, 1):
        folder = folders(out)["calibrated", seed]
        assert folder.agent is not None
        assert folder.agent["calibration"]["noise_std"] > 0
        assert folder.is_finished()
        # By the mode it acts as the agent that it is made from
        numbers = [folders(out)[agent, seed].evaluation("return")["numbers"] for agent in ("laplace", "calibrated")]  # type: ignore[index]
        assert numbers[0]["return_mode"] == numbers[1]["return_mode"]


def test_what_fails_is_reported_and_stops_nothing_else(killed: Any) -> None:
    out, process = killed
    assert process.returncode == 1
    for seed in (0, 1):
        folder = folders(out)["broken", seed]
        failure = folder.failure
        assert failure is not None
        assert failure["message"] == "training failed with exit code 2"
        assert "target" in failure["lines"][-1]
        assert f"{folder.run.name} failed:" in process.stderr
        assert failure["lines"][-1] in process.stderr
    assert "a worker was killed (its log is" in process.stderr
    assert "4 of 6 runs finished, 2 failed, " in process.stdout
    assert "Traceback" not in process.stderr


def test_status_and_report(killed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = killed
    assert main(["study", "status", str(out)]) == 0
    text = capsys.readouterr().out
    assert text.count("\nfinished ") + text.startswith("finished ") == 4
    assert text.count("training failed with exit code 2") == 2
    assert main(["study", "report", str(out)]) == 0
    assert "report.html" in capsys.readouterr().out
    results = collect(Study.load(out))
    assert results["n_runs"] == 6
    assert {(run["agent"], run["seed"]) for run in results["runs"]} == {
        (agent, seed) for agent in ("laplace", "calibrated") for seed in (0, 1)
    }
    (curve,) = results["curves"].values()
    assert curve["laplace"]["steps"][-1] == 400


def test_what_is_finished_is_not_run_again(killed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = killed
    shutil.copytree(out, tmp_path / "copy", copy_function=shutil.copy2)
    before = files_of(tmp_path / "copy" / "runs")
    agents = {name: agent for name, agent in AGENTS.items() if name != "broken"}
    file = write_study(tmp_path, agents=agents, baseline="laplace")
    hyperparams = tmp_path / "hyperparams.yml"
    assert hyperparams.is_file()
    assert main(["study", "run", str(file), "--out", str(tmp_path / "copy")]) == 0
    assert capsys.readouterr().out.startswith("4 of 4 runs finished")
    # Nor is what the study had before lost
    assert files_of(tmp_path / "copy" / "runs") == before


# -- SLURM ---------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, and commands of SLURM on PATH."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("sbatch", SBATCH.format(python=sys.executable)), ("srun", SRUN)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(commands), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    return tmp_path


def test_workers_are_queued_under_slurm(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, file = cluster / "out", write_study(cluster, steps=100)
    assert main(["study", "run", str(file), "--out", str(out), "--slurm", "partition=short,time=1:30:00"]) == 0
    assert "Queued 2 workers for 2 runs: 700_0, 700_1" in capsys.readouterr().out
    script = next((out / "workers").glob("*.sh")).read_text()
    for line in ("--partition=short", "--time=90", "--job-name=sb3-laplace", "--array=0-1%2"):
        assert f"#SBATCH {line}\n" in script
    study = Study.load(out)
    wait_for(lambda: all(folder.is_finished() for folder in study.folders.values()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("partition", "--slurm takes NAME=VALUE,..., got 'partition'"),
        ("partition=short,tme=5", "--slurm: there is no 'tme'; known are account, "),
        ("time=soon", "--slurm: time must be minutes, hours:minutes:seconds or days-hours, got 'soon'"),
        ("time=0", "--slurm: time must be a minute at least"),
    ],
)
def test_parameters_of_slurm_that_are_none(
    given: str, message: str, cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "run", str(write_study(cluster)), "--slurm", given]) == 2
    assert message in one_line(capsys)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90:30", 91), ("1:30:00", 90), ("2-0", 2880), ("1-2:30", 1590), ("1-0:0:1", 1441)],
)
def test_times_are_read_as_slurm_reads_them(text: str, minutes: int, cluster: Path) -> None:
    from sb3_laplace.studies.execution import parse_slurm

    assert parse_slurm(f"time={text}") == {"time": minutes}


# -- what is refused -----------------------------------------------------------------------------------------


def test_slurm_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_study(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["study", "run", str(file), "--slurm", "partition=short"]) == 2
    one_line(capsys, "--slurm: there is no sbatch and no srun on PATH")


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        ({"arguments": {"gama": 0.9}}, "agents.laplace on tests/Gated-v0: laplace_ppo_lstm has no keyword 'gama'"),
        ({"policy": {"latent_dim": -1}}, "agents.laplace on tests/Gated-v0: latent_dim must be"),
        ({"policy": {"posterior": "point"}}, "has a PointPosterior, which --algo point_ppo_lstm trains"),
        ({"policy": {"posterior_kwargs": {"width": 1}}}, "agents.laplace on tests/Gated-v0: .*width"),
    ],
)
def test_agents_are_tried_before_anything_is_started(
    agent: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_study(tmp_path, agents={"laplace": {**TRAINED, **agent}})
    assert main(["study", "run", str(file), "--out", str(tmp_path / "out")]) == 2
    one_line(capsys, message)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = write_study(tmp_path, agents=AGENTS), tmp_path / "out"
    assert main(["study", "run", str(file), "--out", str(out), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert text.count("to do     laplace-tests-Gated-v0-") == 2
    assert text.count("waiting   calibrated-tests-Gated-v0-") == 2
    assert "0 of 6 runs finished, 2 waiting, 4 to do, 0% of the steps" in text
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "no.yml"], "the study's file 'no.yml' cannot be read: No such file"),
        (["run", "no.yml", "--workers", "0"], "--workers must be at least 1, got 0"),
        (["status", "."], "'.' is not the folder of a study"),
        (["report", "nowhere"], "'nowhere' is not the folder of a study"),
        ([], "the following arguments are required: ACTION"),
    ],
)
def test_options_that_cannot_be(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["study", *words]) == 2
    assert message in one_line(capsys)


def test_submitit_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_study(tmp_path)
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(["study", "run", str(file), "--out", str(tmp_path / "out")]) == 2
    one_line(capsys, r'study run needs submitit: pip install "sb3-laplace\[study\]"')


def test_windows_is_told_what_a_study_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    for name in [name for name in sys.modules if name.startswith("sb3_laplace.studies")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["study", "status", "somewhere"]) == 2
    assert "study needs locks of files that Windows does not have" in one_line(capsys)
