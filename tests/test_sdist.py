"""The source distribution holds every file of the repository: what it takes to install, test and build the docs."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What is made anew, where it is asked for
MADE = ("docs/_build/index.html", "tests/__pycache__/helpers.cpython-311.pyc")


def tracked() -> list[str]:
    """What git has of this folder; skips the test where it is no clone of the repository."""
    git = shutil.which("git")
    command = (git, "-C", ROOT, "ls-files", "-z")
    listed = "" if git is None else subprocess.run(command, capture_output=True, text=True).stdout
    if not listed:
        pytest.skip("needs a clone of the repository")
    return listed.rstrip("\0").split("\0")


def test_the_source_distribution_holds_every_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    files = {name for name in tracked() if (ROOT / name).exists()}
    for name in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    for name in MADE:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()
    # Not in an environment of its own, which would be downloaded
    build = "from setuptools import build_meta; build_meta.build_sdist('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (archive,) = tmp_path.glob("sb3_laplace-*.tar.gz")
    with tarfile.open(archive) as tar:
        found = {member.name.partition("/")[2] for member in tar.getmembers() if member.isfile()}
    made_by_setuptools = {name for name in found if name == "PKG-INFO" or ".egg-info/" in name}
    assert found - made_by_setuptools == {name for name in files if not name.startswith(".")}
