"""``make_vec_env``: SB3's, with a batched environment where the id has one."""

import importlib
import os
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common import env_util
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_laplace.vec_env.gymnasium_vec_env import GymnasiumVecEnv
from sb3_laplace_envs.wrappers import Trial, VectorTrial


def make_vec_env(
    env_id: str | Callable[..., gym.Env],
    n_envs: int = 1,
    seed: int | None = None,
    start_index: int = 0,
    monitor_dir: str | None = None,
    wrapper_class: Callable[[gym.Env], gym.Env] | None = None,
    env_kwargs: dict[str, Any] | None = None,
    vec_env_cls: type[DummyVecEnv | SubprocVecEnv] | None = None,
    vec_env_kwargs: dict[str, Any] | None = None,
    monitor_kwargs: dict[str, Any] | None = None,
    wrapper_kwargs: dict[str, Any] | None = None,
) -> VecEnv:
    """
    SB3's ``make_vec_env``, with a batched environment where the id has one.

    The batched form (:class:`GymnasiumVecEnv`) is used if ``env_id`` is registered with a
    ``vector_entry_point`` that takes ``env_kwargs`` and costs no ignored steps (no ``NEXT_STEP`` autoreset),
    and nothing is asked of single environments: no ``wrapper_class``, ``vec_env_cls``, ``vec_env_kwargs`` or
    ``monitor_kwargs``. (The wrapper ``Trial`` has a batched form of its own, which is used where the batch can be
    told its tasks, and no ``set_task`` for single environments is given.) It writes one file into ``monitor_dir``,
    ``start_index``.monitor.csv, for all environments. Otherwise SB3's ``make_vec_env`` is called.

    :param env_id: the env ID, the env class or a callable returning an env
    :param n_envs: the number of environments
    :param seed: the initial seed: environment i is seeded with ``seed + i`` at its first reset
    :param start_index: shifts the seed of the action space and the names of the monitor files (but, as
        in SB3, not the seeds of the environments)
    :param monitor_dir: folder of the monitor files, None for no files
    :param wrapper_class: wrapper for each environment, or function that wraps it
    :param env_kwargs: keyword arguments of the env constructor
    :param vec_env_cls: a ``VecEnv`` class of single environments
    :param vec_env_kwargs: keyword arguments of ``vec_env_cls``
    :param monitor_kwargs: keyword arguments of ``Monitor``
    :param wrapper_kwargs: keyword arguments of ``wrapper_class``
    :return: The environment, with episode statistics in ``info["episode"]``
    :raises ValueError: If ``n_envs`` is below 1, or observations hold what is no array of numbers, as text
    """
    if n_envs < 1:
        raise ValueError(f"n_envs must be at least 1, got {n_envs}")
    is_trial = wrapper_class is Trial
    needs_single = (wrapper_class and not is_trial) or vec_env_cls or vec_env_kwargs or monitor_kwargs
    if isinstance(env_id, str) and not needs_single:
        trial_kwargs = (wrapper_kwargs or {}) if is_trial else None
        venv = make_batched_vec_env(env_id, n_envs, seed, start_index, monitor_dir, env_kwargs, trial_kwargs)
        if venv is not None:
            return venv
    return env_util.make_vec_env(
        env_id,
        n_envs=n_envs,
        seed=seed,
        start_index=start_index,
        monitor_dir=monitor_dir,
        wrapper_class=_wrapped_and_checked(wrapper_class),
        env_kwargs=env_kwargs,
        vec_env_cls=vec_env_cls,
        vec_env_kwargs=vec_env_kwargs,
        monitor_kwargs=monitor_kwargs,
        wrapper_kwargs=wrapper_kwargs,
    )


def make_batched_vec_env(
    env_id: str,
    n_envs: int,
    seed: int | None = None,
    start_index: int = 0,
    monitor_dir: str | None = None,
    env_kwargs: dict[str, Any] | None = None,
    trial_kwargs: dict[str, Any] | None = None,
) -> GymnasiumVecEnv | None:
    """
    The batched form of :func:`make_vec_env`, whose parameters these are.

    :param trial_kwargs: keyword arguments of ``VectorTrial``, None for the environment as it is
    :return: The environment, None where the id has no batched form that does all that single ones would
    """
    env = _make_batched(env_id, n_envs, env_kwargs or {})
    if env is not None and trial_kwargs is not None:
        env = _make_trials(env, trial_kwargs)
    if env is None:
        return None
    venv = GymnasiumVecEnv(env, filename=None if monitor_dir is None else os.path.join(monitor_dir, str(start_index)))
    if seed is not None:
        venv.action_space.seed(seed + start_index)
    venv.seed(seed)
    return venv


def _wrapped_and_checked(wrapper_class: Callable[..., gym.Env] | None) -> Callable[..., gym.Env]:
    """The wrapper, then a look at what comes out of it, where SB3's error would not say what is wrong."""

    def wrap(env: gym.Env, **kwargs: Any) -> gym.Env:
        if wrapper_class is not None:
            env = wrapper_class(env, **kwargs)
        space = env.observation_space
        for key, part in space.spaces.items() if isinstance(space, spaces.Dict) else [("", space)]:
            # Dict and Tuple have no shape of their own, and are the policy's to judge
            if part.shape is None and not isinstance(part, (spaces.Dict, spaces.Tuple)):
                raise ValueError(
                    f"observations{f' under {key!r}' if key else ''} are of {part}, which is no array of numbers: "
                    "leave them out (gymnasium.wrappers.FilterObservation) or turn them into numbers "
                    "(gymnasium.wrappers.TransformObservation)."
                )
        return env

    return wrap


def _make_batched(env_id: str, n_envs: int, env_kwargs: dict[str, Any]) -> VectorEnv | None:
    """The batched environment of an id, None where it has none that does all that single ones would."""
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    spec = gym.registry.get(name)
    if spec is None or spec.vector_entry_point is None or spec.additional_wrappers:
        return None
    # Like SB3, with images where the environment can. Only the constructor knows whether it takes the arguments.
    for kwargs in ({"render_mode": "rgb_array", **env_kwargs}, env_kwargs):
        try:
            env = gym.make_vec(name, n_envs, vectorization_mode="vector_entry_point", **kwargs)
        except TypeError:
            continue
        if env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP) != AutoresetMode.NEXT_STEP:
            return env
        env.close()
        break
    return None


def _make_trials(env: VectorEnv, trial_kwargs: dict[str, Any]) -> VectorEnv | None:
    """Trials of a batch, None where only single environments can be told their tasks that way."""
    # Written for ``Trial``, it takes a single environment and its task
    if trial_kwargs.get("set_task") is None:
        try:
            return VectorTrial(env, **trial_kwargs)
        except ValueError:
            # What is wrong for single environments too, those will say
            pass
    env.close()
    return None
