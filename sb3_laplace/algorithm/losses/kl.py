"""The penalty on the KL between successive posteriors."""

import math
import warnings
from typing import Any, ClassVar

import numpy as np
import torch as th
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import VecEnv

from sb3_laplace.algorithm import distributed
from sb3_laplace.algorithm.losses.base import LossTerm, RolloutStep, valid
from sb3_laplace.algorithm.losses.consistency import Balance, LatentBalance, TaskBalance
from sb3_laplace.checks import check_positive
from sb3_laplace.policies.types import Evaluation, SequenceRolloutBufferSamples, TensorOrDict
from sb3_laplace.posteriors import LaplacePosterior
from sb3_laplace.readout import reported_tasks
from sb3_laplace.vec_env.infos import ignored_steps

# What log(kl_coef) moves by when moves are e times the claims or more, and its bounds; the same of the prior's variance
_STEP = 0.2
_LEAST, _MOST = LatentBalance.least, LatentBalance.largest
# Narrowest prior, relative to the one that was asked for
_NARROWEST = 0.1
#: The coefficient that "auto" starts from
INITIAL_AUTO = 1e-4


def initial_auto(value: Any) -> float | None:
    """The coefficient that ``"auto"`` or ``"auto_<number>"`` starts from, None for what is neither.

    :param value: ``kl_coef`` as given
    :raises ValueError: if it is another text, or the number is not in [1e-6, 1]
    """
    if not isinstance(value, str):
        return None
    start, _, number = value.partition("_")
    try:
        initial = float(number) if "_" in value else INITIAL_AUTO
    except ValueError:
        initial = math.nan
    if start != "auto" or not _LEAST <= initial <= _MOST:
        raise ValueError(
            f"kl_coef must be a number >= 0, a function, 'auto' or 'auto_<number>' with a number in "
            f"[{_LEAST}, {_MOST}] to start from, got {value!r}."
        )
    return initial


class KLTerm(LossTerm):
    """``kl_coef`` mean KL(q_t || sg(q_{t-1})), in nats (paper, section 4).

    With ``kl_coef="auto"`` the coefficient is the multiplier of the constraint that the posterior moves ``kl_target``
    times as much as it claims to learn: after each rollout ``log kl_coef += 0.2 clip(log(r / kl_target), -1, 1)`` (dual
    ascent), r being moves over claims, see :mod:`~sb3_laplace.algorithm.losses.consistency`. Where the environments
    report their task the penalty is on the moves of its linear read-out, each part of a trial has a multiplier, and
    they are in [1e-5, 0.03]. A Laplace posterior's prior is narrowed where it claims more than it learns in all: its
    variance goes by steps of the same size, and stays in [0.01, 1] of what was asked for. Elsewhere the penalty is the
    KL, its one coefficient is in [1e-6, 1], and the prior stays.
    """

    coefficient: ClassVar[str] = "kl_coef"

    def __init__(self, algorithm: RecurrentPPO) -> None:
        super().__init__(algorithm)
        self._balance: Balance | None = None
        self._trial_steps = np.zeros(0, dtype=np.int64)
        self._is_balanced = False
        self._has_warned = False
        self._next_narrowed: float | None = None

    @property
    def _given(self) -> Any:
        return self.algorithm.kl_coef  # type: ignore[attr-defined]

    @property
    def is_on(self) -> bool:
        return initial_auto(self._given) is not None or super().is_on

    def value_of(self, name: str, progress_remaining: float | None = None) -> float:
        initial = initial_auto(self._given)
        if name != self.coefficient or initial is None:
            return super().value_of(name, progress_remaining)
        return float(self._multipliers(initial).mean())

    def _multipliers(self, initial: float) -> np.ndarray:
        """Those of each part of a trial, or a single one, shape (parts,)."""
        multipliers = self.algorithm.kl_multiplier  # type: ignore[attr-defined]
        return np.atleast_1d(np.asarray(initial if multipliers is None else multipliers, dtype=np.float64))

    def check_arguments(self) -> None:
        check_positive("kl_target", self.algorithm.kl_target)  # type: ignore[attr-defined]
        # None is a default that depends on the policy
        if self._given is not None:
            super().check_arguments()

    def check_policy(self) -> None:
        if self.is_on and self.policy.latent_layer.is_point:
            given = getattr(self.algorithm, self.coefficient)
            raise ValueError(f"kl_coef must be 0 with posterior='point', which has no KL; got {given!r}.")

    # -- rollout ----------------------------------------------------------------------------------------

    def begin_rollout(self, env: VecEnv) -> None:
        super().begin_rollout(env)
        self._is_balanced = self.is_stored and initial_auto(self._given) is not None
        if not self._is_balanced:
            return
        # Not before: the update has to find the prior that the rollout had
        self._set_prior()
        self._env, self._tasks = env, reported_tasks(env)
        kind = LatentBalance if self._tasks is None else TaskBalance
        starts = self.algorithm._last_episode_starts
        assert starts is not None
        if type(self._balance) is not kind or len(self._trial_steps) != env.num_envs:
            self._balance = kind(env.num_envs, self.algorithm.n_steps, self.algorithm.seed)
            if kind is LatentBalance and self.algorithm.kl_multiplier is not None:  # type: ignore[attr-defined]
                self.algorithm.kl_multiplier = [float(np.mean(self.algorithm.kl_multiplier))]  # type: ignore[attr-defined]
            # Where a trial has begun before, its step is not known: not the first
            self._trial_steps = np.ones(env.num_envs, dtype=np.int64)
        self._trial_steps = np.where(starts, 0, self._trial_steps)
        self._balance.begin()

    def columns(self, step: RolloutStep) -> dict[str, TensorOrDict]:
        if not self._is_balanced:
            return {}
        assert self._balance is not None
        ignored = ignored_steps(self._env)
        trial_steps = np.where(ignored, -1, self._trial_steps)
        self._balance.add(step.acted.posterior, trial_steps, self._tasks)
        self._trial_steps = np.where(step.dones | ignored, 0, self._trial_steps + 1)
        if self._tasks is not None and (step.dones | ignored).any():
            self._tasks = reported_tasks(self._env)
        return {"trial_steps": th.as_tensor(trial_steps, device=self.policy.device)}

    def memory(self, step: RolloutStep) -> dict[str, th.Tensor]:
        if self._is_balanced and isinstance(self._balance, TaskBalance):
            # Whose penalty needs no precision
            return {}
        return self.policy.latent_layer.memory(step.acted.posterior)

    # -- update -----------------------------------------------------------------------------------------

    def begin_update(self) -> None:
        initial = initial_auto(self._given)
        if self._is_balanced and initial is not None:
            self._follow(self._multipliers(initial))
        super().begin_update()

    def _follow(self, multipliers: np.ndarray) -> None:
        """One step of dual ascent."""
        assert self._balance is not None
        log_ratios = self._balance.log_ratios()
        if log_ratios is not None:
            # Parts that are seen for the first time go on from the last one
            multipliers = np.pad(multipliers, (0, max(len(log_ratios.parts) - len(multipliers), 0)), "edge")
            target = math.log(self.algorithm.kl_target)  # type: ignore[attr-defined]
            errors = np.nan_to_num(log_ratios.parts - target)
            multipliers[: len(errors)] *= np.exp(_STEP * np.clip(errors, -1.0, 1.0))
            multipliers = np.clip(multipliers, self._balance.least, self._balance.largest)
            self._narrow(log_ratios.whole - target)
            self.algorithm.logger.record("train/moved_to_claimed", math.exp(log_ratios.whole))
        elif not self._has_warned and distributed.rank() == 0:
            self._has_warned = True
            warnings.warn(
                "The posterior claims to learn nothing after a trial's first step: kl_coef='auto' has nothing to hold "
                f"its moves against and stays at {multipliers.mean():.3g}."
            )
        self.algorithm.kl_multiplier = multipliers.tolist()  # type: ignore[attr-defined]
        self.algorithm.logger.record("train/kl_coef", float(multipliers.mean()))

    def _narrow(self, error: float) -> None:
        """One step of the prior's variance: no penalty makes a belief move more, so that one that claims more than it
        learns needs a narrower prior, until it does not."""
        layer = self.policy.latent_layer
        if isinstance(self._balance, TaskBalance) and isinstance(layer, LaplacePosterior) and not layer.normalize:
            narrowed = self.algorithm.prior_narrowed * math.exp(0.5 * _STEP * min(max(error, -1.0), 1.0))  # type: ignore[attr-defined]
            self._next_narrowed = min(max(narrowed, _NARROWEST), 1.0)
            self.algorithm.logger.record("train/prior_narrowed", self._next_narrowed)

    def _set_prior(self) -> None:
        now = self.algorithm.prior_narrowed  # type: ignore[attr-defined]
        if self._next_narrowed is None or self._next_narrowed == now:
            return
        layer = self.policy.latent_layer
        std = (np.asarray(layer.prior_std) * (self._next_narrowed / now)).tolist()
        layer.set_prior(std=std)
        self.algorithm.set_posterior_settings(prior_std=std)  # type: ignore[attr-defined]
        self.algorithm.prior_narrowed = self._next_narrowed  # type: ignore[attr-defined]

    def loss(
        self, samples: SequenceRolloutBufferSamples, evaluation: Evaluation
    ) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        if not self._is_balanced:
            loss = valid(evaluation.posterior.kl().reshape(-1), samples).mean()
            return loss, {"kl_loss": loss}
        assert self._balance is not None
        # Multiplied by their mean, the weight of this loss
        relative = self._multipliers(self.weight) / self.weight
        loss = valid(self._balance.penalty(samples, evaluation, relative), samples).mean()
        return loss, {self._balance.name: loss}
