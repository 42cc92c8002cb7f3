"""`sb3-laplace plot` draws what there is, and says in one line what there is not."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_laplace.cli.main import main
from tests.zoo_helpers import BANDIT, BANDIT_NAME, one_line

pyplot = pytest.importorskip("matplotlib.pyplot")
ALGO = "laplace_ppo_lstm"
MONITOR = '#{"t_start": 0.0, "env_id": "none"}\nr,l,t\n' + "1.0,5,0.1\n" * 4


def write_run(folder: str, algo: str, name: str, n_evaluations: int = 3) -> None:
    """A run with two episodes in each of its evaluations, at 100, 200, ... steps."""
    run = Path(folder) / algo / name
    run.mkdir(parents=True)
    (run / "0.monitor.csv").write_text(MONITOR)
    timesteps = 100 * np.arange(1, n_evaluations + 1)
    if n_evaluations:
        np.savez(run / "evaluations.npz", timesteps=timesteps, results=np.ones((n_evaluations, 2)) * timesteps[:, None])


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two runs in `logs`, another algorithm and another environment in `more`, runs without evaluations in `short`."""
    monkeypatch.chdir(tmp_path)
    pyplot.switch_backend("agg")
    write_run("logs", ALGO, f"{BANDIT_NAME}_1")
    write_run("logs", ALGO, f"{BANDIT_NAME}_2")
    write_run("more", "ppo_lstm", f"{BANDIT_NAME}_1")
    write_run("short", ALGO, f"{BANDIT_NAME}_1", n_evaluations=0)
    write_run("short", ALGO, f"{BANDIT_NAME}_2", n_evaluations=1)
    yield
    pyplot.close("all")


def plot_all(*arguments: str, algos: tuple[str, ...] = (ALGO,), env: str = BANDIT, folder: str = "logs") -> int:
    return main(["plot", "all", "-a", *algos, "-e", env, "-f", folder, *arguments])


def test_a_table_says_where_there_is_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-a", ALGO, "ppo_lstm", "-e", BANDIT, "-f", "logs", "more", "-o", "results"]
    assert main(["plot", "all", *arguments]) == 0
    printed = capsys.readouterr().out
    assert printed.count("300 +/- 0") == 2
    assert printed.count("no evaluations") == 2
    assert "0.0 +/- 0.0" not in printed
    # And in the file
    table = pickle.loads(Path("results.pkl").read_bytes())["results_table"]["value_matrix"]
    assert table[1] == [BANDIT_NAME, "300 +/- 0", "no evaluations", "no evaluations", "300 +/- 0"]


@pytest.mark.parametrize(
    ("arguments", "changes", "expected"),
    [
        ([], {"folder": "short"}, f"no two evaluations of {ALGO} on {BANDIT_NAME} in short"),
        ([], {"folder": "nowhere"}, f"no two evaluations of {ALGO} on {BANDIT_NAME} in nowhere"),
        ([], {"env": "Nowhere-v0"}, f"no two evaluations of {ALGO} on Nowhere-v0 in logs"),
        ([], {"algos": ("laplace_ppo",)}, "no two evaluations of laplace_ppo on .* maybe meant laplace_ppo_lstm"),
        ([], {"algos": (ALGO, "sac")}, r"no two evaluations of sac \("),
        (["more"], {}, r"no two evaluations in more \("),
        (["-k", "successes"], {}, "--key successes: .*evaluations.npz' has .*results"),
        (["-max", "50"], {}, "--max-timesteps 50: the first evaluation .* is at 100"),
        (["-max", "0"], {}, "--max-timesteps must be at least 1"),
        (["-min", "5000"], {}, "--min-timesteps 5000: the longest run .* has 300"),
        (["-l", "a", "b"], {}, "--labels: 2 for 1 folders"),
        (["short", "-l", "a"], {}, "--labels: 1 for 2 folders"),
        (["-o", "logs/no/file"], {}, "logs/no/file"),
    ],
)
def test_evaluations(
    arguments: list[str], changes: dict[str, Any], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plot_all(*arguments, **changes) == 2
    one_line(capsys, expected)


def test_what_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "all", "-a", ALGO, "-e", BANDIT]) == 2
    one_line(capsys, "plot all needs --exp-folders")
    assert main(["plot", "file"]) == 2
    one_line(capsys, "plot file needs --input")
    assert main(["plot", "train", "-a", ALGO]) == 2
    one_line(capsys, "required: -e/--env, -f/--exp-folder")
    (Path("logs") / ALGO / f"{BANDIT_NAME}_1" / "evaluations.npz").write_text("none")
    assert plot_all() == 2
    one_line(capsys, "evaluations.npz' holds no evaluations")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-w", "4"], None),
        (["-w", "5"], "nothing to draw: .*--episode-window"),
        (["-y", "success", "-w", "1"], "nothing to draw: .*--y-axis"),
        (["-w", "0"], "--episode-window must be at least 1"),
        (["--fontsize", "-3"], "--fontsize must be at least 1"),
        (["-e", "Nowhere-v0"], f"no run on Nowhere-v0 in 'logs/{ALGO}'"),
        (["-a", "laplace_ppo"], "no run on .* in 'logs/laplace_ppo', you maybe meant laplace_ppo_lstm"),
    ],
)
def test_training_curves(arguments: list[str], expected: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["plot", "train", "-a", ALGO, "-e", BANDIT, "-f", "logs", *arguments])
    if expected is None:
        assert code == 0
        assert len(pyplot.gca().lines) == 2
    else:
        assert code == 2
        one_line(capsys, expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-i", "nowhere"], "'nowhere.pkl' is not what .*No such file"),
        (["-i", "text.pkl"], "'text.pkl' is not what"),
        (["--keep-envs", "Nowhere-v0"], f"'results.pkl' has no 'Nowhere-v0', it has {BANDIT_NAME}"),
        (["--skip-envs", BANDIT], "--keep-envs and --skip-envs leave nothing"),
        (["--skip-keys", "LAPLACE_PPO_LSTM-logs"], "--keep-keys and --skip-keys leave nothing"),
        (["-l", "a", "b"], "--labels: 2 for 1 curves"),
        (["--versus"], "--versus does nothing without --rliable"),
        (["--format", "png"], "--format does nothing without --output"),
        (["--merge", "nowhere"], "No such file.*'nowhere'"),
    ],
)
def test_figures_from_a_file(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.pkl").write_text("none")
    assert plot_all("-o", "results") == 0
    assert main(["plot", "file", "-i", "results"]) == 0
    capsys.readouterr()
    assert main(["plot", "file", "-i", "results", *arguments]) == 2
    one_line(capsys, expected)
