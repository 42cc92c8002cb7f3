"""``sb3-laplace train | enjoy | tune | plot``: RL Zoo's own programs, given our algorithms, files and hooks."""

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import gymnasium as gym
import rl_zoo3.train
from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import ALGOS

from sb3_laplace.errors import InputError
from sb3_laplace.zoo.algorithms import register_algorithms
from sb3_laplace.zoo.experiment import LaplaceExperimentManager
from sb3_laplace.zoo.search_spaces import register_search_spaces

_PLOTS_HELP = """usage: sb3-laplace plot {train,all,file} ...

  train   training curves, from the monitor files of the runs
  all     evaluations of several algorithms and runs: curves and a table
  file    figures from what `plot all -o FILE` saved

sb3-laplace plot train --help says what each takes."""


def run(command: str, arguments: Sequence[str]) -> int:
    """Run one of RL Zoo's programs.

    :param command: "train", "tune", "enjoy" or "plot"
    :param arguments: those of the program
    :return: the exit code
    :raises InputError: if what the user asks for cannot be done
    """
    register_algorithms()
    register_search_spaces()
    return {"train": _train, "tune": _tune, "enjoy": _enjoy, "plot": _plot}[command](list(arguments))


def _train(arguments: list[str], name: str = "train") -> int:
    _check(arguments)
    rl_zoo3.train.ExperimentManager = LaplaceExperimentManager  # type: ignore[misc]
    with _command_line(name, arguments):
        rl_zoo3.train.train()
    return 0


def _tune(arguments: list[str]) -> int:
    """Training with ``-optimize``. The study is kept in a file by default: the same command goes on with it."""
    options = _options(arguments)
    env_name = EnvironmentName(options.env)
    storage = os.path.join(options.log_folder, options.algo, f"{env_name}.log")
    defaults = {"--storage": options.storage or storage, "--study-name": options.study_name or env_name}
    return _train(["-optimize", *arguments, *(word for option in defaults.items() for word in option)], "tune")


def _enjoy(arguments: list[str]) -> int:
    # Not at the top, nor the plots: what they need, and the seconds it takes, are not for training
    from rl_zoo3.enjoy import enjoy

    _check(arguments)
    with _command_line("enjoy", arguments):
        try:
            enjoy()
        except (AssertionError, gym.error.Error, ImportError, OSError, TypeError, ValueError) as error:
            hint = " (--no-render plays without drawing)" if "render" in str(error) else ""
            raise InputError(f"{error}{hint}") from error
    return 0


def _plot(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        print(_PLOTS_HELP)
        return 0
    from rl_zoo3 import plots

    programs = {"train": plots.plot_train, "all": plots.all_plots, "file": plots.plot_from_file}
    if not arguments or arguments[0] not in programs:
        given = repr(arguments[0]) if arguments else "nothing"
        raise InputError(f"plot takes one of {', '.join(programs)}, got {given}")
    # RL Zoo finds the folders of an environment by its id, but has no "/" in their names
    words = [str(EnvironmentName(word)) if word in gym.registry else word for word in arguments[1:]]
    with _command_line(f"plot {arguments[0]}", words):
        try:
            programs[arguments[0]]()
        except (KeyError, OSError, ValueError) as error:
            hint = "; it needs two runs of every algorithm at least" if arguments[0] == "file" else ""
            raise InputError(f"plot {arguments[0]}: {error}{hint}") from error
    return 0


# -- command line -------------------------------------------------------------------------------------------


@contextmanager
def _command_line(name: str, arguments: Iterable[str]) -> Iterator[None]:
    """RL Zoo's programs read ``sys.argv``."""
    before = sys.argv
    sys.argv = [f"sb3-laplace {name}", *arguments]
    try:
        yield
    finally:
        sys.argv = before


def _options(arguments: list[str]) -> argparse.Namespace:
    """The options that are looked at before RL Zoo's program does, with its defaults."""
    parser = argparse.ArgumentParser(prog="sb3-laplace", add_help=False)
    parser.add_argument("--algo", default="ppo")
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--gym-packages", nargs="+", default=[])
    parser.add_argument("-f", "--log-folder", "--folder", default="logs")
    parser.add_argument("-i", "--trained-agent", default="")
    parser.add_argument("--storage")
    parser.add_argument("--study-name")
    return parser.parse_known_args(arguments)[0]


def _check(arguments: list[str]) -> None:
    """Look for what RL Zoo's program would answer with a traceback or a page of text.

    :raises InputError: if there is no such algorithm, environment, package or agent
    """
    options = _options(arguments)
    for package in options.gym_packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InputError(f"--gym-packages {package}: {error}") from error
    if options.algo not in ALGOS:
        known = f"; known are {', '.join(sorted(ALGOS))}"
        raise InputError(f"there is no algorithm {options.algo!r}{_closest(options.algo, ALGOS) or known}")
    if options.env not in gym.registry:
        raise InputError(f"{options.env} not found in gym registry{_closest(options.env, gym.registry)}")
    agent = options.trained_agent
    if agent and not (agent.endswith(".zip") and os.path.isfile(agent)):
        raise InputError(f"-i takes the .zip of an agent, there is no {agent!r}")


def _closest(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f", you maybe meant {matches[0]}?" if matches else ""
