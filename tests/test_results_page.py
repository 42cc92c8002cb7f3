"""The numbers of docs/results.md and the pages like it are those of docs/results/*.json."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("matplotlib")
    # It puts the examples there
    monkeypatch.setattr(sys, "path", sys.path.copy())
    spec = importlib.util.spec_from_file_location("make_results", DOCS / "figures" / "make_results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(text: str, name: str) -> list[list[str]]:
    """The cells of a table between its markers, without its head."""
    match = re.search(f"<!-- begin {name} -->\n(.*?)\n<!-- end {name} -->", text, re.DOTALL)
    assert match is not None
    return [line.strip("| ").split(" | ") for line in match[1].splitlines()[2:]]


def test_the_pages_are_what_the_script_writes(script: ModuleType) -> None:
    for path, parts in script.pages().items():
        text = (DOCS / path).read_text(encoding="utf-8")
        assert script.insert(text, parts) == text
        # Beside them a page may have tables of the studies' own
        assert set(re.findall(f"<!-- begin ({Path(path).stem}\\..*) -->", text)) == set(parts)


def test_numbers_are_those_of_the_files() -> None:
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    agents = json.loads((DOCS / "results" / "belief.json").read_text(encoding="utf-8"))
    base = [agent["numbers"]["lost"] for agent in agents if agent["variant"] == "base"]
    row = rows_of(text, "results.belief")[0]
    assert row[1] == str(len(base))
    assert row[4].startswith(f"{np.mean(base):.2f} ± ")
    trained = json.loads((DOCS / "results" / "consistency.json").read_text(encoding="utf-8"))
    late = [one["sampled"]["moved_to_claimed_late"] for name, one in trained.items() if name.startswith("grid-auto-")]
    (row,) = (row for row in rows_of(text, "results.consistency") if row[:2] == ["grid", "auto"])
    assert row[2] == str(len(late))
    assert float(row[6]) == pytest.approx(np.prod(late) ** (1 / len(late)), rel=5e-3)
    runs = json.loads((DOCS / "results" / "continuous.json").read_text(encoding="utf-8"))["runs"]
    last = [run["numbers"]["return"]["return_episode_3"] for run in runs if run["agent"] == "point"]
    (row,) = (row for row in rows_of(text, "results.point_robot") if row[0] == "point")
    assert row[-1].startswith(f"{np.mean(last):.1f} ± ")
