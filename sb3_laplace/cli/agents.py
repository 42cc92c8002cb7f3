"""What commands are given: agents in files, and the environments that they play."""

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_laplace.algorithm.laplace_recurrent_ppo import LaplaceRecurrentPPO
from sb3_laplace.errors import InputError, is_bug
from sb3_laplace.posthoc.convert import load_recurrent_ppo
from sb3_laplace.vec_env import GymnasiumVecEnv, make_vec_env

# Environments that are stepped together: batched ones, and those that are stepped one after another
_BATCHED, _SINGLE = 256, 16


def load_agent(path: str | Path, device: str = "auto", weights_only: bool = False) -> LaplaceRecurrentPPO:
    """Load one of our agents, or a sb3-contrib RecurrentPPO agent, which gets a posterior over its state.

    No code in the file is run if it holds plain settings, as those do that this version saves.

    :param path: the zip, with or without its ending
    :param device: device on which the agent runs
    :param weights_only: refuse a file that cannot be loaded without running its code
    :raises InputError: if there is no such file, or it holds no such agent
    """
    if not any(file.is_file() for file in (Path(path), Path(f"{path}.zip"))):
        raise InputError(f"there is no file {str(path)!r}")
    try:
        with warnings.catch_warnings():
            # Schedules do not matter to an agent that only plays
            warnings.filterwarnings("ignore", message=".* were functions")
            return LaplaceRecurrentPPO.load(path, device=device, weights_only=True)
    except Exception as error:
        if is_bug(error):
            raise
        if weights_only:
            raise InputError(f"--weights-only: {error}") from error
    try:
        model = load_recurrent_ppo(path, device)
        if not isinstance(model, LaplaceRecurrentPPO):
            model = LaplaceRecurrentPPO.from_recurrent_ppo(model, device=device)
    except Exception as error:
        if is_bug(error):
            raise
        # What a damaged file makes the unpickler raise can be anything
        raise InputError(f"{str(path)!r} cannot be loaded ({type(error).__name__}): {error}") from error
    print(f"sb3-laplace: note: {path} holds no plain settings, the code pickled in it was run", file=sys.stderr)
    return model


def make_env(
    env_id: str, n_trials: int, seed: int, env_kwargs: dict[str, Any], vecnormalize: str | None = None
) -> VecEnv:
    """A batch of environments of a size that suits a number of trials.

    :param env_id: id of the environment
    :param n_trials: number of trials to be played
    :param seed: seed of the environments
    :param env_kwargs: keyword arguments of the environment
    :param vecnormalize: file of VecNormalize statistics, which are not updated
    :raises InputError: if there is no such environment or file, or they do not fit
    """
    try:
        with warnings.catch_warnings():
            # SB3 asks every environment for images
            warnings.filterwarnings("ignore", message=".*render_mode='rgb_array'")
            probe = make_vec_env(env_id, n_envs=1, env_kwargs=env_kwargs)
            probe.close()
            n_rounds = -(-n_trials // (_BATCHED if isinstance(probe, GymnasiumVecEnv) else _SINGLE))
            env = make_vec_env(env_id, n_envs=-(-n_trials // n_rounds), seed=seed, env_kwargs=env_kwargs)
    except (gym.error.Error, ImportError, TypeError, ValueError) as error:
        raise InputError(f"environment {env_id!r} cannot be made: {error}") from error
    if vecnormalize is None:
        return env
    try:
        normalized = VecNormalize.load(vecnormalize, env)
    except Exception as error:
        raise InputError(f"{vecnormalize!r} holds no VecNormalize statistics for {env_id}: {error}") from error
    normalized.training = normalized.norm_reward = False
    return normalized


def parse_env_kwargs(items: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments written ``name=value``, the value in JSON (or text that is none).

    :raises InputError: if there is no "="
    """
    kwargs: dict[str, Any] = {}
    for item in items:
        name, separator, text = item.partition("=")
        if not name or not separator:
            raise InputError(f"--env-kwargs takes NAME=VALUE, got {item!r}")
        try:
            kwargs[name] = json.loads(text)
        except json.JSONDecodeError:
            kwargs[name] = text
    return kwargs
