"""Masks of actions: where environments have them, and how predictions use them."""

import numpy as np
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.maskable.utils import EXPECTED_METHOD_NAME, is_masking_supported
from stable_baselines3.common.vec_env import VecEnv

from sb3_laplace.checks import MASKED_SPACES, check_action_masks


class ActionMasks:
    """The masks of the actions of a batch of environments, by sb3-contrib's convention.

    Environments have a method ``action_masks()``, which sb3-contrib's ``ActionMasker`` gives to one that does not;
    :class:`~sb3_laplace.GymnasiumVecEnv` says how batched environments have masks.

    :param env: the environments, after their first reset
    :param use_masking: True for environments that must have masks, False to use none; None uses masks where
        environments have them and their actions are discrete
    :raises ValueError: with ``use_masking=True``, if there are none or actions are continuous
    """

    def __init__(self, env: VecEnv, use_masking: bool | None) -> None:
        self.env = env
        # Asked for last: it may be a message to every worker
        #: Whether actions are masked
        self.is_on = use_masking is not False and isinstance(env.action_space, MASKED_SPACES) and _has_masks(env)
        if use_masking and not self.is_on:
            raise ValueError(
                "use_masking=True needs environments with a method action_masks() and discrete actions, got one with "
                f"{env.action_space} that has {'one' if _has_masks(env) else 'none'}. sb3_contrib.common.wrappers."
                "ActionMasker gives it to an environment; without use_masking, actions are masked where it is there."
            )
        # A batch has the masks of all environments in one array, also beneath wrappers of SB3's
        self._is_batched = self.is_on and hasattr(env, EXPECTED_METHOD_NAME)

    def read(self, where: str) -> np.ndarray | None:
        """Masks of the next actions, shape (n_envs, n), bool; None where actions are not masked.

        :param where: the step, for the message
        :raises ValueError: if their shape or type is another, or an environment has no valid action, which it names
        """
        if not self.is_on:
            return None
        if self._is_batched:
            masks = getattr(self.env, EXPECTED_METHOD_NAME)()
        else:
            masks = self.env.env_method(EXPECTED_METHOD_NAME)
        return check_action_masks(masks, self.env.action_space, self.env.num_envs, where)


def _has_masks(env: VecEnv) -> bool:
    try:
        return is_masking_supported(env)
    except NotImplementedError:
        # A VecEnv that cannot be asked
        return False


class MaskedPPO(RecurrentPPO):
    """RecurrentPPO that learns and predicts with masks of actions, as sb3-contrib's MaskablePPO does.

    ``learn(use_masking=...)`` is MaskablePPO's argument. There it is True, and environments without masks are an error.
    Here the default, None, uses masks where environments have a method ``action_masks()`` and their actions are
    discrete: ``learn()`` of RecurrentPPO, whose place this takes, must go on in environments without masks, which are
    left exactly as they are; and who comes from MaskablePPO has given the environment that method, and nothing else
    calls it. True insists on masks, False ignores them.
    """

    #: What the last call of ``learn`` was given, saved with the model: who learned without masks is evaluated without
    use_masking: bool | None = None
    # State after the last prediction with masks that was given none
    _masked_state: tuple[np.ndarray, ...] | None = None

    def set_masking(self, use_masking: bool | None) -> None:
        """Check what ``learn`` was given, before it resets anything.

        :param use_masking: True, False or None
        :raises ValueError: if it is something else, or True where actions are continuous
        """
        if not (use_masking is None or isinstance(use_masking, bool)):
            raise ValueError(f"use_masking must be True, False or None, got {use_masking!r}.")
        if use_masking and not isinstance(self.action_space, MASKED_SPACES):
            raise ValueError(
                f"use_masking=True is for Discrete, MultiDiscrete and MultiBinary actions, got {self.action_space}."
            )
        self.use_masking = use_masking

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Actions for observations, and the recurrent state, see :meth:`~sb3_laplace.LaplaceLstmPolicy.predict`.

        sb3-contrib's maskable ``evaluate_policy`` never passes the state back: MaskablePPO has none. So with masks,
        without a state and with an ``episode_start`` that says that an episode goes on, the agent goes on from the
        state after the last call with masks and without a state. The first call of a loop therefore has a state, or an
        ``episode_start`` of None or True throughout.

        :param observation: observation of one environment or of N
        :param state: the state returned by the last call; None before the first
        :param episode_start: True where an episode starts, shape (N,)
        :param deterministic: act on the posterior's mean and take the mode
        :param action_masks: True for the actions that are allowed, in sb3-contrib's order, shape (N, n), or (n,) of one
            environment; None if all are
        :return: actions and the state
        :raises ValueError: if an argument does not fit the policy, or an environment is left without a valid action
        """
        if action_masks is None:
            return super().predict(observation, state, episode_start, deterministic)
        is_stateless = state is None
        if is_stateless and episode_start is not None and not np.all(episode_start):
            state = self._masked_state
        actions, after = self.policy.predict(  # type: ignore[call-arg]
            observation, state, episode_start, deterministic, action_masks=action_masks
        )
        self._masked_state = after if is_stateless else None
        return actions, after
