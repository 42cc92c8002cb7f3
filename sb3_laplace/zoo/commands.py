"""``sb3-laplace train | enjoy | tune | plot``: RL Zoo's own programs, given our algorithms, files and hooks."""

import argparse
import os
from collections.abc import Sequence
from typing import Any

import rl_zoo3.train
from huggingface_sb3 import EnvironmentName

from sb3_laplace.errors import InputError, describe, is_bug, is_users, passed_through
from sb3_laplace.zoo.algorithms import register_algorithms
from sb3_laplace.zoo.experiment import LaplaceExperimentManager
from sb3_laplace.zoo.masking import masked_agents
from sb3_laplace.zoo.options import check_enjoying, check_training
from sb3_laplace.zoo.programs import run_program
from sb3_laplace.zoo.ranks import rank_output
from sb3_laplace.zoo.search_spaces import register_search_spaces

_TUNE_OPTIONS: dict[str, dict[str, Any]] = {
    "--n-seeds": {
        "type": int,
        "default": 1,
        "metavar": "N",
        "help": "Number of agents that a trial trains, each in environments of another seed; its value is their mean",
    }
}


def run(command: str, arguments: Sequence[str]) -> int:
    """Run one of RL Zoo's programs.

    :param command: "train", "tune", "enjoy" or "plot"
    :param arguments: those of the program
    :return: the exit code
    :raises InputError: if what the user asks for cannot be done
    """
    register_algorithms()
    register_search_spaces()
    {"train": _train, "tune": _tune, "enjoy": _enjoy, "plot": _plot}[command](list(arguments))
    return 0


def _train(arguments: list[str]) -> None:
    rl_zoo3.train.ExperimentManager = LaplaceExperimentManager  # type: ignore[misc]
    with rank_output():
        run_program(rl_zoo3.train.train, "train", arguments, check_training)


def _tune(arguments: list[str]) -> None:
    """Training with ``-optimize``. The study is kept in a file by default: the same command goes on with it."""

    def prepare(options: argparse.Namespace, given: dict[str, Any]) -> None:
        check_training(options, given)
        env_name = EnvironmentName(options.env)
        options.storage = options.storage or os.path.join(options.log_folder, options.algo, f"{env_name}.log")
        options.study_name = options.study_name or env_name

    rl_zoo3.train.ExperimentManager = LaplaceExperimentManager  # type: ignore[misc]
    run_program(rl_zoo3.train.train, "tune", ["-optimize", *arguments], prepare, _TUNE_OPTIONS)


def _enjoy(arguments: list[str]) -> None:
    # Not at the top, nor the plots: what they need, and the seconds it takes, are not for training
    from rl_zoo3.enjoy import enjoy

    try:
        with masked_agents(enjoy):
            run_program(enjoy, "enjoy", arguments, check_enjoying)
    except InputError:
        raise
    except Exception as error:
        # What a damaged file makes the unpickler raise can be anything, and so can what an environment's arguments do
        anything = passed_through(error, "load") or passed_through(error, "create_test_env")
        if is_bug(error) or not (is_users(error) or anything):
            raise
        message = describe(error)
        hint = " (--no-render plays without drawing)" if "render" in message else ""
        raise InputError(f"{message}{hint}") from error


def _plot(arguments: list[str]) -> None:
    from sb3_laplace.zoo.plots import plot

    plot(arguments)
