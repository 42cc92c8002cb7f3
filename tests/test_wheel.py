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
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent
# What a type checker says of a user's script: the line, and the kind of error
USER_SCRIPT = """\
from sb3_laplace import LaplaceRecurrentPPO, calibrate_posterior, diagnose, make_vec_env, plot_belief, posterior_trace
from sb3_laplace_envs.oracles import DirichletIndexPolicy

env = make_vec_env("sb3_laplace/DirichletBandit-v0", n_envs="two")  # arg-type
model = LaplaceRecurrentPPO("LaplaceLstmPolicy", env, n_steps=10, kl_coef=1e-4, latent_dim=8)  # call-arg
trace = posterior_trace(model, env, n_trials=2)
verdicts: dict[str, str] = {name: finding.verdict for name, finding in diagnose(trace).findings.items()}
late: str = trace.n_steps - 1  # assignment
print(calibrate_posterior(model, env).table(), DirichletIndexPolicy(env).posterior().mean.upper())  # attr-defined
plot_belief(verdicts)  # arg-type
"""
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


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """An environment with nothing but the wheel in it. All else is taken from where these tests run, whose own
    sb3_laplace comes after the wheel's."""
    builder = venv.EnvBuilder(symlinks=sys.platform != "win32")
    folder = tmp_path_factory.mktemp("installed")
    builder.create(folder / "fresh")
    context = builder.ensure_directories(folder / "fresh")
    # PYTHONPATH may lead to the repository, which pip would take for an installed sb3_laplace
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}

    def run(*command: str | Path, status: int = 0) -> str:
        result = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
        assert result.returncode == status, result.stdout + result.stderr
        return result.stdout

    python = context.env_exe
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--no-compile", wheel)
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # A .pth file adds a folder, but not what .pth files in that folder add, such as an editable sb3_laplace
    others = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (packages / "others.pth").write_text("\n".join(sorted(others)))
    return SimpleNamespace(run=run, python=python, packages=packages, programs=Path(context.bin_path), folder=folder)


def test_the_quick_start_runs_where_only_the_wheel_is_installed(installed: SimpleNamespace) -> None:
    assert QUICK_START is not None
    script = installed.folder / "quick_start.py"
    script.write_text(
        QUICK_START[1] + "import sb3_laplace, sb3_laplace_envs\n"
        "from sb3_laplace.zoo.algorithms import default_config\n"
        "print('installed:', sb3_laplace.__file__, sb3_laplace_envs.__file__,"
        f" default_config('vrnn_ppo_lstm', {ENV_ID!r}), sep='\\n')\n",
        "utf-8",
    )
    output, _, paths = installed.run(installed.python, script).partition("installed:\n")
    assert output.startswith("torch.Size([16, ")
    package, tasks, config = (Path(path) for path in paths.splitlines())
    assert package == installed.packages / "sb3_laplace" / "__init__.py"
    assert tasks == installed.packages / "sb3_laplace_envs" / "__init__.py"
    assert config.parent == installed.packages / "sb3_laplace" / "zoo" / "configs"
    assert f"{ENV_ID}:" in config.read_text("utf-8")

    assert "usage: sb3-laplace" in installed.run(installed.programs / "sb3-laplace", "--help")


def test_a_type_checker_knows_the_types(installed: SimpleNamespace) -> None:
    pytest.importorskip("mypy")
    script, settings = installed.folder / "script.py", installed.folder / "mypy.ini"
    script.write_text(USER_SCRIPT)
    # What others have need not be read for it, which takes a minute
    others = (
        "gymnasium",
        "matplotlib",
        "onnx",
        "onnxruntime",
        "sb3_contrib",
        "stable_baselines3",
        "tensorboard",
        "torch",
    )
    sections = [f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in others]
    settings.write_text("[mypy]\n" + "".join(sections))
    options = ("--config-file", settings, "--python-executable", installed.python, "--cache-dir", os.devnull)
    output = installed.run(sys.executable, "-m", "mypy", *options, script, status=1)
    found = re.findall(r"^script\.py:(\d+): error: .* \[(.+)\]$", output, re.MULTILINE)
    lines = enumerate(USER_SCRIPT.splitlines(), start=1)
    assert found == [(str(number), line.rpartition("  # ")[2]) for number, line in lines if "  # " in line], output
