"""Options of RL Zoo's programs that it would ignore, or answer with a traceback or a page of text."""

import argparse
import difflib
import importlib
import os
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
from rl_zoo3.utils import ALGOS

from sb3_laplace.errors import InputError
from sb3_laplace.options import MAX_SEED, check_device
from sb3_laplace.zoo.algorithms import OUR_ALGORITHMS
from sb3_laplace.zoo.programs import flag
from sb3_laplace.zoo.ranks import check_ranks

# What does nothing without another option, and what does nothing with it
_ONLY_WITH = {
    "optimize_hyperparameters": (
        "n_trials",
        "max_total_trials",
        "no_optim_plots",
        "n_jobs",
        "sampler",
        "pruner",
        "n_startup_trials",
        "n_evaluations",
        "optimization_log_path",
    ),
    "track": ("wandb_project_name", "wandb_entity", "wandb_group", "wandb_tags"),
}
_NOT_WHEN_TUNING = ("trained_agent", "trial_id", "save_freq", "save_replay_buffer", "log_interval", "progress")
_WHICH_AGENT = ("load_best", "load_checkpoint", "load_last_checkpoint")


def check_training(options: argparse.Namespace, given: dict[str, Any]) -> None:
    """Check the options of ``train``, and of ``tune``, which is ``train -optimize``.

    :param options: all of them
    :param given: those that are not at RL Zoo's default
    :raises InputError: if one cannot be used, or would be ignored
    """
    _check_common(options)
    check_needed(options, given, _ONLY_WITH)
    if options.optimize_hyperparameters:
        _check_tuning(options, given)
    else:
        _check_study(options, given)
    if options.trained_agent:
        _check_agent(options)
    check_ranks(options)
    if options.track:
        _check_installed("wandb", "--track")
    if options.tensorboard_log:
        try:
            os.makedirs(options.tensorboard_log, exist_ok=True)
        except OSError as error:
            raise InputError(f"--tensorboard-log: {error}") from error


def check_enjoying(options: argparse.Namespace, given: dict[str, Any]) -> None:
    """Check the options of ``enjoy``.

    :param options: all of them
    :param given: those that are not at RL Zoo's default
    :raises InputError: if one cannot be used, or would be ignored
    """
    _check_common(options)
    if options.seed < 0:
        raise InputError(f"--seed must be at least 0, got {options.seed}")
    for names in (_WHICH_AGENT, ("deterministic", "stochastic")):
        chosen = [flag(name) for name in names if name in given]
        if len(chosen) > 1:
            raise InputError(f"{' and '.join(chosen)} exclude each other")
    if options.algo in OUR_ALGORITHMS and "folder" not in given:
        raise InputError(f"-f is needed, the folder of the runs: there are no agents of {options.algo} to download")


def check_needed(options: argparse.Namespace, given: dict[str, Any], only_with: dict[str, tuple[str, ...]]) -> None:
    """Check that nothing is given that does nothing.

    :param options: all options
    :param given: those that are not at RL Zoo's default
    :param only_with: by an option, others that do nothing without it
    :raises InputError: for one of those
    """
    for needed, names in only_with.items():
        for name in names:
            if name in given and not getattr(options, needed):
                raise InputError(f"{flag(name)} does nothing without {flag(needed)}")


def closest(name: str, known: Iterable[str]) -> str:
    """What the user may have meant, as the end of a message; "" if nothing is close."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f", you maybe meant {matches[0]}?" if matches else ""


def import_packages(packages: Iterable[str], source: str) -> None:
    """Import modules that register environments.

    :param packages: their names
    :param source: what named them, for messages
    :raises InputError: if one cannot be imported
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except (ImportError, TypeError, ValueError) as error:
            # Of names that are none, the last two
            raise InputError(f"{source} {package}: {error}") from error


def _check_common(options: argparse.Namespace) -> None:
    import_packages(options.gym_packages, "--gym-packages")
    if options.algo not in ALGOS:
        known = f"; known are {', '.join(sorted(ALGOS))}"
        raise InputError(f"there is no algorithm {options.algo!r}{closest(options.algo, ALGOS) or known}")
    # Enjoy's is a name that remembers the id
    env_id = getattr(options.env, "gym_id", options.env)
    if env_id not in gym.registry:
        raise InputError(f"{env_id} not found in gym registry{closest(env_id, gym.registry)}")
    if options.seed > MAX_SEED:
        raise InputError(f"--seed must be at most {MAX_SEED}, got {options.seed}")
    check_device(options.device)


def _check_tuning(options: argparse.Namespace, given: dict[str, Any]) -> None:
    for name in _NOT_WHEN_TUNING:
        if name in given:
            raise InputError(f"{flag(name)} does nothing in a search for hyperparameters")
    if options.sampler == "auto":
        _check_installed("optunahub", "--sampler auto")


def _check_study(options: argparse.Namespace, given: dict[str, Any]) -> None:
    if options.trial_id is not None:
        if not (options.storage and options.study_name):
            raise InputError("--trial-id needs --storage and --study-name, which say where the trial is")
        return
    for name in ("storage", "study_name"):
        if name in given:
            raise InputError(f"{flag(name)} does nothing without --trial-id (or --optimize-hyperparameters)")


def _check_agent(options: argparse.Namespace) -> None:
    agent = options.trained_agent
    if not (agent.endswith(".zip") and os.path.isfile(agent)):
        raise InputError(f"-i takes the .zip of an agent, there is no {agent!r}")
    for name in ("policy", "policy_kwargs"):
        if name in (options.hyperparams or {}):
            raise InputError(f"-params {name} cannot change the agent of -i, which keeps the policy it has")


def _check_installed(package: str, option: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise InputError(f"{option} needs {package}: pip install {package}") from error
