"""RL Zoo's experiment manager with batched environments, our configurations and runs that can be resumed."""

import argparse
import copy
import math
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import optuna
from rl_zoo3 import exp_manager
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS, SimpleLinearSchedule, get_class_by_name
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecNormalize

from sb3_laplace.algorithm import distributed
from sb3_laplace.algorithm.laplace_recurrent_ppo import LaplaceRecurrentPPO
from sb3_laplace.algorithm.rank_callbacks import callbacks_of_rank
from sb3_laplace.callbacks.posterior import PosteriorCallback
from sb3_laplace.errors import InputError, describe, input_errors, is_bug, is_users, passed_through
from sb3_laplace.policies.features import MlpFeatures
from sb3_laplace.policies.laplace_lstm_policy import LaplaceLstmPolicy
from sb3_laplace.vec_env import make_batched_vec_env
from sb3_laplace.zoo.algorithms import algorithm_of, default_config
from sb3_laplace.zoo.blame import CONFIGURATION_ERRORS, BlamingExperimentManager
from sb3_laplace.zoo.checkpoints import Checkpoint, WholeCheckpointCallback
from sb3_laplace.zoo.hyperparams import check_names, check_run, check_schedule, check_types
from sb3_laplace.zoo.masking import MaskedEvalCallback, MaskedTrialEvalCallback
from sb3_laplace.zoo.ranks import freq_of_rank
from sb3_laplace.zoo.search_spaces import HAS_MEMORY, fit_to_configuration
from sb3_laplace.zoo.storage import check_not_locked, journal_path, study_errors
from sb3_laplace.zoo.trials import SeedOfTrial, mean_over_seeds
from sb3_laplace_envs.wrappers import Trial

# RL Zoo evaluates the policy_kwargs of a configuration with the names of its own module, of which nn is one
exp_manager.MlpFeatures = MlpFeatures  # type: ignore[attr-defined]
# The evaluations that it makes
exp_manager.EvalCallback = MaskedEvalCallback  # type: ignore[misc]
exp_manager.TrialEvalCallback = MaskedTrialEvalCallback  # type: ignore[misc]

# Between the environments' seeds of two agents of a trial: environment i has the agent's and i
_BETWEEN_SEEDS = 10_000


class LaplaceExperimentManager(BlamingExperimentManager):
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
    - Trials of a search can be means over several seeds (``--n-seeds``).

    :raises InputError: from :meth:`setup_experiment`, :meth:`learn`, :meth:`save_trained_model` and
        :meth:`hyperparameters_optimization`, if what the user asks for cannot be done
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
        self._n_seeds: int = getattr(args, "n_seeds", 1)
        self.save_freq, self.eval_freq = freq_of_rank(self.save_freq), freq_of_rank(self.eval_freq)
        if distributed.rank() > 0:
            # What RL Zoo writes has no place in the folder of the run, which is rank 0's
            self._nowhere = tempfile.TemporaryDirectory(prefix="sb3-laplace-rank-")
            self.save_path = self._nowhere.name
            self.params_path = os.path.join(self.save_path, self.env_name)
        self._failure: InputError | None = None
        self._remember_settings()

    @property
    def _is_ours(self) -> bool:
        return issubclass(ALGOS[self.algo], LaplaceRecurrentPPO)

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        try:
            experiment = super().setup_experiment()
            if experiment is not None:
                model, hyperparams = experiment
                self._check_posterior(model)
                if self.continue_training:
                    # Not the configuration's: an agent keeps the policy that it has
                    hyperparams.update(policy=_policy_name(model), policy_kwargs=model.policy_kwargs)
                super()._save_config(hyperparams)
        except InputError:
            self._remove_empty_folder()
            raise
        except CONFIGURATION_ERRORS as error:
            self._remove_empty_folder()
            if is_bug(error):
                raise
            raise self._configuration_error(error) from error
        return experiment

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        """RL Zoo saves as the last step of setting up; :meth:`setup_experiment` does when it has seen the agent."""

    def create_log_folder(self) -> None:
        try:
            super().create_log_folder()
        except OSError as error:
            raise InputError(f"--log-folder: {error}") from error

    def _check_posterior(self, model: BaseAlgorithm) -> None:
        """Agents are filed under the algorithm that they are."""
        if isinstance(model.policy, LaplaceLstmPolicy) and (algo := algorithm_of(model.policy)) != self.algo:
            source = self.trained_agent if self.continue_training else self._source("policy_kwargs")
            posterior = type(model.policy.latent_layer).__name__
            raise InputError(f"{source}: the agent has a {posterior}, which --algo {algo} trains, not {self.algo}")

    # -- hyperparameters ----------------------------------------------------------------------------------

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """As RL Zoo does; those of the run when it is resumed, those of a trial within their configuration."""
        if self._checkpoint is not None and not self._has_own_config:
            self.config = str(self._checkpoint.path.parent)
            hyperparams = self._checkpoint.hyperparams
            if self.env_kwargs:
                hyperparams["env_kwargs"] = self.env_kwargs
            print(f"Resuming the run in {self.config} after {self._checkpoint.n_steps} steps")
        elif self.trial_id is not None:
            # RL Zoo takes 0 for none
            trial_id, self.trial_id = self.trial_id, None
            hyperparams, _ = self._read_configuration()
            sampled = self._load_sampled(trial_id)
            if self._is_ours:
                sampled = fit_to_configuration(sampled, _evaluated(hyperparams), hyperparams.get("n_envs", 1))
            hyperparams |= sampled
        else:
            return self._read_configuration()
        hyperparams |= self.custom_hyperparams or {}
        return hyperparams, OrderedDict(sorted(hyperparams.items()))

    def _read_configuration(self) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            return super().read_hyperparameters()
        except AttributeError as error:
            # Nothing else has attributes that RL Zoo reads
            raise InputError(f"{self.config}: it must hold hyperparameters by environment") from error

    def _load_sampled(self, trial_id: int) -> dict[str, Any]:
        assert self.storage is not None
        assert self.study_name is not None
        path = journal_path(self.storage)
        if path is not None and not path.is_file():
            # Optuna would create it
            raise InputError(f"--storage: there is no file {self.storage!r}")
        try:
            with study_errors(self.storage):
                return self.load_trial(self.storage, self.study_name, trial_id)
        except (KeyError, IndexError) as error:
            raise InputError(f"{self.storage!r} has no study {self.study_name!r} with a trial {trial_id}") from error

    def _preprocess_schedules(self, hyperparams: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        """``lin_`` values for all coefficients of our algorithms, of which RL Zoo knows only some."""
        for name in ("learning_rate", "clip_range", "clip_range_vf"):
            if isinstance(value := hyperparams.get(name), str):
                check_schedule(name, value, self._source)
        hyperparams = super()._preprocess_schedules(hyperparams)
        for name, value in hyperparams.items():
            if self._is_ours and isinstance(value, str) and value.startswith("lin_"):
                check_schedule(name, value, self._source)
                hyperparams[name] = SimpleLinearSchedule(value.removeprefix("lin_"))
        return hyperparams

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        check_run(hyperparams, self._asked_timesteps, self._source)
        self._trial_kwargs = _trial_kwargs_of(hyperparams.get("env_wrapper"))
        result = super()._preprocess_hyperparams(hyperparams)
        if not self._eval_env_kwargs_args:
            # RL Zoo leaves those of a configuration out of the evaluation
            self.eval_env_kwargs = self.env_kwargs
        algorithm = ALGOS[self.algo]
        check_names(self.algo, algorithm, result[0], self._source)
        if self._is_ours:
            check_types(algorithm, result[0], self._source)
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
            if self._single_vec_env_class is SubprocVecEnv:
                # What is wrong with an environment is said here, not by every worker
                env_fns[0]().close()
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
        if distributed.size() > 1:
            # Here too: RL Zoo ends the first of them itself
            self.callbacks = callbacks_of_rank(self.callbacks)

    # -- training -----------------------------------------------------------------------------------------

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        try:
            model = super()._load_pretrained_agent(hyperparams, env)
        except Exception as error:
            if is_bug(error):
                raise
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
        with input_errors():
            if self._checkpoint is not None:
                # RL Zoo's learn, with steps that are counted on
                go_on = partial(model.learn, reset_num_timesteps=False)
                super().learn(SimpleNamespace(learn=go_on, env=model.env, policy=model.policy))  # type: ignore[arg-type]
            else:
                super().learn(model)

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        if distributed.rank() > 0:
            return
        with input_errors():
            super().save_trained_model(model)

    # -- tuning -------------------------------------------------------------------------------------------

    def hyperparameters_optimization(self) -> None:
        sample = HYPERPARAMS_SAMPLER[self.algo]
        if self._is_ours:
            HYPERPARAMS_SAMPLER[self.algo] = partial(self._sample_within_configuration, sample)
        try:
            if self.storage is not None and (path := journal_path(self.storage)) is not None:
                check_not_locked(path)
                self.storage = str(path)
            with input_errors(), study_errors(self.storage):
                super().hyperparameters_optimization()
            if self._failure is not None:
                raise self._failure
        except ValueError as error:
            if self._failure is not None:
                raise self._failure from error
            if "No trials are completed" not in str(error):
                raise
            raise InputError(f"no trial of {self.algo} on {self.env_name.gym_id} was completed: all pruned") from error
        finally:
            HYPERPARAMS_SAMPLER[self.algo] = sample
            self._remove_empty_folder()

    def objective(self, trial: optuna.Trial) -> float:
        try:
            if self._n_seeds == 1:
                return super().objective(trial)
            return mean_over_seeds(trial, self._n_seeds, self.n_evaluations, self._train_seed)
        except (InputError, *CONFIGURATION_ERRORS) as error:
            if isinstance(error, InputError):
                self._failure = error
            elif not (is_bug(error) or passed_through(error, "learn")):
                self._failure = self._configuration_error(error)
            elif is_users(error):
                self._failure = InputError(describe(error))
            else:
                raise
        # What failed once will always; with this value Optuna files the trial as failed, and shows no traceback
        trial.study.stop()
        return math.nan

    def _train_seed(self, number: int, trial: SeedOfTrial) -> float:
        """RL Zoo's objective in environments of another seed."""
        # A copy: other trials may be under way in other threads
        manager = copy.copy(self)
        manager.seed = (self.seed + number * _BETWEEN_SEEDS) % 2**32
        return ExperimentManager.objective(manager, trial)  # type: ignore[arg-type]

    def _sample_within_configuration(
        self, sample: Callable[..., dict[str, Any]], trial: optuna.Trial, n_actions: int, n_envs: int, others: dict
    ) -> dict[str, Any]:
        # What it has for one memory (lstm_kwargs) does not fit another
        others = {**others, HAS_MEMORY: "rnn_type" in self._hyperparams.get("policy_kwargs", {})}
        hyperparams = fit_to_configuration(sample(trial, n_actions, n_envs, others), self._hyperparams, n_envs)
        for name in ("n_steps", "batch_size"):
            trial.set_user_attr(name, hyperparams[name])
        return hyperparams


def _policy_name(model: BaseAlgorithm) -> str:
    """How a configuration names the policy of a model."""
    policy = type(model.policy)
    names = [name for name, one in model.policy_aliases.items() if one is policy]
    return names[0] if names else f"{policy.__module__}.{policy.__qualname__}"


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
