"""The examples run, at a small size."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import yaml
from PIL import Image

from sb3_laplace import LaplaceRecurrentPPO, evaluate_belief, evaluate_regression
from sb3_laplace.cli.main import main
from sb3_laplace.evaluation.bootstrap import Bootstrap
from tests.study_helpers import HYPERPARAMS

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(script: str, *arguments: str) -> str:
    """A fresh process, as a user would start it."""
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


@pytest.fixture(autouse=True)
def folder_of_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python looks first when a script is run."""
    monkeypatch.syspath_prepend(EXAMPLES)


def load(script: str) -> Any:
    """The script as a module, whose settings can be made smaller than its arguments allow."""
    specification = importlib.util.spec_from_file_location(Path(script).stem, EXAMPLES / script)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_belief_animation(tmp_path: Path) -> None:
    path = tmp_path / "belief.gif"
    output = run("belief_animation.py", "--timesteps", "12800", "--trial", "3", "--out", str(path))
    assert "50 frames" in output
    with Image.open(path) as image:
        assert image.n_frames == 50  # type: ignore[attr-defined]
        assert image.size == (640, 320)


def test_own_environment(tmp_path: Path) -> None:
    output = run("own_environment.py", "--timesteps", "4800", "--trials", "40", "--out", str(tmp_path))
    assert (tmp_path / "model.zip").exists()
    assert re.search(r"poles that fell, by episode: \[( *-?\d\.\d* *){3}\]", output)
    assert "Does it do better in later episodes?" in output


def test_bandit_demo(tmp_path: Path) -> None:
    output = run("bandit_demo.py", "--timesteps", "12800", "--trials", "200", "--out", str(tmp_path))
    assert (tmp_path / "model.zip").exists()
    assert list(tmp_path.glob("LaplaceRecurrentPPO_1/events*"))
    # Reference rows: uniform pulls lose 25.2 and 22.0 in 50 pulls, Thompson sampling 8.0
    uniform = [float(row.split()[-1]) for row in re.findall(r"uniform random.*", output)]
    assert uniform[0] == pytest.approx(25.2, abs=1.5)
    assert uniform[1] == pytest.approx(21.9, abs=1.5)
    thompson = [float(row.split()[-1]) for row in re.findall(r"Thompson.*", output)]
    assert thompson[0] == pytest.approx(8.0, abs=0.8)
    # With the exact prior, and the index policy: 4.8 and 3.2, on tasks of concentration 0.3 5.2 and 3.5
    best = [float(row.split()[-1]) for row in re.findall(r"best known.*", output)]
    np.testing.assert_allclose([thompson[1], best[0], thompson[3], best[1]], [4.8, 3.2, 5.2, 3.5], atol=0.9)
    assert len(re.findall(r"agent, (?:sampling|deterministic) +(?:\d+\.\d\d +){3}(?:-?\d+\.\d *){3}", output)) == 4
    assert (tmp_path / "report.html").exists()
    assert f"tensorboard --logdir {tmp_path}" in output


@pytest.mark.slow
def test_bandit_demo_beats_thompson_sampling(tmp_path: Path) -> None:
    output = run("bandit_demo.py", "--out", str(tmp_path))
    for row, limit in zip(re.findall(r"agent, sampling +\S+ +\S+ +(\S+)", output), (6.0, 6.5), strict=True):
        assert float(row) < limit


def test_posthoc(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    posthoc = load("posthoc.py")
    posthoc.AGENTS["cartpole"]["arguments"] |= {"n_epochs": 1}
    posthoc.PRIOR_STDS = (0.01, 1.0)
    options = ["--out", str(tmp_path), "--agents", "cartpole", "bandit"]
    # One rollout each
    posthoc.main(["train", *options, "--timesteps", "1"])
    posthoc.main(["convert", *options, "--trials", "16"])
    output = capsys.readouterr().out
    assert re.findall(r"(\w+): 0 of 32000 actions differ", output) == ["cartpole", "bandit"]
    assert output.count("chosen") == 6


def test_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    regression = load("regression.py")
    regression.PRIOR_STDS = (0.1, 1.0)
    monkeypatch.setitem(matplotlib.rcParams, "savefig.dpi", 10)

    def main(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["regression.py", *arguments, "--out", str(tmp_path)])
        regression.main()

    main("train", "laplace-full", "--std", "--timesteps", "1")
    main("train", "point", "--timesteps", "1")
    main("evaluate", "--functions", "2", "--samples", "1")
    output = capsys.readouterr().out
    # An agent each, and a posterior for the point; in two contexts
    assert output.count("limit: Bayesian linear regression") == 6
    assert {path.name for path in tmp_path.glob("*.zip")} == {"laplace-full-std-0.zip", "point-0.zip"}
    assert output.count("prior_std") == 2
    assert len(list(tmp_path.glob("*.csv"))) == 6
    assert {path.name for path in tmp_path.glob("scores-*.png")} == {"scores-train.png", "scores-test.png"}


@pytest.mark.slow
def test_regression_learns_from_targets(tmp_path: Path) -> None:
    """Ten minutes: mean squared error after 3, 5, 10 and 30 pairs."""
    run("regression.py", "train", "laplace-diagonal", "--out", str(tmp_path))
    model = LaplaceRecurrentPPO.load(tmp_path / "laplace-diagonal-0.zip", device="cpu")
    evaluation = evaluate_regression(model, 500, (3, 5, 10, 30), 30, n_posterior_samples=0)
    assert (evaluation.agent["mse"].mean(0) < [0.32, 0.22, 0.09, 0.02]).all()


def test_consistency(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    study = load("consistency.py")
    study.TIMESTEPS = dict.fromkeys(study.TIMESTEPS, 1)
    for kl in study.KL_COEFS:
        study.main(["train", "bandit", kl, "--seed", "1", "--out", str(tmp_path)])
    study.main(["train", "bandit", "fixed", "--seed", "2", "--out", str(tmp_path)])
    study.main(["evaluate", "--trials", "40", "--out", str(tmp_path)])
    files = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert set(files) == {"bandit-fixed-1", "bandit-fixed-2", "bandit-auto-1"}
    assert files["bandit-fixed-1"]["kl_multiplier"] is None
    assert all(1e-5 <= one <= 0.03 for one in files["bandit-auto-1"]["kl_multiplier"])
    assert len(re.findall("bandit-(?:auto|fixed)-[12] (?:sampled|mode) return=", capsys.readouterr().out)) == 6
    docs = tmp_path / "docs"
    (docs / "results").mkdir(parents=True)
    (docs / "belief.md").write_text((EXAMPLES.parent / "docs" / "belief.md").read_text(encoding="utf-8"), "utf-8")
    study.main(["report", "--out", str(tmp_path), "--docs", str(docs)])
    assert json.loads((docs / "results" / "consistency.json").read_text()) == files
    rows = [line.split(" | ") for line in (docs / "belief.md").read_text(encoding="utf-8").splitlines()]
    fixed, auto, difference = (row for row in rows if row[0] == "| bandit")
    first, second = (files[f"bandit-fixed-{seed}"]["sampled"] for seed in (1, 2))
    late = sorted((first["moved_to_claimed_late"], second["moved_to_claimed_late"]))
    assert fixed[1:3] == ["fixed", "2"]
    assert fixed[6] == f"{np.sqrt(late[0] * late[1]):.3g} ({late[0]:.3g} to {late[1]:.3g})"
    reach = 12.706 * abs(first["return"] - second["return"]) / 2
    assert fixed[7] == f"{(first['return'] + second['return']) / 2:.2f} ± {reach:.2f}"
    assert (auto[2], difference[1:3]) == ("1", ["auto - fixed", "1"])
    assert difference[7] == f"{files['bandit-auto-1']['sampled']['return'] - first['return']:+.2f}"


def test_belief_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains, evaluates and reports: what the tables say is what the agents' files hold."""
    study = load("belief_study.py")
    monkeypatch.setitem(matplotlib.rcParams, "figure.dpi", 10)
    study.SAVED_AT = {"base": (0,)}
    study.NAMES["base@0"] = "base, untrained"
    quick = {"network_steps": 5, "bootstrap": Bootstrap(n_resamples=20)}
    study.evaluate_belief = lambda *arguments, **keywords: evaluate_belief(*arguments, **keywords, **quick)
    out, docs = tmp_path / "agents", tmp_path / "docs"
    docs.mkdir()
    (docs / "belief.md").write_text((EXAMPLES.parent / "docs" / "belief.md").read_text(encoding="utf-8"), "utf-8")
    for variant, seed in (("base", 0), ("base", 1), ("hidden16", 1)):
        study.main(["train", variant, "--seed", str(seed), "--timesteps", "1", "--out", str(out)])
    study.main(["evaluate", "--trials", "140", "--out", str(out)])
    files = {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}
    of_base = {f"{name}-{seed}" for name in ("base", "base@0", "calibrated") for seed in (0, 1)}
    assert set(files) == {"hidden16-1", *of_base}
    assert files["base-0"]["timesteps"] == files["hidden16-1"]["timesteps"] == 12800
    assert files["base@0-0"]["timesteps"] == 0
    # Means are those of the agent before, and so is the mode; the width is another
    before, after = files["base-0"]["numbers"], files["calibrated-0"]["numbers"]
    assert before["regret_mode"] == after["regret_mode"]
    assert before["claimed_ratio"] != after["claimed_ratio"]
    # Uniform pulls lose 25
    assert 15 < before["regret_mode"] < 35
    study.main(["report", "--out", str(out), "--docs", str(docs)])
    text = (docs / "belief.md").read_text(encoding="utf-8")
    first, second = (files[f"base-{seed}"]["numbers"]["lost_by_mean"] for seed in (0, 1))
    reach = 12.706 * abs(first - second) / 2
    row = next(row for row in text.splitlines() if row.startswith("| base: ")).split(" | ")
    assert row[1] == "2"
    assert row[-1] == f"{(first + second) / 2:.3f} ± {reach:.3f} |"
    # One seed has no interval; differences are those of the same seed
    difference = files["hidden16-1"]["numbers"]["r2"] - files["base-1"]["numbers"]["r2"]
    rows = [row.split(" | ")[2] for row in text.splitlines() if row.startswith("| LSTM 16 | 1 ")]
    assert rows[0] == f"{files['hidden16-1']['numbers']['r2']:.3f}"
    assert rows[-1] == f"{difference:+.3f}"
    agents = json.loads((docs / "results" / "belief.json").read_text())
    assert {(agent["variant"], agent["seed"]) for agent in agents} == {tuple_of(name) for name in files}
    assert all((docs / f"belief-{name}.png").stat().st_size > 1000 for name in ("steps", "variants"))


def tuple_of(stem: str) -> tuple[str, int]:
    variant, seed = stem.rsplit("-", 1)
    return variant, int(seed)


def test_the_tables_in_the_documentation_are_those_of_the_study() -> None:
    study = load("belief_study.py")
    docs = EXAMPLES.parent / "docs"
    text = (docs / "belief.md").read_text(encoding="utf-8")
    results = study.Results(json.loads((docs / "results" / "belief.json").read_text(encoding="utf-8")))
    assert study.insert(text, study.tables(results)) == text
    with pytest.raises(ValueError, match="<!-- begin width -->"):
        study.insert(text.replace("<!-- begin width -->", ""), study.tables(results))


def test_the_table_of_consistency_is_that_of_its_results() -> None:
    study = load("consistency.py")
    docs = EXAMPLES.parent / "docs"
    text = (docs / "belief.md").read_text(encoding="utf-8")
    results = json.loads((docs / "results" / "consistency.json").read_text())
    assert study.insert(text, {"consistency": study.table(results)}) == text


def test_intervals_over_seeds() -> None:
    study = load("belief_study.py")
    mean, reach = study.interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert reach == pytest.approx(4.303 / np.sqrt(3))
    quantiles = pytest.importorskip("scipy.stats").t
    for n, quantile in study.T_QUANTILES.items():
        assert quantile == pytest.approx(quantiles.ppf(0.975, n - 1), abs=5e-4)


def test_continuous(tmp_path: Path) -> None:
    """A study of five-step episodes, of which the checkpoints are evaluated, and an agent is filmed."""
    hyperparams = {**HYPERPARAMS, "n_steps": 15, "batch_size": 30, "normalize": True}
    point = "sb3_laplace/PointRobot-v0"
    (tmp_path / "hyperparams.yml").write_text(yaml.safe_dump({point: hyperparams}))
    study = {
        "agents": {"laplace": {"algorithm": "laplace_ppo_lstm", "config": "hyperparams.yml"}},
        "environments": {point: {"env_kwargs": {"episode_length": 5}}},
        "seeds": [0],
        "steps": 90,
        "evaluations": {"return": {"n_trials": 4}},
    }
    (tmp_path / "tiny.yml").write_text(yaml.safe_dump(study))
    assert main(["study", "run", str(tmp_path / "tiny.yml"), "--out", str(tmp_path / "study")]) == 0
    run("continuous.py", "curves", str(tmp_path / "study"), "--trials", "4", "--docs", str(tmp_path))
    document = json.loads((tmp_path / "results" / "tiny-episodes.json").read_text())
    (curve,) = document["runs"]
    assert (curve["agent"], curve["seed"]) == ("laplace", 0)
    assert curve["steps"] == [*range(4, 90, 8), 90]
    assert np.shape(curve["returns"]) == (len(curve["steps"]), 3)
    # The agent's are those that the study has measured, of other trials
    assert np.mean(curve["returns"][-1]) == pytest.approx(-5.0, abs=1.0)
    assert (tmp_path / "tiny-episodes.png").exists()
    film = Path(run("continuous.py", "film", str(tmp_path / "study"), "laplace", "--docs", str(tmp_path)).strip())
    assert film.stat().st_size < 300_000
    with pytest.raises(subprocess.CalledProcessError):
        run("continuous.py", "film", str(tmp_path / "study"), "other", "--docs", str(tmp_path))


def test_continuous_throughput() -> None:
    pytest.importorskip("mujoco")
    output = run("continuous.py", "throughput", "sb3_laplace/HalfCheetahVel-v0", "--n-envs", "2", "--n-steps", "16")
    assert re.search(r"2 x 16, laplace: \d+ steps in a CPU second", output)
