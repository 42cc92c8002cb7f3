"""How much of the exact belief about the task an agent's posterior holds, and how sure of it the agent is."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch as th
from gymnasium.vector import VectorWrapper

from sb3_laplace.algorithm.laplace_recurrent_ppo import LaplaceRecurrentPPO
from sb3_laplace.checks import check_integer, check_not_negative
from sb3_laplace.evaluation.belief_evaluation import MIN_TRIALS, BeliefEvaluation, score_belief
from sb3_laplace.evaluation.belief_scores import BeliefRecord, fit_readout
from sb3_laplace.evaluation.bootstrap import Bootstrap
from sb3_laplace.evaluation.player import Player, describe, seeded_trials
from sb3_laplace.evaluation.regression import as_trained
from sb3_laplace.posteriors.gaussian import DiagonalGaussian, Gaussian
from sb3_laplace.posteriors.statistics import to_float64
from sb3_laplace.readout import Readout
from sb3_laplace.vec_env import GymnasiumVecEnv
from sb3_laplace_envs import DirichletBanditVectorEnv, FourierRegressionVectorEnv, GridNavigationVectorEnv
from sb3_laplace_envs.oracles import BayesianLinearRegression, BayesOptimalNavigation, Belief, DirichletIndexPolicy

_ExactOracle = BayesianLinearRegression | BayesOptimalNavigation | DirichletIndexPolicy


def evaluate_belief(
    model: LaplaceRecurrentPPO,
    env_id: str,
    n_trials: int = 400,
    seed: int = 0,
    env_kwargs: dict[str, Any] | None = None,
    deterministic: bool = False,
    ridge: float = 1e-4,
    network_steps: int = 1000,
    bootstrap: Bootstrap | None = None,
) -> BeliefEvaluation:
    """Hold an agent's posterior against the exact belief about the task, after the same observations.

    The agent plays ``n_trials`` trials, and an oracle that knows how tasks are drawn watches. On the first half a
    linear read-out ``E[task | m_t] = B m_t + b`` of the true task is fitted, on the other half it is scored: see
    :class:`~sb3_laplace.evaluation.belief_evaluation.BeliefEvaluation` for what is measured. Two small networks map
    m_t to the exact belief and back (state-machine simulation, Mikulik et al., NeurIPS 2020).

    The task is what the oracle's posterior is about: the arms' probabilities, the coefficients of the function, the
    goal's cell as a one-hot vector. The prior is that of the environment that is played.

    :param model: the agent. Where its environment normalizes observations (``VecNormalize``), so does the evaluation.
    :param env_id: the task, one of those that have an oracle
    :param n_trials: number of trials, at least 20; a read-out of D units and P numbers wants several hundred
    :param seed: of the trials, the actions and the networks
    :param env_kwargs: the arguments of the environment, if not the default ones; the number of environments is the
        evaluation's own
    :param deterministic: act on the mean of the posterior and take the mode, instead of drawing both as in training
    :param ridge: of the read-out, relative to the average second moment of the latent's units
    :param network_steps: steps of Adam that train each of the two networks
    :param bootstrap: for the confidence intervals, by default 1000 resamples at 95%
    :raises ValueError: if an argument is out of range, the task has no oracle, or the agent does not fit it
    :raises TypeError: if env_kwargs hold an argument that the environment does not know
    """
    n_trials = check_integer("n_trials", n_trials, minimum=MIN_TRIALS)
    seed = check_integer("seed", seed, minimum=0)
    if env_id not in ORACLE_TASKS:
        known = ", ".join(map(repr, ORACLE_TASKS))
        raise ValueError(f"env_id must be a task whose exact belief an oracle knows ({known}), got {env_id!r}.")
    ridge = check_not_negative("ridge", ridge)
    network_steps = check_integer("network_steps", network_steps, minimum=1)
    if not isinstance(model, LaplaceRecurrentPPO):
        raise ValueError(
            f"model must be a LaplaceRecurrentPPO, got a {type(model).__name__}; "
            "LaplaceRecurrentPPO.from_recurrent_ppo converts a RecurrentPPO."
        )
    _warn_about_too_few(n_trials - n_trials // 2, model.policy.latent_layer.latent_dim)
    play = partial(_play, model, env_id, env_kwargs=env_kwargs or {}, deterministic=deterministic)
    seeds = np.random.SeedSequence(seed).generate_state(2).tolist()
    fitted = play(n_trials=n_trials - n_trials // 2, seed=seeds[0])
    held_out = play(n_trials=n_trials // 2, seed=seeds[1], readout=fit_readout(fitted, ridge))
    settings = {
        "env_id": env_id,
        "seed": seed,
        "deterministic": deterministic,
        "posterior": type(model.policy.latent_layer).__name__,
        "num_timesteps": model.num_timesteps,
    }
    return score_belief(fitted, held_out, ridge, seed, network_steps, bootstrap, settings)


def _warn_about_too_few(n_fitted: int, latent_dim: int) -> None:
    if n_fitted <= latent_dim:
        warnings.warn(
            f"n_trials: a read-out of {latent_dim} latent units is fitted on {n_fitted} trials (half of them): what it "
            "misses for want of trials counts as the agent's. Several hundred are better.",
            stacklevel=3,
        )


def _play(
    model: LaplaceRecurrentPPO,
    env_id: str,
    n_trials: int,
    seed: int,
    env_kwargs: dict[str, Any],
    deterministic: bool,
    readout: Readout | None = None,
) -> BeliefRecord:
    """Play a trial in each of as many environments, under the oracle's eyes.

    :param readout: where there is one, what the agent claims about the task is kept too
    """
    if "num_envs" in env_kwargs:
        raise ValueError("env_kwargs must not hold num_envs, which the evaluation sets itself.")
    make, make_oracle, task_of = _TASKS[env_id]
    tasks = make(num_envs=n_trials, **env_kwargs)
    _check_spaces(model, tasks)
    watched = _Watched(tasks, make_oracle(tasks), task_of)
    env = as_trained(model, GymnasiumVecEnv(watched))
    player = Player(model, env, n_trials, partial(model.policy.act, deterministic=deterministic))
    latents: list[np.ndarray] = []
    claimed: list[np.ndarray] = []
    with seeded_trials(player, seed) as steps:
        for played in steps:
            posterior = played.step.posterior.posterior
            latents.append(posterior.mean.double().cpu().numpy())
            if readout is not None and not model.policy.latent_layer.is_point:
                claimed.append(_project(posterior, readout))
    means, covariances = zip(*watched.beliefs[: len(latents)], strict=True)
    return BeliefRecord(
        tasks=watched.tasks,
        latents=np.stack(latents, axis=1),
        exact_mean=np.stack(means, axis=1),
        exact_covariance=np.stack(covariances, axis=1),
        claimed=np.stack(claimed, axis=1) if claimed else None,
    )


class _Watched(VectorWrapper):
    """Shows all that the agent observes to an oracle too, and seeds each environment apart from its neighbours.

    So none of the tasks is one of the training environments', whose seeds follow one another.

    :param env: the environments
    :param oracle: watches
    :param task_of: the environments' present tasks, as the oracle's posterior has them
    """

    #: The tasks of the first trials, shape (N, P)
    tasks: np.ndarray

    def __init__(self, env: Any, oracle: _ExactOracle, task_of: Callable[[Any], np.ndarray]) -> None:
        super().__init__(env)
        self._oracle, self._task_of = oracle, task_of
        #: Mean and covariance after each observation
        self.beliefs: list[Belief] = []

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        seeds = None if seed is None else np.random.SeedSequence(seed).generate_state(self.num_envs).tolist()
        observations, infos = self.env.reset(seed=seeds, options=options)
        self.tasks = self._task_of(self.env)
        self._watch(observations)
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        observations, *rest = self.env.step(actions)
        self._watch(observations)
        return observations, *rest

    def _watch(self, observations: np.ndarray) -> None:
        self._oracle.observe(observations)
        self.beliefs.append(self._oracle.posterior())


def _project(posterior: Gaussian, readout: Readout) -> np.ndarray:
    """``B Sigma B^T``, shape (N, P, P)."""
    weights = th.from_numpy(readout.weights).to(posterior.mean.device)
    exact = to_float64(posterior)
    if isinstance(exact, DiagonalGaussian):
        scaled = exact.variance.to(weights).sqrt().unsqueeze(-1) * weights
        return (scaled.mT @ scaled).cpu().numpy()
    return (weights.mT @ exact.covariance.to(weights) @ weights).cpu().numpy()


def _check_spaces(model: LaplaceRecurrentPPO, tasks: Any) -> None:
    for kind, own, theirs in (
        ("observation", model.observation_space, tasks.single_observation_space),
        ("action", model.action_space, tasks.single_action_space),
    ):
        if own != theirs:
            raise ValueError(
                f"model must be an agent for env_id: its {kind} space is {describe(own)}, the task's "
                f"{describe(theirs)}. (env_kwargs must hold the arguments that its environment was made with.)"
            )


def _probabilities(env: DirichletBanditVectorEnv) -> np.ndarray:
    return env.task.astype(np.float64)


def _coefficients(env: FourierRegressionVectorEnv) -> np.ndarray:
    return env.coefficients


def _goal_cell(env: GridNavigationVectorEnv) -> np.ndarray:
    """One-hot."""
    return np.eye(env.size**2)[env.task @ np.array([env.size, 1])]


#: The tasks that have an exact (or nearly exact) posterior: environments, oracle, the task as the oracle has it
_TASKS: dict[str, tuple[Any, Any, Callable[[Any], np.ndarray]]] = {
    "sb3_laplace/DirichletBandit-v0": (DirichletBanditVectorEnv, DirichletIndexPolicy, _probabilities),
    "sb3_laplace/FourierRegression-v0": (FourierRegressionVectorEnv, BayesianLinearRegression, _coefficients),
    "sb3_laplace/GridNavigation-v0": (GridNavigationVectorEnv, BayesOptimalNavigation, _goal_cell),
}
#: Their ids
ORACLE_TASKS = tuple(_TASKS)
