"""Callbacks that watch the posterior while an agent trains."""

from sb3_laplace.callbacks.evaluation import PosteriorEvalCallback
from sb3_laplace.callbacks.posterior import PosteriorCallback

__all__ = ["PosteriorCallback", "PosteriorEvalCallback"]
