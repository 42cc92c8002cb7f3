"""Laplace posteriors for recurrent meta-RL agents in Stable-Baselines3.

Importing the package registers the meta-tasks of ``sb3_laplace_envs`` with Gymnasium.
"""

import sb3_laplace_envs  # noqa: F401  (registers the environments)
from sb3_laplace.callbacks import PosteriorCallback
from sb3_laplace.laplace_recurrent_ppo import LaplaceRecurrentPPO
from sb3_laplace.policies import LaplaceCnnLstmPolicy, LaplaceLstmPolicy, LaplaceMultiInputLstmPolicy
from sb3_laplace.posteriors import LaplacePosterior, LatentPosterior
from sb3_laplace.vec_env import GymnasiumVecEnv, make_vec_env
from sb3_laplace.version import __version__

__all__ = [
    "GymnasiumVecEnv",
    "LaplaceCnnLstmPolicy",
    "LaplaceLstmPolicy",
    "LaplaceMultiInputLstmPolicy",
    "LaplacePosterior",
    "LaplaceRecurrentPPO",
    "LatentPosterior",
    "PosteriorCallback",
    "__version__",
    "make_vec_env",
]
