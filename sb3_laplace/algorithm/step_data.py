"""What a rollout reads of steps that end an episode: the last observations, and their values."""

import warnings
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from sb3_laplace.checks import check_no_nan
from sb3_laplace.policies import LaplaceLstmPolicy
from sb3_laplace.policies.types import RecurrentStates


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


def check_step(
    new_obs: VecEnvObs, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]], n_steps: int
) -> None:
    """Refuse what would make the weights NaN, before it is stored.

    :param new_obs: observations after the step
    :param rewards: shape (n_envs,)
    :param dones: shape (n_envs,)
    :param infos: one dict per environment
    :param n_steps: how many steps of the rollout came before
    :raises ValueError: naming the environment and what is NaN, or infinite in the rewards
    """
    finite = np.isfinite(rewards)
    if not finite.all():
        index = int(np.flatnonzero(~finite)[0])
        raise ValueError(
            f"environment {index} returned the reward {rewards[index]} at step {n_steps} of the rollout; rewards must "
            "be finite."
        )
    check_no_nan(new_obs, f" after step {n_steps} of the rollout")
    for ended in np.flatnonzero(dones):
        last = infos[ended].get("terminal_observation")
        check_no_nan(last, f" at the end of an episode of environment {ended}, at step {n_steps} of the rollout,")


@th.no_grad()
def truncated_values(
    policy: LaplaceLstmPolicy, dones: np.ndarray, infos: list[dict[str, Any]], states: RecurrentStates
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
    no_starts = th.zeros(len(truncated), device=policy.device)
    return truncated, policy.predict_values(obs, states.vf.select(index), no_starts).flatten().cpu().numpy()


def warn_of_cut_trials(env: VecEnv, n_steps: int, sequence_length: int) -> None:
    """Say that trials are cut in pieces, where the environments tell how long their trials are.

    :param env: the training environments; those with trials have an attribute ``trial_length``, in steps
    :param n_steps: number of steps of a rollout
    :param sequence_length: longest sequence that the network is trained on, if nobody has asked for one so long
    """
    try:
        lengths = env.get_attr("trial_length") if env.has_attr("trial_length") else []
    except NotImplementedError:
        # A VecEnv that cannot be asked
        return
    longest = max((one for one in lengths if isinstance(one, int)), default=0)
    if longest > n_steps:
        warnings.warn(
            f"Trials have up to {longest} steps, rollouts n_steps = {n_steps}: a trial is cut where a rollout ends, "
            "and no gradient flows across the cut, so that the agent hardly learns to remember over it. With n_steps = "
            f"{longest} trials stay whole."
        )
    elif longest > sequence_length:
        warnings.warn(
            f"Trials have up to {longest} steps, the network is trained on sequences of at most {sequence_length}, "
            "which is what batch_size leaves: no gradient flows from one to the next, so that the agent hardly learns "
            f"to remember over it. With batch_size = {longest} or a multiple of it trials stay whole; "
            f"sequence_length = {sequence_length} says that they need not."
        )
