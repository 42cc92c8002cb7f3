"""Runs of a study: which there are, who is at them, how far they are, and what their monitor files say."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_laplace.errors import InputError
from sb3_laplace.studies.monitoring import episodes, steps_done
from sb3_laplace.studies.progress import duration, progress, seconds_left, summary
from sb3_laplace.studies.results import learning_curve
from sb3_laplace.studies.runs import Lock, RunFolder, Study, resolve, write_json
from sb3_laplace.studies.spec import parse_spec
from sb3_laplace.studies.training import fraction_trained, monitor_folders
from tests.gated_env import GATED
from tests.study_helpers import ENVIRONMENT, make_study, pretend_evaluated, pretend_trained

BANDIT = "sb3_laplace/DirichletBandit-v0"
HOLD = """
import sys, time
from pathlib import Path
from sb3_laplace.studies.runs import Lock
print("taken" if Lock(Path(sys.argv[1])).acquire() is not None else "refused", flush=True)
time.sleep(1000)
"""


def names(**changes: Any) -> dict[tuple[str, int], str]:
    agents = {"one": {"algorithm": "laplace_ppo_lstm"}, "made": {"from": "one", "calibrate": None}}
    data = {"agents": agents, "environments": [BANDIT], "seeds": [0, 1], **changes}
    return {(run.agent, run.seed): run.name for run in resolve(parse_spec(data, "name"))}


def test_another_configuration_is_another_run() -> None:
    before = names()
    assert before == names()
    assert before["one", 0].startswith("one-sb3_laplace-DirichletBandit-v0-0-")
    assert len(set(before.values())) == 4
    changes: list[dict[str, Any]] = [
        {"steps": 500},
        {"environments": {BANDIT: {"env_kwargs": {"concentration": 0.3}}}},
        {
            "agents": {
                "one": {"algorithm": "laplace_ppo_lstm", "policy": {"latent_dim": 7}},
                "made": {"from": "one", "calibrate": None},
            }
        },
        {
            "agents": {
                "one": {"algorithm": "laplace_ppo_lstm", "arguments": {"gamma": 0.5}},
                "made": {"from": "one", "calibrate": None},
            }
        },
    ]
    for change in changes:
        after = names(**change)
        # What is made from an agent is another if that is
        assert all(after[key] != before[key] for key in before)
    # What is measured is no part of what is trained
    assert names(evaluations=["diagnosis"]) == before
    agents = {"one": {"algorithm": "laplace_ppo_lstm"}, "made": {"from": "one", "calibrate": {"n_trials": 30}}}
    after = names(agents=agents)
    assert after["one", 0] == before["one", 0]
    assert after["made", 0] != before["made", 0]


def test_all_agents_have_the_first_seed_before_any_has_the_second() -> None:
    agents = {"one": {"algorithm": "laplace_ppo_lstm"}, "made": {"from": "one", "calibrate": None}}
    agents |= {"two": {"algorithm": "point_ppo_lstm"}}
    grid = "sb3_laplace/GridNavigation-v0"
    spec = parse_spec({"agents": agents, "environments": [BANDIT, grid], "seeds": [5, 3]}, "name")
    found = [(run.seed, run.env_id, run.agent) for run in resolve(spec)]
    assert found == [
        (seed, env, agent) for seed in (5, 3) for env in (BANDIT, grid) for agent in ("one", "made", "two")
    ]


def test_overrides_are_laid_over_the_configuration() -> None:
    agents = {
        "one": {
            "algorithm": "laplace_ppo_lstm",
            "arguments": {"gamma": 0.5},
            "policy": {"latent_dim": 7, "posterior_kwargs": {"covariance": "full"}},
        }
    }
    spec = parse_spec({"agents": agents, "environments": [BANDIT], "seeds": [3], "steps": 1000}, "name")
    (run,) = resolve(spec)
    hyperparams = run.configuration["hyperparams"]
    assert (run.steps, hyperparams["n_timesteps"], hyperparams["gamma"]) == (1000, 1000, 0.5)
    policy = eval(hyperparams["policy_kwargs"])
    assert policy["latent_dim"] == 7
    # Of the configuration
    assert policy["lstm_hidden_size"] == 128
    assert policy["posterior_kwargs"] == {"prior_std": 1.0, "covariance": "full"}


def test_steps_of_the_agent_come_before_the_environments_and_the_studys() -> None:
    data: dict[str, Any] = {
        "agents": {"one": {"algorithm": "point_ppo_lstm"}},
        "environments": {BANDIT: {}},
        "seeds": [0],
    }
    found = [resolve(parse_spec(data, "name"))[0].steps]
    for change in (
        {"steps": 3},
        {"environments": {BANDIT: {"steps": 2}}},
        {"agents": {"one": {"algorithm": "point_ppo_lstm", "steps": 1}}},
    ):
        data |= change
        found.append(resolve(parse_spec(data, "name"))[0].steps)
    assert found == [6_000_000, 3, 2, 1]


def test_no_hyperparameters_for_an_environment() -> None:
    spec = parse_spec({"agents": ["laplace_ppo_lstm"], "environments": ["CartPole-v1"], "seeds": [0]}, "name")
    with pytest.raises(
        InputError, match=r"agents\.laplace_ppo_lstm on CartPole-v1: no hyperparameters of laplace_ppo_lstm"
    ):
        resolve(spec)


def test_a_study_is_read_as_it_was_written(tmp_path: Path) -> None:
    study = make_study(tmp_path, environments={GATED: {"reference": [0, 5]}}, baseline="laplace")
    again = Study.load(study.path)
    assert again.spec == study.spec
    assert [folder.run for folder in again.folders.values()] == [folder.run for folder in study.folders.values()]
    with pytest.raises(InputError, match="is not the folder of a study: there is no "):
        Study.load(tmp_path)
    with pytest.raises(InputError, match="is not the folder of a study"):
        Study.load(tmp_path / "nowhere")


# -- locks --------------------------------------------------------------------------------------------------


def test_a_lock_is_held_until_the_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = Lock(path)
    assert not lock.is_taken()

    def holder() -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
        )

    first = holder()
    assert first.stdout is not None
    assert first.stdout.readline() == "taken\n"
    assert lock.is_taken()
    assert json.loads(path.read_text())["pid"] == first.pid
    with lock.held() as descriptor:
        assert descriptor is None
    # Looking does not take it away
    assert lock.is_taken()
    first.kill()
    first.wait()
    assert not lock.is_taken()
    with lock.held() as descriptor:
        assert descriptor is not None
        assert lock.is_taken()
    assert not lock.is_taken()


# -- states -------------------------------------------------------------------------------------------------


def test_states_of_runs(tmp_path: Path) -> None:
    agents = {
        "laplace": {"algorithm": "laplace_ppo_lstm", "config": "hyperparams.yml"},
        "made": {"from": "laplace", "calibrate": None},
    }
    study = make_study(tmp_path, agents=agents, seeds=[0])
    trained, made = study.folders.values()

    def states() -> list[str]:
        return [study.state(folder) for folder in study.folders.values()]

    assert states() == ["to do", "waiting"]
    with trained.lock.held():
        assert states() == ["running", "waiting"]
    write_json(trained.path / "training" / "1" / "start.json", {"steps": 0, "attempt": None})
    assert states() == ["stopped", "waiting"]
    write_json(trained.failure_file, {"message": "no", "log": None, "lines": [], "invocation": "a"})
    assert states() == ["failed", "waiting"]
    trained.failure_file.unlink()
    pretend_trained(trained)
    assert states() == ["stopped", "to do"]
    pretend_evaluated(trained, "return", {})
    assert states() == ["finished", "to do"]
    # With other settings it is to be made again
    changed = RunFolder(trained.path, trained.run, {"return": {"n_trials": 5, "seed": 0}})
    assert changed.missing_evaluations() == ["return"]
    assert made.missing_evaluations() == ["return"]


def test_time_left(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=[0, 1, 2, 3])
    folders = list(study.folders.values())
    assert seconds_left(progress(study), 1) is None
    for folder in folders[:2]:
        pretend_trained(folder, seconds=100.0)
        pretend_evaluated(folder, "return", {}, seconds=20.0)
    write_attempt(folders[2], 1, steps=100, episodes=20)
    # A run took 120 s; of one half are left, of the other all
    assert fraction_trained(folders[2]) == pytest.approx(0.5)
    assert seconds_left(progress(study), 1) == pytest.approx(60 + 120)
    assert seconds_left(progress(study), 2) == pytest.approx(90)
    text = summary(progress(study), 2)
    assert text == "2 of 4 runs finished, 1 stopped, 1 to do, 62% of the steps, about 2 min left"
    # Another command's workers are counted by what is under way
    with folders[2].lock.held(), folders[3].lock.held():
        assert summary(progress(study), 1).endswith("2 running, 62% of the steps, about 2 min left")
    assert summary(progress(study), 1).endswith("about 3 min left")


def test_time_left_is_judged_by_steps_where_nothing_alike_is_finished(tmp_path: Path) -> None:
    agent = {"algorithm": "laplace_ppo_lstm", "config": "hyperparams.yml"}
    study = make_study(tmp_path, seeds=[0], agents={"short": {**agent, "steps": 100}, "long": {**agent, "steps": 1000}})
    first = next(iter(study.folders.values()))
    pretend_trained(first, seconds=9.0)
    pretend_evaluated(first, "return", {}, seconds=1.0)
    assert seconds_left(progress(study), 1) == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.4, "12 s"), (299, "5 min"), (4800, "1 h 20 min"), (200_000, "2 d 7 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# -- monitor files ------------------------------------------------------------------------------------------


def write_monitor(path: Path, rows: list[tuple[float, int, float]], end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ['#{"t_start": 0}', "r,l,t", *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + end)


def write_attempt(
    folder: RunFolder, number: int, steps: int, episodes: int, attempt: int | None = None, reward: float = 1.0
) -> None:
    """An attempt that began at a number of steps, with episodes of 5 steps that all have one return."""
    path = folder.path / "training" / str(number)
    write_json(path / "start.json", {"steps": steps, "attempt": attempt, "time": 0.0})
    monitor = path / folder.run.configuration["algorithm"] / f"{folder.run.env_id.replace('/', '-')}_1"
    write_monitor(monitor / "0.monitor.csv", [(reward, 5, float(i)) for i in range(episodes)])


def test_episodes_of_several_environments_are_in_the_order_of_their_ends(tmp_path: Path) -> None:
    write_monitor(tmp_path / "0.monitor.csv", [(1.0, 10, 1.0), (2.0, 10, 3.0)])
    write_monitor(tmp_path / "1.monitor.csv", [(3.0, 5, 2.0)])
    steps, returns = episodes(tmp_path)
    assert steps.tolist() == [10, 15, 25]
    assert returns.tolist() == [1.0, 3.0, 2.0]
    assert steps_done(tmp_path) == 25


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    assert steps_done(tmp_path) == 0
    (tmp_path / "0.monitor.csv").write_text('#{"t_sta')
    assert steps_done(tmp_path) == 0
    write_monitor(tmp_path / "0.monitor.csv", [(1.0, 10, 1.0), (2.0, 10, 3.0)], end="")
    assert steps_done(tmp_path) == 10


def test_a_run_that_was_killed_has_one_learning_curve(tmp_path: Path) -> None:
    """Of an attempt that was killed, what came after the checkpoint that the next began with has not been."""
    (folder, *_) = make_study(tmp_path, steps=400, agents=steps_agent(400)).folders.values()
    write_attempt(folder, 1, steps=0, episodes=50, reward=1.0)
    # Had no checkpoint of its own, and so is no part of the agent
    write_attempt(folder, 2, steps=200, episodes=10, attempt=1, reward=-100.0)
    write_attempt(folder, 3, steps=200, episodes=40, attempt=1, reward=3.0)
    assert [(path.parts[-3], first, last) for path, first, last in monitor_folders(folder)] == [
        ("1", 0, 200),
        ("3", 200, 400),
    ]
    curve = learning_curve(folder, np.linspace(0, 400, 5))
    np.testing.assert_allclose(curve, [1.0, 1.0, 3.0, 3.0])
    # Progress is that of the last attempt
    write_attempt(folder, 4, steps=300, episodes=10, attempt=3)
    assert fraction_trained(folder) == pytest.approx(350 / 400)


def steps_agent(steps: int) -> dict[str, Any]:
    return {"laplace": {"algorithm": "laplace_ppo_lstm", "config": "hyperparams.yml", "steps": steps}}
