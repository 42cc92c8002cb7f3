"""The command line: ``sb3-laplace``, or ``python -m sb3_laplace``."""

import argparse
import sys
from collections.abc import Sequence

from sb3_laplace.cli.diagnose import INTERRUPTED, add_diagnose
from sb3_laplace.cli.study import add_study
from sb3_laplace.errors import InputError
from sb3_laplace.options import OneLineParser
from sb3_laplace.version import __version__

# RL Zoo's programs, which read their own arguments
_ZOO_COMMANDS = {
    "train": "train an agent from a configuration file (RL Zoo's train)",
    "enjoy": "play with a trained agent (RL Zoo's enjoy)",
    "tune": "search for hyperparameters with Optuna (RL Zoo's train -optimize)",
    "plot": "draw training curves and evaluations (RL Zoo's plots): plot {train,all,file}",
}
# What these need, by the names under which it is imported
_ZOO_PACKAGES = ("rl_zoo3", "requests", "scipy", "seaborn")
_EXAMPLES = """examples:
  sb3-laplace train --algo laplace_ppo_lstm --env sb3_laplace/DirichletBandit-v0 --seed 0
  sb3-laplace enjoy --algo laplace_ppo_lstm --env sb3_laplace/DirichletBandit-v0 -f logs --no-render
  sb3-laplace tune --algo laplace_ppo_lstm --env sb3_laplace/DirichletBandit-v0 -n 200000 --n-trials 20
  sb3-laplace plot train -a laplace_ppo_lstm -e sb3_laplace/DirichletBandit-v0 -f logs
  sb3-laplace diagnose MODEL.zip --env sb3_laplace/DirichletBandit-v0
  sb3-laplace diagnose MODEL.zip --env sb3_laplace/DirichletBandit-v0 --calibrate
  sb3-laplace study run STUDY.yml --workers 2
  sb3-laplace study report studies/STUDY

sb3-laplace COMMAND --help says what a command takes."""
#: Exit code of an error of the user's
BAD_INPUT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    :param arguments: of the command line; by default those of the process
    :return: the exit code: 0, 2 for bad input, 130 if it was interrupted
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words and words[0] in _ZOO_COMMANDS:
            return _zoo(words[0], words[1:])
        options = _parser().parse_args(words)
        return options.run(options)
    except InputError as error:
        print(f"sb3-laplace: error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("sb3-laplace: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="sb3-laplace",
        description="Laplace posteriors for recurrent meta-RL agents.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, text in _ZOO_COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    add_diagnose(commands)
    add_study(commands)
    return parser


def _zoo(command: str, arguments: list[str]) -> int:
    """One of RL Zoo's programs, imported only here: training without it stays as light as it was."""
    try:
        from sb3_laplace.zoo.commands import run

        return run(command, arguments)
    except ModuleNotFoundError as error:
        package = str(error.name).split(".")[0]
        if package not in _ZOO_PACKAGES:
            raise
        raise InputError(f'{command} needs {package}: pip install "sb3-laplace[zoo]"') from error
