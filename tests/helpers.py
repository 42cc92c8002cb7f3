"""Policies, random rollouts and small environments for the tests."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from sb3_laplace import LaplaceLstmPolicy

ACTION_SPACES = {
    "discrete": spaces.Discrete(3),
    "box": spaces.Box(-1.0, 1.0, (2,), np.float32),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_binary": spaces.MultiBinary(3),
}
#: critic: separate LSTM, shared LSTM, none
CRITICS: dict[str, dict[str, Any]] = {
    "separate": {},
    "shared": {"shared_lstm": True, "enable_critic_lstm": False},
    "none": {"enable_critic_lstm": False},
}


class RandomEnv(gym.Env):
    """Random observations and rewards; episodes end at random steps, half by termination, half by truncation."""

    def __init__(
        self,
        observation_space: spaces.Space | None = None,
        action_space: spaces.Space | None = None,
        end_rate: float = 0.2,
    ) -> None:
        self.observation_space = observation_space or spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.action_space = action_space or spaces.Discrete(3)
        self.end_rate = end_rate

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        end = self.np_random.random() < self.end_rate
        truncated = bool(end and self.np_random.random() < 0.5)
        reward = float(self.np_random.normal())
        return self.observation_space.sample(), reward, bool(end and not truncated), truncated, {}


def make_policy(
    observation_space: spaces.Space | None = None, action_space: spaces.Space | None = None, **kwargs: Any
) -> LaplaceLstmPolicy:
    kwargs.setdefault("lstm_hidden_size", 8)
    policy = LaplaceLstmPolicy(
        observation_space or spaces.Box(-1.0, 1.0, (4,), np.float32),
        action_space or spaces.Discrete(3),
        lambda _: 1e-3,
        **kwargs,
    )
    randomize(policy)
    return policy


def randomize(module: th.nn.Module, std: float = 0.5, seed: int = 0) -> None:
    """Weights large enough that every part matters."""
    generator = th.Generator().manual_seed(seed)
    with th.no_grad():
        for parameter in module.parameters():
            parameter.copy_(th.randn(parameter.shape, generator=generator) * std)
