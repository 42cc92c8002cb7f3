"""Choosing the width of the prior of an agent whose heads have not learned to read samples."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_laplace.algorithm.laplace_recurrent_ppo import LaplaceRecurrentPPO
from sb3_laplace.checks import check_choice, check_integer, check_positive
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


def calibrate_prior_std(
    model: LaplaceRecurrentPPO,
    env: VecEnv,
    prior_stds: Sequence[float] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    n_trials: int = 256,
    n_posterior_samples: int = 1,
    criterion: str = "return",
    deterministic: bool = False,
    seed: int = 0,
) -> Calibration:
    """Pick the prior's standard deviation for an agent whose heads have not learned to read samples.

    A posterior wider than what the heads have seen degrades the agent. Every value is tried on the same
    held-out trials, and the widest whose score is not below the best one by more than a standard error (of
    the difference, trial by trial) is set on the model, saved with it, and returned: the narrowest is always
    as good as not sampling at all, and says nothing.

    :param model: an agent with a Laplace posterior; its ``n_posterior_samples`` is left as it is
    :param env: environment of the held-out trials
    :param prior_stds: values to try, all positive
    :param n_trials: number of trials
    :param n_posterior_samples: number of samples K with which the agent acts while it is measured
    :param criterion: "return" (largest return), or "likelihood": largest mean log-likelihood, in nats per
        step, of the actions that the unsampled agent takes
    :param deterministic: whether the agent takes the most probable action of its sampled policy
    :param seed: seed of the trials and of the samples
    :raises ValueError: if an argument is out of range, or the model's posterior is no Laplace posterior
    """
    layer = model.policy.latent_layer
    if not isinstance(layer, LaplacePosterior):
        raise ValueError(f"model must have a Laplace posterior, got {type(layer).__name__}.")
    candidates = np.sort([check_positive("prior_stds", value) for value in prior_stds])
    if len(candidates) == 0:
        raise ValueError("prior_stds must hold at least one value, got none.")
    check_integer("n_trials", n_trials, minimum=2)
    check_integer("n_posterior_samples", n_posterior_samples, minimum=1)
    check_choice("criterion", criterion, ("return", "likelihood"))

    before = layer.prior_std, model.policy.n_posterior_samples
    try:
        by_trial = []
        for value in (None, *candidates):
            model.policy.n_posterior_samples = 0 if value is None else n_posterior_samples
            layer.prior_std = before[0] if value is None else float(value)
            env.seed(seed)
            with th.random.fork_rng(devices=[]):
                by_trial.append(_play(model, env, n_trials, criterion, deterministic, seed))
    finally:
        layer.prior_std, model.policy.n_posterior_samples = before
    unsampled, scores = by_trial[0], np.stack(by_trial[1:])
    means = scores.mean(1)
    errors = (scores - scores[means.argmax()]).std(1, ddof=1) / np.sqrt(n_trials)
    chosen = float(candidates[np.flatnonzero(means + errors >= means.max())[-1]])
    layer.prior_std = chosen
    model.set_posterior_settings(prior_std=chosen)
    return Calibration(chosen, candidates, means, errors, float(unsampled.mean()))


@th.no_grad()
def _play(
    model: LaplaceRecurrentPPO, env: VecEnv, n_trials: int, criterion: str, deterministic: bool, seed: int
) -> np.ndarray:
    """Score of each of n_trials trials, every environment playing nearly equally many; shape (n_trials,)."""
    policy = model.policy
    policy.set_training_mode(False)
    n_envs, device = env.num_envs, model.device
    share = [(n_trials + n_envs - 1 - i) // n_envs for i in range(n_envs)]
    finished: list[list[float]] = [[] for _ in range(n_envs)]
    total, steps = np.zeros(n_envs), np.zeros(n_envs)
    seeds = np.random.default_rng(seed)
    obs, states, starts = env.reset(), policy.initial_states(n_envs).pi, np.ones(n_envs)

    def take_actions(distribution: Distribution) -> th.Tensor:
        # The same random numbers for the actions, however many the latents take
        th.manual_seed(int(seeds.integers(2**31)))
        return distribution.get_actions(deterministic=deterministic)

    while any(len(done) < due for done, due in zip(finished, share, strict=True)):
        obs_tensor = obs_as_tensor(obs, device)  # type: ignore[arg-type]
        starts_tensor = th.as_tensor(starts, dtype=th.float32, device=device)
        if criterion == "return":
            distribution, states = policy.get_distribution(obs_tensor, states, starts_tensor)
            actions = take_actions(distribution)
        else:
            # The unsampled agent acts; its posterior, and so its states, are the same
            distribution, _ = policy.get_distribution(obs_tensor, states, starts_tensor, deterministic=True)
            actions = take_actions(distribution)
            distribution, states = policy.get_distribution(obs_tensor, states, starts_tensor)
            total += distribution.log_prob(actions).cpu().numpy()
        actions = actions.reshape((-1, *model.action_space.shape))  # type: ignore[misc]
        obs, rewards, dones, infos = env.step(policy.to_env_actions(actions.cpu().numpy()))
        if criterion == "return":
            total += rewards
        steps += 1
        for i in np.flatnonzero(dones):
            # Monitor's return is of the true rewards, also under VecNormalize
            score = infos[i].get("episode", {}).get("r", total[i]) if criterion == "return" else total[i] / steps[i]
            finished[i].append(float(score))
        total[dones], steps[dones], starts = 0.0, 0.0, dones
    return np.array([score for done, due in zip(finished, share, strict=True) for score in done[:due]])
