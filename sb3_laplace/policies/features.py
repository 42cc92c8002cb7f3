"""A features extractor for tasks whose observations are better seen through a layer of their own."""

from collections.abc import Sequence

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp
from torch import nn

from sb3_laplace.checks import check_integer


class MlpFeatures(BaseFeaturesExtractor):
    """The flattened observation through a small network, before the recurrent one.

    One recurrent layer sees products of its inputs only through its gates. Where the task is a function of the
    observation that is not linear, as in FourierRegression, a layer in front of it lets the agent learn several times
    faster. Pass it as ``policy_kwargs=dict(features_extractor_class=MlpFeatures)``.

    :param observation_space: observation space
    :param net_arch: sizes of the layers, one at least; the last is the number of features
    :param activation_fn: activation function, after every layer
    :raises ValueError: if a size is not positive
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        net_arch: Sequence[int] = (64,),
        activation_fn: type[nn.Module] = nn.ReLU,
    ) -> None:
        if not isinstance(net_arch, Sequence):
            raise ValueError(f"net_arch of MlpFeatures must list the sizes of layers, got {net_arch!r}.")
        sizes = [check_integer("net_arch of MlpFeatures", size, minimum=1) for size in net_arch]
        if not sizes:
            raise ValueError(f"net_arch of MlpFeatures must list one layer at least, got {net_arch!r}.")
        super().__init__(observation_space, features_dim=sizes[-1])
        layers = create_mlp(get_flattened_obs_dim(observation_space), -1, sizes, activation_fn)
        self.net = nn.Sequential(nn.Flatten(), *layers)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Features, shape (B, F).

        :param observations: shape (B, ...)
        """
        return self.net(observations)
