"""setup.cfg asks for what is imported, and for no lower version than ``make test-lowest`` runs."""

import ast
import configparser
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
# What is imported and comes with RL Zoo, which imports it too; and pandas, which PosteriorTrace.to_dataframe asks for
NOT_OURS_TO_ASK_FOR = {"huggingface_sb3", "pandas", "pytablewriter", "sqlalchemy", "yaml"}


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("#", "%"))]


def setup_requirements() -> dict[str, Requirement]:
    """What setup.cfg asks for, but for the tools that only read the source and the docs (extras "dev" and "docs")."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg", "utf-8")
    extras = [text for name, text in config["options.extras_require"].items() if name not in ("dev", "docs")]
    asked = [Requirement(line) for text in (config["options"]["install_requires"], *extras) for line in lines(text)]
    return {canonicalize_name(requirement.name): requirement for requirement in asked}


def pins(file: str) -> dict[str, str]:
    requirements = [Requirement(line) for line in lines((ROOT / file).read_text("utf-8"))]
    return {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in requirements}


REQUIREMENTS = setup_requirements()


@pytest.mark.parametrize("name", [name for name in REQUIREMENTS if name != "torch"])
def test_the_lowest_version_is_the_one_that_is_tested(name: str) -> None:
    floors = [one.version for one in REQUIREMENTS[name].specifier if one.operator == ">="]
    pinned = pins("constraints-lowest.txt")[name]
    # 2.9 means 2.9.0
    assert [f"{floor}.0.0".split(".")[:3] for floor in floors] == [f"{pinned}.0.0".split(".")[:3]]


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_the_pinned_version_is_allowed(name: str) -> None:
    assert REQUIREMENTS[name].specifier.contains(pins("constraints.txt")[name])


def test_nothing_else_is_pinned_as_lowest() -> None:
    assert pins("constraints-lowest.txt").keys() == REQUIREMENTS.keys() - {"torch"}


def test_what_is_imported_is_asked_for() -> None:
    imported: set[str] = set()
    for folder in (ROOT / "sb3_laplace", ROOT / "envs" / "sb3_laplace_envs"):
        for path in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
                    imported.add(node.module.split(".")[0])
    imported -= {*sys.stdlib_module_names, "sb3_laplace", "sb3_laplace_envs", *NOT_OURS_TO_ASK_FOR}
    distributions = packages_distributions()
    unasked = {
        module
        for module in imported
        if not REQUIREMENTS.keys() & {canonicalize_name(name) for name in distributions.get(module, [module])}
    }
    assert unasked == set()
