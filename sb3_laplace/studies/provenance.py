"""What a result was made with: versions, commit, machine."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sb3_laplace.version import __version__

_PACKAGES = ("torch", "numpy", "gymnasium", "stable-baselines3", "sb3-contrib", "rl_zoo3")


def provenance() -> dict[str, Any]:
    """Versions of what results depend on, the commit of this package if it is in a git repository, and the machine."""
    versions = {"sb3-laplace": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            # Found on the path without having been installed
            module = sys.modules.get(package.replace("-", "_"))
            versions[package] = str(getattr(module, "__version__", "unknown"))
    machine = {"host": platform.node(), "system": platform.platform(), "cores": os.cpu_count()}
    return {"versions": versions, "commit": _commit(Path(__file__).parent), "machine": machine}


def _commit(folder: Path) -> str | None:
    """The commit of a working tree that holds a file of this package, with "+" if files were changed since."""

    def git(*words: str) -> str:
        result = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
        return result.stdout.strip()

    try:
        # An installed package may lie in a repository of something else
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
