"""Numbers that are not finite are named, with where they come from, before anything is stored or stepped on."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from tests.helpers import RandomEnv
from tests.test_laplace_recurrent_ppo import collect, small_model


class BrokenEnv(RandomEnv):
    """The second of two environments returns something wrong at its fourth step."""

    def __init__(self, index: int, reward: float = 0.0, terminal: bool = False) -> None:
        super().__init__(end_rate=0.0)
        self.is_broken, self.broken_reward, self.terminal = index == 1, reward, terminal
        self.t = 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        obs, reward, *_ = super().step(action)
        self.t += 1
        broken = self.is_broken and self.t == 4
        if broken and self.terminal:
            return obs * np.nan, reward, False, True, {}
        return obs, self.broken_reward if broken else reward, False, False, {}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"reward": np.nan}, "environment 1 returned the reward nan at step 3 of the rollout"),
        ({"reward": -np.inf}, "environment 1 returned the reward -inf at step 3 of the rollout"),
        (
            {"terminal": True},
            "observation at the end of an episode of environment 1, at step 3 of the rollout, holds NaN",
        ),
    ],
)
def test_the_environment_is_named(kwargs: dict[str, Any], message: str) -> None:
    env = DummyVecEnv([lambda index=index: BrokenEnv(index, **kwargs) for index in range(2)])
    model = small_model(env)
    with pytest.raises(ValueError, match=message):
        model.learn(24)
    assert np.isfinite(model.policy.parameters_to_vector()).all()


def test_no_step_on_a_gradient_that_is_not_finite() -> None:
    """The loss is finite, its gradient is not: the message is true, and the weights are those before."""
    model = small_model()
    collect(model)
    before = model.policy.parameters_to_vector()

    class Root(th.autograd.Function):
        @staticmethod
        def forward(context: Any, x: th.Tensor) -> th.Tensor:
            return x * 1.0

        @staticmethod
        def backward(context: Any, gradient: th.Tensor) -> th.Tensor:
            return gradient * th.nan

    model.policy.value_net.register_forward_hook(lambda module, inputs, output: Root.apply(output))
    with pytest.raises(ValueError, match=r"The norm of the gradient is nan.*The weights are still those before"):
        model.train()
    np.testing.assert_array_equal(model.policy.parameters_to_vector(), before)


@pytest.mark.parametrize("action_space", [spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,))])
def test_an_infinite_observation_is_named(action_space: spaces.Space) -> None:
    """A features extractor may clip infinity, so that it is an error only where the policy makes NaN of it."""

    class InfiniteEnv(RandomEnv):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            obs, *others = super().step(action)
            return (np.full_like(obs, np.inf), *others)

    envs = [lambda: RandomEnv(action_space=action_space), lambda: InfiniteEnv(action_space=action_space)]
    model = small_model(DummyVecEnv(envs))
    with pytest.raises(
        ValueError, match=r"observation before step 1 of the rollout holds infinity, first at index \(1, 0\)"
    ):
        model.learn(24)
    assert np.isfinite(model.policy.parameters_to_vector()).all()
