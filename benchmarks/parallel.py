"""What training by several processes costs: ranks beside threads, a model of the all-reduce, learning curves.

Run ``python -m benchmarks.parallel``. It starts its processes by torchrun, prints tables and writes a JSON file:

- **efficiency**: environment steps per second of whole learn() calls on the bandit, as many environments in all: one
  process with one thread, one with two threads, and two ranks with one thread each.
- **allreduce**: time of a gradient's all-reduce by its size and the number of ranks. The two ranks' times are fitted
  by ``2 (n - 1) (latency + bytes / (n bandwidth))``, which a ring of n ranks takes; this predicts 8 and 64 ranks, and
  which share of their time they would train, if each has the work of the one rank measured (give both sections). It is
  a model of the connection measured, the memory of one machine: a network has a latency and bandwidth of its own.
- **curves**: return at the end of training of two ranks and of one with twice as many environments, over seeds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
import torch.distributed as dist

from benchmarks.common import Record, interleave, machine_info, print_table
from benchmarks.learning import LearnCase, LearnTimer
from sb3_laplace import LaplaceRecurrentPPO, make_vec_env
from sb3_laplace.algorithm import distributed

CPU = th.device("cpu")
# Small exchanges beside the gradient's, for each minibatch: advantages, and whether anything has failed
N_SMALL = 2
# Minibatches of an update of LearnCase
N_MINIBATCHES = 16
PREDICTED = (2, 8, 64)


@dataclass(frozen=True)
class Sizes:
    """How large the measurements are.

    :param repeats: repeats after the warm-up, whose median counts
    :param n_envs: environments of all ranks together
    :param n_steps: steps of a rollout
    :param hidden_size: LSTM units
    :param numbers: numbers of weights of the all-reduce
    :param ranks: numbers of ranks of the all-reduce
    :param curve_n_envs: environments of all ranks together of the learning curves
    :param curve_steps: environment steps of a learning curve
    :param seeds: seeds of the learning curves
    """

    repeats: int = 5
    n_envs: int = 128
    n_steps: int = 50
    hidden_size: int = 128
    numbers: tuple[int, ...] = (1_000, 30_000, 100_000, 300_000, 1_000_000)
    ranks: tuple[int, ...] = (2, 4)
    curve_n_envs: int = 16
    curve_steps: int = 60_000
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)


# -- in the processes ---------------------------------------------------------------------------------------


def time_learn(n_envs: int, n_steps: int, hidden_size: int, repeats: int) -> Record:
    """Medians of learn() calls of one rollout of all ranks, n_envs being a rank's."""
    rollout = n_envs * n_steps * distributed.size()
    timer = LearnTimer(LearnCase("bandit", "diagonal", "batched", n_envs, n_steps, hidden_size, 64, rollout), CPU, None)
    calls = [timer() for _ in range(repeats + 1)][1:]
    seconds = [call["learn"] for call in calls]
    return {
        "steps_per_second": rollout / statistics.median(seconds),
        "spread": (max(seconds) - min(seconds)) / statistics.median(seconds),
        "update_seconds": statistics.median(call["update"] for call in calls),
        "learn_seconds": statistics.median(seconds),
        "n_weights": sum(parameter.numel() for parameter in timer.model.policy.parameters()),
    }


def time_allreduce(numbers: Sequence[int], repeats: int) -> list[Record]:
    """Medians of the seconds of :func:`~sb3_laplace.algorithm.distributed.average_gradients`, by number of weights."""
    distributed.join(CPU)
    records = []
    for number in numbers:
        parameter = th.nn.Parameter(th.zeros(number))
        seconds = []
        for _ in range(20 * repeats):
            parameter.grad = th.ones(number)
            dist.barrier()
            start = time.perf_counter()
            distributed.average_gradients([parameter])
            seconds.append(time.perf_counter() - start)
        records.append({"bytes": 4 * number, "seconds": statistics.median(seconds[len(seconds) // 5 :])})
    return records


def learning_curves(n_envs: int, n_steps: int, n_timesteps: int, seeds: Sequence[int]) -> list[float]:
    """Mean returns of the last episodes of trainings on the bandit, n_envs being a rank's."""
    returns = []
    for seed in seeds:
        env = make_vec_env("sb3_laplace/DirichletBandit-v0", n_envs, seed=seed, env_kwargs={"trial_length": n_steps})
        model = LaplaceRecurrentPPO(
            "LaplaceLstmPolicy",
            env,
            learning_rate=2e-3,
            n_steps=n_steps,
            # A quarter of the rollout of all ranks in each step of the optimizer
            batch_size=n_envs * n_steps // 4,
            n_epochs=4,
            gamma=0.9,
            ent_coef=0.01,
            stats_window_size=400,
            policy_kwargs={"lstm_hidden_size": 64, "latent_dim": 32, "shared_lstm": True, "enable_critic_lstm": False},
            seed=seed,
            device="cpu",
        ).learn(n_timesteps)
        assert model.ep_info_buffer is not None
        returns.append(float(np.mean([episode["r"] for episode in model.ep_info_buffer])))
    return returns


WORK: dict[str, Callable[..., Any]] = {"learn": time_learn, "allreduce": time_allreduce, "curves": learning_curves}


def in_ranks(n_ranks: int, work: str, n_threads: int = 1, **arguments: Any) -> Any:
    """What a function of WORK returns on rank 0 of processes that torchrun starts.

    :param n_ranks: number of processes on this machine
    :param work: name of the function
    :param n_threads: threads of torch in each
    :param arguments: of the function
    :raises subprocess.CalledProcessError: if it fails
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        task = json.dumps({"work": work, "threads": n_threads, "arguments": arguments, "out": str(out)})
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_ranks}", "-m"]
        subprocess.run([sys.executable, *launch, "benchmarks.parallel", "--worker", task], check=True)
        return json.loads(out.read_text())


def _work(task: str) -> None:
    asked = json.loads(task)
    th.set_num_threads(asked["threads"])
    result = WORK[asked["work"]](**asked["arguments"])
    if distributed.rank() == 0:
        Path(asked["out"]).write_text(json.dumps(result))


# -- what is made of it -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ring:
    """A model of the all-reduce.

    :param latency: seconds of a message
    :param bandwidth: bytes per second from one rank to the next
    """

    latency: float
    bandwidth: float

    def seconds(self, n_ranks: int, n_bytes: float) -> float:
        """Time of an all-reduce."""
        return 2 * (n_ranks - 1) * (self.latency + n_bytes / (n_ranks * self.bandwidth))

    @classmethod
    def fit(cls, n_ranks: int, records: Sequence[Record]) -> "Ring":
        """The one with the least squared relative errors, of records with "bytes" and "seconds"."""
        sizes, seconds = (np.array([record[name] for record in records], float) for name in ("bytes", "seconds"))
        columns = 2 * (n_ranks - 1) * np.stack([np.ones(len(sizes)), sizes / n_ranks], axis=1)
        (latency, per_byte), *_ = np.linalg.lstsq(columns / seconds[:, None], np.ones(len(sizes)), rcond=None)
        return cls(max(float(latency), 0.0), 1.0 / max(float(per_byte), 1e-15))


def measure_efficiency(sizes: Sizes) -> list[Record]:
    """Steps per second of as many environments in one process and in two."""
    ways = [(1, 1), (1, 2), (2, 1)]

    def measure(n_ranks: int, n_threads: int) -> Record:
        shape = {"n_steps": sizes.n_steps, "hidden_size": sizes.hidden_size, "repeats": 2}
        return in_ranks(n_ranks, "learn", n_threads, n_envs=sizes.n_envs // n_ranks, **shape)

    results = interleave("efficiency", [lambda way=way: measure(*way) for way in ways], sizes.repeats)
    records = []
    for (n_ranks, n_threads), calls in zip(ways, results, strict=True):
        medians = {name: statistics.median(call[name] for call in calls) for name in calls[0]}
        records.append({"ranks": n_ranks, "threads": n_threads, **medians})
    threads = records[1]["steps_per_second"]
    print_table(
        f"Whole learn() calls on the bandit, {sizes.n_envs} environments in all",
        ("ranks x threads", "steps/s", "against 1 x 2"),
        [
            (
                f"{one['ranks']} x {one['threads']}",
                f"{one['steps_per_second']:.0f}",
                f"{one['steps_per_second'] / threads:.2f}",
            )
            for one in records
        ],
    )
    return records


def measure_allreduce(sizes: Sizes, learn: Record | None) -> Record:
    """Times, the fitted model, and what it predicts.

    :param learn: a record of one rank, for the share of time that is left for training
    """
    measured = {n: in_ranks(n, "allreduce", numbers=sizes.numbers, repeats=sizes.repeats) for n in sizes.ranks}
    ring = Ring.fit(sizes.ranks[0], measured[sizes.ranks[0]])
    rows = [
        (
            f"{record['bytes'] / 1e6:.3g} MB",
            str(n),
            f"{1e3 * record['seconds']:.2f}",
            f"{1e3 * ring.seconds(n, record['bytes']):.2f}",
        )
        for n, records in measured.items()
        for record in records
    ]
    print_table(
        f"All-reduce, fitted to {sizes.ranks[0]} ranks: {1e6 * ring.latency:.0f} us, {ring.bandwidth / 1e9:.2f} GB/s",
        ("gradient", "ranks", "ms", "model, ms"),
        rows,
    )
    result: Record = {"measured": measured, "latency": ring.latency, "bandwidth": ring.bandwidth, "predicted": []}
    if learn is not None:
        for n in PREDICTED:
            exchange = ring.seconds(n, 4 * learn["n_weights"]) + N_SMALL * ring.seconds(n, 24)
            share = learn["learn_seconds"] / (learn["learn_seconds"] + N_MINIBATCHES * exchange)
            result["predicted"].append({"ranks": n, "seconds": exchange, "efficiency": share})
        print_table(
            f"Predicted for {learn['n_weights']} weights, a rollout and update taking {learn['learn_seconds']:.2f} s",
            ("ranks", "exchanges of a minibatch, ms", "efficiency"),
            [
                (str(one["ranks"]), f"{1e3 * one['seconds']:.2f}", f"{one['efficiency']:.3f}")
                for one in result["predicted"]
            ],
        )
    return result


def measure_curves(sizes: Sizes) -> Record:
    """Return at the end of training of one rank and of two, by seed, and how they differ."""
    total, shape = sizes.curve_n_envs, {"n_steps": sizes.n_steps, "n_timesteps": sizes.curve_steps}
    returns = {n: in_ranks(n, "curves", n_envs=total // n, seeds=sizes.seeds, **shape) for n in (1, 2)}
    print_table(
        f"Return after {sizes.curve_steps} steps on the bandit, mean of the last 400 episodes",
        ("ranks x environments", *(f"seed {seed}" for seed in sizes.seeds), "mean"),
        [
            (f"{n} x {total // n}", *(f"{value:.2f}" for value in values), f"{statistics.mean(values):.2f}")
            for n, values in returns.items()
        ],
    )
    difference = statistics.mean(returns[2]) - statistics.mean(returns[1])
    error = (sum(statistics.variance(values) for values in returns.values()) / len(sizes.seeds)) ** 0.5
    print(f"\nTwo ranks less one: {difference:.2f}, standard error {error:.2f}")
    return {"returns": {str(n): values for n, values in returns.items()}, "difference": difference, "error": error}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser("benchmarks.parallel", description=__doc__.partition("\n")[0])
    sections = ("efficiency", "allreduce", "curves")
    parser.add_argument("--only", nargs="+", choices=sections, default=sections, help="which sections")
    parser.add_argument("--repeats", type=int, default=Sizes.repeats, help="repeats after the warm-up")
    parser.add_argument("--out", type=Path, default=Path("runs/parallel.json"), help="JSON file to write")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker is not None:
        _work(options.worker)
        return
    sizes = Sizes(repeats=options.repeats)
    results: Record = {"machine": machine_info(CPU), "repeats": sizes.repeats}
    if "efficiency" in options.only:
        results["efficiency"] = measure_efficiency(sizes)
    if "allreduce" in options.only:
        results["allreduce"] = measure_allreduce(sizes, results.get("efficiency", [None])[0])
    if "curves" in options.only:
        results["curves"] = measure_curves(sizes)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
