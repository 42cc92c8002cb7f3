"""Bayesian after the fact: a posterior for a recurrent agent that was trained without one."""

import io
import logging
import warnings
import zipfile
from pathlib import Path
from typing import Any

import sb3_contrib
import torch as th
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticCnnPolicy,
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv

from sb3_laplace.algorithm.laplace_recurrent_ppo import LaplaceRecurrentPPO
from sb3_laplace.policies.laplace_lstm_policy import (
    LaplaceCnnLstmPolicy,
    LaplaceLstmPolicy,
    LaplaceMultiInputLstmPolicy,
)

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
_OWN_ARGUMENTS = ("kl_target", "sequence_length", "policy_coef", "target_coef", "reward_coef", "decode_window")
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
    algorithm: type[LaplaceRecurrentPPO],
    model_or_path: RecurrentPPO | str | Path | io.BufferedIOBase,
    env: GymEnv | None = None,
    device: th.device | str = "auto",
    **changes: Any,
) -> LaplaceRecurrentPPO:
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
    arguments = {name: getattr(source, name) for name in _ARGUMENTS}
    arguments["stats_window_size"] = source._stats_window_size
    kl_coef = changes.pop("kl_coef", 0.0)
    if isinstance(source, LaplaceRecurrentPPO):
        policy_class = type(source.policy)
        arguments.update({name: getattr(source, name) for name in _OWN_ARGUMENTS})
        policy_kwargs = source._complete_policy_kwargs()
        own = source.policy._own_parameters
        if changes["latent_dim"] == "keep":
            changes["latent_dim"] = own["latent_dim"]
        if changes["posterior_kwargs"] is None and changes["posterior"] == own["posterior"]:
            changes["posterior_kwargs"] = own["posterior_kwargs"]
    else:
        policy_class = _our_policy(type(source.policy))
        # Training that goes on has the gradients it had
        policy_kwargs = {**source.policy_kwargs, "detach_critic": True}
        if changes["latent_dim"] == "keep":
            changes["latent_dim"] = None
    policy_kwargs.update(changes, posterior_kwargs=changes["posterior_kwargs"] or {})
    if env is None:
        env = source.get_env()
    if env is not None:
        env = algorithm._wrap_env(env, source.verbose)

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
    model.n_envs = source.n_envs if env is None else env.num_envs
    model._vec_normalize_env = source._vec_normalize_env
    model._setup_model()
    _carry_over(source, model)
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


def _carry_over(source: RecurrentPPO, model: LaplaceRecurrentPPO) -> None:
    """Weights that exist in both, the optimizer's state if there are no others, and the counters."""
    # The prior is an argument, not a weight
    theirs, ours = (
        {name: part for name, part in one.policy.state_dict().items() if not name.startswith("latent_layer.prior_")}
        for one in (source, model)
    )
    kept = {name: weight for name, weight in theirs.items() if name in ours and ours[name].shape == weight.shape}
    new = [name for name in ours if name not in kept]
    model.policy.load_state_dict({**model.policy.state_dict(), **kept})
    if new or len(kept) < len(theirs):
        logger.warning(
            "Kept: %s. New: %s. Left behind: %s. The optimizer starts afresh.",
            ", ".join(kept),
            ", ".join(new) or "none",
            ", ".join(name for name in theirs if name not in kept) or "none",
        )
    else:
        logger.info("All weights were kept: %s.", ", ".join(kept))
        optimizer = model.policy.optimizer
        fused = [group.get("fused") for group in optimizer.param_groups]
        optimizer.load_state_dict(source.policy.optimizer.state_dict())
        # How steps are computed is not the source's to say
        for group, own_choice in zip(optimizer.param_groups, fused, strict=True):
            group["fused"] = own_choice
    for name in _COUNTERS:
        setattr(model, name, getattr(source, name))
    # SB3 saves what it saw last, and the original beside it only under VecNormalize; neither before training
    if source._last_obs is not None:
        model.was_normalized = source._last_original_obs is not None
    model.was_normalized = getattr(source, "was_normalized", model.was_normalized)
    model.use_masking = getattr(source, "use_masking", None)
    model.ep_info_buffer, model.ep_success_buffer = source.ep_info_buffer, source.ep_success_buffer
