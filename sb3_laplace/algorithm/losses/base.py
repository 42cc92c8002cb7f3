"""The interface of a term of the loss."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch as th
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from sb3_laplace.checks import check_not_negative
from sb3_laplace.policies import LaplaceLstmPolicy
from sb3_laplace.policies.types import Evaluation, PolicyStep, SequenceRolloutBufferSamples, TensorOrDict


class RolloutStep(NamedTuple):
    """One step of a rollout.

    :param acted: what the policy did
    :param new_obs: observations after the step
    :param rewards: rewards as given, shape (n_envs,)
    :param dones: shape (n_envs,)
    :param infos: one dict per environment
    """

    acted: PolicyStep
    new_obs: VecEnvObs
    rewards: np.ndarray
    dones: np.ndarray
    infos: list[dict[str, Any]]


class LossTerm(ABC):
    """A term of the loss: its coefficient, what it needs stored of every step, and its value on a minibatch.

    The coefficient is an attribute of the algorithm, a number or a function of the progress remaining (from 1 to 0),
    which callbacks may change. A term takes part in an update if it was on when the rollout began.

    :param algorithm: whose loss it is a term of
    """

    #: Name of the algorithm's attribute that holds the coefficient
    coefficient: ClassVar[str]

    def __init__(self, algorithm: RecurrentPPO) -> None:
        self.algorithm = algorithm
        #: Coefficient of the present update
        self.weight = 0.0
        #: Whether the present rollout holds what the term needs
        self.is_stored = False

    @property
    def policy(self) -> LaplaceLstmPolicy:
        """The policy that learns."""
        return self.algorithm.policy  # type: ignore[return-value]

    @property
    def is_on(self) -> bool:
        """Whether the coefficient is positive, or a schedule, which may pass through zero."""
        value = getattr(self.algorithm, self.coefficient)
        return callable(value) or check_not_negative(self.coefficient, value) > 0

    def value_of(self, name: str, progress_remaining: float | None = None) -> float:
        """Value of an attribute of the algorithm that is a number or a schedule.

        :param name: name of the attribute
        :param progress_remaining: from 1 to 0, the present progress by default
        :raises ValueError: if it is negative or not finite
        """
        value = getattr(self.algorithm, name)
        if callable(value):
            if progress_remaining is None:
                progress_remaining = self.algorithm._current_progress_remaining
            # SB3's progress falls below zero where the last rollout passes total_timesteps
            value = value(max(0.0, progress_remaining))
        return check_not_negative(name, value)

    def check_arguments(self) -> None:
        """Check the arguments of the term that can be checked before there is a policy.

        :raises ValueError: naming the argument
        """
        self.value_of(self.coefficient, progress_remaining=1.0)

    def check_policy(self) -> None:  # noqa: B027 (most terms need nothing)
        """Check that the policy has what the term needs, where it is on.

        :raises ValueError: saying what is missing
        """

    # -- rollout ----------------------------------------------------------------------------------------

    def begin_rollout(self, env: VecEnv) -> None:
        """Get ready to store what the term needs of every step.

        :param env: the training environment
        :raises ValueError: if the policy or the environment cannot give it
        """
        self.is_stored = self.is_on
        if self.is_stored:
            self.check_policy()

    def columns(self, step: RolloutStep) -> dict[str, TensorOrDict]:
        """What minibatches need of a step, by name, each (n_envs, ...). They find it in ``samples.columns``.

        :param step: the step
        """
        return {}

    def memory(self, step: RolloutStep) -> dict[str, th.Tensor]:
        """The same of what is too large to be gathered, by name. Minibatches find views in ``samples.memory``.

        :param step: the step
        """
        return {}

    # -- update -----------------------------------------------------------------------------------------

    def begin_update(self) -> None:
        """Read the coefficient, which is the same for all minibatches of an update.

        :raises ValueError: if it was switched on after the rollout had begun
        """
        self.weight = self.value_of(self.coefficient)
        if self.is_on and not self.is_stored:
            raise ValueError(
                f"{self.coefficient} = {self.weight} was set after the rollout had begun, which holds nothing for it."
            )

    def begin_minibatch(self, samples: SequenceRolloutBufferSamples) -> None:  # noqa: B027 (most terms need nothing)
        """Exchange what the term needs of the minibatches of all ranks, before anything can fail on one of them.

        :param samples: the minibatch
        """

    @abstractmethod
    def loss(
        self, samples: SequenceRolloutBufferSamples, evaluation: Evaluation
    ) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        """The term, without its coefficient.

        :param samples: the minibatch
        :param evaluation: the minibatch under the current policy
        :return: the loss, a scalar, and what to log by name (as ``train/<name>``)
        """


def valid(tensor: th.Tensor, samples: SequenceRolloutBufferSamples) -> th.Tensor:
    """The entries that are no padding.

    :param tensor: shape (B, ...)
    :param samples: the minibatch
    """
    return tensor if samples.mask is None else tensor[samples.mask]
