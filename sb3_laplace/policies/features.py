"""Features extractors: one for tasks whose observations are better seen through a layer, and what SB3's can read."""

from collections.abc import Sequence

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
    create_mlp,
)
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


# Below this NatureCNN's three kernels find nothing left to read
_SMALLEST_IMAGE = 36


def check_extractor(space: spaces.Space, extractor_class: type[BaseFeaturesExtractor]) -> None:
    """Refuse observation spaces that an extractor of SB3's cannot read.

    :param space: observation space
    :param extractor_class: the extractor; of one that is not SB3's nothing is known
    :raises ValueError: saying which policy, or which change of the environment, is needed
    """
    is_dict = isinstance(space, spaces.Dict)
    if is_dict and extractor_class in (FlattenExtractor, NatureCNN):
        raise ValueError(f"Dict observations are for LaplaceMultiInputLstmPolicy, got {space} with {extractor_class}.")
    if not is_dict and extractor_class is CombinedExtractor:
        raise ValueError(f"LaplaceMultiInputLstmPolicy is for Dict observations, got {space}: use LaplaceLstmPolicy.")
    if extractor_class not in (NatureCNN, CombinedExtractor):
        return
    for part in space.spaces.values() if isinstance(space, spaces.Dict) else [space]:
        # Channel first or last, the two larger sizes are height and width
        if is_image_space(part) and sorted(part.shape or ())[-2] < _SMALLEST_IMAGE:
            raise ValueError(
                f"images of shape {part.shape} are too small for SB3's NatureCNN, which takes {_SMALLEST_IMAGE} x "
                f"{_SMALLEST_IMAGE} pixels at least: resize them (gymnasium.wrappers.ResizeObservation) or give a "
                "features_extractor_class of your own."
            )
