"""The agents of the studies: a task's settings, and what is changed of them."""

from typing import Any

import torch as th
from stable_baselines3.common.utils import LinearSchedule

from sb3_laplace import LaplaceRecurrentPPO, MlpFeatures, make_vec_env

#: By task: environment, arguments of the algorithm, keywords of the policy
TASKS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "bandit": (
        "sb3_laplace/DirichletBandit-v0",
        {
            "n_steps": 50,
            "batch_size": 1600,
            "n_epochs": 4,
            "gamma": 0.9,
            "learning_rate": LinearSchedule(2e-3, 2e-4, 1.0),
            "ent_coef": LinearSchedule(0.02, 0.0, 1.0),
        },
        {"net_arch": [64]},
    ),
    "grid": (
        "sb3_laplace/GridNavigation-v0",
        {
            "n_steps": 100,
            "batch_size": 3200,
            "n_epochs": 6,
            "gamma": 0.95,
            "learning_rate": LinearSchedule(2e-3, 2e-4, 1.0),
            "ent_coef": LinearSchedule(0.02, 0.0, 1.0),
        },
        {"net_arch": [64]},
    ),
    "regression": (
        "sb3_laplace/FourierRegression-v0",
        {
            "n_steps": 50,
            "batch_size": 1600,
            "n_epochs": 6,
            "learning_rate": LinearSchedule(4e-3, 0.0, 1.0),
            "max_grad_norm": 1.0,
            "target_coef": 1.0,
            "policy_coef": 0.0,
        },
        {
            "head_inputs": ("features",),
            "features_extractor_class": MlpFeatures,
            "features_extractor_kwargs": {"net_arch": [64, 64], "activation_fn": th.nn.SiLU},
            "net_arch": [128, 128],
            "activation_fn": th.nn.SiLU,
            "ortho_init": False,
            "log_std_init": -1.5,
        },
    ),
}


def make_agent(task: str, seed: int, arguments: dict[str, Any], policy_kwargs: dict[str, Any]) -> LaplaceRecurrentPPO:
    """An untrained agent with an LSTM of 128 units, a latent of 64, a prior_std of 1 and K = 1.

    :param task: one of ``TASKS``
    :param seed: of the agent and its environments
    :param arguments: of the algorithm, beside the task's
    :param policy_kwargs: keywords of the policy in the place of the task's
    """
    env_id, task_arguments, task_policy_kwargs = TASKS[task]
    return LaplaceRecurrentPPO(
        "LaplaceLstmPolicy",
        make_vec_env(env_id, n_envs=256, seed=1000 * seed),
        seed=seed,
        device="cpu",
        policy_kwargs={
            "lstm_hidden_size": 128,
            "shared_lstm": True,
            "enable_critic_lstm": False,
            "latent_dim": 64,
            "n_posterior_samples": 1,
            "posterior_kwargs": {"prior_std": 1.0},
            **task_policy_kwargs,
            **policy_kwargs,
        },
        **task_arguments,
        **arguments,
    )
