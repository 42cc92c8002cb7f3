"""An environment that waits for a file, so that a test can do something while a training is under way."""

import os
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

GATED = "tests/Gated-v0"
#: Environment variable: the file that is waited for; none to wait for nothing
GATE = "SB3_LAPLACE_TEST_GATE"
#: Step of the process at which it is waited for
GATE_STEP = 200
EPISODE_LENGTH = 5


class Gated(gym.Env):
    """Episodes of 5 steps, whose reward is the action."""

    observation_space = gym.spaces.Box(0.0, 1.0, (2,))
    action_space = gym.spaces.Discrete(2)
    n_steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._time = 0
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        Gated.n_steps += 1
        gate = os.environ.get(GATE)
        while gate and Gated.n_steps > GATE_STEP and not Path(gate).exists():
            time.sleep(0.02)
        self._time += 1
        return self._observation(), float(action), False, self._time == EPISODE_LENGTH, {}

    def _observation(self) -> np.ndarray:
        return np.append(self.np_random.random(1), self._time / EPISODE_LENGTH).astype(np.float32)


if GATED not in gym.registry:
    gym.register(GATED, Gated)
