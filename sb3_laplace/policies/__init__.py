"""Recurrent policies with a posterior between the memory and the heads."""

from sb3_laplace.policies.features import MlpFeatures
from sb3_laplace.policies.laplace_lstm_policy import (
    LaplaceCnnLstmPolicy,
    LaplaceLstmPolicy,
    LaplaceMultiInputLstmPolicy,
)

__all__ = ["LaplaceCnnLstmPolicy", "LaplaceLstmPolicy", "LaplaceMultiInputLstmPolicy", "MlpFeatures"]
