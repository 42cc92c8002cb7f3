"""Batched Gymnasium environments as Stable-Baselines3 takes them."""

from sb3_laplace.vec_env.gymnasium_vec_env import GymnasiumVecEnv
from sb3_laplace.vec_env.make import make_batched_vec_env, make_vec_env

__all__ = ["GymnasiumVecEnv", "make_batched_vec_env", "make_vec_env"]
