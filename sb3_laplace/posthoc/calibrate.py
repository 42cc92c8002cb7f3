"""Choosing the width of the prior of an agent whose heads have not learned to read samples."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecEnv

from sb3_laplace.algorithm.laplace_recurrent_ppo import LaplaceRecurrentPPO
from sb3_laplace.checks import check_choice, check_integer, check_positive
from sb3_laplace.evaluation.player import Player, distribution_at, draw_latents, player_env, seeded_trials
from sb3_laplace.policies.types import PolicyStep, RecurrentStates
from sb3_laplace.posteriors import LaplacePosterior


class Calibration(NamedTuple):
    """How the agent fares against the standard deviation of its prior.

    :param prior_std: the chosen one
    :param prior_stds: those tried, ascending, shape (n,)
    :param scores: mean score of the trials with each, shape (n,)
    :param standard_errors: of the scores' differences from the best one, shape (n,)
    :param unsampled: mean score of the agent that acts on the mean of its posterior
    """

    prior_std: float
    prior_stds: np.ndarray
    scores: np.ndarray
    standard_errors: np.ndarray
    unsampled: float


def laplace_layer(model: LaplaceRecurrentPPO) -> LaplacePosterior:
    """The model's latent layer, one whose prior can be set to good purpose.

    :param model: the model
    :raises ValueError: if its posterior is no Laplace posterior, or one on which the prior has no effect
    """
    layer = model.policy.latent_layer
    if not isinstance(layer, LaplacePosterior):
        raise ValueError(f"model must have a Laplace posterior, got {type(layer).__name__}.")
    if layer.factorization == "stationary" and layer.damping is not None:
        raise ValueError(
            "prior_std has no effect on the model's posterior: it is stationary with an explicit "
            f"damping = {layer.damping!r}, which takes the place of the prior's precision. Calibrate a model whose "
            "damping is None."
        )
    return layer


def calibrate_prior_std(
    model: LaplaceRecurrentPPO,
    env: VecEnv | gym.Env,
    prior_stds: Sequence[float] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    n_trials: int = 256,
    n_posterior_samples: int = 1,
    criterion: str = "return",
    deterministic: bool = False,
    seed: int = 0,
) -> Calibration:
    """Pick the prior's standard deviation for an agent whose heads have not learned to read samples.

    A posterior wider than what the heads have seen degrades the agent. Every value is tried on the same held-out
    trials, and the widest whose score is not below the best one by more than a standard error (of the difference,
    trial by trial) is set on the model, saved with it, and returned. (The narrowest is always as good as not sampling
    at all, and says nothing.)

    What a trial is, and what its return, is said at :class:`~sb3_laplace.evaluation.player.Player`: with VecNormalize
    its statistics are not updated and returns are the environment's own, and if it is the environment that the agent
    trains on (``model.get_env()``), training goes on with a reset. Torch's random number generators are left as they
    were.

    :param model: an agent with a Laplace posterior; its ``n_posterior_samples`` is left as it is
    :param env: environment of the held-out trials
    :param prior_stds: values to try, all positive
    :param n_trials: number of trials
    :param n_posterior_samples: number of samples K with which the agent acts while it is measured
    :param criterion: "return" (largest return), or "likelihood": largest mean log-likelihood, in nats per
        step, of the actions that the unsampled agent takes
    :param deterministic: whether the agent takes the most probable action of its sampled policy
    :param seed: seed of the trials and of the samples
    :raises ValueError: if an argument is out of range, the environment does not fit the agent, the model's posterior
        is no Laplace posterior or one on which prior_std has no effect, or a score is not finite
    """
    layer = laplace_layer(model)
    candidates = np.sort([check_positive("prior_stds", value) for value in prior_stds])
    if len(candidates) == 0:
        raise ValueError("prior_stds must hold at least one value, got none.")
    check_integer("n_trials", n_trials, minimum=2)
    check_integer("n_posterior_samples", n_posterior_samples, minimum=1)
    check_choice("criterion", criterion, ("return", "likelihood"))
    env = player_env(model, env)

    with _restored_prior(layer):
        unsampled = _scores(model, env, n_trials, 0, criterion, deterministic, seed)
        scores = np.zeros((len(candidates), n_trials))
        for candidate, its_scores in zip(candidates, scores, strict=True):
            layer.set_prior(std=float(candidate))
            its_scores[:] = _scores(model, env, n_trials, n_posterior_samples, criterion, deterministic, seed)
    means = scores.mean(1)
    if not np.isfinite(means).all():
        raise ValueError(
            f"criterion={criterion!r} cannot compare scores that are not finite: the means are {means} for "
            f"prior_stds {candidates}."
        )
    errors = (scores - scores[means.argmax()]).std(1, ddof=1) / np.sqrt(n_trials)
    chosen = float(candidates[np.flatnonzero(means + errors >= means.max())[-1]])
    layer.set_prior(std=chosen)
    model.set_posterior_settings(prior_std=chosen)
    return Calibration(chosen, candidates, means, errors, float(unsampled.mean()))


@contextlib.contextmanager
def _restored_prior(layer: LaplacePosterior) -> Iterator[None]:
    """Put the prior back afterwards."""
    before = layer.prior_std
    try:
        yield
    finally:
        layer.set_prior(std=before)


def _scores(
    model: LaplaceRecurrentPPO,
    env: VecEnv,
    n_trials: int,
    n_posterior_samples: int,
    criterion: str,
    deterministic: bool,
    seed: int,
) -> np.ndarray:
    """Score of each trial if the agent acts on K draws from its posterior (K = 0: on its mean), shape (n_trials,)."""
    policy = model.policy
    seeds = np.random.default_rng(seed)
    log_likelihoods = np.zeros(n_trials)
    of_step = np.zeros(env.num_envs)

    def act(obs: PyTorchObs, states: RecurrentStates, starts: th.Tensor, /, **masked: th.Tensor | None) -> PolicyStep:
        step = policy.act(obs, states, starts, deterministic=True, **masked)
        latents = draw_latents(policy, step, n_posterior_samples)
        # For a likelihood the unsampled agent acts; its posterior, and so its states, are the same
        acts_on = latents if criterion == "return" else draw_latents(policy, step, 0)
        distribution = distribution_at(policy, obs, step, acts_on)
        # The same random numbers for the actions, however many the latents took
        th.manual_seed(int(seeds.integers(2**31)))
        actions = distribution.get_actions(deterministic=deterministic)
        if criterion == "likelihood":
            of_step[:] = distribution_at(policy, obs, step, latents).log_prob(actions).cpu().numpy()
        return step._replace(actions=actions.reshape(step.actions.shape))

    player = Player(model, env, n_trials, act)
    with seeded_trials(player, seed) as steps:
        for played in steps:
            log_likelihoods[played.rows[played.counts]] += of_step[played.counts]
    return player.returns if criterion == "return" else log_likelihoods / player.lengths
