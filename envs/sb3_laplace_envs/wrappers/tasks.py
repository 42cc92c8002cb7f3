"""Which task a trial has: how tasks are drawn, and how an environment is told its task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator
from numpy.typing import NDArray

SampleTask = Callable[[np.random.Generator], Any]
#: What ``task_protocol`` may be
PROTOCOLS = ("auto", "set_task", "reset_task", "options", "seed")
# Beside these: a callable of the user's own, and constructor keywords
CALLABLE, KEYWORDS = "callable", "keywords"


class TaskRule:
    """Draws the tasks of a batch of trials, and says by which protocol an environment is told its own.

    Each environment has a generator for its trials, spawned from the generator that Gymnasium's ``reset(seed)`` gives
    an environment with the same seed. For each trial it draws the seed of the trial's first reset (after
    ``reset(seed)`` the first trial's is that seed itself), then the task. So a trial depends on the seed and
    its number alone, not on what was played before, nor on the size of the batch.

    :param num_envs: The number of environments
    :param probe: One environment, of which methods are looked up
    :param sample_task: ``sample_task(rng) -> task``, or "module:name" of one
    :param set_task: ``set_task(env, task)``, or "module:name" of one
    :param task_kwargs: Constructor keywords: a callable ``task_kwargs(rng) -> dict``, "module:name" of one, or the
        values to choose from by keyword
    :param tasks: The tasks to play
    :param task_order: "random" draws from ``tasks``; "cyclic" hands them out in turn, task ``i + k num_envs``
        to trial k of environment i
    :param task_protocol: How the environment is told its task; "auto" takes the first that it has
    :raises ValueError: An argument is not what is allowed, or there is no way to draw or set a task
    """

    def __init__(
        self,
        num_envs: int,
        probe: Probe,
        sample_task: SampleTask | str | None = None,
        set_task: Callable[[Any, Any], Any] | str | None = None,
        task_kwargs: Callable[[np.random.Generator], dict[str, Any]] | Mapping[str, Sequence[Any]] | str | None = None,
        tasks: Sequence[Any] | None = None,
        task_order: str = "random",
        task_protocol: str = "auto",
    ) -> None:
        self._sample_task = _callable("sample_task", sample_task)
        self.set_task = _callable("set_task", set_task)
        self._draw_keywords = _keywords(task_kwargs)
        if task_order not in ("random", "cyclic"):
            raise ValueError(f"task_order must be 'random' or 'cyclic', got {task_order!r}")
        if task_protocol not in PROTOCOLS:
            raise ValueError(f"task_protocol must be one of {PROTOCOLS}, got {task_protocol!r}")
        self._is_cyclic = task_order == "cyclic"
        self._tasks = None if tasks is None else _checked_tasks(tasks)
        given = {"sample_task": sample_task, "tasks": tasks, "task_kwargs": task_kwargs}
        sources = [name for name, value in given.items() if value is not None]
        if len(sources) > 1:
            raise ValueError(f"{' and '.join(sources)} must not be given together: each says where tasks come from")
        #: How an environment is told its task: one of ``PROTOCOLS``, ``CALLABLE`` or ``KEYWORDS``
        self.protocol = self._resolve(probe, task_protocol)
        #: Whether the reset of each episode has to name the task, which is what the environment's own resets draw
        self.holds_task = self.protocol == "options" or (self.protocol == KEYWORDS and probe.task is not None)
        self._check_against(probe)

        self._generators = [np.random.default_rng() for _ in range(num_envs)]
        self._first_seeds: list[int | None] = [None] * num_envs
        self._n_trials = [0] * num_envs
        self._given: dict[int, Any] = {}
        self._shape: tuple[int, ...] | None = None

    def _resolve(self, probe: Probe, asked: str) -> str:
        """The protocol; ValueError where there is none that fits what was given."""
        if self._draw_keywords is not None:
            if self.set_task is not None or asked != "auto":
                raise ValueError("task_kwargs must be given without set_task and task_protocol: it makes environments")
            return KEYWORDS
        has_source = self._sample_task is not None or self._tasks is not None
        if self.set_task is not None:
            if asked != "auto":
                raise ValueError("set_task and task_protocol must not be given together: each says how a task is set")
            if not has_source:
                raise ValueError("set_task must come with sample_task or tasks: there is nothing to draw tasks from")
            return CALLABLE
        methods = [name for name in ("set_task", "reset_task") if probe.has(name)]
        if asked in ("set_task", "reset_task") and asked not in methods:
            raise ValueError(f"task_protocol={asked!r} must be a method of env, which has none")
        if asked == "options" or (asked == "auto" and not methods and probe.task is not None):
            return "options"
        if asked == "seed" or (asked == "auto" and not methods):
            self._check_seeds()
            return "seed"
        protocol = methods[0] if asked == "auto" else asked
        if protocol == "set_task" and not has_source and not probe.has("sample_tasks"):
            if asked == "auto" and "reset_task" in methods:
                return "reset_task"
            raise ValueError("env has set_task but no sample_tasks: sample_task or tasks must be given")
        return protocol

    def _check_seeds(self) -> None:
        """Without a way to set tasks, the only ones that can be given are seeds."""
        no_way = (
            "come with set_task: env has no way to set a task (a method set_task or reset_task, or an array task that "
            "reset(options={'task': ...}) sets)"
        )
        if self._sample_task is not None:
            raise ValueError(f"sample_task must {no_way}")
        tasks = [] if self._tasks is None else self._tasks
        if not all(isinstance(task, int | np.integer) and not isinstance(task, bool) and task >= 0 for task in tasks):
            raise ValueError(f"tasks must be seeds (integers >= 0) or {no_way}")

    def _check_against(self, probe: Probe) -> None:
        task = probe.task
        if self.protocol != "options" or task is None:
            return
        for one in [] if self._tasks is None else self._tasks:
            if np.shape(one) != task.shape:
                raise ValueError(f"tasks must have the shape {task.shape} of the environment's, got {np.shape(one)}")

    @property
    def asks_env(self) -> bool:
        """Whether the environment itself draws its tasks when it is asked to, which takes a seeded environment."""
        return self.protocol in ("set_task", "reset_task") and self._tasks is None and self._sample_task is None

    @property
    def is_seeded_by_episode(self) -> bool:
        """Whether every reset within the trial has to say what the task is."""
        return self.holds_task or self.protocol == "seed"

    def seed(self, row: int, seed: int | None, parent: np.random.Generator | None) -> None:
        """Start the generator of an environment.

        :param row: The environment
        :param seed: Its seed; None for a child of ``parent``
        :param parent: The environment's own generator; None for any
        """
        if seed is not None:
            sequence = np.random.SeedSequence(seed, spawn_key=(0,))
            self._generators[row] = np.random.Generator(np.random.PCG64(sequence))
        elif parent is not None:
            self._generators[row] = parent.spawn(1)[0]
        self._first_seeds[row] = seed
        self._n_trials[row] = 0

    def give(self, row: int, task: Any) -> None:
        """Fix the task of an environment until :meth:`take_back`."""
        self._given[row] = task

    def take_back(self, row: int) -> None:
        """Draw the tasks of an environment again."""
        self._given.pop(row, None)

    def begin(self, row: int) -> tuple[int, Any]:
        """The next trial of an environment.

        :return: The seed of its first reset, and its task: None where the environment draws it
        :raises ValueError: Tasks differ in shape
        """
        generator, first = self._generators[row], self._first_seeds[row]
        seed = int(generator.integers(2**31)) if first is None else first
        self._first_seeds[row] = None
        task = self._draw(row, generator)
        self._n_trials[row] += 1
        # Drawn also where one is given: so the other chance does not depend on whether a task was given
        task = self._given.get(row, task)
        if self.protocol == "seed":
            return (seed, None) if task is None else (int(task), task)
        shape = None if as_array(task) is None else np.shape(task)
        if shape is not None:
            if self._shape not in (None, shape):
                raise ValueError(f"sample_task must draw tasks of one shape, got {self._shape}, then {shape}")
            self._shape = shape
        return seed, task

    def _draw(self, row: int, generator: np.random.Generator) -> Any:
        if self._draw_keywords is not None:
            return self._draw_keywords(generator)
        if self._tasks is None:
            return None if self._sample_task is None else self._sample_task(generator)
        if self._is_cyclic:
            index = row + self._n_trials[row] * len(self._generators)
            return self._tasks[index % len(self._tasks)]
        return self._tasks[int(generator.integers(len(self._tasks)))]

    # -- telling one environment ----------------------------------------------------------------------------

    def tell(self, env: gym.Env[Any, Any], task: Any) -> None:
        """Set the task of one environment by a method or the user's callable."""
        if self.set_task is not None:
            self.set_task(env, task)
        else:
            env.get_wrapper_attr(self.protocol)(task)

    def ask(self, env: gym.Env[Any, Any]) -> Any:
        """Have one environment draw its own task and set it.

        :return: The task, None where the environment does not tell
        """
        if self.protocol == "set_task":
            task = env.get_wrapper_attr("sample_tasks")(1)[0]
            self.tell(env, task)
            return task
        task = env.get_wrapper_attr("reset_task")()
        return env.get_wrapper_attr("get_task")() if env.has_wrapper_attr("get_task") else task

    def remake(self, env: gym.Env[Any, Any], spec: EnvSpec, keywords: dict[str, Any]) -> gym.Env[Any, Any]:
        """Put an environment with other constructor keywords in the place of one that is closed, in its wrappers.

        :param env: The environment in its wrappers
        :param spec: What the innermost environment was made of
        :param keywords: Arguments of its constructor that replace those of ``spec``
        :return: The wrappers; without any, the new environment
        :raises ValueError: Its spaces change
        """
        old, new = env.unwrapped, gym.make(spec, **keywords).unwrapped
        for kind in ("observation_space", "action_space"):
            if getattr(new, kind) != getattr(old, kind):
                new.close()
                raise ValueError(
                    f"task_kwargs must not change the {kind}: {keywords} make {getattr(old, kind)} {getattr(new, kind)}"
                )
        # What an id says of the whole, where the environment is a part of what the id makes
        new.spec = old.spec
        old.close()
        if not isinstance(env, gym.Wrapper):
            return new
        wrapper = env
        while isinstance(wrapper.env, gym.Wrapper):
            wrapper = wrapper.env
        wrapper.env = new
        return env


class Probe:
    """What one environment has.

    :param env: The environment, single or batched
    :param batch_size: How many tasks its attribute ``task`` holds; None for one
    """

    def __init__(self, env: Any, batch_size: int | None = None) -> None:
        self._env = env
        task = self._get("task")
        # An attribute of that name that is no array of numbers is something else
        is_array = isinstance(task, np.ndarray) and task.dtype.kind in "biuf"
        #: An example of a task where ``reset(options={"task": ...})`` sets it, else None
        self.task: NDArray[Any] | None = task if is_array else None
        if self.task is not None and batch_size is not None:
            self.task = self.task[0] if self.task.ndim and len(self.task) == batch_size else None

    def has(self, name: str) -> bool:
        """Whether the environment has a method of that name."""
        return callable(self._get(name))

    def _get(self, name: str) -> Any:
        try:
            if isinstance(self._env, gym.Env):
                return self._env.get_wrapper_attr(name)
            return getattr(self._env.unwrapped, name)
        except Exception:
            # A property may need a reset before it can be read, whatever it raises
            return None


def as_array(task: Any) -> NDArray[Any] | None:
    """A task as an array, None where it is none (of numbers)."""
    if isinstance(task, np.ndarray | np.generic | int | float | list | tuple):
        try:
            array = np.asarray(task)
        except ValueError:  # ragged
            return None
        if array.dtype.kind in "biuf":
            return array
    return None


def _callable(name: str, value: Any) -> Any:
    """A callable that was given, or named."""
    if isinstance(value, str):
        try:
            value = load_env_creator(value)
        except (ValueError, ImportError, AttributeError) as error:
            raise ValueError(f"{name} must be a callable or 'module:name' of one, got {value!r}: {error}") from error
    if value is not None and not callable(value):
        raise ValueError(f"{name} must be a callable or 'module:name' of one, got {value!r}")
    return value


def _keywords(task_kwargs: Any) -> Callable[[np.random.Generator], dict[str, Any]] | None:
    """What draws constructor keywords."""
    if not isinstance(task_kwargs, Mapping):
        return _callable("task_kwargs", task_kwargs)
    values = {}
    for name, choices in task_kwargs.items():
        if isinstance(choices, str) or not isinstance(choices, Sequence | np.ndarray) or len(choices) == 0:
            raise ValueError(f"task_kwargs[{name!r}] must be a sequence of values to choose from, got {choices!r}")
        values[name] = choices
    return lambda rng: {name: choices[int(rng.integers(len(choices)))] for name, choices in values.items()}


def _checked_tasks(tasks: Any) -> Any:
    if isinstance(tasks, str) or not isinstance(tasks, Sequence | np.ndarray) or len(tasks) == 0:
        raise ValueError(f"tasks must be a sequence of at least one task, got {tasks!r}")
    arrays = [as_array(task) for task in tasks]
    shapes = {array.shape for array in arrays if array is not None}
    if len(shapes) > 1 or (shapes and any(array is None for array in arrays)):
        raise ValueError(f"tasks must have one shape, got {sorted(shapes)}")
    return tasks
