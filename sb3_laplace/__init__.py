"""Laplace posteriors for recurrent meta-RL agents in Stable-Baselines3.

Importing the package registers the meta-tasks of ``sb3_laplace_envs`` with Gymnasium.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

import sb3_laplace_envs  # noqa: F401  (registers the environments)
from sb3_laplace.algorithm.laplace_recurrent_ppo import LaplaceRecurrentPPO
from sb3_laplace.callbacks import PosteriorCallback, PosteriorEvalCallback
from sb3_laplace.cores import Core, CoreState
from sb3_laplace.evaluation.belief import evaluate_belief
from sb3_laplace.evaluation.belief_evaluation import BeliefEvaluation
from sb3_laplace.evaluation.diagnostics import Diagnosis, diagnose
from sb3_laplace.evaluation.regression import evaluate_regression
from sb3_laplace.evaluation.regression_evaluation import RegressionEvaluation
from sb3_laplace.evaluation.traces import PosteriorTrace, posterior_trace
from sb3_laplace.plots.report import write_report
from sb3_laplace.policies import LaplaceCnnLstmPolicy, LaplaceLstmPolicy, LaplaceMultiInputLstmPolicy, MlpFeatures
from sb3_laplace.posteriors import (
    ConstantVariancePosterior,
    HiddenStatePosterior,
    LaplacePosterior,
    LatentPosterior,
    PointPosterior,
    VariationalPosterior,
)
from sb3_laplace.posteriors.gaussian import DiagonalGaussian, FullGaussian, Gaussian
from sb3_laplace.posthoc.calibrate import Calibration, calibrate_prior_std
from sb3_laplace.posthoc.calibrate_posterior import PosteriorCalibration, calibrate_posterior
from sb3_laplace.posthoc.export import export_policy
from sb3_laplace.vec_env import GymnasiumVecEnv, make_vec_env
from sb3_laplace.version import __version__

if TYPE_CHECKING:
    from sb3_laplace.plots.belief import plot_belief as plot_belief
    from sb3_laplace.plots.regression import plot_regression_functions as plot_regression_functions
    from sb3_laplace.plots.regression import plot_regression_scores as plot_regression_scores

# Agents saved before 0.2 name MlpFeatures by the module that held it then
sys.modules["sb3_laplace.features"] = sys.modules["sb3_laplace.policies.features"]

__all__ = [
    "BeliefEvaluation",
    "Calibration",
    "ConstantVariancePosterior",
    "Core",
    "CoreState",
    "Diagnosis",
    "DiagonalGaussian",
    "FullGaussian",
    "Gaussian",
    "GymnasiumVecEnv",
    "HiddenStatePosterior",
    "LaplaceCnnLstmPolicy",
    "LaplaceLstmPolicy",
    "LaplaceMultiInputLstmPolicy",
    "LaplacePosterior",
    "LaplaceRecurrentPPO",
    "LatentPosterior",
    "MlpFeatures",
    "PointPosterior",
    "PosteriorCalibration",
    "PosteriorCallback",
    "PosteriorEvalCallback",
    "PosteriorTrace",
    "RegressionEvaluation",
    "VariationalPosterior",
    "__version__",
    "calibrate_posterior",
    "calibrate_prior_std",
    "diagnose",
    "evaluate_belief",
    "evaluate_regression",
    "export_policy",
    "make_vec_env",
    "posterior_trace",
    "write_report",
]


# What needs matplotlib, and where it is
_PLOTS = {
    "plot_belief": "belief",
    "plot_regression_functions": "regression",
    "plot_regression_scores": "regression",
}


def __getattr__(name: str) -> Any:
    """What needs matplotlib is imported when it is asked for, and not by ``import *``."""
    if name not in _PLOTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"sb3_laplace.plots.{_PLOTS[name]}")
    except ImportError as error:
        raise ImportError(f"{name} needs matplotlib: pip install 'sb3-laplace[plots]'.") from error
    return getattr(module, name)
