"""Trials from any environment: several episodes of one hidden task, played as one episode."""

from sb3_laplace_envs.wrappers.trial import Trial
from sb3_laplace_envs.wrappers.vector_trial import VectorTrial

__all__ = ["Trial", "VectorTrial"]
