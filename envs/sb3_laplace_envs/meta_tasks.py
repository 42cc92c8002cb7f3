"""The tasks of continuous control as their ids make them: trials of several episodes, single and batched."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from sb3_laplace_envs.tasks.ant_dir import AntDirEnv
from sb3_laplace_envs.tasks.episodes import EpisodeEnv
from sb3_laplace_envs.tasks.half_cheetah import HalfCheetahDirEnv, HalfCheetahVelEnv
from sb3_laplace_envs.tasks.point_robot import PointRobotEnv
from sb3_laplace_envs.wrappers import Trial, VectorTrial

TRIAL_ARGUMENTS = frozenset(inspect.signature(Trial).parameters) - {"env"}


def single_trial(task: type[EpisodeEnv], n_episodes: int, kwargs: dict[str, Any]) -> Trial:
    """Return trials of a single environment.

    :param task: The class of the environment
    :param n_episodes: Episodes in a trial, where the arguments say nothing else
    :param kwargs: Arguments of the task and of `Trial` together. Unless they give ``trial_steps``, the most steps in a
        trial are those of ``n_episodes`` episodes.
    :raises TypeError: An argument is unknown to both
    :raises ValueError: A value is not what is allowed
    :raises gymnasium.error.DependencyNotInstalled: The task needs mujoco, which is not installed
    """
    of_task, of_trial = _split(n_episodes, kwargs)
    env = _made(task, of_task)
    return Trial(env, **_limited(of_trial, env.batch.episode_length))


def batch_of_trials(task: type[EpisodeEnv], n_episodes: int, num_envs: int, kwargs: dict[str, Any]) -> VectorTrial:
    """Return trials of a batch: as `single_trial`, for ``num_envs`` environments.

    With ``task_kwargs``, which single environments have, the batch is made of those.
    """
    of_task, of_trial = _split(n_episodes, kwargs)
    if of_trial.get("task_kwargs") is not None:
        singles = SyncVectorEnv([partial(_made, task, of_task)] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
        return VectorTrial(singles, **of_trial)
    env = task.vector_env_type(num_envs=num_envs, **of_task)
    return VectorTrial(env, **_limited(of_trial, env.episode_length))


def _made(task: type[EpisodeEnv], of_task: dict[str, Any]) -> EpisodeEnv:
    """A single environment that says what it is made of, so that it can be made anew."""
    env = task(**of_task)
    env.spec = EnvSpec(f"sb3_laplace/{task.__name__}-v0", entry_point=task, kwargs=of_task)
    return env


def _split(n_episodes: int, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of the task and those of the trials."""
    of_trial = {name: value for name, value in kwargs.items() if name in TRIAL_ARGUMENTS}
    of_task = {name: value for name, value in kwargs.items() if name not in TRIAL_ARGUMENTS}
    return of_task, {"n_episodes": n_episodes, **of_trial}


def _limited(of_trial: dict[str, Any], episode_length: int) -> dict[str, Any]:
    """The arguments of the trials with the most steps that there can be: a step number is shown in parts of them.

    Not with ``task_kwargs``, which may hold the length of an episode.
    """
    n_episodes = of_trial["n_episodes"]
    # A number of episodes that is wrong, the trial will say
    is_limited = of_trial.get("trial_steps") is not None or of_trial.get("task_kwargs") is not None
    if not is_limited and isinstance(n_episodes, int) and n_episodes > 0:
        return {**of_trial, "trial_steps": n_episodes * episode_length}
    return of_trial


def point_robot(**kwargs: Any) -> Trial:
    """Trials of `PointRobotEnv`, 3 episodes each."""
    return single_trial(PointRobotEnv, 3, kwargs)


def point_robot_vector(num_envs: int = 1, **kwargs: Any) -> VectorTrial:
    """As `point_robot`, a batch."""
    return batch_of_trials(PointRobotEnv, 3, num_envs, kwargs)


def half_cheetah_vel(**kwargs: Any) -> Trial:
    """Trials of `HalfCheetahVelEnv`, 2 episodes each."""
    return single_trial(HalfCheetahVelEnv, 2, kwargs)


def half_cheetah_vel_vector(num_envs: int = 1, **kwargs: Any) -> VectorTrial:
    """As `half_cheetah_vel`, a batch."""
    return batch_of_trials(HalfCheetahVelEnv, 2, num_envs, kwargs)


def half_cheetah_dir(**kwargs: Any) -> Trial:
    """Trials of `HalfCheetahDirEnv`, 2 episodes each."""
    return single_trial(HalfCheetahDirEnv, 2, kwargs)


def half_cheetah_dir_vector(num_envs: int = 1, **kwargs: Any) -> VectorTrial:
    """As `half_cheetah_dir`, a batch."""
    return batch_of_trials(HalfCheetahDirEnv, 2, num_envs, kwargs)


def ant_dir(**kwargs: Any) -> Trial:
    """Trials of `AntDirEnv`, 2 episodes each."""
    return single_trial(AntDirEnv, 2, kwargs)


def ant_dir_vector(num_envs: int = 1, **kwargs: Any) -> VectorTrial:
    """As `ant_dir`, a batch."""
    return batch_of_trials(AntDirEnv, 2, num_envs, kwargs)
