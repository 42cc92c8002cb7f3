"""The report of a study, against numbers that were made up, and the tables in the documentation."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_laplace.cli.main import main
from sb3_laplace.errors import InputError
from sb3_laplace.studies.report import stale_documents, write_docs, write_report
from sb3_laplace.studies.results import FORMAT, collect
from sb3_laplace.studies.runs import Study
from sb3_laplace.studies.statistics import estimate, interquartile_mean, mean
from sb3_laplace.studies.tables import insert, tables
from tests.gated_env import GATED
from tests.study_helpers import make_study, pretend_evaluated, pretend_trained
from tests.test_study_runs import write_attempt
from tests.zoo_helpers import one_line

DOCS = Path(__file__).parent.parent / "docs"
BANDIT = "sb3_laplace/DirichletBandit-v0"
CONFIG = {"algorithm": "laplace_ppo_lstm"}
# Regret of the agents with seeds 0, 1 and 2, with sampled actions; by the mode it is less by 1
REGRET = {"base": [5.0, 7.0, 9.0], "good": [4.0, 6.0, 5.0], "made": [8.0, 8.0, 8.0]}


def make_finished(folder: Path, **changes: Any) -> Study:
    """A study of three agents on the bandit whose numbers were made up."""
    agents = {
        "base": {**CONFIG, "steps": 400},
        "good": {**CONFIG, "steps": 400},
        "made": {"from": "base", "calibrate": None},
    }
    agents["good"]["policy"] = {"latent_dim": 4}
    settings = {"environments": [BANDIT], "seeds": [0, 1, 2], "agents": agents, "baseline": "base", **changes}
    study = make_study(folder, evaluations=["return", "diagnosis", "belief"], **settings)
    for one in study.folders.values():
        regret = REGRET[one.run.agent][one.run.seed]
        pretend_trained(one)
        if one.run.source is None:
            write_attempt(one, 1, steps=0, episodes=80, reward=regret)
        numbers = {"return": 30 - regret, "return_mode": 31 - regret, "regret": regret, "regret_mode": regret - 1}
        pretend_evaluated(one, "return", numbers)
        pretend_evaluated(one, "diagnosis", {"overconfidence.moved_to_claimed": None, "policy_calibration.gap": 0.125})
        pretend_evaluated(one, "belief", {"r2": 0.5, "lost": None})
    return study


def cell_of(one: Any, sign: str = "") -> str:
    return f"{one.value:{sign}.3g} [{one.low:{sign}.3g}, {one.high:{sign}.3g}]"


def test_scores_and_differences(tmp_path: Path) -> None:
    found = tables(collect(make_finished(tmp_path)))
    assert list(found) == ["scores", "differences", "diagnosis", "belief", "cost"]
    rows = {(row[1], row[2]): row for row in found["scores"].rows}
    regret = np.array(REGRET["good"])
    expected = [cell_of(estimate(mean, [one])) for one in (regret, regret - 1)]
    assert rows["regret", "good"] == [BANDIT, "regret", "good", "3", *expected]
    assert rows["return", "good"][4].startswith("25 [24, 26")
    differences = {row[2]: row for row in found["differences"].rows}
    # By seed: -1, -1, -4
    paired = estimate(mean, [np.array([-1.0, -1.0, -4.0])])
    assert differences["good"][:5] == [BANDIT, "regret (lower is better)", "good", "3", cell_of(paired, "+")]
    # Less is better: 4 beats all of 5, 7, 9; 6 two; 5 two and ties once
    assert float(differences["good"][5].split()[0]) == pytest.approx((3 + 2 + 2.5) / 9, abs=5e-4)
    assert set(differences) == {"good", "made"}


def test_interquartile_means_where_they_leave_a_run_out(tmp_path: Path) -> None:
    results = collect(make_finished(tmp_path))
    results["runs"] += [dict(run, seed=3) for run in results["runs"] if run["seed"] == 0]
    regret = np.array([*REGRET["good"], REGRET["good"][0]])
    expected = [cell_of(estimate(what, [one])) for one in (regret, regret - 1) for what in (mean, interquartile_mean)]
    table = tables(results)["scores"]
    assert table.head[4:] == ["sampled: mean", "sampled: IQM", "mode: mean", "mode: IQM"]
    assert [BANDIT, "regret", "good", "4", *expected] in table.rows


def test_a_return_that_is_the_metric_is_left_out(tmp_path: Path) -> None:
    results = collect(make_finished(tmp_path))
    assert {row[1] for row in tables(results)["scores"].rows} == {"regret", "return"}
    for run in results["runs"]:
        run["numbers"]["return"]["return"] = -run["numbers"]["return"]["regret"]
    assert {row[1] for row in tables(results)["scores"].rows} == {"regret"}
    results["runs"][0]["numbers"]["return"]["return"] = -1.0
    assert {row[1] for row in tables(results)["scores"].rows} == {"regret", "return"}


def test_what_training_took(tmp_path: Path) -> None:
    study = make_finished(tmp_path)
    for one in study.folders.values():
        pretend_trained(one, seconds=10.0 + 10.0 * one.run.seed)
    # 400 steps in 10, 20 and 30 s; the agents of "made" were not trained
    expected = ["3", "400", "20", "20", "502", "1,234", "56"]
    assert tables(collect(study))["cost"].rows == [[BANDIT, name, *expected] for name in ("base", "good")]


def test_returns_by_episode(tmp_path: Path) -> None:
    study = make_finished(tmp_path)
    assert "episodes" not in tables(collect(study))
    returns = {"return_episode_1": [-3.0, -5.0, -7.0], "return_episode_2": [-1.0, -2.0, -3.0]}
    for one in study.folders.values():
        if one.run.agent == "good":
            by_episode = {name: own[one.run.seed] for name, own in returns.items()}
            modes = {f"{name}_mode": value + 1.0 for name, value in by_episode.items()}
            pretend_evaluated(one, "return", {"return": -5.0, "return_mode": -4.0, **by_episode, **modes})
    table = tables(collect(study))["episodes"]
    assert table.head[2:] == ["actions", "seeds", "episode 1", "episode 2"]
    cells = {
        mode: [cell_of(estimate(mean, [np.array(own) + shift])) for own in returns.values()]
        for mode, shift in (("sampled", 0.0), ("mode", 1.0))
    }
    assert table.rows == [[BANDIT, "good", mode, "3", *cells[mode]] for mode in ("sampled", "mode")]


def test_what_does_not_exist_is_left_out(tmp_path: Path) -> None:
    found = tables(collect(make_finished(tmp_path)))
    row = next(row for row in found["diagnosis"].rows if row[1] == "base")
    assert row == [BANDIT, "base", "3", *["-"] * 7, "0.125 [0.125, 0.125]"]


def test_unfinished_runs_are_no_results(tmp_path: Path) -> None:
    study = make_finished(tmp_path)
    for folder in study.folders.values():
        if folder.run.seed == 2 or folder.run.agent == "good":
            folder.evaluation_file("return").unlink()
    results = collect(study)
    assert (len(results["runs"]), results["n_runs"]) == (4, 9)
    found = tables(results)
    assert {row[2]: row[3] for row in found["scores"].rows} == {"base": "2", "made": "2"}
    for folder in study.folders.values():
        folder.agent_file.unlink()
    with pytest.raises(InputError, match=r"no run of the study in .* is finished"):
        collect(study)


def test_scores_over_all_environments_are_normalized(tmp_path: Path) -> None:
    grid = "sb3_laplace/GridNavigation-v0"
    environments = {BANDIT: {"reference": [25, 5]}, grid: {"reference": [0, 10]}}
    study = make_study(
        tmp_path, agents={"a": CONFIG, "b": {**CONFIG, "steps": 5}}, environments=environments, baseline="a"
    )
    for one in study.folders.values():
        pretend_trained(one)
        by = 1.0 if one.run.agent == "b" else 0.0
        numbers = {"regret": 15.0 - by, "regret_mode": 5.0, "goals_reached": 2.0 + by, "goals_reached_mode": 4.0}
        pretend_evaluated(one, "return", {"return": 0.0, "return_mode": 0.0, **numbers})
        monitor_nothing(one)
    rows = {row[0]: row[1:] for row in tables(collect(study))["aggregate"].rows}
    # (25 - 15) / 20 and 2 / 10; by the mode 1 and 0.4
    assert [float(cell.split()[0]) for cell in rows["a"][:5]] == pytest.approx([4, 0.35, 0.35, 0.7, 0.7])
    assert rows["a"][5:] == ["", ""]
    assert [float(cell.split()[0]) for cell in rows["b"][1:2]] == pytest.approx([(0.55 + 0.3) / 2])
    assert rows["b"][5:] == ["1 [1, 1]", "0.5 [0.5, 0.5]"]


def monitor_nothing(folder: Any) -> None:
    write_attempt(folder, 1, steps=0, episodes=0)


def test_the_files_of_a_report(tmp_path: Path) -> None:
    results = collect(make_finished(tmp_path))
    written = write_report(results, tmp_path / "report")
    assert {path.name for path in written} == {
        "report.md",
        "report.html",
        "scores.csv",
        "results.json",
        "learning-curves.png",
        "scores.png",
        "probability-of-improvement.png",
    }
    assert all(path.stat().st_size > 100 for path in written)
    assert json.loads((tmp_path / "report" / "results.json").read_text()) == results
    with open(tmp_path / "report" / "scores.csv") as file:
        rows = list(csv.DictReader(file))
    found = {(row["agent"], row["seed"]): row["value"] for row in rows if row["number"] == "regret"}
    assert {(agent, str(seed)): str(value) for agent in REGRET for seed, value in enumerate(REGRET[agent])} == found
    assert {row["value"] for row in rows if row["number"] == "lost"} == {""}
    page = (tmp_path / "report" / "report.html").read_text()
    # Nothing is loaded from elsewhere
    assert not re.search(r"<script|src=\"(?!data:)|href=", page)
    assert page.count("<img") == 3
    text = (tmp_path / "report" / "report.md").read_text()
    for table in tables(results).values():
        assert table.markdown() in text
        assert f"<h2>{table.title}</h2>" in page
    assert "9 of 9 runs are finished" in text


def test_learning_curves_are_means_over_seeds(tmp_path: Path) -> None:
    curve = collect(make_finished(tmp_path))["curves"][BANDIT]
    # Not of what is not trained
    assert set(curve) == {"base", "good"}
    assert curve["base"]["steps"] == pytest.approx(np.arange(1, 41) * 10)
    assert curve["base"]["mean"] == pytest.approx([7.0] * 40)
    assert curve["base"]["low"][0] == pytest.approx(5.0)


# -- documentation -------------------------------------------------------------------------------------------


def test_the_tables_in_the_documentation_are_those_of_the_results() -> None:
    for path in sorted((DOCS / "results").glob("*.json")):
        results = json.loads(path.read_text("utf-8"))
        if isinstance(results, dict) and results.get("format") == FORMAT:
            assert results["study"] == path.stem
            assert stale_documents(results, DOCS) == []


def test_tables_are_written_between_their_markers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_finished(tmp_path)
    docs = tmp_path / "docs"
    docs.mkdir()
    text = (
        "# Title\n\n<!-- begin tiny.scores -->\nold\n<!-- end tiny.scores -->\n\ntext <!-- begin other.scores -->\n"
        "<!-- begin tiny.differences --><!-- end tiny.differences -->\nend\n"
    )
    (docs / "a.md").write_text(text)
    (docs / "b.md").write_text("nothing of it\n")
    assert main(["study", "report", str(study.path), "--docs", str(docs)]) == 0
    assert "tiny-scores.png" in capsys.readouterr().out
    results = json.loads((docs / "results" / "tiny.json").read_text())
    assert results == collect(study)
    found = tables(results)
    expected = text.replace("\nold\n", f"\n{found['scores'].markdown()}\n").replace(
        "differences --><!--", f"differences -->\n{found['differences'].markdown()}\n<!--"
    )
    assert (docs / "a.md").read_text() == expected
    assert (docs / "b.md").read_text() == "nothing of it\n"
    # Again is the same, and a number that differs is found
    assert insert(expected, results) == expected
    assert stale_documents(results, docs) == []
    results["runs"][0]["numbers"]["return"]["regret"] += 1.0
    assert stale_documents(results, docs) == [docs / "a.md"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", r"no \*.md in .* has <!-- begin tiny.TABLE -->.* where TABLE is one of scores, differences"),
        (
            "<!-- begin tiny.sores -->\n<!-- end tiny.sores -->",
            "there is no table for .*tiny.sores -->; known are scores",
        ),
        ("<!-- begin tiny.scores -->\n", "<!-- begin tiny.scores --> has no <!-- end tiny.scores --> after it"),
    ],
)
def test_markers_that_are_none(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_finished(tmp_path)
    (tmp_path / "docs").mkdir()
    document = tmp_path / "docs" / "a.md"
    document.write_text(text)
    with pytest.raises(InputError, match=message):
        write_docs(collect(study), tmp_path / "docs")
    assert document.read_text() == text
    assert not (tmp_path / "docs" / "results").exists()
    assert main(["study", "report", str(study.path), "--docs", str(tmp_path / "docs")]) == 2
    one_line(capsys, message)


def test_a_study_on_one_environment_has_no_average_over_them(tmp_path: Path) -> None:
    study = make_study(tmp_path, environments={GATED: {"reference": [0, 5]}})
    for one in study.folders.values():
        pretend_trained(one)
        monitor_nothing(one)
        pretend_evaluated(one, "return", {"return": 1.0, "return_mode": 2.0})
    assert list(tables(collect(study))) == ["scores", "cost"]
