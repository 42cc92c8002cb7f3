"""RL Zoo's experiment manager with batched environments, our configurations and runs that can be resumed."""

import argparse
import difflib
import inspect
import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import yaml
from gymnasium.error import Error as GymnasiumError
from rl_zoo3 import exp_manager
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS, SimpleLinearSchedule, get_class_by_name
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_laplace.algorithm.laplace_recurrent_ppo import LaplaceRecurrentPPO
from sb3_laplace.callbacks.posterior import PosteriorCallback
from sb3_laplace.errors import InputError
from sb3_laplace.policies.features import MlpFeatures
from sb3_laplace.vec_env import make_batched_vec_env
from sb3_laplace.zoo.algorithms import default_config
from sb3_laplace.zoo.checkpoints import Checkpoint, WholeCheckpointCallback
from sb3_laplace.zoo.search_spaces import fit_to_configuration
from sb3_laplace.zoo.storage import check_not_locked, journal_path, study_errors
from sb3_laplace_envs.wrappers import Trial

# RL Zoo evaluates the policy_kwargs of a configuration with the names of its own module, of which nn is one
exp_manager.MlpFeatures = MlpFeatures  # type: ignore[attr-defined]

# What a configuration can make go wrong before training starts
_CONFIGURATION_ERRORS = (
    AssertionError,
    AttributeError,
    GymnasiumError,
    ImportError,
    NameError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    yaml.YAMLError,
)


class LaplaceExperimentManager(ExperimentManager):
    """RL Zoo's experiment manager, as ``sb3-laplace train`` and ``tune`` use it.

    - Environments are made in their batched form where they have one that does what is asked for, also as trials
      (``env_wrapper: sb3_laplace_envs.wrappers.Trial: {n_episodes: 2}``).
    - Our hyperparameter files are found without ``-conf``, and ``lin_`` schedules work for every coefficient.
    - ``PosteriorCallback`` is on for our algorithms.
    - Checkpoints hold the ``VecNormalize`` statistics. Continuing from one (``-i .../rl_model_<steps>_steps.zip``)
      resumes the run that wrote it: its hyperparameters (or those of ``-conf``, if given), its steps, its schedules at
      the progress they had reached.
      Any other ``-i`` starts a new run with that agent, as RL Zoo does.
    - Sampled hyperparameters replace only their own part of the configuration.

    :raises InputError: from :meth:`setup_experiment` and :meth:`hyperparameters_optimization`, if what the user asks
        for cannot be done
    """

    # Keyword arguments of Trial where that is the only env_wrapper
    _trial_kwargs: dict[str, Any] | None = None

    def __init__(self, args: argparse.Namespace, algo: str, env_id: str, *others: Any, **kwargs: Any) -> None:
        self._has_own_config = bool(kwargs.get("config"))
        kwargs["config"] = kwargs.get("config") or default_config(algo, env_id)
        super().__init__(args, algo, env_id, *others, **kwargs)
        self._single_vec_env_class = self.vec_env_class
        self._checkpoint: Checkpoint | None = None
        self._asked_timesteps = self.n_timesteps
        if self.optimize_hyperparameters and algo not in HYPERPARAMS_SAMPLER:
            raise InputError(f"{algo} has no search space, these have: {', '.join(sorted(HYPERPARAMS_SAMPLER))}")
        if self.continue_training and Checkpoint.is_one(self.trained_agent):
            self._checkpoint = Checkpoint(self.trained_agent, self.env_name)
            self.env_kwargs = self.env_kwargs or self._checkpoint.env_kwargs
            self.eval_env_kwargs = self.eval_env_kwargs or self.env_kwargs
            # Not the tasks and the noise of the run's beginning once more
            self.seed = (self.seed + self._checkpoint.n_steps) % 2**32

    @property
    def _is_ours(self) -> bool:
        return issubclass(ALGOS[self.algo], LaplaceRecurrentPPO)

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        try:
            return super().setup_experiment()
        except InputError:
            self._remove_empty_folder()
            raise
        except _CONFIGURATION_ERRORS as error:
            self._remove_empty_folder()
            message = str(error)
            raise InputError(message if self.config in message else f"{self.config}: {message}") from error

    def _remove_empty_folder(self) -> None:
        """Leave no folder of a run that was not started, which ``enjoy`` would take for the latest."""
        if (Path(self.params_path) / "config.yml").is_file():
            return
        for file in Path(self.save_path).glob("*.monitor.csv"):
            file.unlink()
        for folder in (self.params_path, self.save_path):
            with suppress(OSError):
                os.rmdir(folder)

    # -- hyperparameters ----------------------------------------------------------------------------------

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """As RL Zoo does; those of the run when it is resumed, those of a trial within their configuration."""
        if self._checkpoint is not None and not self._has_own_config:
            self.config = str(self._checkpoint.path.parent)
            hyperparams = self._checkpoint.hyperparams
            if self.env_kwargs:
                hyperparams["env_kwargs"] = self.env_kwargs
            print(f"Resuming the run in {self.config} after {self._checkpoint.n_steps} steps")
        elif self._is_ours and self.storage and self.study_name and self.trial_id is not None:
            trial_id, self.trial_id = self.trial_id, None
            hyperparams, _ = super().read_hyperparameters()
            sampled = self._load_sampled(trial_id)
            hyperparams |= fit_to_configuration(sampled, _evaluated(hyperparams), hyperparams.get("n_envs", 1))
        else:
            return super().read_hyperparameters()
        hyperparams |= self.custom_hyperparams or {}
        return hyperparams, OrderedDict(sorted(hyperparams.items()))

    def _load_sampled(self, trial_id: int) -> dict[str, Any]:
        assert self.storage is not None
        assert self.study_name is not None
        try:
            with study_errors(self.storage):
                return self.load_trial(self.storage, self.study_name, trial_id)
        except (KeyError, IndexError) as error:
            raise InputError(f"{self.storage!r} has no study {self.study_name!r} with a trial {trial_id}") from error

    def _preprocess_schedules(self, hyperparams: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        """``lin_`` values for all coefficients of our algorithms, of which RL Zoo knows only some."""
        hyperparams = super()._preprocess_schedules(hyperparams)
        for name, value in hyperparams.items():
            if self._is_ours and isinstance(value, str) and value.startswith("lin_"):
                hyperparams[name] = SimpleLinearSchedule(value.removeprefix("lin_"))
        return hyperparams

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        self._trial_kwargs = _trial_kwargs_of(hyperparams.get("env_wrapper"))
        result = super()._preprocess_hyperparams(hyperparams)
        known = [*inspect.signature(ALGOS[self.algo]).parameters, "noise_type", "noise_std"]
        for name in result[0]:
            if name not in known:
                source = "-params" if name in (self.custom_hyperparams or {}) else self.config
                closest = difflib.get_close_matches(name, known, n=1)
                hint = f", you maybe meant {closest[0]!r}" if closest else ""
                raise InputError(f"{source}: {self.algo} has no keyword {name!r}{hint}")
        return result

    # -- environments and callbacks -----------------------------------------------------------------------

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        env_kwargs = self.eval_env_kwargs if eval_env else self.env_kwargs
        monitor_dir = None if eval_env or no_log else self.save_path

        def vec_env_class(env_fns: list[Callable], **vec_env_kwargs: Any) -> VecEnv:
            # What Monitor is asked for is applied to single environments, and so are wrappers, but for trials
            is_wrapped = self.env_wrapper is not None and self._trial_kwargs is None
            if not (is_wrapped or self.monitor_kwargs or vec_env_kwargs):
                env = make_batched_vec_env(
                    self.env_name.gym_id,
                    len(env_fns),
                    self.seed,
                    monitor_dir=monitor_dir,
                    env_kwargs=env_kwargs,
                    trial_kwargs=self._trial_kwargs,
                )
                if env is not None:
                    return env
            return self._single_vec_env_class(env_fns, **vec_env_kwargs)

        self.vec_env_class = vec_env_class  # type: ignore[assignment]
        return super().create_envs(n_envs, eval_env, no_log)

    def _maybe_normalize(self, env: VecEnv, eval_env: bool) -> VecEnv:
        if self._checkpoint is None or not self.normalize:
            return super()._maybe_normalize(env, eval_env)
        normalized = VecNormalize.load(str(self._checkpoint.vecnormalize), env)
        if eval_env:
            normalized.training = normalized.norm_reward = False
        return normalized

    def create_callbacks(self) -> None:
        n_specified = len(self.callbacks)
        super().create_callbacks()
        for i, callback in enumerate(self.callbacks[n_specified:], start=n_specified):
            if isinstance(callback, CheckpointCallback):
                self.callbacks[i] = WholeCheckpointCallback(
                    save_freq=callback.save_freq,
                    save_path=callback.save_path,
                    name_prefix=callback.name_prefix,
                    save_vecnormalize=True,
                    verbose=callback.verbose,
                )
        if self._is_ours and not any(isinstance(callback, PosteriorCallback) for callback in self.callbacks):
            self.callbacks.append(PosteriorCallback())

    # -- training -----------------------------------------------------------------------------------------

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        try:
            model = super()._load_pretrained_agent(hyperparams, env)
        except Exception as error:
            # What a damaged file makes the unpickler raise can be anything
            raise InputError(
                f"{self.trained_agent!r} cannot be trained with {self.algo} on {self.env_name.gym_id}: {error}"
            ) from error
        if self._checkpoint is not None:
            total = self._asked_timesteps if self._asked_timesteps > 0 else model._total_timesteps
            self.n_timesteps = total - model.num_timesteps
            if self.n_timesteps <= 0:
                raise InputError(
                    f"{self.trained_agent!r} is at {model.num_timesteps} of {total} steps: nothing is left to train. "
                    "-n sets another total."
                )
        return model

    def learn(self, model: BaseAlgorithm) -> None:
        if self._checkpoint is not None:
            # RL Zoo's learn, with steps that are counted on
            go_on = partial(model.learn, reset_num_timesteps=False)
            super().learn(SimpleNamespace(learn=go_on, env=model.env, policy=model.policy))  # type: ignore[arg-type]
        else:
            super().learn(model)

    # -- tuning -------------------------------------------------------------------------------------------

    def hyperparameters_optimization(self) -> None:
        sample = HYPERPARAMS_SAMPLER[self.algo]
        if self._is_ours:
            HYPERPARAMS_SAMPLER[self.algo] = partial(self._sample_within_configuration, sample)
        try:
            if self.storage is not None and (path := journal_path(self.storage)) is not None:
                check_not_locked(path)
                self.storage = str(path)
            with study_errors(self.storage):
                super().hyperparameters_optimization()
        except ValueError as error:
            if "No trials are completed" not in str(error):
                raise
            raise InputError(f"no trial of {self.algo} on {self.env_name.gym_id} was completed: all pruned") from error
        finally:
            HYPERPARAMS_SAMPLER[self.algo] = sample
            self._remove_empty_folder()

    def _sample_within_configuration(
        self, sample: Callable[..., dict[str, Any]], trial: optuna.Trial, n_actions: int, n_envs: int, others: dict
    ) -> dict[str, Any]:
        hyperparams = fit_to_configuration(sample(trial, n_actions, n_envs, others), self._hyperparams, n_envs)
        for name in ("n_steps", "batch_size"):
            trial.set_user_attr(name, hyperparams[name])
        return hyperparams


def _trial_kwargs_of(env_wrapper: Any) -> dict[str, Any] | None:
    """Keyword arguments of ``Trial`` where an ``env_wrapper`` as RL Zoo takes it is that alone, else None."""
    if isinstance(env_wrapper, list) and len(env_wrapper) == 1:
        env_wrapper = env_wrapper[0]
    name, kwargs = next(iter(env_wrapper.items())) if isinstance(env_wrapper, dict) else (env_wrapper, {})
    if isinstance(name, str) and "." in name:
        name = get_class_by_name(name)
    return kwargs if name is Trial else None


def _evaluated(hyperparams: dict[str, Any]) -> dict[str, Any]:
    """The same with the keywords of the policy, where they are text, evaluated as RL Zoo does, with its names."""
    policy_kwargs = hyperparams.get("policy_kwargs", {})
    if isinstance(policy_kwargs, str):
        policy_kwargs = eval(policy_kwargs, vars(exp_manager))
    return {**hyperparams, "policy_kwargs": policy_kwargs}
