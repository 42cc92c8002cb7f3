"""Search spaces of our algorithms for Optuna, on top of RL Zoo's for RecurrentPPO."""

from typing import Any

import optuna
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

# Rollouts beyond this many steps, and more minibatches in an epoch, make an update slow without making it better
_MAX_ROLLOUT, _MAX_MINIBATCHES = 2**16, 64
#: Key of ``additional_args`` that says whether the configuration chooses the memory
HAS_MEMORY = "has_memory"
_RNN_TYPES = ("lstm", "gru", "mingru", "gtrxl")


def sample_laplace_ppo_lstm_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Sample RecurrentPPO's hyperparameters, the memory, the latent, the Laplace posterior, ``kl_coef`` and K.

    :param trial: the trial, which records what is sampled
    :param n_actions: number of dimensions of the action, as RL Zoo counts them
    :param n_envs: number of environments
    :param additional_args: what RL Zoo passes to every sampler
    :return: keyword arguments of LaplaceRecurrentPPO
    """
    hyperparams = sample_point_ppo_lstm_params(trial, n_actions, n_envs, additional_args)
    return _with_posterior(hyperparams, "laplace", _sample_posterior(trial, min_samples=0))


def sample_vrnn_ppo_lstm_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """As :func:`sample_laplace_ppo_lstm_params`, with a variational posterior, which is always drawn from."""
    hyperparams = sample_point_ppo_lstm_params(trial, n_actions, n_envs, additional_args)
    return _with_posterior(hyperparams, "variational", _sample_posterior(trial, min_samples=1))


def sample_point_ppo_lstm_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """As :func:`sample_laplace_ppo_lstm_params`, without a posterior: RecurrentPPO's, the memory and the latent.

    The memory is not sampled where the configuration chooses it: :data:`HAS_MEMORY` among ``additional_args`` says so.
    """
    hyperparams = HYPERPARAMS_SAMPLER["ppo_lstm"](trial, n_actions, n_envs, additional_args)
    own: dict[str, Any] = {"posterior": "point", "latent_dim": trial.suggest_categorical("latent_dim", [8, 16, 32, 64])}
    if not additional_args.get(HAS_MEMORY):
        own["rnn_type"] = trial.suggest_categorical("rnn_type", _RNN_TYPES)
    hyperparams["policy_kwargs"] |= own
    return hyperparams


def convert_laplace_ppo_lstm_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """Turn what a trial of :func:`sample_laplace_ppo_lstm_params` recorded into keyword arguments."""
    return _convert(sampled_params, "laplace")


def convert_vrnn_ppo_lstm_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """Turn what a trial of :func:`sample_vrnn_ppo_lstm_params` recorded into keyword arguments."""
    return _convert(sampled_params, "variational")


def convert_point_ppo_lstm_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """Turn what a trial of :func:`sample_point_ppo_lstm_params` recorded into keyword arguments."""
    params = dict(sampled_params)
    # There is no rnn_type in older studies, and in those whose configuration has chosen it
    own = {name: params.pop(name) for name in ("latent_dim", "rnn_type") if name in params}
    hyperparams = HYPERPARAMS_CONVERTER["ppo_lstm"](params)
    hyperparams["policy_kwargs"] |= own | {"posterior": "point"}
    return hyperparams


def fit_to_configuration(sampled: dict[str, Any], configured: dict[str, Any], n_envs: int) -> dict[str, Any]:
    """Fit sampled hyperparameters into the configuration that they replace a part of.

    What the configuration says of the policy and was not sampled stays (RL Zoo would drop it). RL Zoo samples
    ``n_steps`` and ``batch_size`` for a handful of environments: with hundreds, ``n_steps`` is capped at rollouts of
    65536 steps, and ``batch_size`` raised to 64 minibatches. K is capped at 1 where the configuration has gSDE.

    :param sampled: keyword arguments of the algorithm that were sampled
    :param configured: keyword arguments of the algorithm in the configuration
    :param n_envs: number of environments
    :return: keyword arguments that replace those configured
    """
    policy_kwargs = {**configured.get("policy_kwargs", {}), **sampled["policy_kwargs"]}
    if "posterior_kwargs" in sampled["policy_kwargs"]:
        configured_posterior = configured.get("policy_kwargs", {}).get("posterior_kwargs", {})
        policy_kwargs["posterior_kwargs"] = {**configured_posterior, **sampled["policy_kwargs"]["posterior_kwargs"]}
    if configured.get("use_sde") and "n_posterior_samples" in policy_kwargs:
        # gSDE takes no more
        policy_kwargs["n_posterior_samples"] = min(policy_kwargs["n_posterior_samples"], 1)
    n_steps = min(sampled["n_steps"], max(1, _MAX_ROLLOUT // n_envs))
    batch_size = max(sampled["batch_size"], n_steps * n_envs // _MAX_MINIBATCHES)
    return {**sampled, "policy_kwargs": policy_kwargs, "n_steps": n_steps, "batch_size": batch_size}


def register_search_spaces() -> None:
    """Add the search spaces of our algorithms to those that RL Zoo knows."""
    HYPERPARAMS_SAMPLER.update(
        laplace_ppo_lstm=sample_laplace_ppo_lstm_params,
        point_ppo_lstm=sample_point_ppo_lstm_params,
        vrnn_ppo_lstm=sample_vrnn_ppo_lstm_params,
    )
    HYPERPARAMS_CONVERTER.update(
        laplace_ppo_lstm=convert_laplace_ppo_lstm_params,
        point_ppo_lstm=convert_point_ppo_lstm_params,
        vrnn_ppo_lstm=convert_vrnn_ppo_lstm_params,
    )


def _sample_posterior(trial: optuna.Trial, min_samples: int) -> dict[str, Any]:
    return {
        "covariance": trial.suggest_categorical("covariance", ["diagonal", "full"]),
        "prior_std": trial.suggest_float("prior_std", 0.01, 1.0, log=True),
        # Fixed, or where "auto" starts
        "kl_coef": trial.suggest_float("kl_coef", 1e-5, 1e-2, log=True),
        "kl_is_auto": trial.suggest_categorical("kl_is_auto", [False, True]),
        "n_posterior_samples": trial.suggest_int("n_posterior_samples", min_samples, 4),
    }


def _with_posterior(hyperparams: dict[str, Any], posterior: str, sampled: dict[str, Any]) -> dict[str, Any]:
    """Put what :func:`_sample_posterior` returns where LaplaceRecurrentPPO takes it, in place."""
    hyperparams["kl_coef"] = f"auto_{sampled['kl_coef']!r}" if sampled["kl_is_auto"] else sampled["kl_coef"]
    hyperparams["policy_kwargs"] |= {
        "posterior": posterior,
        "posterior_kwargs": {name: sampled[name] for name in ("covariance", "prior_std")},
        "n_posterior_samples": sampled["n_posterior_samples"],
    }
    return hyperparams


def _convert(params: dict[str, Any], posterior: str) -> dict[str, Any]:
    params = dict(params)
    names = ("covariance", "prior_std", "kl_coef", "kl_is_auto", "n_posterior_samples")
    sampled = {name: params.pop(name) for name in names}
    return _with_posterior(convert_point_ppo_lstm_params(params), posterior, sampled)
