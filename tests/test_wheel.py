"""What is installed is all that is in the repository: a wheel in a fresh environment runs the README's quick start."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
QUICK_START = re.search(r"^## Quick start\n+```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S)
ENV_ID = "sb3_laplace/DirichletBandit-v0"


def wheel_of_the_repository(folder: Path) -> Path:
    """Build in a copy, so that nothing is left in the repository."""
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("sb3_laplace", "envs", "zoo_configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    # Not in an environment of its own, which would be downloaded
    build = "from setuptools import build_meta; build_meta.build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    shutil.rmtree(source)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel_of_the_repository(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_every_file(wheel: Path) -> None:
    expected = {"sb3_laplace/py.typed", "sb3_laplace_envs/py.typed"}
    for root, package in ((ROOT, "sb3_laplace"), (ROOT / "envs", "sb3_laplace_envs")):
        modules = {path.relative_to(root).as_posix() for path in (root / package).rglob("*.py")}
        # A folder without __init__.py would be importable from the repository and missing here
        assert {str(Path(module).parent / "__init__.py") for module in modules} <= modules
        expected |= modules
    configs = ROOT / "zoo_configs"
    expected |= {f"sb3_laplace/zoo/configs/{path.relative_to(configs).as_posix()}" for path in configs.rglob("*.yml")}
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert found == expected


def test_the_quick_start_runs_where_only_the_wheel_is_installed(wheel: Path, tmp_path: Path) -> None:
    """Everything else is taken from where these tests run, whose own sb3_laplace comes after the wheel's."""
    builder = venv.EnvBuilder(symlinks=sys.platform != "win32")
    fresh = tmp_path / "fresh"
    builder.create(fresh)
    context = builder.ensure_directories(fresh)
    # PYTHONPATH may lead to the repository, which pip would take for an installed sb3_laplace
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}

    def run(*command: str | Path) -> str:
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    python = context.env_exe
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--no-compile", wheel)
    installed = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # A .pth file adds a folder, but not what .pth files in that folder add, such as an editable sb3_laplace
    others = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (installed / "others.pth").write_text("\n".join(sorted(others)))

    assert QUICK_START is not None
    script = tmp_path / "quick_start.py"
    script.write_text(
        QUICK_START[1] + "import sb3_laplace, sb3_laplace_envs\n"
        "from sb3_laplace.zoo.algorithms import default_config\n"
        "print('installed:', sb3_laplace.__file__, sb3_laplace_envs.__file__,"
        f" default_config('vrnn_ppo_lstm', {ENV_ID!r}), sep='\\n')\n",
        "utf-8",
    )
    output, _, paths = run(python, script).partition("installed:\n")
    assert output.startswith("torch.Size([16, ")
    package, tasks, config = (Path(path) for path in paths.splitlines())
    assert package == installed / "sb3_laplace" / "__init__.py"
    assert tasks == installed / "sb3_laplace_envs" / "__init__.py"
    assert config.parent == installed / "sb3_laplace" / "zoo" / "configs"
    assert f"{ENV_ID}:" in config.read_text("utf-8")

    assert "usage: sb3-laplace" in run(Path(context.bin_path) / "sb3-laplace", "--help")
