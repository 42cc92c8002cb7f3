"""Recording a trace: playing trials on a batched environment and storing what the posterior does at each step."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    VecEnv,
    VecMonitor,
    VecNormalize,
    is_vecenv_wrapped,
    unwrap_vec_normalize,
)

from sb3_laplace.checks import check_no_nan
from sb3_laplace.evaluation.trial_store import TrialStore, check_size
from sb3_laplace.policies import LaplaceLstmPolicy
from sb3_laplace.policies.distributions import MixtureDistribution
from sb3_laplace.policies.types import PolicyStep
from sb3_laplace.posteriors import PosteriorStep
from sb3_laplace.posteriors.gaussian import Gaussian
from sb3_laplace.posteriors.statistics import posterior_statistics, to_float64
from sb3_laplace.vec_env.infos import attribute_of, entries

try:
    from tqdm import tqdm  # type: ignore[import-untyped]
except ImportError:
    tqdm = None

#: What is recorded of each step beside the environment's own figures
COLUMNS = (
    "entropy",
    "kl_mean",
    "kl_covariance",
    "mean_step",
    "expected_move",
    "jacobian_norm",
    "action_entropy",
    "value",
    "confidence",
    "target_quantile",
    "reward",
)
# Of example trials: means of the first steps, covariances at ever longer distances (a matrix each)
_EXAMPLE_STEPS = 1000
_COVARIANCE_STEPS = (0, 1, 2, 4, 7, 12, 20, 33, 54, 88, 143, 232, 376, 609, 986)
# Draws from the posterior that the calibration of the policy is judged by
_N_DRAWS = 16
# Of an environment's specification: how it was made, not what it is
_MAKE_KWARGS = ("render_mode", "num_envs", "vectorization_mode")
_DISCRETE = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class TraceRecorder:
    """Plays trials and records them: :meth:`start`, then :meth:`step` until :attr:`finished`.

    :param policy: the agent's policy
    :param env: an environment that fits it
    :param n_trials: number of trials
    :param deterministic: act on the posterior's mean and take the mode
    :param n_examples: number of trials of which the posteriors themselves are kept
    """

    def __init__(
        self, policy: LaplaceLstmPolicy, env: VecEnv, n_trials: int, deterministic: bool, n_examples: int
    ) -> None:
        self.policy = policy
        self.env = env
        self.deterministic = deterministic
        self._store = TrialStore(n_trials, env.num_envs)
        self._rng = np.random.default_rng(0)
        self._gram: th.Tensor | None = None
        self._normalizer = unwrap_vec_normalize(env)
        self._is_monitored = is_vecenv_wrapped(env, VecMonitor) or env.env_is_wrapped(Monitor)[0]
        space = policy.action_space
        self._is_discrete = isinstance(space, _DISCRETE)
        # Draws of gSDE share one noise matrix, so they are no sample of its distribution
        self._has_quantiles = isinstance(space, spaces.Box) and space.shape == (1,) and not policy.use_sde
        self._action_scale = float(attribute_of(env, "action_scale", 1.0))
        self._example_envs = np.flatnonzero(self._store.active)[:n_examples]
        self._example_rows = self._store.rows[self._example_envs]
        self._example_means: list[np.ndarray] = []
        self._example_covariances: list[np.ndarray] = []

    @property
    def finished(self) -> bool:
        """Whether all trials have been played."""
        return not self._store.active.any()

    @property
    def n_recorded(self) -> int:
        """Number of trials recorded, if only in part."""
        return int((self._store.lengths > 0).sum())

    def check_length(self, n_steps: int | None) -> None:
        """Refuse trials that are known to be too long before the first step.

        :param n_steps: length of a trial, None if it is not known
        :raises ValueError: saying what they would take
        """
        if n_steps is not None:
            check_size(n_steps, self._store.n_trials, len(COLUMNS))

    def start(self) -> None:
        """Reset the environment and the agent's memory."""
        self.policy.set_training_mode(False)
        self._obs = self.env.reset()
        self._states = self.policy.initial_states(self.env.num_envs)
        self._starts = np.ones(self.env.num_envs, dtype=bool)
        self._previous: Gaussian | None = None

    @th.inference_mode()
    def step(self) -> int:
        """Play and record one step of all environments.

        :return: number of trials that ended
        :raises ValueError: if an observation holds NaN, or a trial gets too long
        """
        check_no_nan(self._obs)
        obs = self.policy.obs_to_tensor(self._obs)[0]  # type: ignore[arg-type]
        starts = th.as_tensor(self._starts).to(self.policy.latent_layer.prior_mean)
        played = self.policy.act(obs, self._states, starts, self.deterministic)
        values = self._statistics(obs, starts, played)
        # One transfer from the device for all of them
        numbers = th.stack([value.float().view(-1) for value in values.values()]).cpu().numpy()
        columns = dict(zip(values, numbers, strict=True))
        self._keep_examples(played.posterior)

        actions = self.policy.to_env_actions(played.actions.cpu().numpy())
        predictions = self._predictions(obs, played)
        self._obs, rewards, dones, infos = self.env.step(actions)
        if self._normalizer is not None:
            rewards = self._normalizer.get_original_reward()
        columns["reward"] = rewards
        figures = self._figures(infos)
        columns["target_quantile"] = self._quantiles(predictions, figures.get("target"))
        self._store.add({**columns, **figures})
        self._states = played.states
        self._starts = dones
        return self._store.end(dones, self._is_trial(dones, infos))

    def _is_trial(self, dones: np.ndarray, infos: list[dict[str, Any]]) -> np.ndarray:
        """Whether what ended is a trial: not the step that an environment merely spent on its reset."""
        is_trial = np.ones(len(dones), dtype=bool)
        if self._is_monitored:
            for i in np.flatnonzero(dones & self._store.at_first_step()):
                is_trial[i] = "episode" in infos[i]
        return is_trial

    # -- statistics of a step ---------------------------------------------------------------------------

    def _statistics(self, obs: Any, starts: th.Tensor, played: PolicyStep) -> dict[str, th.Tensor]:
        posterior = to_float64(played.posterior.posterior)
        # q_{t-1} is what the last step has factorized already, unless a trial starts
        previous = self._previous
        if previous is None or starts.any():
            previous = to_float64(played.posterior.previous)
        self._previous = posterior
        noise = None if played.noise is None else played.noise.unsqueeze(2)
        # The second look at the step costs little: it takes neither a Jacobian nor a factorization
        before = self.policy.sequence_states(self._states)
        entropy = self.policy.evaluate_sequences(obs, played.actions, before, starts, noise).entropy
        confidence = th.full_like(played.log_prob, th.nan)
        if self._is_discrete:
            confidence = self._policy_over_draws(obs, played).log_prob(played.actions).exp()
        return {
            **posterior_statistics(posterior, previous),
            "jacobian_norm": self._jacobian_norm(played),
            "action_entropy": -played.log_prob if entropy is None else entropy,
            "value": played.values,
            "confidence": confidence,
        }

    def _jacobian_norm(self, played: PolicyStep) -> th.Tensor:
        """Frobenius norm of J_t, shape (n_envs,)."""
        core, projection = self.policy.lstm_actor, self.policy.latent_layer.mean_net
        state = played.states.pi.core
        jacobian = core.jacobian(core.jacobian_inputs(played.features, state), state)
        if projection is None:
            return jacobian.row_norms_squared().sum(-1).sqrt()
        if self._gram is None:
            self._gram = jacobian.projected_gram(projection.weight)
        return jacobian.projected_norm_squared(self._gram).sqrt()

    def _policy_over_draws(self, obs: Any, played: PolicyStep) -> Distribution:
        """The action distribution averaged over draws from q_t."""
        posterior = played.posterior.posterior
        if self.policy.latent_layer.is_point:
            latents = posterior.mean.expand(_N_DRAWS, *posterior.mean.shape)
        else:
            latents, _ = self.policy.latent_layer.draw(posterior, _N_DRAWS)
        return self.policy.distribution_at(obs, latents, played.hidden)

    def _predictions(self, obs: Any, played: PolicyStep) -> np.ndarray | None:
        """One action for each of a number of draws from q_t, as the environment takes them, (n_draws, n_envs)."""
        if not self._has_quantiles:
            return None
        mixture = self._policy_over_draws(obs, played)
        assert isinstance(mixture, MixtureDistribution)
        actions = mixture.components.sample().cpu().numpy().reshape(-1, 1)
        return self.policy.to_env_actions(actions).reshape(_N_DRAWS, -1)

    def _quantiles(self, predictions: np.ndarray | None, targets: np.ndarray | None) -> np.ndarray:
        """Quantile of each target among the predictions, exactly uniform if they have the same distribution."""
        if predictions is None or targets is None:
            return np.full(self.env.num_envs, np.nan)
        scaled = predictions * self._action_scale
        # Ranks are randomized within a gap between predictions, and among ties (of clipped actions)
        below, equal = (scaled < targets).sum(0), (scaled == targets).sum(0)
        rank = below + self._rng.random(len(targets)) * (1 + equal)
        return np.where(np.isnan(targets), np.nan, rank / (_N_DRAWS + 1))

    # -- the environment's figures ----------------------------------------------------------------------

    def _figures(self, infos: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        """Numbers that the environment reported of the step, NaN where it did not, each of shape (n_envs,)."""
        n_envs = self.env.num_envs
        batched = getattr(self.env, "step_infos", None)
        figures: dict[str, np.ndarray] = {}
        if batched is not None:
            for key, values, mask in entries(batched):
                if isinstance(values, np.ndarray) and values.shape == (n_envs,) and values.dtype.kind in "biuf":
                    figures[key] = values if mask is None else np.where(mask, values, np.nan)
        else:
            for key in {key for info in infos for key, value in info.items() if _is_figure(key, value)}:
                values = [info.get(key, np.nan) for info in infos]
                figures[key] = np.array([value if _is_figure(key, value) else np.nan for value in values], np.float32)
        # Told apart from our own columns
        return {f"env_{key}" if key in (*COLUMNS, "trial", "step") else key: figures[key] for key in sorted(figures)}

    # -- example trials ---------------------------------------------------------------------------------

    def _keep_examples(self, step: PosteriorStep) -> None:
        """Keep the posteriors of the first trials, which all started together."""
        envs = self._example_envs
        playing = self._store.active[envs] & (self._store.rows[envs] == self._example_rows)
        n_steps = len(self._example_means)
        if not playing.any() or n_steps == _EXAMPLE_STEPS:
            return
        index = th.as_tensor(envs, device=step.posterior.mean.device)
        chosen = step.posterior[index]
        self._example_means.append(np.where(playing[:, None], chosen.mean.cpu().numpy(), np.nan))
        if n_steps in _COVARIANCE_STEPS:
            covariance = chosen.covariance.cpu().numpy()
            self._example_covariances.append(np.where(playing[:, None, None], covariance, np.nan))

    def result(self) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, ...] | None]:
        """What was recorded.

        :return: ``lengths``, ``complete`` and the columns; and the fields of
            :class:`~sb3_laplace.evaluation.traces.ExampleTrials`, None without examples
        """
        columns, kept = self._store.result()
        if not self._example_means:
            return columns, None
        means, covariances = np.stack(self._example_means, 1), np.stack(self._example_covariances, 1)
        trials = np.searchsorted(kept, self._example_rows)
        return columns, (trials, means, np.array(_COVARIANCE_STEPS[: covariances.shape[1]]), covariances)


# -- around a recording -------------------------------------------------------------------------------------


def player_env(model: BaseAlgorithm, env: VecEnv | gym.Env) -> VecEnv:
    """The environment as the agent takes it: vectorized, and images channel-first.

    :raises ValueError: if its spaces are not the agent's
    """
    wrapped = BaseAlgorithm._wrap_env(env, monitor_wrapper=False)
    differing = [
        f"{kind} space {describe(own)} (agent) and {describe(theirs)} (environment)"
        for kind, own, theirs in (
            ("observation", model.observation_space, wrapped.observation_space),
            ("action", model.action_space, wrapped.action_space),
        )
        if own != theirs
    ]
    if differing:
        raise ValueError(f"The environment does not fit the agent: {'; '.join(differing)}.")
    return wrapped


def describe(space: spaces.Space | None) -> str:
    """A space in one line, its bounds summarised if there are many."""
    text = " ".join(str(space).split())
    if isinstance(space, spaces.Box) and len(text) > 100:
        text = f"Box({space.low.min()} to {space.high.max()}, {space.shape}, {space.dtype})"
    return text


@contextlib.contextmanager
def frozen_statistics(env: VecEnv) -> Iterator[None]:
    """Keep VecNormalize, if there is one, from updating its statistics."""
    normalizer: VecNormalize | None = unwrap_vec_normalize(env)
    if normalizer is None:
        yield
        return
    training, normalizer.training = normalizer.training, False
    try:
        yield
    finally:
        normalizer.training = training


@contextlib.contextmanager
def progress(n_trials: int, shown: bool) -> Iterator[Any]:
    """A tqdm progress bar on a terminal, after a few seconds; something with its ``update`` otherwise."""
    if tqdm is None:
        yield _NoBar()
        return
    # disable=None: shown on a terminal only
    with tqdm(total=n_trials, unit="trial", delay=3.0, leave=False, disable=None if shown else True) as bar:
        yield bar


class _NoBar:
    def update(self, n: int) -> None:
        pass


def known_trial_length(env: VecEnv) -> int | None:
    """The length of a trial in steps where the environment knows it."""
    length = attribute_of(env, "trial_length", None)
    if length is None:
        length = getattr(attribute_of(env, "spec", None), "max_episode_steps", None)
    return None if length is None else int(length)


def settings_of(model: BaseAlgorithm, env: VecEnv) -> dict[str, Any]:
    """What describes a trace: who played what. Values that JSON cannot hold become text."""
    policy: LaplaceLstmPolicy = model.policy  # type: ignore[assignment]
    spec = attribute_of(env, "spec", None)
    core, own = policy.lstm_actor, policy._own_parameters
    settings = {
        "env": getattr(spec, "id", None) or type(env.unwrapped).__name__,
        "env_kwargs": {key: value for key, value in getattr(spec, "kwargs", {}).items() if key not in _MAKE_KWARGS},
        "algorithm": type(model).__name__,
        "num_timesteps": model.num_timesteps,
        "policy": type(policy).__name__,
        "recurrent_network": f"{type(core).__name__}, {own['n_lstm_layers']} x {own['lstm_hidden_size']}",
        "posterior": type(policy.latent_layer).__name__,
        "posterior_kwargs": policy._own_parameters["posterior_kwargs"],
        "latent_dim": policy.latent_layer.latent_dim,
        "prior_std": policy.latent_layer.prior_std,
        "n_posterior_samples": policy.n_posterior_samples,
    }
    return json.loads(json.dumps(settings, default=str))


def _is_figure(key: str, value: Any) -> bool:
    """Whether an entry of an info dict is a number that the environment reports (and not SB3's own)."""
    return (
        key != "TimeLimit.truncated"
        and np.ndim(value) == 0
        and isinstance(value, (bool, int, float, np.number, np.bool_))
    )
