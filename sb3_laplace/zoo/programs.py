"""RL Zoo's programs as functions: their options are looked at here before they do anything."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from rl_zoo3.utils import StoreDict

from sb3_laplace.errors import InputError
from sb3_laplace.options import OneLineParser

#: Gets all options, which it may change, and those that are not at RL Zoo's default
Prepare = Callable[[argparse.Namespace, dict[str, Any]], None]

# The least that RL Zoo's numbers can be; their defaults and the values beside them have a meaning of their own
_LEAST: dict[str, int] = {
    "episode_window": 1,
    "eval_episodes": 1,
    "exp_id": -1,
    "fontsize": 1,
    "load_checkpoint": 0,
    "log_interval": 1,
    "max_timesteps": 1,
    "max_total_trials": 1,
    "n_envs": 1,
    "n_eval_envs": 1,
    "n_evaluations": 1,
    "n_jobs": 1,
    "n_seeds": 1,
    "n_startup_trials": 0,
    "n_timesteps": 1,
    "n_trials": 1,
    "num_threads": 1,
    "trial_id": 0,
}
# -2: nothing is logged; -1: as many jobs as cores
_OTHERS = {"log_interval": (-2,), "n_jobs": (-1,)}


def run_program(
    program: Callable[[], None],
    name: str,
    words: Sequence[str],
    prepare: Prepare,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Run one of RL Zoo's programs with a parser of ours, which its own code fills with its options.

    :param program: the program, a function that reads the command line
    :param name: what follows ``sb3-laplace``
    :param words: the arguments
    :param prepare: checks the options, and completes them
    :param options: options of ours, with what ``add_argument`` takes
    :raises InputError: if the options are wrong
    """
    module = program.__globals__

    def parser(description: str | None = None) -> _Parser:
        made = _Parser(name, words, prepare, description)
        for option, settings in (options or {}).items():
            made.add_argument(option, **settings)
        return made

    ours: dict[str, Any] = {"argparse": SimpleNamespace(**{**vars(argparse), "ArgumentParser": parser})}
    if "StoreDict" in module:
        ours["StoreDict"] = _NamedValues
    theirs = {key: module[key] for key in ours}
    module.update(ours)
    try:
        program()
    finally:
        module.update(theirs)


def flag(option: str) -> str:
    """How an option is written, by the name of its attribute."""
    return "--" + option.replace("_", "-")


class _Parser(OneLineParser):
    def __init__(self, name: str, words: Sequence[str], prepare: Prepare, description: str | None) -> None:
        super().__init__(prog=f"sb3-laplace {name}", description=description)
        self._words, self._prepare = words, prepare

    def add_argument(self, *flags: Any, **settings: Any) -> argparse.Action:
        if "--algo" in flags:
            # Said with the closest name instead
            settings.pop("choices", None)
        return super().add_argument(*flags, **settings)

    def parse_args(self, *_: Any) -> argparse.Namespace:  # type: ignore[override]
        options = super().parse_args(self._words)
        given = {name: value for name, value in vars(options).items() if value != self.get_default(name)}
        for name, least in _LEAST.items():
            if name in given and given[name] < least and given[name] not in _OTHERS.get(name, ()):
                raise InputError(f"{flag(name)} must be at least {least}, got {given[name]}")
        self._prepare(options, given)
        return options


class _NamedValues(StoreDict):
    """RL Zoo's ``NAME:VALUE``, which says what cannot be read."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        for item in values:
            name = item.partition(":")[0]
            try:
                super().__call__(parser, namespace, [item], option)
                readable = name.isidentifier()
            except Exception as error:
                # The value is evaluated: it can raise anything
                raise InputError(f"{option}: {self._rule(item)} ({type(error).__name__})") from error
            if not readable:
                raise InputError(f"{option}: {self._rule(item)}")
        super().__call__(parser, namespace, values, option)

    @staticmethod
    def _rule(item: str) -> str:
        return f"must be NAME:VALUE, the value in Python (\"NAME:'text'\", NAME:0.5), got {item!r}"
