"""What the benchmarks share: the sizes they run at, which of them to run, timing, targets, the machine and tables."""

import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, TypeVar

import torch as th

T = TypeVar("T")

#: One measured configuration, as it goes into the JSON file
Record = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How large the benchmarks are, and how often they repeat.

    :param repeats: repeats after the warm-up, whose median counts
    :param n_envs: numbers of environments of the bandit, on the batched environments
    :param dummy_n_envs: the same on a DummyVecEnv
    :param baseline_n_envs: those at which RecurrentPPO runs
    :param n_steps: steps of a bandit rollout, which are one trial
    :param hidden_size: LSTM units on the bandit
    :param latent_dim: latent units
    :param learn_steps: a learn() call on the bandit is as many whole rollouts as fit into this many environment
        steps, one at least; on CartPole it is one rollout
    :param cartpole_n_envs: number of environments of CartPole
    :param cartpole_n_steps: steps of a CartPole rollout
    :param cartpole_hidden_size: LSTM units on CartPole
    :param step_batches: numbers of environments N of the posterior step
    :param step_latent_dims: latent units of the posterior step
    :param step_hidden_sizes: LSTM units of the posterior step
    :param step_seconds: a repeat of the posterior step lasts this long at least
    :param growth: by axis, the values at which the time per step is taken, the others staying at
        ``growth_n_envs``, n_steps, latent_dim and hidden_size
    :param growth_n_envs: number of environments while another axis grows
    :param memory_n_envs: number of environments whose rollout buffer is measured
    """

    repeats: int = 5
    n_envs: tuple[int, ...] = (16, 64, 256)
    dummy_n_envs: tuple[int, ...] = (16, 64, 256)
    baseline_n_envs: tuple[int, ...] = (16, 64)
    n_steps: int = 50
    hidden_size: int = 128
    latent_dim: int = 64
    learn_steps: int = 3200
    cartpole_n_envs: int = 8
    cartpole_n_steps: int = 128
    cartpole_hidden_size: int = 64
    step_batches: tuple[int, ...] = (256,)
    step_latent_dims: tuple[int, ...] = (16, 64, 128)
    step_hidden_sizes: tuple[int, ...] = (128, 256)
    step_seconds: float = 0.1
    growth: dict[str, tuple[int, ...]] = field(
        default_factory=lambda: {
            "n_envs": (16, 64, 256),
            "n_steps": (25, 50, 100, 200),
            "latent_dim": (16, 32, 64, 128),
            "hidden_size": (64, 128, 256),
        }
    )
    growth_n_envs: int = 64
    memory_n_envs: int = 256


class Selection:
    """What ``--only`` asks for. Every benchmark has a path of words, such as bandit / full / batched / 16.

    :param names: keep the paths that hold all words of any of these, such as "cartpole" or "bandit/full"; none
        keeps all
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._wanted = [set(name.split("/")) for name in names]

    def keeps(self, *path: str | int) -> bool:
        """Whether a benchmark is asked for.

        :param path: its words
        """
        words = {str(word) for word in path}
        return not self._wanted or any(wanted <= words for wanted in self._wanted)


def clock(device: th.device) -> float:
    """Now, in seconds, once the device has done all that it was given."""
    if device.type == "cuda":
        th.cuda.synchronize(device)
    return time.perf_counter()


def interleave(title: str, measures: Sequence[Callable[[], T]], repeats: int) -> list[list[T]]:
    """Call each measurement in turn, again and again, so that all see the same moods of the machine.

    :param title: says on stderr how far it is
    :param measures: what measures once
    :param repeats: number of rounds that count, after one that warms up
    :return: for each measurement, its results in all rounds but the first
    """
    results: list[list[T]] = [[] for _ in measures]
    for repeat in range(repeats + 1):
        print(f"{title}: round {repeat} of {repeats}{'' if repeat else ' (warm-up)'}", file=sys.stderr, flush=True)
        for measure, collected in zip(measures, results, strict=True):
            result = measure()
            if repeat:
                collected.append(result)
    return results


def against_target(value: float, target: float | None, at_most: bool = False) -> Record:
    """A target and whether it is met, for a record.

    :param value: what was measured
    :param target: what it should be, None where nothing is asked for
    :param at_most: whether the value should be at most the target, rather than at least
    """
    if target is None:
        return {"target": None, "met": None}
    return {"target": target, "met": value <= target if at_most else value >= target}


def machine_info(device: th.device) -> Record:
    """What the numbers depend on."""
    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "threads": th.get_num_threads(),
        "device": str(device),
        "device_name": th.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "numpy", "stable-baselines3", "sb3-contrib")},
    }


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a title, the first columns of words to the left and numbers to the right.

    :param title: what the table shows
    :param header: names of the columns
    :param rows: cells, each row as long as the header
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    print(f"\n{title}\n")
    for row in (header, ["-" * width for width in widths], *rows):
        cells = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def verdict(record: Record, unit: str = "") -> str:
    """A record's target and whether it is met, as a cell of a table."""
    if record["met"] is None:
        return ""
    return f"{record['target']:.4g}{unit} {'met' if record['met'] else 'MISSED'}"
