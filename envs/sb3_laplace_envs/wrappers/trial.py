"""Trials from a single environment."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from sb3_laplace_envs.arguments import check_flag
from sb3_laplace_envs.wrappers.fields import TrialFields
from sb3_laplace_envs.wrappers.observations import TrialObservations
from sb3_laplace_envs.wrappers.progress import NEXT_EPISODE, Progress
from sb3_laplace_envs.wrappers.tasks import KEYWORDS, Probe, SampleTask, TaskRule, as_array

# The rows of a batch of one
_FIRST: NDArray[np.int64] = np.zeros(1, dtype=np.int64)


class Trial(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """
    Makes trials of an environment: several episodes of one hidden task, played as one episode (RL²).

    A recurrent agent that keeps its memory through a trial can find out its task in the first episodes and do well in
    the later ones. Where an inner episode ends within the trial, the environment is reset in the same step: the next
    episode's first observation comes with the last action, the last reward and the flag of a new episode. The
    trial's end is the only one that is seen from outside. (An inner episode's last observation is not shown.)

    **End of a trial.** After ``n_episodes`` episodes or ``trial_steps`` steps, whichever comes first, a trial is
    truncated, also where its last episode terminated. With ``on_termination="end_trial"`` the termination of an
    episode terminates the trial.

    **The task.** Drawn anew for each trial and set before its first reset, by the first of these that there is:

    1. ``task_kwargs``: the environment is made anew with other constructor keywords.
    2. ``set_task(env, task)``.
    3. The environment's methods ``set_task(task)``, with ``sample_tasks(n)`` where nothing else draws tasks (as
       in garage and Meta-World), or ``reset_task(task)``, which without an argument draws one (as in VariBAD).
    4. An array ``task`` that ``reset(options={"task": ...})`` sets, as the tasks of this package have: a reset
       without it draws a task.
    5. Nothing: the seed of the environment is held, so that each episode of a trial is the same (procedural
       environments). ``tasks`` are seeds then.

    ``task_protocol`` ("set_task", "reset_task", "options", "seed") chooses among 3 to 5. Tasks are drawn by
    ``sample_task(rng)``, from ``tasks``, or by the environment itself. ``reset(options={"task": task})`` fixes
    the task of the trial.

    **Chance.** ``reset(seed=s)`` resets the environment with the seed s. Its later trials each begin with a reset
    by a seed of their own, drawn with their task from a generator spawned from the environment's. So trial k
    is a function of s, k and the actions in it, single or in a batch. (An environment that draws its own task
    does so after that reset, then is reset again. Chance that it takes from elsewhere cannot be seeded.)

    **Observations.** A Box becomes one flat float32 Box: the observation, then what was asked for of
    previous action (one-hot where discrete), previous reward, episode-start flag, trial-start flag, step and
    episode number. Every other space, images among them, becomes a Dict with the observation under
    "observation" and each of these under its own name; a Dict keeps its keys, those of a Tuple are "observation_0", ...

    **Info.** On the last step of a trial ``episode_returns`` and ``episode_lengths`` (most episodes possible,), NaN
    and 0 where there was none, ``episodes_ended``, how many the trial's end did not cut short, and ``task`` where it is
    an array. Within a trial, the infos of a reset are joined with those of the step. Where SB3's ``Monitor`` or
    Gymnasium's ``RecordEpisodeStatistics`` is inside, ``info["episode"]`` is the trial's.

    :param env: The environment, its action space Discrete, MultiDiscrete, MultiBinary or a bounded Box
    :param n_episodes: Episodes in a trial
    :param trial_steps: Most steps in a trial
    :param on_termination: "next_episode" or "end_trial"
    :param sample_task: Draws a task from a generator; a callable, or "module:name" of one
    :param set_task: Tells the environment its task, before it is reset; a callable, or "module:name" of one
    :param task_kwargs: Draws constructor keywords from a generator; a callable, "module:name" of one, or a mapping
        from keywords to the values to choose from
    :param tasks: A fixed set of tasks to play
    :param task_order: "random" or "cyclic", the order of ``tasks``
    :param task_protocol: How the environment is told its task where there is a choice, "auto" for the first
    :param previous_action: Show the previous action
    :param previous_reward: Show the previous reward
    :param reward_scale: What the reward shown is multiplied by (the reward earned is not)
    :param episode_start: Show a flag that is 1 on the first step of each episode
    :param trial_start: Show a flag that is 1 on the first step of the trial
    :param step_number: Show the number of steps taken in the trial, scaled to 0 to 1 by the most there are:
        ``trial_steps``, or ``n_episodes`` times the environment's ``spec.max_episode_steps``
    :param episode_number: Show the number of episodes ended in the trial, divided by ``n_episodes``
    :raises ValueError: An argument is not what is allowed, or there is no way to draw or set a task
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        n_episodes: int | None = None,
        trial_steps: int | None = None,
        on_termination: str = NEXT_EPISODE,
        sample_task: SampleTask | str | None = None,
        set_task: Callable[[Any, Any], Any] | str | None = None,
        task_kwargs: Callable[[np.random.Generator], dict[str, Any]] | Mapping[str, Sequence[Any]] | str | None = None,
        tasks: Sequence[Any] | None = None,
        task_order: str = "random",
        task_protocol: str = "auto",
        previous_action: bool = True,
        previous_reward: bool = True,
        reward_scale: float = 1.0,
        episode_start: bool = True,
        trial_start: bool = False,
        step_number: bool = False,
        episode_number: bool = False,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "env", "__class__")}
        gym.utils.RecordConstructorArgs.__init__(self, **arguments)
        if not isinstance(env, gym.Env):
            raise ValueError(f"env must be a gymnasium.Env, got {type(env)}: VectorTrial takes a VectorEnv")
        super().__init__(env)
        self._progress = Progress(1, n_episodes, trial_steps, on_termination)
        self._rule = TaskRule(1, Probe(env), sample_task, set_task, task_kwargs, tasks, task_order, task_protocol)
        # Made by an id of its own, a trial is told the specification of the whole afterwards
        self._spec = env.unwrapped.spec
        if self._rule.protocol == KEYWORDS and self._spec is None:
            raise ValueError(f"task_kwargs must be used with an environment made by gymnasium.make, got {env}")
        switches = {
            "previous_action": previous_action,
            "previous_reward": previous_reward,
            "episode_start": episode_start,
            "trial_start": trial_start,
            "step_number": step_number,
            "episode_number": episode_number,
        }
        self._fields = trial_fields(1, env, env.action_space, self._progress, reward_scale, **switches)
        self._view = TrialObservations(env.observation_space, self._fields)
        self.observation_space = self._view.space
        self._is_seeded = self._is_running = False
        self._options: dict[str, Any] = {}
        self._seed = 0
        self._task: Any = None
        # What the reset of each episode has to name, where one has to
        self._held: Any = None
        self._started = time.time()

    @property
    def task(self) -> Any:
        """The hidden task of the present trial, None where the environment does not tell."""
        return self._task.copy() if isinstance(self._task, np.ndarray) else self._task

    @property
    def trial_length(self) -> int | None:
        """The most steps in a trial, None where no limit is known."""
        return longest_trial(self.env, self._progress)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a trial.

        :param seed: Seeds this and all later trials
        :param options: ``"task"``: the task of this trial. Others go to every reset of the environment in it.
        :return: The first observation, and what the environment's reset reports
        """
        if seed is not None or not self._is_seeded:
            self._rule.seed(0, seed, self.env.unwrapped.np_random)
            self._is_seeded = True
        self._options = dict(options or {})
        self._rule.take_back(0)
        if self._options.get("task") is not None:
            self._rule.give(0, self._options["task"])
        self._options.pop("task", None)
        observation, info = self._begin_trial()
        self._progress.start(_FIRST)
        block = np.zeros((1, self._fields.width), dtype=np.float32)
        self._fields.write_trial_starts(block, _FIRST)
        self._is_running = True
        info.pop("episode", None)
        return self._view.join(observation, block[0]), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one step; into the next episode where one ends within the trial.

        :param action: The action
        :return: Observation, reward, whether the trial terminated, whether it was truncated, info
        :raises gymnasium.error.ResetNeeded: The trial is over, or none has begun
        """
        if not self._is_running:
            raise ResetNeeded("call reset before the first step and after the last step of a trial")
        observation, reward, *ends, info = self.env.step(action)
        info = {key: value for key, value in info.items() if key != "episode"}
        rewards = np.array([reward], dtype=np.float64)
        counted = self._progress.count(rewards, *(np.array([end], dtype=np.bool_) for end in ends))
        next_episode, terminated, truncated = (bool(mask[0]) for mask in counted)
        block = np.zeros((1, self._fields.width), dtype=np.float32)
        self._fields.write_step(block, np.asarray(action)[np.newaxis], rewards)
        self._fields.write_numbers(block, self._progress.steps, self._progress.episodes)
        if next_episode:
            observation, reset_info = self._begin_episode()
            info = {**reset_info, **info}
            self._fields.write_episode_starts(block, _FIRST)
        elif terminated or truncated:
            self._is_running = False
            info.update(self._report())
        return self._view.join(observation, block[0]), float(rewards[0]), terminated, truncated, info

    def _begin_trial(self) -> tuple[Any, dict[str, Any]]:
        """Draw the task, set it and reset the environment."""
        rule = self._rule
        self._seed, task = rule.begin(0)
        options: dict[str, Any] = dict(self._options)
        seed: int | None = self._seed
        if rule.protocol == "options" and task is not None:
            options["task"] = task
        elif rule.protocol == KEYWORDS:
            assert self._spec is not None
            self.env = rule.remake(self.env, self._spec, task)
        elif rule.asks_env and task is None:
            self.env.reset(seed=seed)
            seed, task = None, rule.ask(self.env)
        elif rule.protocol not in ("options", "seed"):
            rule.tell(self.env, task)
        observation, info = self.env.reset(seed=seed, options=options or None)
        if rule.holds_task:
            self._held = options.get("task")
            if self._held is None:
                self._held = self.env.get_wrapper_attr("task")
        self._task = self._held if rule.protocol == "options" else task
        return observation, dict(info)

    def _begin_episode(self) -> tuple[Any, dict[str, Any]]:
        """Reset the environment, its task being the same."""
        options: dict[str, Any] = dict(self._options)
        seed = None
        if self._rule.protocol == "seed":
            seed = self._seed
        elif self._rule.holds_task:
            seed = self._seed + int(self._progress.episodes[0])
            options["task"] = self._held
        observation, info = self.env.reset(seed=seed, options=options or None)
        return observation, {key: value for key, value in info.items() if key != "episode"}

    def _report(self) -> dict[str, Any]:
        """What is told of the trial at its end."""
        report: dict[str, Any] = {key: values[0] for key, values in self._progress.report(_FIRST).items()}
        report["episodes_ended"] = int(report["episodes_ended"])
        task = as_array(self._task)
        if task is not None:
            report["task"] = task.copy()
        # With SB3's Monitor or Gymnasium's RecordEpisodeStatistics inside, what they report of the last inner episode
        # would be taken for the trial's
        if self.env.has_wrapper_attr("get_episode_rewards") or self.env.has_wrapper_attr("return_queue"):
            total = round(float(self._progress.trial_returns[0]), 6)
            elapsed = round(time.time() - self._started, 6)
            report["episode"] = {"r": total, "l": int(self._progress.steps[0]), "t": elapsed}
        return report


def trial_fields(
    num_envs: int, env: Any, action_space: gym.Space[Any], progress: Progress, reward_scale: float, **switches: bool
) -> TrialFields:
    """The fields of a trial by the switches of `Trial`.

    :param num_envs: The number of environments
    :param env: The environment, of which the longest episode is asked
    :param action_space: The actions of one environment
    :param progress: What ends a trial
    :param reward_scale: What the reward shown is multiplied by
    :param switches: The switches by name
    :raises ValueError: A switch is no bool, or a number is asked for that has no known limit
    """
    for name, value in switches.items():
        check_flag(name, value)
    n_steps, n_episodes = None, progress.n_episodes
    if switches["step_number"]:
        n_steps = longest_trial(env, progress)
        if n_steps is None:
            raise ValueError("step_number must come with trial_steps: episodes of env have no limit that is known")
    if not switches["episode_number"]:
        n_episodes = None
    elif n_episodes is None:
        raise ValueError("episode_number must come with n_episodes, which it is divided by")
    return TrialFields(
        num_envs,
        action_space,
        previous_action=switches["previous_action"],
        previous_reward=switches["previous_reward"],
        reward_scale=reward_scale,
        episode_start=switches["episode_start"],
        trial_start=switches["trial_start"],
        n_steps=n_steps,
        n_episodes=n_episodes,
    )


def longest_trial(env: Any, progress: Progress) -> int | None:
    """The most steps in a trial, None where no limit is known.

    :param env: The environment, single or a batch
    :param progress: What ends a trial
    """
    singles = getattr(env.unwrapped, "envs", [])
    # A batch of single environments has no specification of its own
    spec = env.spec or (singles[0].spec if singles else None)
    in_episode = None if spec is None else spec.max_episode_steps
    if progress.trial_steps is not None or progress.n_episodes is None or in_episode is None:
        return progress.trial_steps
    return progress.n_episodes * int(in_episode)
