"""SB3's evaluation callback, with traces of the posterior."""

import os
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from sb3_laplace.algorithm.laplace_recurrent_ppo import LaplaceRecurrentPPO
from sb3_laplace.checks import check_integer
from sb3_laplace.evaluation.player import forked_random
from sb3_laplace.evaluation.traces import PosteriorTrace, posterior_trace


class PosteriorEvalCallback(EvalCallback):
    """SB3's ``EvalCallback`` that also records what the posterior does.

    Returns and lengths are those that ``EvalCallback`` has: Monitor's, where there is one. A mean return that is not a
    number is never the best.

    Logged beside ``eval/mean_reward`` and ``eval/mean_ep_length``: means over all steps of the posterior's
    ``eval/entropy``, ``eval/kl_mean`` and ``eval/kl_covariance`` in nats, and ``eval/regret``, the mean regret of
    a trial, where the environment reports one (NaN if not at every step). With ``log_path``, ``evaluations.npz`` is
    written as SB3 does, and every trace as ``traces/<timesteps>.npz`` (:meth:`~sb3_laplace.PosteriorTrace.load`).

    Evaluation draws from a fork of torch's random number generator: training is the same with it as without.

    :param eval_env: the environment used for evaluation, not the one for training
    :param callback_on_new_best: callback to trigger when there is a new best model
    :param callback_after_eval: callback to trigger after every evaluation
    :param n_eval_trials: number of trials (episodes) to play
    :param eval_freq: evaluate every ``eval_freq`` calls of the callback (steps of the vectorized environment)
    :param log_path: folder of ``evaluations.npz`` and the traces; None for no files
    :param best_model_save_path: folder of ``best_model.zip``, the best by mean return; None for no file
    :param deterministic: act on the posterior's mean and take the mode
    :param verbose: verbosity level: 0 for no output, 1 for results
    :raises ValueError: if an argument is out of range
    """

    model: LaplaceRecurrentPPO

    def __init__(
        self,
        eval_env: gym.Env | VecEnv,
        callback_on_new_best: BaseCallback | None = None,
        callback_after_eval: BaseCallback | None = None,
        n_eval_trials: int = 100,
        eval_freq: int = 10000,
        log_path: str | None = None,
        best_model_save_path: str | None = None,
        deterministic: bool = True,
        verbose: int = 1,
    ) -> None:
        super().__init__(
            eval_env,
            callback_on_new_best=callback_on_new_best,
            callback_after_eval=callback_after_eval,
            n_eval_episodes=check_integer("n_eval_trials", n_eval_trials, minimum=1),
            eval_freq=eval_freq,
            log_path=log_path,
            best_model_save_path=best_model_save_path,
            deterministic=deterministic,
            verbose=verbose,
        )

    def _on_step(self) -> bool:
        if self.eval_freq <= 0 or self.n_calls % self.eval_freq != 0:
            return True
        if self.model.get_vec_normalize_env() is not None:
            try:
                sync_envs_normalization(self.training_env, self.eval_env)
            except (AttributeError, AssertionError) as error:
                raise ValueError("eval_env must be wrapped in VecNormalize as the training environment is.") from error
        trace = self._play()
        if self.log_path is not None:
            self._save(trace)
        self._log(trace)
        if self.last_mean_reward > self.best_mean_reward and not self._on_new_best():
            return False
        return self._on_event() if self.callback is not None else True

    def _play(self) -> PosteriorTrace:
        with forked_random(self.model.device):
            trace = posterior_trace(
                self.model, self.eval_env, self.n_eval_episodes, deterministic=self.deterministic, progress_bar=False
            )
        if trace.interrupted:
            raise KeyboardInterrupt
        return trace

    def _save(self, trace: PosteriorTrace) -> None:
        """Write ``evaluations.npz`` with all evaluations so far, and the trace of this one."""
        assert self.log_path is not None
        self.evaluations_timesteps.append(self.num_timesteps)
        self.evaluations_results.append(trace.returns.tolist())
        self.evaluations_length.append(trace.episode_lengths.tolist())
        arrays: dict[str, Any] = {
            "timesteps": self.evaluations_timesteps,
            "results": self.evaluations_results,
            "ep_lengths": self.evaluations_length,
        }
        if (successes := _successes(trace)) is not None:
            self.evaluations_successes.append(successes.tolist())
            arrays["successes"] = self.evaluations_successes
        np.savez(self.log_path, **arrays)
        folder = os.path.join(os.path.dirname(self.log_path), "traces")
        os.makedirs(folder, exist_ok=True)
        trace.save(os.path.join(folder, f"{self.num_timesteps}.npz"))

    def _log(self, trace: PosteriorTrace) -> None:
        self.last_mean_reward = float(trace.returns.mean())
        if self.verbose >= 1:
            with np.errstate(invalid="ignore"):
                spread = trace.returns.std()
            lengths = trace.episode_lengths
            print(f"Eval num_timesteps={self.num_timesteps}, trial_reward={self.last_mean_reward:.2f} +/- {spread:.2f}")
            print(f"Trial length: {lengths.mean():.2f} +/- {lengths.std():.2f}")
        self.logger.record("eval/mean_reward", self.last_mean_reward)
        self.logger.record("eval/mean_ep_length", float(trace.episode_lengths.mean()))
        for name in ("entropy", "kl_mean", "kl_covariance"):
            mean = getattr(trace, name)[trace.inside].mean()
            if not np.isnan(mean):
                self.logger.record(f"eval/{name}", float(mean))
        if trace.regret is not None:
            self.logger.record("eval/regret", float(trace.totals(trace.regret).mean()))
        if (successes := _successes(trace)) is not None:
            self.logger.record("eval/success_rate", float(successes.mean()))
        # As SB3 does, so that the numbers appear at the timestep of the evaluation
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)

    def _on_new_best(self) -> bool:
        if self.verbose >= 1:
            print("New best mean reward!")
        if self.best_model_save_path is not None:
            self.model.save(os.path.join(self.best_model_save_path, "best_model"))
        self.best_mean_reward = self.last_mean_reward
        return self.callback_on_new_best is None or self.callback_on_new_best.on_step()


def _successes(trace: PosteriorTrace) -> np.ndarray | None:
    """Whether each trial ended in a success, where the environment tells, shape (n_trials,)."""
    if "is_success" not in trace.metrics:
        return None
    return trace.metrics["is_success"][np.arange(trace.n_trials), trace.lengths - 1] == 1
