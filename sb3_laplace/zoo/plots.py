"""``sb3-laplace plot``: RL Zoo's plots, which draw empty figures and tables of zeros where there is nothing."""

import argparse
import pickle
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from huggingface_sb3 import EnvironmentName
from matplotlib import pyplot as plt
from pytablewriter import MarkdownTableWriter
from rl_zoo3 import plots
from rl_zoo3.utils import ALGOS

from sb3_laplace.errors import InputError, describe
from sb3_laplace.zoo.options import check_needed, closest
from sb3_laplace.zoo.programs import flag, run_program

_HELP = """usage: sb3-laplace plot {train,all,file} ...

  train   training curves, from the monitor files of the runs
  all     evaluations of several algorithms and runs: curves and a table
  file    figures from what `plot all -o FILE` saved

sb3-laplace plot train --help says what each takes."""
_PROGRAMS = {"train": plots.plot_train, "all": plots.all_plots, "file": plots.plot_from_file}
# What RL Zoo writes where there is nothing; its numbers have no decimals
_NOTHING = "0.0 +/- 0.0"
_ONLY_WITH = {"rliable": ("versus", "iqm", "ci_size"), "output": ("format",)}


def plot(arguments: list[str]) -> None:
    """Run one of RL Zoo's three programs for plots.

    :param arguments: its name, and its arguments
    :raises InputError: if what the user asks for cannot be drawn
    """
    if arguments[:1] in (["-h"], ["--help"]):
        print(_HELP)
        return
    if not arguments or arguments[0] not in _PROGRAMS:
        given = repr(arguments[0]) if arguments else "nothing"
        raise InputError(f"plot takes one of {', '.join(_PROGRAMS)}, got {given}")
    name = arguments[0]
    checks = {"train": _check_train, "all": _check_all, "file": _check_file}
    # The program, not the function of the package that has the name of its module
    module = sys.modules[_PROGRAMS[name].__module__]
    with _own_writer(module), _something_to_show():
        try:
            run_program(_PROGRAMS[name], f"plot {name}", arguments[1:], checks[name])
        except (ImportError, KeyError, OSError, RuntimeError, ValueError) as error:
            message = describe(error)
            hint = "; it needs two runs of every algorithm at least" if "empty sequence" in message else ""
            raise InputError(f"plot {name}: {message}{hint}") from error


class _Writer(MarkdownTableWriter):
    def write_table(self, **kwargs: Any) -> None:
        for row in self.value_matrix:
            # In place: the rows are saved too
            row[:] = ["no evaluations" if cell == _NOTHING else cell for cell in row]
        super().write_table(**kwargs)


@contextmanager
def _own_writer(module: Any) -> Iterator[None]:
    """Write tables that say where there is nothing."""
    if not hasattr(module, "pytablewriter"):
        yield
        return
    before = module.pytablewriter
    module.pytablewriter = argparse.Namespace(MarkdownTableWriter=_Writer)
    try:
        yield
    finally:
        module.pytablewriter = before


@contextmanager
def _something_to_show() -> Iterator[None]:
    """Refuse to open a window in which nothing was drawn."""
    show = plt.show

    def checked(*args: Any, **kwargs: Any) -> None:
        if not any(axes.has_data() for number in plt.get_fignums() for axes in plt.figure(number).axes):
            raise InputError(
                "there is nothing to draw: the runs are shorter than --episode-window, or lack what --y-axis asks for"
            )
        show(*args, **kwargs)

    plt.show = checked
    try:
        with warnings.catch_warnings():
            # Said above
            warnings.filterwarnings("ignore", message="No artists with labels")
            yield
    finally:
        plt.show = show


# -- what there is ------------------------------------------------------------------------------------------


def _runs(folder: str, algo: str, env: str) -> list[Path]:
    """Folders of runs, by a part of their name, as RL Zoo finds them."""
    parent = Path(folder) / algo
    return [path for path in parent.iterdir() if env in path.name and path.is_dir()] if parent.is_dir() else []


def _file_names(env_ids: list[str]) -> list[str]:
    """Environments as they are called in the names of folders, which have no "/"."""
    return [str(EnvironmentName(env_id)) for env_id in env_ids]


def _check_train(options: argparse.Namespace, _: dict[str, Any]) -> None:
    options.env = _file_names(options.env)
    for env in options.env:
        if not _runs(options.exp_folder, options.algo, env):
            folder = str(Path(options.exp_folder) / options.algo)
            hint = "" if options.algo in ALGOS else closest(options.algo, ALGOS)
            raise InputError(f"there is no run on {env} in {folder!r}{hint}")


def _check_all(options: argparse.Namespace, given: dict[str, Any]) -> None:
    for name in ("algos", "env", "exp_folders"):
        if not getattr(options, name):
            raise InputError(f"plot all needs {flag(name)}")
    if options.labels and len(options.labels) != len(options.exp_folders):
        raise InputError(f"--labels: {len(options.labels)} for {len(options.exp_folders)} folders")
    options.env = _file_names(options.env)
    algos = [algo.lower() for algo in options.algos]
    found = {
        (algo, env, folder)
        for algo in algos
        for env in options.env
        for folder in options.exp_folders
        if _check_evaluations(_runs(folder, algo, env), options)
    }
    sought = {"of": algos, "on": options.env, "in": options.exp_folders}
    if not found:
        raise InputError(_no_evaluations(sought))
    for (preposition, names), those_found in zip(sought.items(), zip(*found, strict=True), strict=True):
        for name in names:
            if name not in those_found:
                raise InputError(_no_evaluations({preposition: [name]}))


def _no_evaluations(where: dict[str, list[str]]) -> str:
    """RL Zoo draws no single one, so there must be two."""
    words = " ".join(f"{preposition} {', '.join(names)}" for preposition, names in where.items())
    hint = "".join(closest(algo, ALGOS) for algo in where.get("of", ()) if algo not in ALGOS)
    return f"there are no two evaluations {words}{hint} (`train --eval-freq` makes them)"


def _check_evaluations(runs: list[Path], options: argparse.Namespace) -> int:
    """Number of runs with evaluations that can be drawn."""
    ends = []
    for run in runs:
        path = run / "evaluations.npz"
        if not path.is_file():
            continue
        try:
            archive = np.load(path)
            timesteps, known = archive["timesteps"], archive.files
        except (BadZipFile, EOFError, KeyError, OSError, ValueError) as error:
            raise InputError(f"{str(path)!r} holds no evaluations: {describe(error)}") from error
        if options.key not in known:
            raise InputError(f"--key {options.key}: {str(path)!r} has {', '.join(known)}")
        if len(timesteps) > 1 and timesteps[0] > options.max_timesteps:
            raise InputError(
                f"--max-timesteps {options.max_timesteps}: the first evaluation in {str(path)!r} is at {timesteps[0]}"
            )
        if len(timesteps) > 1:
            ends.append(timesteps[-1])
    if ends and max(ends) < options.min_timesteps:
        raise InputError(
            f"--min-timesteps {options.min_timesteps}: the longest run in {str(runs[0].parent)!r} has {max(ends)}"
        )
    return len(ends)


def _check_file(options: argparse.Namespace, given: dict[str, Any]) -> None:
    if not options.input:
        raise InputError("plot file needs --input, what `plot all -o FILE` saved")
    check_needed(options, given, _ONLY_WITH)
    path = options.input if options.input.endswith(".pkl") else f"{options.input}.pkl"
    try:
        with open(path, "rb") as file:
            results = pickle.load(file)
        envs = [env for env in results if env != "results_table"]
        keys = list(results[envs[0]])
    except Exception as error:
        # What a file that is no pickle makes the unpickler raise can be anything
        raise InputError(f"{path!r} is not what `plot all -o FILE` saves: {describe(error)}") from error
    options.keep_envs, options.skip_envs = _file_names(options.keep_envs), _file_names(options.skip_envs)
    for kind, known in (("envs", envs), ("keys", keys)):
        kept, skipped = getattr(options, f"keep_{kind}"), getattr(options, f"skip_{kind}")
        for name in (*kept, *skipped):
            if name not in known:
                raise InputError(f"{path!r} has no {name!r}, it has {', '.join(known)}")
        if not set(kept or known) - set(skipped):
            raise InputError(f"--keep-{kind} and --skip-{kind} leave nothing of {path!r}")
    n_keys = len([key for key in keys if key in (options.keep_keys or keys) and key not in options.skip_keys])
    if options.labels and len(options.labels) != n_keys:
        raise InputError(f"--labels: {len(options.labels)} for {n_keys} curves")
