"""How well an agent predicts on FourierRegression after n observed pairs, beside the best that can be done."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_laplace.algorithm.laplace_recurrent_ppo import LaplaceRecurrentPPO
from sb3_laplace.checks import check_choice, check_integer
from sb3_laplace.evaluation.gaussian_mixture import GaussianMixture
from sb3_laplace.evaluation.regression_evaluation import (
    BAND_QUANTILES,
    COVERAGE_LEVELS,
    ExampleFunctions,
    RegressionEvaluation,
)
from sb3_laplace.evaluation.trace_recorder import describe
from sb3_laplace.policies.distributions import MixtureDistribution
from sb3_laplace.policies.laplace_lstm_policy import LaplaceLstmPolicy
from sb3_laplace.policies.types import PolicyStep
from sb3_laplace.posteriors.statistics import double, posterior_statistics
from sb3_laplace_envs.oracles import bayesian_linear_regression
from sb3_laplace_envs.tasks.fourier_regression import TEST_QUERY_INTERVALS, FourierRegressionVectorEnv

#: Numbers of observed pairs after which predictions are evaluated
N_OBSERVED = (0, 1, 3, 5, 7, 10, 15, 20, 25, 30, 40, 50, 100, 200)
#: Where the observed inputs lie: all over the domain, or in the task's test mode's intervals only
CONTEXTS = {"train": ((-1.0, 1.0),), "test": TEST_QUERY_INTERVALS}

# Where an observation holds the query, and the flag of a trial's first step
_QUERY, _FIRST_STEP = 2, -1
# The limit's standard deviation is not let below this: after seven pairs its likelihood would have no bound
_LIMIT_STD = 0.05
_N_EXAMPLES = 4
# Predictions made at a time; and fewer by as many times as this many past inputs are kept in the state
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
    :func:`~sb3_laplace_envs.oracles.linear_regression.bayesian_linear_regression`, with standard deviations of at least
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
    env = _make_env(n_functions, numbers[-1] + 1, context, env_kwargs or {})
    agent = _Agent(model, env, n_posterior_samples)
    test_inputs = (2 * np.arange(n_test_inputs) + 1) / n_test_inputs - 1.0

    # Spread, so that they are not those of the training environments
    obs, _ = env.reset(seed=np.random.SeedSequence(seed).generate_state(n_functions).tolist())
    targets = env.evaluate(test_inputs)
    pairs = np.zeros((n_functions, numbers[-1], 2))
    of_agent, of_limit, examples = [], [], []
    with th.inference_mode(), th.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        th.manual_seed(seed)
        for n in range(numbers[-1] + 1):
            before = agent.states
            played = agent.act(obs)
            if n in numbers:
                prediction, predictive = agent.predict(obs, before, test_inputs)
                mean, std = bayesian_linear_regression(env, pairs[:, :n, 0], pairs[:, :n, 1], test_inputs)
                limit = GaussianMixture(th.from_numpy(mean)[None], th.from_numpy(std.clip(min=_LIMIT_STD))[None])
                of_agent.append({**_score(prediction, predictive, targets), **_statistics(played)})
                of_limit.append(_score(mean, limit, targets))
                examples.append(_examples(predictive, limit))
            if n < numbers[-1]:
                obs, *_ = env.step(agent.to_env_actions(played))
                pairs[:, n, 0] = obs[:, 0]
                # The limit is one in double precision only
                pairs[:, n, 1] = env.evaluate(pairs[:, n, :1])[:, 0]

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


class _Agent:
    """The agent in its trials: :meth:`act` goes on by a step, :meth:`predict` looks aside."""

    def __init__(self, model: LaplaceRecurrentPPO, env: FourierRegressionVectorEnv, n_posterior_samples: int) -> None:
        if not isinstance(model, LaplaceRecurrentPPO):
            raise ValueError(
                f"model must be a LaplaceRecurrentPPO, got a {type(model).__name__}; "
                "LaplaceRecurrentPPO.from_recurrent_ppo converts a RecurrentPPO."
            )
        for kind, own, theirs in (
            ("observation", model.observation_space, env.single_observation_space),
            ("action", model.action_space, env.single_action_space),
        ):
            if own != theirs:
                raise ValueError(
                    f"model must be an agent for FourierRegression: its {kind} space is {describe(own)}, the task's "
                    f"{describe(theirs)}. (env_kwargs must hold the arguments that its environment was made with.)"
                )
        self.policy: LaplaceLstmPolicy = model.policy
        if self.policy.squash_output:
            raise ValueError("model must have Gaussian actions, got policy_kwargs with squash_output=True.")
        self.policy.set_training_mode(False)
        normalizer = model.get_vec_normalize_env()
        self._normalize: Callable[[Any], Any] = (lambda obs: obs) if normalizer is None else normalizer.normalize_obs
        self._n_posterior_samples = 0 if self.policy.latent_layer.is_point else n_posterior_samples
        self._scale, self._bound = env.action_scale, env.max_y
        self.states = self.policy.initial_states(env.num_envs)

    def act(self, obs: np.ndarray) -> PolicyStep:
        """One step of all trials.

        :param obs: the environment's own observations, shape (N, 6)
        """
        tensors, starts = self._observe(obs)
        played = self.policy.act(tensors, self.states, starts, deterministic=True)
        self.states = played.states
        return played

    def to_env_actions(self, played: PolicyStep) -> np.ndarray:
        """The actions of a step as the environment takes them, shape (N, 1)."""
        return self.policy.to_env_actions(played.actions.cpu().numpy())

    def predict(
        self, obs: np.ndarray, states: RNNStates, test_inputs: np.ndarray
    ) -> tuple[np.ndarray, GaussianMixture]:
        """What one more step would predict at each of J test inputs, in the units of y.

        :param obs: the environment's own observations, shape (N, 6)
        :param states: recurrent states before them
        :param test_inputs: what takes the place of the query, shape (J,)
        :return: the predictions at the posterior's mean, clipped to the range of y as the environment clips actions,
            shape (N, J); and over draws from the posterior, unclipped as in training, shape (max(K, 1), N, J)
        """
        shape = len(obs), len(test_inputs)
        size = max(1, _ROWS // max(1, self._n_inputs_kept(states.pi) // _INPUTS))
        parts = []
        for first in range(0, shape[0] * shape[1], size):
            function, position = np.divmod(np.arange(first, min(first + size, shape[0] * shape[1])), shape[1])
            rows = obs[function]
            rows[:, _QUERY] = test_inputs[position]
            index = th.as_tensor(function, device=self.policy.device)
            of_rows = RNNStates(*(tuple(part[:, index] for part in one) for one in states))
            parts.append(self._components(rows, of_rows))
        means, stds = (self._scale * th.cat(part, dim=1).view(-1, *shape) for part in zip(*parts, strict=True))
        drawn = slice(min(1, self._n_posterior_samples), None)
        return means[0].clamp(-self._bound, self._bound).numpy(), GaussianMixture(means[drawn], stds[drawn])

    def _components(self, obs: np.ndarray, states: RNNStates) -> tuple[th.Tensor, ...]:
        """Means and standard deviations of the actions, at the posterior's mean and at K draws, each (1 + K, B)."""
        tensors, starts = self._observe(obs)
        step = self.policy.act(tensors, states, starts, deterministic=True)
        posterior = step.posterior.posterior
        latents = posterior.mean.unsqueeze(0)
        if self._n_posterior_samples > 0:
            draws, _ = self.policy.latent_layer.draw(posterior, self._n_posterior_samples)
            latents = th.cat((latents, draws))
        distribution = self.policy.distribution_at(tensors, latents, step.states.pi[0][-1])
        if isinstance(distribution, MixtureDistribution):
            distribution = distribution.components
        normal: Any = distribution.distribution
        return tuple(part.view(len(latents), -1).cpu().double() for part in (normal.mean, normal.stddev))

    def _observe(self, obs: np.ndarray) -> tuple[PyTorchObs, th.Tensor]:
        """Observations as the policy takes them, and where trials start."""
        starts = th.as_tensor(obs[:, _FIRST_STEP]).to(self.policy.latent_layer.prior_mean)
        return self.policy.obs_to_tensor(self._normalize(obs))[0], starts

    def _n_inputs_kept(self, state: tuple[th.Tensor, ...]) -> int:
        """Number of past inputs that the posterior keeps in the state, and evaluates anew at each step."""
        empty = self.policy.initial_states(1).pi
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
    numbers = posterior_statistics(double(step.posterior), double(step.prior))
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
