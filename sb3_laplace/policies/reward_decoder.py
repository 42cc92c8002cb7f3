"""A decoder of rewards: what the latent says about the rewards of the task."""

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, preprocess_obs
from torch import nn
from torch.nn import functional

from sb3_laplace.checks import check_choice, check_integer

#: ``decode_window`` for all rewards of the trial
WHOLE_TRIAL = "trial"


def check_decode_window(window: Any) -> int | str:
    """Check the argument ``decode_window``.

    :raises ValueError: if it is neither a whole number >= 0 nor "trial"
    """
    if window == WHOLE_TRIAL:
        return WHOLE_TRIAL
    if not isinstance(window, (int, np.integer)):
        raise ValueError(f"decode_window must be an integer >= 0 or {WHOLE_TRIAL!r}, got {window!r}.")
    return check_integer("decode_window", window, minimum=0)


class RewardDecoder(nn.Module):
    """Predicts the reward of a step from a latent, the action and, if asked, the next observation.

    The reward is Bernoulli if all rewards are 0 or 1 (the output is a logit), else Gaussian of unit variance (the
    output is its mean). Paper, section 5 (the bandit agent's reward prediction); Zintgraf et al. 2020, VariBAD,
    for decoding the rewards of other steps of the trial.

    :param latent_dim: number of latent units D
    :param action_space: action space
    :param features_dim: number of extracted features F of an observation
    :param net_arch: sizes of the hidden layers, one at least
    :param next_obs: whether it reads the features of the next observation too
    :param likelihood: "bernoulli" or "gaussian"; None for Bernoulli until a reward that is neither 0 nor 1 is seen
    :raises ValueError: if an argument is out of range
    """

    gaussian: th.Tensor
    settled: th.Tensor

    def __init__(
        self,
        latent_dim: int,
        action_space: spaces.Space,
        features_dim: int,
        net_arch: Sequence[int] = (64, 32),
        next_obs: bool = False,
        likelihood: str | None = None,
    ) -> None:
        super().__init__()
        if isinstance(net_arch, str) or not isinstance(net_arch, Sequence) or len(net_arch) == 0:
            raise ValueError(f"net_arch of the reward decoder must list one hidden layer at least, got {net_arch!r}.")
        sizes = [check_integer("net_arch of the reward decoder", size, minimum=1) for size in net_arch]
        if not isinstance(next_obs, bool):
            raise ValueError(f"next_obs of the reward decoder must be True or False, got {next_obs!r}.")
        check_choice("likelihood", likelihood, (None, "bernoulli", "gaussian"))
        self.action_space = action_space
        self.next_obs = next_obs
        self.likelihood = likelihood
        # The first layer, in two parts: each is computed once a step, however many steps are paired
        self.from_latent = nn.Linear(latent_dim, sizes[0])
        step_dim = get_flattened_obs_dim(action_space) + (features_dim if next_obs else 0)
        self.from_step = nn.Linear(step_dim, sizes[0], bias=False)
        layers: list[nn.Module] = [nn.ReLU()]
        for size_in, size_out in itertools.pairwise(sizes):
            layers += [nn.Linear(size_in, size_out), nn.ReLU()]
        self.head = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))
        # Saved with the weights, which mean nothing without them: the likelihood, and whether any were trained for it
        self.register_buffer("gaussian", th.tensor(likelihood == "gaussian"))
        self.register_buffer("settled", th.tensor(False))

    def observe(self, rewards: np.ndarray) -> None:
        """Settle the likelihood by rewards of the environment.

        :param rewards: rewards as the environment gave them, any shape
        :raises ValueError: if likelihood="bernoulli" and a reward is neither 0 nor 1
        """
        binary = (rewards == 0) | (rewards == 1)
        if self.gaussian or binary.all():
            return
        if self.likelihood == "bernoulli":
            raise ValueError(
                f"likelihood='bernoulli' of the reward decoder needs rewards of 0 or 1, got {rewards[~binary][0]}."
            )
        if self.settled:
            warnings.warn(
                "The reward decoder took rewards for Bernoulli and goes on with a Gaussian: a reward is neither 0 nor "
                "1. Its weights start over in effect; reward_decoder_kwargs={'likelihood': 'gaussian'} avoids that."
            )
        self.gaussian.fill_(True)

    def encode(self, actions: th.Tensor, next_features: th.Tensor | None) -> th.Tensor:
        """What is known of steps: actions (one-hot where they are discrete), then the next features, (B, A).

        :param actions: shape (B, ...)
        :param next_features: features of the next observations, shape (B, F); None if they are not read
        :raises ValueError: if the next observation is read but not given, or the other way round
        """
        if (next_features is not None) != self.next_obs:
            wanted = "given" if self.next_obs else "None"
            raise ValueError(
                f"next_observations must be {wanted} for this reward decoder, made with next_obs={self.next_obs}."
            )
        encoded = preprocess_obs(actions, self.action_space, normalize_images=False)
        assert isinstance(encoded, th.Tensor)
        # An action of a Box may have the shape ()
        encoded = encoded.reshape(len(encoded), -1).to(self.from_step.weight.dtype)
        return encoded if next_features is None else th.cat((encoded, next_features), dim=1)

    def forward(self, latents: th.Tensor, steps: th.Tensor) -> th.Tensor:
        """Expected rewards, shape (...).

        :param latents: shape (..., D)
        :param steps: encoded steps, shape (..., A)
        """
        output = self._output(self.from_latent(latents) + self.from_step(steps))
        return output if self.gaussian else output.sigmoid()

    def _output(self, first: th.Tensor) -> th.Tensor:
        return self.head(first).squeeze(-1)

    def loss(
        self,
        latents: th.Tensor,
        steps: th.Tensor,
        rewards: th.Tensor,
        episode_starts: th.Tensor,
        mask: th.Tensor | None,
        window: int | str,
    ) -> th.Tensor:
        """Mean negative log-likelihood of rewards given latents, in nats: over samples, steps and their window.

        :param latents: z_t of S sequences of T steps, shape (K, S, T, D)
        :param steps: encoded steps, shape (S, T, A)
        :param rewards: shape (S, T)
        :param episode_starts: 1 where an episode starts, shape (S, T)
        :param mask: False at padding, shape (S, T); None if there is none
        :param window: from the latent at t, decode the rewards of the steps t - window to t + window ("trial": of all)
            that are in the same episode and the same sequence
        """
        self.settled.fill_(True)
        codes, beside = self.from_latent(latents), self.from_step(steps)
        if window == 0:
            negative = self._negative_log_likelihood(self._output(codes + beside), rewards)
            return negative.mean() if mask is None else negative[:, mask].mean()
        length = rewards.shape[1]
        now = th.arange(length, device=rewards.device).unsqueeze(1)
        if window == WHOLE_TRIAL:
            other = now.T.expand(length, length)
        else:
            assert isinstance(window, int)
            reach = min(window, length - 1)
            other = now + th.arange(-reach, reach + 1, device=rewards.device)
        inside = (other >= 0) & (other < length)
        other = other.clamp(0, length - 1)
        episodes = episode_starts.cumsum(1)
        paired = inside & (episodes[:, other] == episodes.unsqueeze(-1))
        if mask is not None:
            paired = paired & mask[:, other] & mask.unsqueeze(-1)
        output = self._output(codes.unsqueeze(-2) + beside[:, other])
        negative = self._negative_log_likelihood(output, rewards[:, other])
        return (negative * paired).sum() / (len(latents) * paired.sum())

    def _negative_log_likelihood(self, output: th.Tensor, rewards: th.Tensor) -> th.Tensor:
        if self.gaussian:
            return 0.5 * (output - rewards).square() + 0.5 * math.log(2.0 * math.pi)
        return functional.binary_cross_entropy_with_logits(output, rewards.expand_as(output), reduction="none")


def make_reward_decoder(
    latent_dim: int, action_space: spaces.Space, features_dim: int, kwargs: dict[str, Any]
) -> RewardDecoder:
    """Build the decoder that ``reward_decoder_kwargs`` describe.

    :param latent_dim: number of latent units D
    :param action_space: action space
    :param features_dim: number of extracted features F of an observation
    :param kwargs: ``net_arch``, ``next_obs``, ``likelihood``
    :raises TypeError: if there is no such keyword
    :raises ValueError: if one is out of range
    """
    known = ("net_arch", "next_obs", "likelihood")
    if not isinstance(kwargs, dict) or not set(kwargs) <= set(known):
        raise TypeError(f"reward_decoder_kwargs must be a dict of any of {known}, got {kwargs!r}.")
    return RewardDecoder(latent_dim, action_space, features_dim, **kwargs)
