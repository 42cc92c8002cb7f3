"""Supervised learning from targets of the actions."""

from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_laplace.algorithm.losses.base import LossTerm, RolloutStep, valid
from sb3_laplace.checks import is_masked_out, is_no_choice
from sb3_laplace.policies.types import Evaluation, SequenceRolloutBufferSamples, TensorOrDict
from sb3_laplace.vec_env.infos import attribute_of, column_of


class TargetTerm(LossTerm):
    """``target_coef`` negative log-likelihood, in nats, of ``info["target"]`` under the policy.

    An environment whose targets are in another unit than its actions has an attribute ``action_scale``: the target is
    compared with ``action_scale * action``.
    """

    coefficient: ClassVar[str] = "target_coef"

    def begin_rollout(self, env: VecEnv) -> None:
        super().begin_rollout(env)
        self._env = env
        # Asked for only where it is needed: not every VecEnv can be asked
        self._action_scale = attribute_of(env, "action_scale", 1.0) if self.is_stored else 1.0

    def columns(self, step: RolloutStep) -> dict[str, TensorOrDict]:
        targets, masks = self.targets(step.infos), step.acted.action_masks
        if masks is not None:
            forbidden = is_masked_out(targets, masks.cpu().numpy(), self.policy.action_space)
            if forbidden.any():
                env = int(forbidden.argmax())
                raise ValueError(
                    f"info['target'] must be an action that action_masks allow, got {targets[env]} from environment "
                    f"{env}, whose mask is {masks[env].int().tolist()}."
                )
        return {"targets": th.as_tensor(targets, device=self.policy.device)}

    def targets(self, infos: list[dict[str, Any]]) -> np.ndarray:
        """Targets of the actions just taken, as the policy has actions, flat for a Box, shape (n_envs, ...).

        :param infos: one dict per environment
        :raises ValueError: if an environment gives none, or none that fits its actions
        """
        space, n_envs = self.policy.action_space, self._env.num_envs
        values, missing = column_of(self._env, infos, "target")
        if values is None or missing:
            where = "no environment" if values is None else f"not environment {missing[0]}"
            raise ValueError(
                f"target_coef needs environments whose info holds 'target' at every step: {where} gave one. (Batched "
                "environments that reset in the step after an episode's end give none there: use SAME_STEP.)"
            )
        try:
            targets = np.asarray(values, dtype=np.float64).reshape(n_envs, *space.shape)  # type: ignore[misc]
        except (TypeError, ValueError):
            raise ValueError(
                f"info['target'] must have the shape {space.shape} of an action of {space}, got {np.shape(values)[1:]} "
                "from each environment."
            ) from None
        if not np.isfinite(targets).all():
            raise ValueError(f"info['target'] must be finite, got {targets[~np.isfinite(targets)][0]}.")
        if isinstance(space, spaces.Box):
            targets = (targets / self._action_scale).astype(np.float32)
            if self.policy.squash_output:
                if ((targets <= space.low) | (targets >= space.high)).any():
                    raise ValueError(f"info['target'] must lie inside {space} with squash_output=True.")
                targets = self.policy.scale_action(targets)
            return targets.reshape(n_envs, -1)
        wrong = is_no_choice(targets, space)
        if wrong.any():
            raise ValueError(
                f"info['target'] must be an action of {space}, counted from 0, got {targets[wrong][0]:g} in it."
            )
        return targets.astype(np.float32 if isinstance(space, spaces.MultiBinary) else np.int64)

    def loss(
        self, samples: SequenceRolloutBufferSamples, evaluation: Evaluation
    ) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        targets = samples.columns["targets"]
        assert isinstance(targets, th.Tensor)
        loss = -valid(evaluation.distribution.log_prob(targets), samples).mean()
        return loss, {"target_loss": loss}
