"""The notebooks of docs/tutorials run, with less training, and what is stored in them is fit to be shown."""

import base64
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import sb3_laplace
from sb3_laplace.evaluation.bootstrap import Bootstrap

FOLDER = Path(__file__).parent.parent / "docs" / "tutorials"
NOTEBOOKS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.ipynb"))}
#: What is put in the place of the notebooks' constants
SMALL = {"STEPS": 1, "TRIALS": 40, "FUNCTIONS": 8}
# A path of some machine, its user's name, or what Python warns with
_NOT_SHOWN = re.compile(
    r"(?<![\w.:/])/(?:home|work|tmp|root|usr|opt|var|Users|mnt|data)\b|[A-Z]:\\\\|\w*Warning\b|Traceback"
)


def code_cells(name: str) -> list[dict[str, Any]]:
    return [cell for cell in NOTEBOOKS[name]["cells"] if cell["cell_type"] == "code"]


def pictures_of(cell: dict[str, Any]) -> list[str]:
    found = [output.get("data", {}).get("image/png") for output in cell["outputs"]]
    return ["".join(picture) for picture in found if picture is not None]


def test_there_are_notebooks() -> None:
    assert set(NOTEBOOKS) == {"after_the_fact", "bandit", "own_environment", "regression"}
    index = (FOLDER / "index.md").read_text(encoding="utf-8")
    assert all(f"({name}.ipynb)" in index for name in NOTEBOOKS)


# So few are played here
@pytest.mark.filterwarnings("ignore:n_trials")
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_code_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All code cells in one namespace, as in the notebook."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    # What takes longest, however little there is to evaluate
    quick = partial(sb3_laplace.evaluate_belief, network_steps=5, bootstrap=Bootstrap(n_resamples=20))
    monkeypatch.setattr(sb3_laplace, "evaluate_belief", quick)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    replaced = set()
    for number, cell in enumerate(code_cells(name)):
        lines = [line for line in "".join(cell["source"]).splitlines() if not line.startswith("%")]
        for i, line in enumerate(lines):
            constant = line.partition(" = ")[0]
            if constant in SMALL:
                lines[i] = f"{constant} = {SMALL[constant]}"
                replaced.add(constant)
        exec(compile("\n".join(lines), f"{name}, cell {number}", "exec"), namespace)
    assert "STEPS" in replaced


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_is_stored(name: str) -> None:
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 500_000
    cells = code_cells(name)
    # Run from the first cell to the last, none left out
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    texts = ["".join(output.get("text", output.get("data", {}).get("text/plain", ""))) for output in outputs]
    texts += ["".join(cell["source"]) for cell in NOTEBOOKS[name]["cells"]]
    assert not [match[0] for text in texts for match in _NOT_SHOWN.finditer(text)]
    pictures = [picture for cell in cells for picture in pictures_of(cell)]
    assert len(pictures) >= 2
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_pictures_are_described(name: str) -> None:
    for cell in code_cells(name):
        if pictures_of(cell):
            assert len(cell["metadata"]["mystnb"]["image"]["alt"]) > 40


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_says_what_it_is(name: str) -> None:
    first = "".join(NOTEBOOKS[name]["cells"][0]["source"])
    assert first.startswith("# ")
    assert "One seed (0)" in first


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_nothing_is_stored_that_every_run_changes(name: str) -> None:
    assert [*NOTEBOOKS[name]["metadata"]] == ["kernelspec", "language_info"]
    assert [*NOTEBOOKS[name]["metadata"]["language_info"]] == ["name"]
    assert not [cell for cell in NOTEBOOKS[name]["cells"] if "execution" in cell["metadata"]]
