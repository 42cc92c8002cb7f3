"""A Gymnasium ``VectorEnv`` as a Stable-Baselines3 ``VecEnv``, and ``make_vec_env`` on top of it."""

import time
import warnings
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from stable_baselines3.common import env_util
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.preprocessing import check_for_nested_spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_laplace.vec_env.infos import entries_of, from_reset, metrics, observations_of, unbatch, with_final_infos
from sb3_laplace.vec_env.masks import ATTRIBUTE, ReportedMasks


class GymnasiumVecEnv(VecEnv):
    """
    Runs a batched Gymnasium environment behind SB3's ``VecEnv`` interface.

    Observations, rewards, dones and the infos at the end of an episode are those of ``DummyVecEnv``
    over ``Monitor``. While an episode runs, ``infos[i]`` is empty: a dict per environment and step
    costs more than a batched step. What the environments report is in ``step_infos``, as arrays; every
    numeric array (num_envs,) there is summed over the episode into ``infos[i]["episode"]``, under its
    own key, beside "r", "l" and "t".

    How an episode ends, by the environment's ``metadata["autoreset_mode"]``:

    - ``SAME_STEP``: as in SB3.
    - ``DISABLED``: the same; the adapter resets the environments that are done.
    - ``NEXT_STEP`` (Gymnasium's default): the next episode's first observation comes one step later,
      and that step ignores its action. The adapter returns the terminal observation, then reports the
      ignored step as an episode of its own: reward 0, done (so that a recurrent state starts afresh at
      the true first observation), no ``info["episode"]`` (so that ``evaluate_policy`` and the logger
      do not count it) and truncated at the observation s that it started from. SB3 adds gamma V(s) to
      the reward of a truncated step, so its advantage is (gamma - 1) V(s): nearly nothing is learned
      from it. (Marked as terminated, its return would be 0: on CartPole cut after 10 steps, where the
      value of a state is 50, PPO then learned 18; with truncation 48, with ``SAME_STEP`` 50.) What
      counts dones instead of ``info["episode"]``, such as ``VecMonitor``, counts these as well.

    By sb3-contrib's convention environments with a method ``action_masks()`` have their actions masked, see
    :meth:`action_masks`; those that report masks in their infos have it too, from the first reset on.

    :param env: The batched environment
    :param filename: Where to write the episodes, like ``Monitor`` but one file for all; None for no file
    :raises TypeError: If ``env`` is not a ``gymnasium.vector.VectorEnv``
    :raises ValueError: If the metadata of ``env`` do not tell its autoreset mode
    :raises NotImplementedError: If the observation space is a tuple or nested
    """

    #: What the environments reported in the last step: arrays (num_envs, ...), with a mask "_key" where
    #: not all reported "key". One that is done has the entries of its final step, not of its reset.
    #: Empty after ``reset``; valid until the next step. SB3's wrappers pass it through.
    step_infos: dict[str, Any]
    #: Which environments ignored the action of the last step, (num_envs,): pseudo-episodes of ``NEXT_STEP``.
    ignored: np.ndarray

    def __init__(self, env: VectorEnv, filename: str | None = None):
        if not isinstance(env, VectorEnv):
            raise TypeError(
                f"Expected a gymnasium.vector.VectorEnv, got {type(env)}: single environments go into a DummyVecEnv."
            )
        if "autoreset_mode" not in env.metadata:
            raise ValueError(f'{env} does not tell how it resets: its metadata["autoreset_mode"] is missing.')
        if isinstance(env.single_observation_space, spaces.Tuple):
            raise NotImplementedError(f"{env.single_observation_space} observation space is not supported")
        check_for_nested_spaces(env.single_observation_space)

        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.autoreset_mode = AutoresetMode(env.metadata["autoreset_mode"])
        if self.autoreset_mode == AutoresetMode.NEXT_STEP:
            warnings.warn(
                f"{env} resets an environment in the step after its episode ended, which costs one ignored step "
                "per episode. Where it can be chosen (SyncVectorEnv(..., autoreset_mode=AutoresetMode.SAME_STEP)), "
                "SAME_STEP avoids that."
            )

        # Whether they have a method or attribute of that name, None before it is asked
        self._own_masks: bool | None = None
        self.t_start = time.time()
        self._results_writer: ResultsWriter | None = None
        if filename is not None:
            env_id = None if env.spec is None else env.spec.id
            self._results_writer = ResultsWriter(filename, header={"t_start": self.t_start, "env_id": str(env_id)})
        self._clear_episodes()

    def _clear_episodes(self) -> None:
        self.step_infos = {}
        self.ignored = np.zeros(self.num_envs, dtype=bool)
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)
        self._sums: dict[str, np.ndarray] = {}
        # NEXT_STEP: the environments that ignore the next action, with their terminal observations
        self._ignoring: dict[int, Any] = {}
        self._reported_masks = ReportedMasks(self.num_envs)

    def reset(self) -> VecEnvObs:
        seed = self._seeds[0]  # environment i gets seed + i by Gymnasium's convention
        obs, infos = self.env.reset(seed=None if seed is None else int(seed), options=self._options[0] or None)
        # Seeds and options are only used once
        self._reset_seeds()
        self._reset_options()
        self._clear_episodes()
        self.reset_infos = unbatch(infos, np.arange(self.num_envs), self.num_envs)
        self._reported_masks.update(infos)
        return self._own(obs)

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = np.asarray(actions, dtype=self.env.action_space.dtype)

    def step_wait(self) -> VecEnvStepReturn:
        obs, rewards, terminated, truncated, infos = self.env.step(self._actions)
        dones = np.logical_or(terminated, truncated)
        ended = np.flatnonzero(dones)
        if ended.size and self.autoreset_mode == AutoresetMode.SAME_STEP:
            self.step_infos = with_final_infos(infos, infos.get("final_info", {}), dones)
        else:
            self.step_infos = infos
        self._reported_masks.update(infos)

        self._returns += rewards
        self._lengths += 1
        for key, values in metrics(self.step_infos, self.num_envs):
            if key not in self._sums:
                self._sums[key] = np.zeros(self.num_envs)
            self._sums[key] += values

        # Copied before _autoreset, in which an environment may write over what it returned
        obs, rewards = self._own(obs), np.array(rewards, dtype=np.float32)
        env_infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        self.ignored = np.isin(np.arange(self.num_envs), list(self._ignoring))
        if self._ignoring:
            self._end_pseudo_episodes(infos, dones, env_infos)
        if ended.size:
            time_limit = np.logical_and(truncated, np.logical_not(terminated))[ended].tolist()
            for i, info, cut in zip(ended.tolist(), self._end_episodes(ended), time_limit, strict=True):
                env_infos[i] = {**info, "TimeLimit.truncated": cut}
            for i, terminal_obs in zip(ended.tolist(), self._autoreset(obs, infos, dones, ended), strict=True):
                env_infos[i]["terminal_observation"] = terminal_obs
        return obs, rewards, dones, env_infos

    def _end_episodes(self, ended: np.ndarray) -> list[dict[str, Any]]:
        """
        Close the books of the episodes that ended in this step.

        :param ended: The environments, (n_ended,)
        :return: For each, the infos of its final step, with its statistics under "episode"; what an
            environment itself has there (a ``Monitor`` inside it) stays
        """
        elapsed = round(time.time() - self.t_start, 6)
        columns = {key: sums[ended].tolist() for key, sums in self._sums.items()}
        columns["r"] = [round(episode_return, 6) for episode_return in self._returns[ended].tolist()]
        columns["l"] = self._lengths[ended].tolist()
        self._forget(ended)
        infos = unbatch(self.step_infos, ended, self.num_envs)
        for info, *statistics in zip(infos, *columns.values(), strict=True):
            episode = dict(zip(columns, statistics, strict=True))
            info["episode"] = {**episode, "t": elapsed, **info.get("episode", {})}
            if self._results_writer is not None:
                self._results_writer.write_row({key: info["episode"][key] for key in ("r", "l", "t")})
        return infos

    def _forget(self, ended: np.ndarray) -> None:
        for column in (self._returns, self._lengths, *self._sums.values()):
            column[ended] = 0

    def _autoreset(self, obs: Any, infos: dict[str, Any], dones: np.ndarray, ended: np.ndarray) -> list[Any]:
        """
        Start the next episodes (or note that the next step will), in place where ``obs`` has to change.

        :return: The terminal observation of each ended episode
        """
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            self._set_reset_infos(from_reset(infos), ended)
            return observations_of(infos["final_obs"], ended)

        terminal_obs = observations_of(obs, ended)
        if self.autoreset_mode == AutoresetMode.NEXT_STEP:
            self._ignoring = dict(zip(ended.tolist(), deepcopy(terminal_obs), strict=True))
        else:
            self.step_infos = deepcopy(self.step_infos)
            reset_obs, reset_infos = self.env.reset(options={"reset_mask": dones})
            self._set_reset_infos(reset_infos, ended)
            self._reported_masks.update(reset_infos, dones)
            for key in obs if isinstance(obs, dict) else [...]:
                obs[key][ended] = reset_obs[key][ended]
        return terminal_obs

    def _end_pseudo_episodes(self, infos: dict[str, Any], dones: np.ndarray, env_infos: list[dict[str, Any]]) -> None:
        """Mark the step that only reset some environments as an episode of its own, in place (see the class)."""
        for i, start_obs in self._ignoring.items():
            env_infos[i] = {"terminal_observation": start_obs, "TimeLimit.truncated": True}
        ignoring = np.array(list(self._ignoring))
        dones[ignoring] = True
        self._forget(ignoring)
        self._set_reset_infos(infos, ignoring)
        self._ignoring = {}

    def _set_reset_infos(self, infos: dict[str, Any], indices: np.ndarray) -> None:
        for i, info in zip(indices.tolist(), unbatch(infos, indices, self.num_envs), strict=True):
            self.reset_infos[i] = info

    def _own(self, obs: Any) -> VecEnvObs:
        """Copy the observations (SB3 keeps them, the environment may write over them) in the type of their space."""
        if isinstance(self.observation_space, spaces.Dict):
            return {key: np.array(obs[key], dtype=space.dtype) for key, space in self.observation_space.items()}
        return np.array(obs, dtype=self.observation_space.dtype)

    def set_options(self, options: list[dict] | dict | None = None) -> None:
        """
        Set the options of the next reset.

        :param options: Options for all environments; what differs between them goes in as arrays, where
            the environment takes such. A list (one dict per environment) has to hold equal dicts.
        :raises ValueError: If the options of a list differ
        """
        if isinstance(options, list) and not all(data_equivalence(o, options[0], exact=True) for o in options):
            raise ValueError("The environments are reset in one call: the options of all have to be equal.")
        super().set_options(options)

    def close(self) -> None:
        if self._results_writer is not None:
            self._results_writer.close()
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        frames: Any = self.env.render() if self.render_mode == "rgb_array" else [None] * self.num_envs
        return list(frames)

    def action_masks(self) -> Any:
        """
        The actions that each environment allows next, by the first that there is: ``action_masks()`` of the single
        environments (``SyncVectorEnv``, ``AsyncVectorEnv``); that method of the batched one, or its attribute of that
        name; ``infos["action_mask"]`` of the last reset or step. What ``infos`` hold belongs to the observations
        returned with them, of an environment that reset itself to the first of its new episode. An environment
        that ignores its next action (``NEXT_STEP``) allows all.

        :return: As the environments have it: an array (num_envs, n), or a list of num_envs masks
        :raises AttributeError: If the environments have no masks
        :raises ValueError: If only some of them report one
        """
        base = self.env.unwrapped
        masks: Any
        if not self._has_own_masks():
            masks = self._reported_masks.of_all()
        elif isinstance(base, SyncVectorEnv):
            masks = [env.get_wrapper_attr(ATTRIBUTE)() for env in base.envs]
        elif isinstance(base, AsyncVectorEnv):
            masks = base.call(ATTRIBUTE)
        else:
            own = getattr(self._owner(ATTRIBUTE), ATTRIBUTE)
            masks = own() if callable(own) else own
        if self._ignoring:
            masks = np.array(masks)
            masks[list(self._ignoring)] = True
        return masks

    def _has_own_masks(self) -> bool:
        # They do not change; workers are asked once
        if self._own_masks is None:
            self._own_masks = self._offers(ATTRIBUTE)
        return self._own_masks

    def has_attr(self, attr_name: str) -> bool:
        return (attr_name == ATTRIBUTE and self._reported_masks.is_known) or self._offers(attr_name)

    def _offers(self, attr_name: str) -> bool:
        if isinstance(self.env.unwrapped, AsyncVectorEnv):
            # There, a look-up that fails ends the worker process
            return self._singles_offer(attr_name) or hasattr(self._owner(attr_name), attr_name)
        return super().has_attr(attr_name)

    def _singles_offer(self, attr_name: str) -> bool:
        return all(self.env.unwrapped.call("has_wrapper_attr", attr_name))  # type: ignore[attr-defined]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        Get an attribute of the single environments (``SyncVectorEnv``, ``AsyncVectorEnv``) or of the batched
        one, where a sequence of length num_envs has an entry for each, and anything else holds for all. What single
        environments lack may be a vector wrapper's (``VectorTrial``).

        :param attr_name: its name
        :param indices: the environments that are asked, by default all
        :return: its values, one for each of these
        :raises AttributeError: If there is no such attribute
        """
        base = self.env.unwrapped
        owner = self._owner(attr_name)
        if (
            isinstance(base, SyncVectorEnv | AsyncVectorEnv)
            and owner is not base
            and not self._singles_offer(attr_name)
        ):
            values: Any = getattr(owner, attr_name)
        elif isinstance(base, SyncVectorEnv):  # whose own get_attr calls what is callable
            values = [env.get_wrapper_attr(attr_name) for env in base.envs]
        elif isinstance(base, AsyncVectorEnv):
            values = base.get_attr(attr_name)
        else:
            name = f"single_{attr_name}" if attr_name in ("observation_space", "action_space") else attr_name
            values = getattr(self._owner(name), name)
        return entries_of(values, list(self._get_indices(indices)), self.num_envs)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        Set an attribute to the same value in each environment (see :meth:`get_attr`).

        :param attr_name: its name
        :param value: its new value
        :param indices: the environments in which it is set, by default all
        :raises NotImplementedError: If ``indices`` leaves out environments that share the attribute
        """
        base = self.env.unwrapped
        chosen = list(self._get_indices(indices))
        if isinstance(base, SyncVectorEnv | AsyncVectorEnv):
            everyone = len(set(chosen)) == self.num_envs
            values = [value] * self.num_envs if everyone else self.get_attr(attr_name)
            for i in chosen:
                values[i] = value
            base.set_attr(attr_name, values)
            return
        owner = self._owner(attr_name)
        current = getattr(owner, attr_name, None)
        if isinstance(current, np.ndarray | list) and len(current) == self.num_envs:
            for i in chosen:
                current[i] = value
            value = current  # set again: a property may have returned a copy
        else:
            self._require_all(chosen, attr_name)
        setattr(owner, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list:
        """
        Call a method of single environments (``SyncVectorEnv``, ``AsyncVectorEnv``), or once that of
        the batched one, whose result is shared out as :meth:`get_attr` does.

        :param method_name: its name
        :param method_args: its positional arguments
        :param indices: the environments that are asked, by default all
        :param method_kwargs: its keyword arguments
        :return: its results, one for each of these
        :raises NotImplementedError: If ``indices`` leaves out environments that one call would touch
        :raises AttributeError: If there is no such method
        """
        base = self.env.unwrapped
        chosen = list(self._get_indices(indices))
        if method_name == ATTRIBUTE:
            return entries_of(self.action_masks(), chosen, self.num_envs)
        if isinstance(base, SyncVectorEnv):
            return [base.envs[i].get_wrapper_attr(method_name)(*method_args, **method_kwargs) for i in chosen]
        self._require_all(chosen, method_name)
        if isinstance(base, AsyncVectorEnv):
            results = base.call(method_name, *method_args, **method_kwargs)
        else:
            results = getattr(self._owner(method_name), method_name)(*method_args, **method_kwargs)
        return entries_of(results, chosen, self.num_envs)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """As in SB3, and True for ``Monitor``, whose statistics the adapter has: ``evaluate_policy`` asks for it.

        :param wrapper_class: the wrapper
        :param indices: the environments that are asked, by default all
        """
        base = self.env.unwrapped
        return [
            wrapper_class is Monitor
            or (isinstance(base, SyncVectorEnv) and env_util.is_wrapped(base.envs[i], wrapper_class))
            for i in self._get_indices(indices)
        ]

    def _owner(self, name: str) -> VectorEnv:
        """The outermost vector wrapper that has the attribute, or else the environment in it."""
        env = self.env
        while isinstance(env, VectorWrapper) and not hasattr(env, name):
            env = env.env
        return env

    def _require_all(self, indices: VecEnvIndices, name: str) -> None:
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise NotImplementedError(
                f"{self.env} is one object for all {self.num_envs} environments: {name!r} cannot be applied to "
                f"{indices} only. Leave indices out, or build single environments (SyncVectorEnv, DummyVecEnv)."
            )
