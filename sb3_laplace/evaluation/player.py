"""Playing trials: the one loop that lets an agent act in a batch of environments.

What a trial is, what it returned and which steps count is decided here, in the same way for everything that plays.
"""

import contextlib
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, is_vecenv_wrapped, unwrap_vec_normalize

from sb3_laplace.algorithm.laplace_recurrent_ppo import LaplaceRecurrentPPO
from sb3_laplace.algorithm.masking import ActionMasks
from sb3_laplace.checks import check_no_nan
from sb3_laplace.policies.laplace_lstm_policy import LaplaceLstmPolicy
from sb3_laplace.policies.types import PolicyStep, RecurrentStates
from sb3_laplace.readout import reported_tasks
from sb3_laplace.vec_env.infos import ignored_steps


class Act(Protocol):
    """How an agent acts."""

    def __call__(
        self,
        obs: PyTorchObs,
        states: RecurrentStates,
        episode_starts: th.Tensor,
        /,
        *,
        action_masks: th.Tensor | None = None,
    ) -> PolicyStep:
        """One step of N environments.

        :param obs: observations
        :param states: recurrent states before them
        :param episode_starts: 1 where an episode starts, shape (N,)
        :param action_masks: True for the actions that are allowed, shape (N, n); None if all are
        """


# An agent's episodes within one trial. Lives are few: so many mean that Monitor never sees an episode end.
_MAX_EPISODES = 1000


class Played(NamedTuple):
    """One step of N environments.

    :param obs: what the agent observed, as the policy takes it
    :param starts: 1 where the agent's memory started afresh before the step, shape (N,)
    :param before: recurrent states before the step
    :param step: what the policy did
    :param rewards: of the environment, not normalized, shape (N,), float64
    :param infos: what the environment reported
    :param counts: False for an environment that has played its trials, or spent the step on a reset, shape (N,)
    :param rows: the trial that each environment was in, only to be used where the step counts, shape (N,)
    :param ended: the environments in which a trial ended with the step, shape (N,)
    :param tasks: the task that each environment was in, shape (N, ...); None where they report none, or are not asked
    """

    obs: PyTorchObs
    starts: th.Tensor
    before: RecurrentStates
    step: PolicyStep
    rewards: np.ndarray
    infos: list[dict[str, Any]]
    counts: np.ndarray
    rows: np.ndarray
    ended: np.ndarray
    tasks: np.ndarray | None = None


class Player:
    """Lets an agent play a number of trials.

    Every environment plays a number of trials fixed in advance, as in SB3's ``evaluate_policy``, so that short
    trials are not counted more often than long ones.

    A trial is an episode of ``Monitor`` where there is one (of ``VecMonitor``, or what
    :class:`~sb3_laplace.GymnasiumVecEnv` counts itself), and its return and length are those that Monitor reports. So
    wrappers above Monitor that scale rewards do not change returns, and where they end episodes early (at the loss
    of a life) the agent's memory starts afresh but the trial goes on. Without Monitor a trial is an episode of the
    environment as the agent has it, and its return the sum of the rewards. Rewards are never VecNormalize's, whose
    statistics are used as they are and not updated. A step that an environment merely spends on its reset
    (``NEXT_STEP`` autoreset) belongs to no trial.

    Actions are masked where the environment has masks, unless the agent was trained with ``use_masking=False``.

    Where the environment is the one that the model trains on, the model forgets its last observation, so that
    training goes on with a reset instead of an observation that is out of date. Within ``learn`` (from a callback)
    the training environment cannot be played.

    :param model: the agent
    :param env: an environment that fits it, a ``VecEnv``
    :param n_trials: number of trials
    :param act: how the agent acts; by default as in training, on draws from its posterior
    :param asks_tasks: whether the environments are asked for their tasks before every step
    """

    def __init__(
        self,
        model: LaplaceRecurrentPPO,
        env: VecEnv,
        n_trials: int,
        act: Act | None = None,
        asks_tasks: bool = False,
    ) -> None:
        self.model = model
        self.env = env
        self.act: Act = model.policy.act if act is None else act
        n_envs = env.num_envs
        self._targets = (n_trials + np.arange(n_envs)) // n_envs
        self._first_row = np.cumsum(self._targets) - self._targets
        self._played = np.zeros(n_envs, dtype=np.int64)
        self._episodes = np.zeros(n_envs, dtype=np.int64)
        self._asks_tasks = asks_tasks
        self._n_steps = 0
        self._normalizer = unwrap_vec_normalize(env)
        self._is_monitored = is_vecenv_wrapped(env, VecMonitor) or env.env_is_wrapped(Monitor)[0]
        #: Return of each trial (of one under way: so far), shape (n_trials,)
        self.returns = np.zeros(n_trials)
        #: Number of steps that the agent took in each trial so far, shape (n_trials,)
        self.lengths = np.zeros(n_trials, dtype=np.int64)
        #: Number of steps of each trial as Monitor counts them (of one under way: the agent's), shape (n_trials,)
        self.episode_lengths = np.zeros(n_trials, dtype=np.int64)
        #: Which trials have ended, shape (n_trials,)
        self.complete = np.zeros(n_trials, dtype=bool)

    @property
    def active(self) -> np.ndarray:
        """Environments with trials left to play, shape (n_envs,)."""
        return self._played < self._targets

    @property
    def rows(self) -> np.ndarray:
        """The trial that each environment is in, shape (n_envs,); not to be used where it is not active."""
        return self._first_row + self._played

    def play(self, seed: int | None = None) -> Generator[Played, None, None]:
        """Reset the environment and play all trials, a step of all environments at a time.

        Close the iterator (``contextlib.closing``) if it is left before its end.

        :param seed: of the environments; None to go on with the random numbers that they have
        :raises ValueError: if an observation holds NaN, action masks leave no action, or Monitor never sees an episode
            end
        """
        self.model.policy.set_training_mode(False)
        try:
            with frozen_statistics(self.env):
                if seed is not None:
                    self.env.seed(seed)
                obs, starts = self.env.reset(), np.ones(self.env.num_envs, dtype=bool)
                states = self.model.policy.initial_states(self.env.num_envs)
                # What batched environments report of masks is known now
                self._masks = ActionMasks(self.env, False if self.model.use_masking is False else None)
                while self.active.any():
                    obs, starts, played = self._step(obs, states, starts)
                    states = played.step.states
                    yield played
        finally:
            training_env = self.model.get_env()
            if training_env is not None and self.env.unwrapped is training_env.unwrapped:
                self.model._last_obs = None

    @th.inference_mode()
    def _step(self, obs: Any, states: RecurrentStates, starts: np.ndarray) -> tuple[Any, np.ndarray, Played]:
        """One step of all environments.

        :return: observations and where episodes start in the next step, and what was played
        """
        policy = self.model.policy
        check_no_nan(obs)
        tensors = policy.obs_to_tensor(obs)[0]
        starts_tensor = th.as_tensor(starts).to(policy.latent_layer.prior_mean)
        # Before the step, which may begin another trial
        tasks = reported_tasks(self.env) if self._asks_tasks else None
        self._asks_tasks = tasks is not None
        masks = self._masks.read(f" at step {self._n_steps} after the reset")
        # Only where there are any: a policy of the user's that overrides act() need not know of them
        masked = {} if masks is None else {"action_masks": th.as_tensor(masks, device=policy.device)}
        self._n_steps += 1
        step = self.act(tensors, states, starts_tensor, **masked)
        obs, rewards, dones, infos = self.env.step(policy.to_env_actions(step.actions.cpu().numpy()))
        if self._normalizer is not None:
            rewards = self._normalizer.get_original_reward()
        rewards = rewards.astype(np.float64)
        rows, counts = self.rows, self.active & ~ignored_steps(self.env)
        ended = self._count(rewards, dones, infos, counts)
        played = Played(tensors, starts_tensor, states, step, rewards, infos, counts, rows, ended, tasks)
        return obs, dones, played

    def _count(
        self, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]], counts: np.ndarray
    ) -> np.ndarray:
        """Add a step to the trials that are under way, and close those that ended.

        :return: the environments in which a trial ended, shape (n_envs,)
        """
        rows = self.rows[counts]
        self.returns[rows] += rewards[counts]
        self.lengths[rows] += 1
        self.episode_lengths[rows] += 1
        self._episodes += dones & counts
        ended = dones & counts
        for i in np.flatnonzero(ended) if self._is_monitored else ():
            if "episode" in infos[i]:
                self.returns[self.rows[i]] = infos[i]["episode"]["r"]
                self.episode_lengths[self.rows[i]] = infos[i]["episode"]["l"]
            else:
                ended[i] = False
        if (self._episodes > _MAX_EPISODES).any():
            raise ValueError(
                f"Monitor saw no episode end while {_MAX_EPISODES} of the agent's ended: trials are Monitor's "
                "episodes, so wrappers that end episodes for good (TimeLimit) have to be beneath it."
            )
        self._episodes[ended] = 0
        self.complete[self.rows[ended]] = True
        self._played[ended] += 1
        return ended


def player_env(model: BaseAlgorithm, env: VecEnv | gym.Env) -> VecEnv:
    """The environment as the agent takes it: vectorized, and images channel-first.

    :raises ValueError: if its spaces are not the agent's
    """
    wrapped = LaplaceRecurrentPPO._wrap_env(env, monitor_wrapper=False)
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
    normalizer = unwrap_vec_normalize(env)
    if normalizer is None:
        yield
        return
    training, normalizer.training = normalizer.training, False
    try:
        yield
    finally:
        normalizer.training = training


@contextlib.contextmanager
def forked_random(device: th.device, seed: int | None = None) -> Iterator[None]:
    """Put torch's random number generators, the CPU's and a CUDA device's, back afterwards to where they were.

    :param device: the agent's device
    :param seed: of the generators meanwhile; None to go on from where they are
    """
    with th.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if seed is not None:
            th.manual_seed(seed)
        yield


@contextlib.contextmanager
def seeded_trials(player: Player, seed: int) -> Iterator[Iterator[Played]]:
    """The steps of all trials of a player; torch's random number generators are put back afterwards.

    :param player: the player
    :param seed: of the environments and of torch
    """
    with forked_random(player.model.device, seed), contextlib.closing(player.play(seed)) as steps:
        yield steps


# -- what an agent would do beside what it did --------------------------------------------------------------


def draw_latents(policy: LaplaceLstmPolicy, step: PolicyStep, n_draws: int) -> th.Tensor:
    """Draws from the posterior q_t of a step.

    :param policy: the policy that made the step
    :param step: the step, of N environments
    :param n_draws: number of draws K; 0 for the posterior's mean alone
    :return: shape (max(K, 1), N, D); of a point, the mean K times
    """
    posterior = step.posterior.posterior
    if n_draws == 0 or policy.latent_layer.is_point:
        return posterior.mean.expand(max(n_draws, 1), *posterior.mean.shape)
    return policy.latent_layer.draw(posterior, n_draws)[0]


def distribution_at(policy: LaplaceLstmPolicy, obs: PyTorchObs, step: PolicyStep, latents: th.Tensor) -> Distribution:
    """The action distribution of a step if the heads had read other latents.

    :param policy: the policy that made the step
    :param obs: what it observed
    :param step: the step, of N environments
    :param latents: shape (K, N, D)
    :return: the mixture over the K latents, valid until the policy makes its next distribution (SB3 reuses the object)
    """
    return policy.distribution_at(obs, latents, step.hidden, step.action_masks)
