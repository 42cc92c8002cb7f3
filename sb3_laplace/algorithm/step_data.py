"""What a rollout reads of single steps: values where episodes were cut, targets, rewards, next observations."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from sb3_laplace.policies.laplace_lstm_policy import LaplaceLstmPolicy
from sb3_laplace.policies.types import TensorOrDict
from sb3_laplace.vec_env.infos import attribute_of, column_of


def terminal_observations(infos: list[dict[str, Any]], indices: list[int], space: spaces.Space) -> Any:
    """The last observations of episodes that ended, stacked as a batch of observations.

    :param infos: one dict per environment
    :param indices: the environments whose episodes ended
    :param space: observation space
    """
    last = [infos[index]["terminal_observation"] for index in indices]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([one[key] for one in last]) for key in space.spaces}
    return np.stack(last)


@th.inference_mode()
def truncated_values(
    policy: LaplaceLstmPolicy, dones: np.ndarray, infos: list[dict[str, Any]], states: RNNStates
) -> tuple[list[int], np.ndarray]:
    """Values of the last observations of episodes that a time limit cut (SB3 issue #633 is why they are needed).

    One batched call for all environments concerned.

    :param policy: the policy
    :param dones: shape (n_envs,)
    :param infos: one dict per environment
    :param states: recurrent states after the step
    :return: the environments concerned, and their values, shape (number of these,)
    """
    truncated = [
        int(index)
        for index in np.flatnonzero(dones)
        if infos[index].get("TimeLimit.truncated", False) and infos[index].get("terminal_observation") is not None
    ]
    if not truncated:
        return truncated, np.zeros(0, np.float32)
    obs = obs_as_tensor(terminal_observations(infos, truncated, policy.observation_space), policy.device)
    index = th.as_tensor(truncated, device=policy.device)
    state = tuple(part[:, index] for part in states.vf)
    no_starts = th.zeros(len(truncated), device=policy.device)
    return truncated, policy.predict_values(obs, state, no_starts).flatten().cpu().numpy()


class AuxiliaryReader:
    """Reads what the auxiliary losses need of each step, as tensors on the policy's device.

    :param env: the training environment
    :param policy: the policy
    :param with_targets: whether to read targets of supervised learning
    :param with_rewards: whether to read what the reward decoder needs: rewards, before VecNormalize scales them
    :raises ValueError: if the policy has no reward decoder
    """

    def __init__(self, env: VecEnv, policy: LaplaceLstmPolicy, with_targets: bool, with_rewards: bool) -> None:
        self.env = env
        self.policy = policy
        self.with_targets = with_targets
        self.with_rewards = with_rewards
        # Asked for only where it is needed: not every VecEnv can be asked
        self._action_scale = attribute_of(env, "action_scale", 1.0) if with_targets else 1.0
        self._normalizer = unwrap_vec_normalize(env)
        if with_rewards and policy.reward_decoder is None:
            raise ValueError(
                "reward_coef needs a reward decoder, which this policy was built without: give reward_coef to the "
                "constructor or to load()."
            )

    def read(
        self, new_obs: VecEnvObs, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]
    ) -> dict[str, TensorOrDict]:
        """What the environments returned of one step.

        :param new_obs: observations after the step
        :param rewards: rewards as given, shape (n_envs,)
        :param dones: shape (n_envs,)
        :param infos: one dict per environment
        :return: by name, each (n_envs, ...): "targets", "decoder_rewards" and "next_observations"
        :raises ValueError: if an environment gives no target, or none that fits its actions, or a reward does not
            fit the decoder's likelihood
        """
        columns: dict[str, TensorOrDict] = {}
        if self.with_targets:
            columns["targets"] = th.as_tensor(self.targets(infos), device=self.policy.device)
        if self.with_rewards:
            assert self.policy.reward_decoder is not None
            if self._normalizer is not None:
                rewards = self._normalizer.get_original_reward()
            self.policy.reward_decoder.observe(rewards)
            columns["decoder_rewards"] = th.as_tensor(rewards, dtype=th.float32, device=self.policy.device)
            if self.policy.reward_decoder.next_obs:
                columns["next_observations"] = self._next_observations(new_obs, dones, infos)
        return columns

    def targets(self, infos: list[dict[str, Any]]) -> np.ndarray:
        """Targets of the actions just taken, as the policy has actions, flat for a Box, shape (n_envs, ...).

        An environment whose targets are in another unit than its actions has an attribute ``action_scale``:
        the target is compared with ``action_scale * action``.

        :param infos: one dict per environment
        :raises ValueError: if an environment gives none, or none that fits its actions
        """
        space = self.policy.action_space
        values, missing = column_of(self.env, infos, "target")
        if values is None or missing:
            where = "no environment" if values is None else f"not environment {missing[0]}"
            raise ValueError(
                f"target_coef needs environments whose info holds 'target' at every step: {where} gave one. (Batched "
                "environments that reset in the step after an episode's end give none there: use SAME_STEP.)"
            )
        try:
            targets = np.asarray(values, dtype=np.float64).reshape(self.env.num_envs, *space.shape)  # type: ignore[misc]
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
            return targets.reshape(self.env.num_envs, -1)
        most: Any = 2 if isinstance(space, spaces.MultiBinary) else getattr(space, "nvec", getattr(space, "n", 0))
        wrong = (targets < 0) | (targets >= most) | (targets % 1 != 0)
        if wrong.any():
            raise ValueError(f"info['target'] must be an action of {space}, got {targets[wrong][0]:g} in it.")
        return targets.astype(np.float32 if isinstance(space, spaces.MultiBinary) else np.int64)

    def _next_observations(self, new_obs: VecEnvObs, dones: np.ndarray, infos: list[dict[str, Any]]) -> TensorOrDict:
        """Observations after the step: at the end of an episode its last, not the first of the next."""
        ended = np.flatnonzero(dones).tolist()
        if ended:
            last = terminal_observations(infos, ended, self.policy.observation_space)
            if isinstance(new_obs, dict):
                new_obs = {key: part.copy() for key, part in new_obs.items()}
                for key, part in new_obs.items():
                    part[ended] = last[key]
            else:
                new_obs = np.array(new_obs)
                new_obs[ended] = last
        return obs_as_tensor(new_obs, self.policy.device)  # type: ignore[arg-type]
