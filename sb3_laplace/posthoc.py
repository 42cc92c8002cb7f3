"""Bayesian after the fact: a posterior for a recurrent agent that was trained without one."""

import io
import logging
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import sb3_contrib
import torch as th
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticCnnPolicy,
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_laplace.checks import check_choice, check_integer, check_positive
from sb3_laplace.policies import LaplaceCnnLstmPolicy, LaplaceLstmPolicy, LaplaceMultiInputLstmPolicy
from sb3_laplace.posteriors import LaplacePosterior

if TYPE_CHECKING:
    from sb3_laplace.laplace_recurrent_ppo import LaplaceRecurrentPPO

logger = logging.getLogger(__name__)

POLICIES: dict[type, type[LaplaceLstmPolicy]] = {
    RecurrentActorCriticPolicy: LaplaceLstmPolicy,
    RecurrentActorCriticCnnPolicy: LaplaceCnnLstmPolicy,
    RecurrentMultiInputActorCriticPolicy: LaplaceMultiInputLstmPolicy,
}
#: Major and minor versions of sb3-contrib whose models the tests convert
TESTED_VERSIONS = ((2, 9),)

# What a converted algorithm keeps of the one it comes from
_ARGUMENTS = (
    "learning_rate",
    "n_steps",
    "batch_size",
    "n_epochs",
    "gamma",
    "gae_lambda",
    "clip_range",
    "clip_range_vf",
    "normalize_advantage",
    "ent_coef",
    "vf_coef",
    "max_grad_norm",
    "use_sde",
    "sde_sample_freq",
    "target_kl",
    "tensorboard_log",
    "verbose",
    "seed",
)
# And of one of ours
_OWN_ARGUMENTS = ("sequence_length", "policy_coef", "target_coef", "reward_coef", "decode_window")
_COUNTERS = ("num_timesteps", "_total_timesteps", "_n_updates", "_episode_num", "_current_progress_remaining")


def load_recurrent_ppo(path: str | Path | io.BufferedIOBase, device: th.device | str = "auto") -> RecurrentPPO:
    """Load a RecurrentPPO zip, whose pickled code is run as SB3 does.

    :param path: path of the zip, with or without its ending, or a file object
    :param device: device of the model
    :raises ValueError: if the file is no model of sb3-contrib's RecurrentPPO
    """
    data, _, _ = load_from_zip_file(path, device="cpu")
    if isinstance(path, io.IOBase):
        path.seek(0)
    policy_class = (data or {}).get("policy_class")
    if not (isinstance(policy_class, type) and issubclass(policy_class, RecurrentActorCriticPolicy)):
        name = getattr(policy_class, "__name__", policy_class)
        raise ValueError(f"{path} is no RecurrentPPO model: its policy is {name}, which is not recurrent.")
    _warn_about_version(_saved_version(path))
    if issubclass(policy_class, LaplaceLstmPolicy):
        from sb3_laplace.laplace_recurrent_ppo import LaplaceRecurrentPPO

        return LaplaceRecurrentPPO.load(path, device=device)
    return RecurrentPPO.load(path, device=device)


def _saved_version(path: str | Path | io.BufferedIOBase) -> str:
    """The version of SB3, which sb3-contrib shares, that wrote a zip."""
    if isinstance(path, (str, Path)) and not Path(path).exists():
        path = Path(f"{path}.zip")
    with zipfile.ZipFile(path) as archive:
        version = archive.read("_stable_baselines3_version").decode()
    if isinstance(path, io.IOBase):
        path.seek(0)
    return version


def _warn_about_version(version: str) -> None:
    major_minor = tuple(int(part) for part in version.split(".")[:2])
    if major_minor not in TESTED_VERSIONS:
        tested = ", ".join(".".join(map(str, one)) for one in TESTED_VERSIONS)
        warnings.warn(f"Conversion is tested with models of sb3-contrib {tested}; this one is of {version}.")


def convert(
    algorithm: "type[LaplaceRecurrentPPO]",
    model_or_path: RecurrentPPO | str | Path | io.BufferedIOBase,
    env: GymEnv | None = None,
    device: th.device | str = "auto",
    **changes: Any,
) -> "LaplaceRecurrentPPO":
    """See :meth:`~sb3_laplace.LaplaceRecurrentPPO.from_recurrent_ppo`.

    :param algorithm: the class to convert to
    :param model_or_path: the model, or its zip
    :param env: environment to go on with
    :param device: device of the converted model
    :param changes: ``kl_coef``, and keywords of the policy
    """
    if isinstance(model_or_path, RecurrentPPO):
        source = model_or_path
        _warn_about_version(sb3_contrib.__version__)
    elif isinstance(model_or_path, (str, Path, io.IOBase)):
        source = load_recurrent_ppo(model_or_path, device)
    else:
        raise ValueError(
            "model_or_path must be a RecurrentPPO model (it must be recurrent), or the path of its zip, "
            f"got a {type(model_or_path).__name__}."
        )
    policy_kwargs = {**source.policy_kwargs}
    arguments = {name: getattr(source, name) for name in _ARGUMENTS}
    if isinstance(source.policy, LaplaceLstmPolicy):
        policy_class = type(source.policy)
        arguments.update({name: getattr(source, name) for name in _OWN_ARGUMENTS})
    else:
        policy_class = _our_policy(type(source.policy))
        # Training that goes on has the gradients it had
        policy_kwargs["detach_critic"] = True
    kl_coef = changes.pop("kl_coef", 0.0)
    policy_kwargs.update(changes)

    model = algorithm(
        policy_class,
        None,  # type: ignore[arg-type]
        **arguments,
        policy_kwargs=policy_kwargs,
        device=device,
        kl_coef=kl_coef,
        _init_setup_model=False,
    )
    model.observation_space, model.action_space = source.observation_space, source.action_space
    model.n_envs = source.n_envs
    model._vec_normalize_env = source._vec_normalize_env
    model._setup_model()
    _carry_over(source, model)
    if env is None:
        env = source.get_env()
    if env is not None:
        model.set_env(env)
    return model


def _our_policy(policy_class: type) -> type[LaplaceLstmPolicy]:
    if policy_class not in POLICIES:
        changed = sorted(
            name
            for parent in policy_class.__mro__[: policy_class.__mro__.index(RecurrentActorCriticPolicy)]
            if parent not in POLICIES
            for name in vars(parent)
            if callable(getattr(parent, name)) and name not in ("__doc__", "__module__")
        )
        raise ValueError(
            f"The policy {policy_class.__name__} is a custom class; what it changes "
            f"({', '.join(changed) or 'its base'}) cannot be carried over. "
            f"Convert a model with one of {[one.__name__ for one in POLICIES]}."
        )
    return POLICIES[policy_class]


def _carry_over(source: RecurrentPPO, model: "LaplaceRecurrentPPO") -> None:
    """Weights that exist in both, the optimizer's state if there are no others, and the counters."""
    theirs, ours = source.policy.state_dict(), model.policy.state_dict()
    kept = {name: weight for name, weight in theirs.items() if name in ours and ours[name].shape == weight.shape}
    new = [name for name in ours if name not in kept]
    model.policy.load_state_dict({**ours, **kept})
    if new or len(kept) < len(theirs):
        logger.warning(
            "Kept: %s. New: %s. Left behind: %s. The optimizer starts afresh.",
            ", ".join(kept),
            ", ".join(new) or "none",
            ", ".join(name for name in theirs if name not in kept) or "none",
        )
    else:
        logger.info("All weights were kept: %s.", ", ".join(kept))
        model.policy.optimizer.load_state_dict(source.policy.optimizer.state_dict())
    for name in _COUNTERS:
        setattr(model, name, getattr(source, name))
    model.ep_info_buffer, model.ep_success_buffer = source.ep_info_buffer, source.ep_success_buffer


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
    model: "LaplaceRecurrentPPO",
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
    chosen_kwargs = {**model.policy._own_parameters["posterior_kwargs"], "prior_std": chosen}
    # Both are saved: the algorithm's, and the policy's own
    model.policy_kwargs["posterior_kwargs"] = model.policy._own_parameters["posterior_kwargs"] = chosen_kwargs
    return Calibration(chosen, candidates, means, errors, float(unsampled.mean()))


@th.no_grad()
def _play(
    model: "LaplaceRecurrentPPO", env: VecEnv, n_trials: int, criterion: str, deterministic: bool, seed: int
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
