"""What is measured of each agent of a study: numbers by name, and what they rest on, as JSON can hold it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, is_vecenv_wrapped

from sb3_laplace.algorithm.laplace_recurrent_ppo import LaplaceRecurrentPPO
from sb3_laplace.evaluation.belief import ORACLE_TASKS, evaluate_belief
from sb3_laplace.evaluation.diagnostics import diagnose
from sb3_laplace.evaluation.regression import CONTEXTS, evaluate_regression
from sb3_laplace.evaluation.traces import PosteriorTrace, posterior_trace
from sb3_laplace.posteriors import LaplacePosterior
from sb3_laplace.posthoc.calibrate import calibrate_prior_std

# Seed of trials that are played: environment i has this and i, far from the seeds of training
_SEED = 20_000
_REGRESSION = "sb3_laplace/FourierRegression-v0"
# Numbers of observed pairs whose scores are numbers of the evaluation
_PAIRS = (3, 5, 10, 30)
# What the environment reports that is no figure of how well the agent does
_NO_METRIC = ("target",)


@dataclass(frozen=True)
class TrainedAgent:
    """An agent that can be evaluated.

    :param load: makes the agent anew, so that an evaluation that changes it leaves nothing for the next one
    :param make_env: makes environments for a number of trials, with a seed
    :param env_id: id of the environment
    :param env_kwargs: keyword arguments of the environment
    :param traces: what was played already, by number of trials, seed, and whether by the mode: evaluations share it
    """

    load: Callable[[], LaplaceRecurrentPPO]
    make_env: Callable[[int, int], VecEnv]
    env_id: str
    env_kwargs: dict[str, Any]
    traces: dict[tuple[int, int, bool], PosteriorTrace] = field(default_factory=dict)

    @cached_property
    def posterior(self) -> dict[str, Any]:
        """The posterior's name and sizes, see :meth:`~sb3_laplace.LaplaceLstmPolicy.posterior_summary`."""
        return self.load().policy.posterior_summary()


class Measured(NamedTuple):
    """What an evaluation found.

    :param numbers: scores by name; None for what does not exist
    :param details: what they rest on, as JSON can hold it
    """

    numbers: dict[str, float | None]
    details: dict[str, Any]


class Evaluation(NamedTuple):
    """An evaluation that a study can make.

    :param measure: measures an agent, given complete settings
    :param defaults: the settings
    :param is_for: which environments it is for, by id
    """

    measure: Callable[[TrainedAgent, dict[str, Any]], Measured]
    defaults: dict[str, Any]
    is_for: Callable[[str], bool]


class Metric(NamedTuple):
    """The number by which a task's agents are compared.

    :param name: what the environment calls it, summed over a trial
    :param sign: 1 if more is better, -1 if less is
    """

    name: str
    sign: int


_METRICS = {
    "sb3_laplace/DirichletBandit-v0": Metric("regret", -1),
    "sb3_laplace/GridNavigation-v0": Metric("goals_reached", 1),
    _REGRESSION: Metric("squared_error", -1),
}


def metric_of(env_id: str) -> Metric:
    """The task's own metric, the return where it has none."""
    return _METRICS.get(env_id, Metric("return", 1))


def _return(agent: TrainedAgent, settings: dict[str, Any]) -> Measured:
    """Return and the environment's metrics on fixed trials, with sampled actions and by the mode (``..._mode``).

    ``return_episode_1``, ... where a trial has several episodes.
    """
    numbers: dict[str, float | None] = {}
    for suffix, deterministic in (("", False), ("_mode", True)):
        trace = _trace(agent, settings, deterministic)
        numbers[f"return{suffix}"] = _number(trace.returns.mean())
        if trace.returns_by_episode.shape[1] > 1:
            # Trials of fewer episodes have NaN, and every episode is one of some trial
            for i, mean in enumerate(np.nanmean(trace.returns_by_episode, axis=0), start=1):
                numbers[f"return_episode_{i}{suffix}"] = _number(mean)
        for name, values in trace.metrics.items():
            if name not in _NO_METRIC and name != "return":
                totals = np.nansum(np.where(trace.inside, values, np.nan), axis=1, dtype=np.float64)
                numbers[f"{name}{suffix}"] = _number(totals.mean())
    return Measured(numbers, {})


def _diagnosis(agent: TrainedAgent, settings: dict[str, Any]) -> Measured:
    """The verdicts on a trace of sampled actions, ``FINDING.NUMBER``."""
    diagnosis = diagnose(_trace(agent, settings, deterministic=False))
    numbers = {
        f"{name}.{key}": _number(estimate.value)
        for name, finding in diagnosis.findings.items()
        for key, estimate in finding.numbers.items()
    }
    return Measured(numbers, diagnosis.to_dict())


def _belief(agent: TrainedAgent, settings: dict[str, Any]) -> Measured:
    """Averages over the steps after the first observation, before which all exact means are the same."""
    env = agent.make_env(1, settings["seed"])
    is_normalized = is_vecenv_wrapped(env, VecNormalize)
    env.close()
    if is_normalized:
        raise ValueError("belief: the oracle watches observations as they are, and the agent's are normalized.")
    evaluation = evaluate_belief(
        agent.load(), agent.env_id, settings["n_trials"], settings["seed"], env_kwargs=agent.env_kwargs
    )
    means = {name: values[1:].mean() for name, values in evaluation.scores.items()}
    # Of averages: where the exact belief is certain, as that of a function after seven pairs, a ratio says nothing
    with np.errstate(divide="ignore", invalid="ignore"):
        for part in ("claimed", "total"):
            means[f"{part}_ratio"] = means[f"{part}_variance"] / means["exact_variance"]
    numbers = {name: _number(value) for name, value in means.items()}
    numbers |= {name: _number(estimate.value) for name, estimate in evaluation.simulation.items()}
    return Measured(numbers, evaluation.to_dict())


def _regression(agent: TrainedAgent, settings: dict[str, Any]) -> Measured:
    """Averages over functions, ``SCORE.CONTEXT.PAIRS``; those of the limit are in the details."""
    numbers: dict[str, float | None] = {}
    details: dict[str, Any] = {}
    for context in CONTEXTS:
        evaluation = evaluate_regression(
            agent.load(),
            settings["n_functions"],
            n_test_inputs=settings["n_test_inputs"],
            n_posterior_samples=settings["n_posterior_samples"],
            context=context,
            seed=settings["seed"],
            env_kwargs=agent.env_kwargs,
        )
        observed = evaluation.n_observed.tolist()
        for name, values in evaluation.agent.items():
            means = values.mean(0)
            numbers |= {f"{name}.{context}.{n}": _number(means[observed.index(n)]) for n in _PAIRS if n in observed}
        summary = evaluation.summary()
        details[context] = {
            name: [_number(value) if isinstance(value, float) else value for value in column.tolist()]
            for name, column in summary.items()
        }
    return Measured(numbers, details)


def _posthoc(agent: TrainedAgent, settings: dict[str, Any]) -> Measured:
    """What a posterior put on afterwards is worth: the return of acting on a draw from it, by the prior's width."""
    model = agent.load()
    if not isinstance(model.policy.latent_layer, LaplacePosterior):
        model = LaplaceRecurrentPPO.from_recurrent_ppo(model)
    env = agent.make_env(settings["n_trials"], settings["seed"])
    try:
        found = calibrate_prior_std(model, env, settings["prior_stds"], settings["n_trials"], seed=settings["seed"])
    finally:
        env.close()
    chosen = float(found.scores[found.prior_stds.tolist().index(found.prior_std)])
    numbers = {
        "prior_std": _number(found.prior_std),
        "return": _number(chosen),
        "return_unsampled": _number(found.unsampled),
        "gain": _number(chosen - found.unsampled),
    }
    details = {
        "prior_stds": found.prior_stds.tolist(),
        "returns": found.scores.tolist(),
        "standard_errors": found.standard_errors.tolist(),
    }
    return Measured(numbers, details)


def _everywhere(env_id: str) -> bool:
    return True


#: The evaluations that a study can make, by the names that its file has for them
EVALUATIONS: dict[str, Evaluation] = {
    "return": Evaluation(_return, {"n_trials": 512, "seed": _SEED}, _everywhere),
    "diagnosis": Evaluation(_diagnosis, {"n_trials": 512, "seed": _SEED}, _everywhere),
    "belief": Evaluation(_belief, {"n_trials": 2000, "seed": _SEED}, lambda env_id: env_id in ORACLE_TASKS),
    "regression": Evaluation(
        _regression,
        {"n_functions": 128, "n_test_inputs": 300, "n_posterior_samples": 30, "seed": _SEED},
        lambda env_id: env_id == _REGRESSION,
    ),
    "posthoc": Evaluation(
        _posthoc,
        {"n_trials": 256, "prior_stds": [0.003, 0.01, 0.03, 0.1, 0.3, 1.0], "seed": _SEED},
        _everywhere,
    ),
}


def _trace(agent: TrainedAgent, settings: dict[str, Any], deterministic: bool) -> PosteriorTrace:
    key = (settings["n_trials"], settings["seed"], deterministic)
    if key not in agent.traces:
        agent.traces[key] = _play(agent, settings, deterministic)
    return agent.traces[key]


def _play(agent: TrainedAgent, settings: dict[str, Any], deterministic: bool) -> PosteriorTrace:
    model, env = agent.load(), agent.make_env(settings["n_trials"], settings["seed"])
    # After the agent is built, whose weights are drawn too
    set_random_seed(settings["seed"])
    try:
        return posterior_trace(model, env, settings["n_trials"], deterministic, progress_bar=False)
    finally:
        env.close()


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
