"""Hyperparameters of a run as plain data: read, overridden, tried out, and made into environments to play in."""

import argparse
import copy
import io
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import yaml
from stable_baselines3.common.vec_env import VecEnv

from sb3_laplace.errors import InputError, input_errors
from sb3_laplace.vec_env import GymnasiumVecEnv
from sb3_laplace.zoo.algorithms import register_algorithms
from sb3_laplace.zoo.experiment import LaplaceExperimentManager

# Environments that are stepped together: batched ones, and those that are stepped one after another
_BATCHED, _SINGLE = 256, 16


def read_hyperparams(algo: str, env_id: str, config: str | None = None) -> dict[str, Any]:
    """The hyperparameters that ``sb3-laplace train`` would use, as its configuration file has them.

    :param algo: name of the algorithm
    :param env_id: id of the environment
    :param config: path of the file; None for the one that is read without ``-conf``
    :raises InputError: if there is no such file, or it has none for this environment
    """
    register_algorithms()
    try:
        with redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
            manager = LaplaceExperimentManager(argparse.Namespace(), algo, env_id, folder, config=config)
            return dict(manager.read_hyperparameters()[0])
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"no hyperparameters of {algo} for {env_id}: {error}") from error


def with_policy(hyperparams: Mapping[str, Any], policy: Mapping[str, Any]) -> dict[str, Any]:
    """The same hyperparameters with other keywords of the policy. Those of ``posterior_kwargs`` replace one another.

    Keywords of a configuration are text that RL Zoo evaluates, with classes in it that YAML does not know. So the
    result is text too, an expression around it.

    :param hyperparams: hyperparameters, as a configuration file has them
    :param policy: keywords of the policy, plain data
    """
    if not policy:
        return dict(hyperparams)
    before = hyperparams.get("policy_kwargs", {})
    before = f"({' '.join(before.split())})" if isinstance(before, str) else repr(before)
    changes = dict(policy)
    parts = [f"**{before}"]
    posterior_kwargs = changes.pop("posterior_kwargs", None)
    parts += [f"{name!r}: {value!r}" for name, value in changes.items()]
    if posterior_kwargs is not None:
        parts.append(f"'posterior_kwargs': {{**{before}.get('posterior_kwargs', {{}}), **{posterior_kwargs!r}}}")
    return {**hyperparams, "policy_kwargs": "{" + ", ".join(parts) + "}"}


def write_hyperparams(path: Path, env_id: str, hyperparams: Mapping[str, Any]) -> None:
    """Write a configuration file of one environment, which ``-conf`` takes.

    :param path: the file
    :param env_id: id of the environment
    :param hyperparams: hyperparameters, plain data
    """
    path.write_text(yaml.safe_dump({env_id: dict(hyperparams)}), encoding="utf-8")


def check_experiment(algo: str, env_id: str, hyperparams: Mapping[str, Any], seed: int) -> None:
    """Set a run up as ``train`` would, agent and environments included, and throw it away.

    :param algo: name of the algorithm
    :param env_id: id of the environment
    :param hyperparams: hyperparameters, plain data
    :param seed: seed of the run
    :raises InputError: if the run could not be started
    """
    register_algorithms()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        config = Path(folder) / "config.yml"
        write_hyperparams(config, env_id, hyperparams)
        manager = LaplaceExperimentManager(
            argparse.Namespace(), algo, env_id, folder, eval_freq=-1, seed=seed, verbose=0, config=str(config)
        )
        try:
            experiment = manager.setup_experiment()
        except InputError as error:
            # The file is nothing that the user knows
            raise InputError(str(error).removeprefix(f"{config}: ")) from error
        assert experiment is not None
        env = experiment[0].get_env()
        assert env is not None
        env.close()


def make_playing_env(
    algo: str,
    env_id: str,
    config: Path,
    model: Path,
    n_trials: int,
    seed: int,
) -> VecEnv:
    """Environments for a trained agent to play in, wrapped as in training, a batch that suits a number of trials.

    ``VecNormalize`` has the statistics of the end of training, which are not updated, and leaves rewards as they are.

    :param algo: name of the algorithm
    :param env_id: id of the environment
    :param config: the configuration file of the run
    :param model: the agent's zip in the folder of the run
    :param n_trials: number of trials to be played
    :param seed: seed of the environments
    :raises InputError: if the environments cannot be made
    """
    register_algorithms()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), input_errors():
        manager = LaplaceExperimentManager(
            argparse.Namespace(),
            algo,
            env_id,
            folder,
            seed=seed,
            verbose=0,
            config=str(config),
            trained_agent=str(model),
        )
        hyperparams = copy.deepcopy(manager.read_hyperparameters()[0])
        _, manager.env_wrapper, _, manager.vec_env_wrapper = manager._preprocess_hyperparams(hyperparams)
        probe = manager.create_envs(1, eval_env=True, no_log=True)
        is_batched = isinstance(probe.unwrapped, GymnasiumVecEnv)
        probe.close()
        n_rounds = -(-n_trials // (_BATCHED if is_batched else _SINGLE))
        return manager.create_envs(-(-n_trials // n_rounds), eval_env=True, no_log=True)
