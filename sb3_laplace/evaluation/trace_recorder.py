"""Recording a trace: what the posterior does at each step of the trials that are played."""

import json
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_laplace.evaluation.player import Played, Player, distribution_at, draw_latents
from sb3_laplace.evaluation.task_moves import TaskMoves, packed_covariance
from sb3_laplace.evaluation.trial_store import TrialStore, check_size
from sb3_laplace.policies.distributions import MixtureDistribution
from sb3_laplace.policies.laplace_lstm_policy import LaplaceLstmPolicy
from sb3_laplace.posteriors import PosteriorStep
from sb3_laplace.posteriors.gaussian import Gaussian
from sb3_laplace.posteriors.statistics import posterior_statistics, to_float64
from sb3_laplace.vec_env.gymnasium_vec_env import GymnasiumVecEnv
from sb3_laplace.vec_env.infos import attribute_of, entries
from sb3_laplace_envs.tasks.trials import TrialVectorEnv

#: What is recorded of each step beside the environment's own metrics
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
    "episode_start",
)
#: What is recorded where there is a read-out of the task
TASK_COLUMNS = ("task_move", "task_expected_move")
#: What the names of the environment's metrics begin with, where they stand beside those of ``COLUMNS``
METRICS = "metrics/"
# Of example trials: means of the first steps, covariances at ever longer distances (a matrix each)
_EXAMPLE_STEPS = 1000
_COVARIANCE_STEPS = (0, 1, 2, 4, 7, 12, 20, 33, 54, 88, 143, 232, 376, 609, 986)
# Draws from the posterior that the calibration of the policy is judged by
_N_DRAWS = 16
# Of an environment's specification: how it was made, not what it is
_MAKE_KWARGS = ("render_mode", "num_envs", "vectorization_mode")
# Entries of an info dict that SB3 puts there
_NO_METRICS = ("TimeLimit.truncated", "terminal_observation")
# Of the columns: all are in single precision but the reward
_BYTES_PER_STEP = 4 * (len(COLUMNS) + len(TASK_COLUMNS) + 1)
_DISCRETE = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class TraceRecorder:
    """Records what a player plays, by :meth:`record` for every step.

    :param player: the player, which asks the environment for its tasks
    :param n_trials: number of trials that it plays
    :param n_examples: number of trials of which the posteriors themselves are kept
    :raises ValueError: if the environment is one of our tasks with trials too long to be recorded. (Of others only
        bounds are known, as ``max_episode_steps``, and these may be far from what is played.)
    """

    def __init__(self, player: Player, n_trials: int, n_examples: int) -> None:
        self.policy: LaplaceLstmPolicy = player.model.policy
        self.env = player.env
        self._player = player
        self._store = TrialStore(n_trials)
        self._task_moves = TaskMoves(n_trials)
        self._rng = np.random.default_rng(0)
        # By trial, what the environment said of its episodes
        self._episode_returns: dict[int, np.ndarray] = {}
        self._gram: th.Tensor | None = None
        self._previous: Gaussian | None = None
        #: What turns actions into the units of targets; None as long as no target was reported
        self.action_scale: float | None = None
        #: How well the task is read out, or why it is not, see :meth:`TaskMoves.result`; known with the result. None
        #: for a point
        self.task_readout: dict[str, float] | str | None = None
        base = self.env.unwrapped
        if isinstance(base, GymnasiumVecEnv) and isinstance(base.env.unwrapped, TrialVectorEnv):
            check_size(base.env.unwrapped.trial_length, n_trials, _BYTES_PER_STEP)
        space = self.policy.action_space
        self._is_discrete = isinstance(space, _DISCRETE)
        # Draws of gSDE share one noise matrix, so they are no sample of its distribution
        self._has_quantiles = isinstance(space, spaces.Box) and space.shape == (1,) and not self.policy.use_sde
        self._example_envs = np.flatnonzero(player.active)[:n_examples]
        self._example_rows = player.rows[self._example_envs]
        self._example_means: list[np.ndarray] = []
        self._example_covariances: list[np.ndarray] = []

    @th.inference_mode()
    def record(self, played: Played) -> None:
        """Record one step of all environments.

        :param played: the step
        :raises ValueError: if a trial gets too long
        """
        values = self._statistics(played)
        # One transfer from the device for all of them
        numbers = th.stack([value.float().view(-1) for value in values.values()]).cpu().numpy()
        columns = dict(zip(values, numbers, strict=True))
        metrics = self._metrics(played.infos)
        columns["target_quantile"] = self._quantiles(played, metrics.get("target"))
        columns["episode_start"] = played.starts.float().cpu().numpy()
        columns["reward"] = played.rewards
        columns.update({METRICS + name: array for name, array in metrics.items()})
        counts = played.counts
        self._keep_episodes(played)
        self._keep_examples(played.step.posterior, played.rows, counts)
        self._store.add(played.rows[counts], {name: array[counts] for name, array in columns.items()})
        self._keep_for_readout(played)

    def _keep_for_readout(self, played: Played) -> None:
        """Keep what the read-out of the task needs, of the trials that it is kept of."""
        if played.tasks is None or self.policy.latent_layer.is_point:
            return
        envs = np.flatnonzero(played.counts)
        envs = envs[self._task_moves.keeps(played.rows[envs])]
        if envs.size:
            assert self._previous is not None
            # In double precision, and factorized already
            covariance = packed_covariance(self._previous, th.as_tensor(envs, device=self._previous.mean.device))
            means = played.step.posterior.posterior.mean.cpu().numpy()
            starts = played.starts.cpu().numpy().astype(bool)
            self._task_moves.add(played.rows[envs], starts[envs], means[envs], covariance, played.tasks[envs])

    # -- statistics of a step ---------------------------------------------------------------------------

    def _statistics(self, played: Played) -> dict[str, th.Tensor]:
        step, starts = played.step, played.starts
        posterior = to_float64(step.posterior.posterior)
        # q_{t-1} is what the last step has factorized already, unless a trial starts
        previous = self._previous
        if previous is None or starts.any():
            previous = to_float64(step.posterior.previous)
        self._previous = posterior
        of_posterior = posterior_statistics(posterior, previous)
        # A point has none
        of_posterior["entropy"] = of_posterior["entropy"].where(of_posterior["entropy"].isfinite(), th.nan)
        noise = None if step.noise is None else step.noise.unsqueeze(2)
        # The second look at the step costs little: it takes neither a Jacobian nor a factorization
        before = self.policy.sequence_states(played.before)
        masked: dict[str, Any] = {} if step.action_masks is None else {"action_masks": step.action_masks}
        entropy = self.policy.evaluate_sequences(played.obs, step.actions, before, starts, noise, **masked).entropy
        confidence = th.full_like(step.log_prob, th.nan)
        if self._is_discrete:
            over_draws = distribution_at(self.policy, played.obs, step, draw_latents(self.policy, step, _N_DRAWS))
            confidence = over_draws.log_prob(step.actions).exp()
        return {
            **of_posterior,
            "jacobian_norm": self._jacobian_norm(played),
            "action_entropy": -step.log_prob if entropy is None else entropy,
            "value": step.values,
            "confidence": confidence,
        }

    def _jacobian_norm(self, played: Played) -> th.Tensor:
        """Frobenius norm of J_t, shape (n_envs,)."""
        core, projection = self.policy.lstm_actor, self.policy.latent_layer.mean_net
        step = played.step
        state = step.states.pi.core
        jacobian = core.jacobian(core.jacobian_inputs(step.features, state), state)
        if projection is None:
            return jacobian.row_norms_squared().sum(-1).sqrt()
        if self._gram is None:
            self._gram = jacobian.projected_gram(projection.weight)
        return jacobian.projected_norm_squared(self._gram).sqrt()

    def _quantiles(self, played: Played, targets: np.ndarray | None) -> np.ndarray:
        """Quantile of each target among predictions, exactly uniform if they have the same distribution.

        The predictions are an action for each of some draws from q_t, as the environment takes them.

        :param targets: in the units of actions times ``action_scale``, shape (n_envs,); None if there are none
        :return: shape (n_envs,), float32; NaN where there is no target
        """
        if targets is None or not self._has_quantiles:
            return np.full(self.env.num_envs, np.nan, dtype=np.float32)
        if self.action_scale is None:
            self.action_scale = _action_scale_of(self.env)
        latents = draw_latents(self.policy, played.step, _N_DRAWS)
        mixture = distribution_at(self.policy, played.obs, played.step, latents)
        assert isinstance(mixture, MixtureDistribution)
        actions = mixture.components.sample().cpu().numpy().reshape(-1, 1)
        predictions = self.action_scale * self.policy.to_env_actions(actions).reshape(_N_DRAWS, -1)
        # Ranks are randomized within a gap between predictions, and among ties (of clipped actions)
        below, equal = (predictions < targets).sum(0), (predictions == targets).sum(0)
        rank = below + self._rng.random(len(targets)) * (1 + equal)
        return np.where(np.isnan(targets), np.nan, rank / (_N_DRAWS + 1)).astype(np.float32)

    def _metrics(self, infos: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        """Numbers that the environment reported of the step, NaN where it did not, each of shape (n_envs,), float64."""
        n_envs = self.env.num_envs
        batched = getattr(self.env, "step_infos", None)
        metrics: dict[str, np.ndarray] = {}
        if batched is not None:
            for key, values, mask in entries(batched):
                if isinstance(values, np.ndarray) and values.shape == (n_envs,) and values.dtype.kind in "biuf":
                    numbers = values.astype(np.float64)
                    metrics[str(key)] = numbers if mask is None else np.where(mask, numbers, np.nan)
            return metrics
        for i, info in enumerate(infos):
            for key, value in info.items():
                if key not in _NO_METRICS and isinstance(value, (bool, int, float, np.number, np.bool_)):
                    metrics.setdefault(str(key), np.full(n_envs, np.nan))[i] = value
        return metrics

    def _keep_episodes(self, played: Played) -> None:
        """Keep the returns of the episodes within the trials that ended, where the environment reports them."""
        for i in np.flatnonzero(played.ended):
            info = played.infos[i]
            if "episode_returns" in info:
                self._episode_returns[int(played.rows[i])] = info["episode_returns"][: info["episodes_ended"]]

    # -- example trials ---------------------------------------------------------------------------------

    def _keep_examples(self, step: PosteriorStep, rows: np.ndarray, counts: np.ndarray) -> None:
        """Keep the posteriors of the first trials, which all started together."""
        envs = self._example_envs
        playing = counts[envs] & (rows[envs] == self._example_rows)
        n_steps = len(self._example_means)
        if not playing.any() or n_steps == _EXAMPLE_STEPS:
            return
        index = th.as_tensor(envs, device=step.posterior.mean.device)
        chosen = step.posterior[index]
        self._example_means.append(np.where(playing[:, None], chosen.mean.cpu().numpy(), np.nan))
        if n_steps in _COVARIANCE_STEPS:
            covariance = chosen.covariance.cpu().numpy()
            self._example_covariances.append(np.where(playing[:, None, None], covariance, np.nan))

    # -- what was recorded ------------------------------------------------------------------------------

    @property
    def n_recorded(self) -> int:
        """Number of trials recorded, if only in part."""
        return int((self._store.lengths > 0).sum())

    def _returns_by_episode(self, trials: np.ndarray) -> np.ndarray | None:
        """Returns of the episodes of some trials, NaN where there was none; None if no trial has any."""
        if not self._episode_returns:
            return None
        returns = np.full((len(trials), max(1, *map(len, self._episode_returns.values()))), np.nan)
        for row, trial in enumerate(trials.tolist()):
            episodes = self._episode_returns.get(trial, ())
            returns[row, : len(episodes)] = episodes
        return returns

    def result(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], tuple[np.ndarray, ...] | None]:
        """What was recorded.

        :return: ``lengths``, ``complete``, ``returns``, ``episode_lengths``, ``returns_by_episode`` (if any),
            ``COLUMNS`` and ``TASK_COLUMNS`` by name; the environment's metrics by name; and the fields of
            :class:`~sb3_laplace.evaluation.traces.ExampleTrials`, None without examples
        """
        columns, kept = self._store.result()
        player, lengths = self._player, self._store.lengths[kept]
        own = {
            "lengths": lengths,
            # An interrupt may have come between the last step and its recording
            "complete": player.complete[kept] & (player.lengths[kept] == lengths),
            "returns": player.returns[kept],
            "episode_lengths": player.episode_lengths[kept],
            **{name: columns[name] for name in COLUMNS},
        }
        *moves, readout = self._task_moves.result(int(lengths.max()))
        self.task_readout = None if self.policy.latent_layer.is_point else readout
        own.update({name: array[kept] for name, array in zip(TASK_COLUMNS, moves, strict=True)})
        by_episode = self._returns_by_episode(kept)
        if by_episode is not None:
            own["returns_by_episode"] = by_episode
        metrics = {name.removeprefix(METRICS): columns[name] for name in sorted(columns) if name.startswith(METRICS)}
        if not self._example_means:
            return own, metrics, None
        means, covariances = np.stack(self._example_means, 1), np.stack(self._example_covariances, 1)
        trials = np.searchsorted(kept, self._example_rows)
        return own, metrics, (trials, means, np.array(_COVARIANCE_STEPS[: covariances.shape[1]]), covariances)


def _action_scale_of(env: VecEnv) -> float:
    """What turns actions into the units of targets: the environment's ``action_scale`` if it is a positive number."""
    scale = attribute_of(env, "action_scale", 1.0)
    is_number = isinstance(scale, (int, float, np.number)) and not isinstance(scale, bool)
    return float(scale) if is_number and 0.0 < scale < np.inf else 1.0


# -- settings -----------------------------------------------------------------------------------------------


def settings_of(model: BaseAlgorithm, env: VecEnv) -> dict[str, Any]:
    """What describes a trace: who played what. Values that JSON cannot hold become text."""
    policy: LaplaceLstmPolicy = model.policy  # type: ignore[assignment]
    spec = _spec_of(env)
    core, own = policy.lstm_actor, policy._own_parameters
    settings = {
        "env": _name_of(env) if spec is None else spec.id,
        "env_kwargs": {key: value for key, value in getattr(spec, "kwargs", {}).items() if key not in _MAKE_KWARGS},
        "algorithm": type(model).__name__,
        "num_timesteps": model.num_timesteps,
        "policy": type(policy).__name__,
        "recurrent_network": f"{type(core).__name__}, {own['n_lstm_layers']} x {own['lstm_hidden_size']}",
        "posterior": type(policy.latent_layer).__name__,
        "posterior_kwargs": own["posterior_kwargs"],
        "latent_dim": policy.latent_layer.latent_dim,
        "prior_std": policy.latent_layer.prior_std,
        "n_posterior_samples": policy.n_posterior_samples,
    }
    return json.loads(json.dumps(settings, default=str))


def _spec_of(env: VecEnv) -> EnvSpec | None:
    """How the environment was made, where this process has it.

    Workers are not asked: a specification may hold what does not pickle, and that would end them.
    """
    base = env.unwrapped
    spec = None
    if isinstance(base, GymnasiumVecEnv) and isinstance(base.env.unwrapped, AsyncVectorEnv):
        spec = base.env.spec
    elif isinstance(base, (DummyVecEnv, GymnasiumVecEnv)):
        spec = attribute_of(base, "spec", None)
    return spec if isinstance(spec, EnvSpec) else None


def _name_of(env: VecEnv) -> str:
    """The environment's id, or the name of its class where it has none."""
    base = env.unwrapped
    if isinstance(base, GymnasiumVecEnv):
        return type(base.env.unwrapped).__name__
    if isinstance(base, DummyVecEnv):
        return type(base.envs[0].unwrapped).__name__
    # <Wrapper<Class<id>>> or <Wrapper<Class instance>>: a text, which workers can send
    text = base.env_method("__str__", indices=0)[0]
    return text.rstrip(">").rpartition("<")[2].removesuffix(" instance")
