"""An environment that reports the action that would have been right, for tests of the terms of the loss."""

from typing import Any

from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_laplace import LaplaceRecurrentPPO
from sb3_laplace.policies.types import SequenceRolloutBufferSamples
from tests.helpers import RandomEnv

ALL_TERMS: dict[str, Any] = {"target_coef": 1.0, "reward_coef": 0.5, "decode_window": 2}


class TargetEnv(RandomEnv):
    """Random, with the action that would have been right in its infos; rewards of 0 or 1 if asked for."""

    def __init__(self, binary: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.binary = binary
        self.action_space.seed(0)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        obs, reward, terminated, truncated, _ = super().step(action)
        reward = float(reward > 0) if self.binary else reward
        return obs, reward, terminated, truncated, {"target": self.action_space.sample()}


def target_env(n_envs: int = 3, **kwargs: Any) -> DummyVecEnv:
    env = DummyVecEnv([lambda: Monitor(TargetEnv(**kwargs)) for _ in range(n_envs)])
    env.seed(0)
    return env


def loss_of(model: LaplaceRecurrentPPO, samples: SequenceRolloutBufferSamples) -> dict[str, float]:
    """Terms of the loss of a minibatch, without an update."""
    for term in model.loss_terms:
        term.begin_update()
    return model._loss(samples, [term for term in model.loss_terms if term.is_stored])[1]


def losses_of(model: LaplaceRecurrentPPO) -> dict[str, float]:
    """Terms of the loss of the whole rollout, without an update."""
    samples = next(iter(model.rollout_buffer.get(None)))
    return loss_of(model, samples)
