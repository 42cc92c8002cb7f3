"""How well an agent predicts on FourierRegression after n observed pairs, beside the best that can be done."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch as th
from gymnasium.vector import VectorWrapper
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_laplace.algorithm.laplace_recurrent_ppo import LaplaceRecurrentPPO
from sb3_laplace.checks import check_choice, check_integer
from sb3_laplace.evaluation.gaussian_mixture import GaussianMixture
from sb3_laplace.evaluation.player import Played, Player, describe, distribution_at, draw_latents, seeded_trials
from sb3_laplace.evaluation.regression_evaluation import (
    BAND_QUANTILES,
    COVERAGE_LEVELS,
    ExampleFunctions,
    RegressionEvaluation,
)
from sb3_laplace.policies.distributions import components_of
from sb3_laplace.policies.laplace_lstm_policy import LaplaceLstmPolicy
from sb3_laplace.policies.types import PolicyStep, RecurrentStates
from sb3_laplace.posteriors import PosteriorState
from sb3_laplace.posteriors.statistics import posterior_statistics, to_float64
from sb3_laplace.vec_env import GymnasiumVecEnv
from sb3_laplace_envs.oracles import bayesian_linear_regression
from sb3_laplace_envs.tasks.fourier_regression import TEST_QUERY_INTERVALS, FourierRegressionVectorEnv

#: Numbers of observed pairs after which predictions are evaluated
N_OBSERVED = (0, 1, 3, 5, 7, 10, 15, 20, 25, 30, 40, 50, 100, 200)
#: Where the observed inputs lie: all over the domain, or in the task's test mode's intervals only
CONTEXTS = {"train": ((-1.0, 1.0),), "test": TEST_QUERY_INTERVALS}

# Where an observation holds the last pair's x, and the query
_LAST_X, _QUERY = 0, 2
# The limit's standard deviation is not let below this: after seven pairs its likelihood would have no bound
_LIMIT_STD = 0.05
_N_EXAMPLES = 4
# Predictions made at a time. A posterior that keeps past inputs in the state takes memory for each of them: above
# this many inputs, fewer predictions are made at a time, in inverse proportion.
_ROWS = 512
_INPUTS = 16
_OWN_ENV_KWARGS = ("num_envs", "trial_length", "query_intervals")


def evaluate_regression(
    model: LaplaceRecurrentPPO,
    n_functions: int = 128,
    n_observed: Sequence[int] = N_OBSERVED,
    n_test_inputs: int = 300,
    n_posterior_samples: int = 30,
    context: str = "train",
    seed: int = 0,
    env_kwargs: dict[str, Any] | None = None,
) -> RegressionEvaluation:
    """Evaluate an agent's predictions on FourierRegression after n observed pairs, for several n.

    The agent plays one trial on each of ``n_functions`` functions, acting on the mean of its posterior and
    taking the mode. After n pairs the trial branches: the agent takes in the observation that shows it the
    n-th pair, its own previous action and reward, with each of the test inputs in turn in the place of the
    query. What it predicts for y there is the mixture over ``n_posterior_samples`` draws from its posterior of
    its action distributions, in the units of y. The trial itself goes on with its own query.

    The same functions, pairs and test inputs are predicted by
    :func:`~sb3_laplace_envs.oracles.bayesian_linear_regression`, with standard deviations of at least
    0.05.
    By default that is half a million predictions, each with a posterior of its own: with an LSTM of 128 units and a
    full covariance of 64 about a minute and a half on one core, with a point a few seconds. A posterior that
    keeps past inputs takes longer the more pairs there are.
    (The task is that of the paper's zero-shot regression, arXiv 2505.18591.)

    :param model: the agent, trained on FourierRegression. Where its environment normalizes observations
        (``VecNormalize``), so does the evaluation, with the statistics as they are.
    :param n_functions: number of functions N, at least 2
    :param n_observed: numbers of pairs, ascending
    :param n_test_inputs: number of test inputs J, the midpoints of as many equal pieces of [-1, 1]
    :param n_posterior_samples: number of draws K from the posterior; 0 predicts with its mean. A point has no
        others than its mean.
    :param context: where observed inputs lie: "train", uniform on [-1, 1], or "test", uniform on the three
        intervals of ``TEST_QUERY_INTERVALS`` only. With the same seed the functions are the same.
    :param seed: of the functions, the observed inputs and the draws
    :param env_kwargs: the arguments of the environment that the agent was trained with, if not the default
        ones; the number of environments, the trial length and the query intervals are the evaluation's own
    :raises ValueError: if an argument is out of range, or the environment does not fit the agent
    """
    n_functions = check_integer("n_functions", n_functions, minimum=2)
    numbers = _check_n_observed(n_observed)
    n_test_inputs = check_integer("n_test_inputs", n_test_inputs, minimum=1)
    n_posterior_samples = check_integer("n_posterior_samples", n_posterior_samples, minimum=0)
    check_choice("context", context, tuple(CONTEXTS))
    seed = check_integer("seed", seed, minimum=0)
    # One step more than is played: at its end the environment would draw the next functions
    tasks = _make_env(n_functions, numbers[-1] + 2, context, env_kwargs or {})
    _check_model(model, tasks)
    trials = _Trials(tasks)
    policy, env = model.policy, as_trained(model, GymnasiumVecEnv(trials))
    player = Player(model, env, n_functions, partial(policy.act, deterministic=True))
    test_inputs = (2 * np.arange(n_test_inputs) + 1) / n_test_inputs - 1.0
    predict = _Predictor(policy, env, tasks, test_inputs, n_posterior_samples)

    pairs = np.zeros((n_functions, numbers[-1], 2))
    of_agent, of_limit, examples = [], [], []
    with seeded_trials(player, seed) as steps:
        for n, played in zip(range(numbers[-1] + 1), steps, strict=False):
            if n == 0:
                targets = tasks.evaluate(test_inputs)
            if n in numbers:
                prediction, predictive = predict(played)
                mean, std = bayesian_linear_regression(tasks, pairs[:, :n, 0], pairs[:, :n, 1], test_inputs)
                limit = GaussianMixture(th.from_numpy(mean)[None], th.from_numpy(std.clip(min=_LIMIT_STD))[None])
                of_agent.append({**_score(prediction, predictive, targets), **_statistics(played.step)})
                of_limit.append(_score(mean, limit, targets))
                examples.append(_examples(predictive, limit))
            if n < numbers[-1]:
                pairs[:, n, 0] = trials.observations[:, _LAST_X]
                # The limit is one in double precision only
                pairs[:, n, 1] = tasks.evaluate(pairs[:, n, :1])[:, 0]

    bands = (np.stack(parts, axis=1) for parts in zip(*examples, strict=True))
    return RegressionEvaluation(
        n_observed=np.array(numbers),
        test_inputs=test_inputs,
        agent={name: np.stack([one[name] for one in of_agent], axis=1) for name in of_agent[0]},
        limit={name: np.stack([one[name] for one in of_limit], axis=1) for name in of_limit[0]},
        examples=ExampleFunctions(targets[:_N_EXAMPLES], pairs[:_N_EXAMPLES], *bands),
        settings={
            "context": context,
            "seed": seed,
            "n_posterior_samples": n_posterior_samples,
            "posterior": type(model.policy.latent_layer).__name__,
            "num_timesteps": model.num_timesteps,
        },
    )


class _Trials(VectorWrapper):
    """Keeps the last observations, and seeds each environment apart from its neighbours.

    So none of the functions is one of the training environments', whose seeds follow one another.
    """

    observations: np.ndarray

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        seeds = None if seed is None else np.random.SeedSequence(seed).generate_state(self.num_envs).tolist()
        self.observations, infos = self.env.reset(seed=seeds, options=options)
        return self.observations, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.observations, *rest = self.env.step(actions)
        return self.observations, *rest


def as_trained(model: LaplaceRecurrentPPO, env: VecEnv) -> VecEnv:
    """The environment under the agent's VecNormalize, if it has one: a copy that shares the statistics."""
    normalizer = model.get_vec_normalize_env()
    if normalizer is None:
        return env
    normalized = copy.copy(normalizer)
    normalized.set_venv(env)
    return normalized


def _check_model(model: LaplaceRecurrentPPO, tasks: FourierRegressionVectorEnv) -> None:
    """Check that the agent is one for these tasks.

    :raises ValueError: saying why it is not
    """
    if not isinstance(model, LaplaceRecurrentPPO):
        raise ValueError(
            f"model must be a LaplaceRecurrentPPO, got a {type(model).__name__}; "
            "LaplaceRecurrentPPO.from_recurrent_ppo converts a RecurrentPPO."
        )
    for kind, own, theirs in (
        ("observation", model.observation_space, tasks.single_observation_space),
        ("action", model.action_space, tasks.single_action_space),
    ):
        if own != theirs:
            raise ValueError(
                f"model must be an agent for FourierRegression: its {kind} space is {describe(own)}, the task's "
                f"{describe(theirs)}. (env_kwargs must hold the arguments that its environment was made with.)"
            )
    if model.policy.squash_output:
        raise ValueError("model must have Gaussian actions, got policy_kwargs with squash_output=True.")


class _Predictor:
    """What an agent would have predicted in a step if it had been asked about other inputs.

    :param policy: the agent's policy
    :param env: the environment as the agent has it
    :param tasks: the tasks in it
    :param test_inputs: what takes the place of the query, shape (J,)
    :param n_posterior_samples: number of draws K from the posterior; 0 for its mean
    """

    def __init__(
        self,
        policy: LaplaceLstmPolicy,
        env: VecEnv,
        tasks: FourierRegressionVectorEnv,
        test_inputs: np.ndarray,
        n_posterior_samples: int,
    ) -> None:
        self._policy = policy
        self._n_draws = 0 if policy.latent_layer.is_point else n_posterior_samples
        self._scale, self._bound = tasks.action_scale, tasks.max_y
        queries: Any = np.zeros((len(test_inputs), *tasks.single_observation_space.shape), np.float32)  # type: ignore[misc]
        queries[:, _QUERY] = test_inputs
        normalizer = unwrap_vec_normalize(env)
        if normalizer is not None:
            queries = normalizer.normalize_obs(queries)
        self._queries = th.as_tensor(queries[:, _QUERY], device=policy.device)

    @th.inference_mode()
    def __call__(self, played: Played) -> tuple[np.ndarray, GaussianMixture]:
        """Predictions at each of J test inputs in the place of the step's own query, in the units of y.

        :param played: a step of N trials
        :return: the predictions at the posterior's mean, clipped to the range of y as the environment clips actions,
            shape (N, J); and over draws from the posterior, unclipped as in training, shape (max(K, 1), N, J)
        """
        obs: Any = played.obs
        shape = len(obs), len(self._queries)
        size = max(1, _ROWS // max(1, self._n_inputs_kept(played.before.pi.posterior) // _INPUTS))
        parts = []
        for first in range(0, shape[0] * shape[1], size):
            index = th.arange(first, min(first + size, shape[0] * shape[1]), device=obs.device)
            function, position = index // shape[1], index % shape[1]
            rows = obs[function]
            rows[:, _QUERY] = self._queries[position]
            parts.append(self._components(rows, played.before.select(function), played.starts[function]))
        means, stds = (self._scale * th.cat(part, dim=1).view(-1, *shape) for part in zip(*parts, strict=True))
        drawn = slice(min(1, self._n_draws), None)
        return means[0].clamp(-self._bound, self._bound).numpy(), GaussianMixture(means[drawn], stds[drawn])

    def _components(self, obs: th.Tensor, states: RecurrentStates, starts: th.Tensor) -> tuple[th.Tensor, ...]:
        """Means and standard deviations of the actions, at the posterior's mean and at K draws, each (1 + K, B)."""
        step = self._policy.act(obs, states, starts, deterministic=True)
        latents = draw_latents(self._policy, step, 0)
        if self._n_draws > 0:
            latents = th.cat((latents, draw_latents(self._policy, step, self._n_draws)))
        normal: Any = components_of(distribution_at(self._policy, obs, step, latents)).distribution
        return tuple(part.view(len(latents), -1).cpu().double() for part in (normal.mean, normal.stddev))

    def _n_inputs_kept(self, state: PosteriorState) -> int:
        """Number of past inputs that the posterior keeps in the state, and evaluates anew at each step."""
        empty = self._policy.latent_layer.initial_state(1)
        grown = [part.shape[now.shape.index(0)] for part, now in zip(state, empty, strict=True) if 0 in now.shape]
        return max(grown, default=0)


# -- statistics of all functions after n pairs, each of shape (N,) ------------------------------------------


def _score(prediction: np.ndarray, predictive: GaussianMixture, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Averages over the test inputs, see :class:`~sb3_laplace.evaluation.regression_evaluation.RegressionEvaluation`.

    :param prediction: shape (N, J)
    :param predictive: shape (K, N, J)
    :param targets: shape (N, J)
    """
    y = th.from_numpy(targets)
    distance = (predictive.cdf(y) - 0.5).abs()
    scores = {
        "mse": (th.from_numpy(prediction) - y).square(),
        "mse_mixture": (predictive.mean - y).square(),
        "nll_mixture": -predictive.log_prob(y),
        "nll_gaussian": -predictive.moment_matched().log_prob(y),
        **{f"coverage_{level}": (distance < 0.005 * level).double() for level in COVERAGE_LEVELS},
    }
    return {name: score.mean(1).numpy() for name, score in scores.items()}


def _statistics(played: PolicyStep) -> dict[str, np.ndarray]:
    """Entropy and KL of a step, NaN where they do not exist."""
    step = played.posterior
    numbers = posterior_statistics(to_float64(step.posterior), to_float64(step.previous))
    entropy, kl = numbers["entropy"], numbers["kl_mean"] + numbers["kl_covariance"]
    return {"entropy": entropy.where(entropy.isfinite(), th.nan).cpu().numpy(), "kl": kl.cpu().numpy()}


def _examples(predictive: GaussianMixture, limit: GaussianMixture) -> tuple[np.ndarray, ...]:
    """The parts of :class:`~sb3_laplace.evaluation.regression_evaluation.ExampleFunctions` that depend on n."""
    ours, theirs = (GaussianMixture(*(part[:, :_N_EXAMPLES] for part in mixture)) for mixture in (predictive, limit))
    bands = th.stack([ours.quantile(probability) for probability in BAND_QUANTILES], dim=-1)
    return tuple(part.numpy() for part in (ours.mean, bands, theirs.means[0], theirs.stds[0]))


# -- arguments ----------------------------------------------------------------------------------------------


def _check_n_observed(n_observed: Sequence[int]) -> list[int]:
    given = np.asarray(n_observed).tolist()
    numbers = [check_integer("n_observed", n, minimum=0) for n in given] if isinstance(given, list) else []
    if not numbers or sorted(set(numbers)) != numbers:
        raise ValueError(f"n_observed must hold whole numbers >= 0 in ascending order, got {n_observed!r}.")
    return numbers


def _make_env(
    n_functions: int, trial_length: int, context: str, env_kwargs: dict[str, Any]
) -> FourierRegressionVectorEnv:
    taken = sorted(set(env_kwargs) & set(_OWN_ENV_KWARGS))
    if taken:
        raise ValueError(f"env_kwargs must not hold {taken}, which the evaluation sets itself.")
    return FourierRegressionVectorEnv(n_functions, trial_length, query_intervals=CONTEXTS[context], **env_kwargs)
