"""The interface of all oracles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_laplace_envs.arguments import check_array
from sb3_laplace_envs.tasks.batches import Observations
from sb3_laplace_envs.tasks.trials import TrialVectorEnv


class Belief(NamedTuple):
    """Mean and covariance of what is hidden in each trial, given what was observed of the trial so far.

    :param mean: (num_envs, d)
    :param covariance: (num_envs, d, d)
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


class Oracle(ABC):
    """Plays a batch of trials, knowing how tasks are drawn.

    ```python
    env = DirichletBanditVectorEnv(num_envs=1000)
    oracle = DirichletIndexPolicy(env)
    observations, _ = env.reset(seed=0)
    for _ in range(env.trial_length):
        oracle.observe(observations)
        observations, rewards, *_ = env.step(oracle.act())
    ```

    An oracle may also watch the trials that somebody else plays. Some have `posterior`, what is known of the
    task by now, and some `predict`.

    :param env: The environments, for their number, their arguments and the form of their observations. They are
        not touched.
    """

    def __init__(self, env: TrialVectorEnv) -> None:
        self.num_envs, self.trial_length = env.num_envs, env.trial_length
        space = env.single_observation_space
        assert isinstance(space, spaces.Box)
        self._low, self._high = space.low, space.high
        self._rows = np.arange(self.num_envs)

    def reset(self, mask: NDArray[np.bool_] | None = None) -> None:
        """Forget what was observed, so that new trials begin. `observe` does this where a trial starts.

        :param mask: Where, (num_envs,), by default everywhere
        :raises ValueError: A mask of another shape or dtype
        """
        if mask is None:
            mask = np.ones(self.num_envs, dtype=np.bool_)
        self._reset(np.flatnonzero(check_array("mask", mask, "b", (self.num_envs,))))

    def observe(self, observations: Observations) -> None:
        """Take in what the environments showed, once after each reset and each step.

        :param observations: As the environments return them, not normalized, (num_envs, n). An observation holds
            the last action and what came of it; that of a trial's first step starts the trial.
        :raises ValueError: Observations outside of the observation space
        """
        shown = check_array("observations", observations, "iuf", (self.num_envs, *self._low.shape))
        inside = ((self._low <= shown) & (shown <= self._high)).all(axis=1)  # False for NaN
        if not inside.all():
            raise ValueError(
                "observations must lie in the environment's observation space, and not be normalized; "
                f"got {shown[~inside][0]}"
            )
        first = shown[:, -1] > 0.5
        self._reset(np.flatnonzero(first))
        self._update(shown, np.flatnonzero(~first))

    @abstractmethod
    def act(self) -> NDArray[Any]:
        """Choose the next actions.

        :return: Actions as the environments take them, one for each
        """

    @abstractmethod
    def _reset(self, indices: NDArray[np.int64]) -> None:
        """Go back to what is known before a trial, in some environments."""

    @abstractmethod
    def _update(self, observations: Observations, indices: NDArray[np.int64]) -> None:
        """Learn from a step.

        :param observations: Of all environments, (num_envs, n)
        :param indices: Those whose observation came of a step, and not of the start of a trial
        """


def check_env(env: TrialVectorEnv, kind: type[TrialVectorEnv]) -> None:
    """Check that an oracle was given the environments of its task.

    :raises ValueError: ``env`` is of another class
    """
    if not isinstance(env, kind):
        raise ValueError(f"env must be a {kind.__name__} (of a wrapped one, its `unwrapped`), got {type(env).__name__}")
