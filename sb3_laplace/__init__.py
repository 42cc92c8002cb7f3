"""Laplace posteriors for recurrent meta-RL agents in Stable-Baselines3.

Importing the package registers the meta-tasks of ``sb3_laplace_envs`` with Gymnasium.
"""

import sys

import sb3_laplace_envs  # noqa: F401  (registers the environments)
from sb3_laplace.algorithm.laplace_recurrent_ppo import LaplaceRecurrentPPO
from sb3_laplace.callbacks import PosteriorCallback, PosteriorEvalCallback
from sb3_laplace.cores import Core, CoreState
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
from sb3_laplace.posthoc.calibrate import Calibration, calibrate_prior_std
from sb3_laplace.vec_env import GymnasiumVecEnv, make_vec_env
from sb3_laplace.version import __version__

# Agents saved before 0.2 name MlpFeatures by the module that held it then
sys.modules["sb3_laplace.features"] = sys.modules["sb3_laplace.policies.features"]

__all__ = [
    "Calibration",
    "ConstantVariancePosterior",
    "Core",
    "CoreState",
    "Diagnosis",
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
    "PosteriorCallback",
    "PosteriorEvalCallback",
    "PosteriorTrace",
    "RegressionEvaluation",
    "VariationalPosterior",
    "__version__",
    "calibrate_prior_std",
    "diagnose",
    "evaluate_regression",
    "make_vec_env",
    "posterior_trace",
    "write_report",
]
