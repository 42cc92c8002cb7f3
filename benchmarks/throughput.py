"""How fast training runs, beside sb3-contrib's RecurrentPPO, and what the posterior costs.

Run ``python -m benchmarks.throughput``. It prints tables and writes all numbers to a JSON file:

- **learn**: environment steps per second of whole learn() calls (rollout, update, callbacks, logging and
  environment included), and of the rollout and the update by themselves. The workload "bandit" is the
  Dirichlet bandit in rollouts of 50 steps; "cartpole" has episodes that end at random steps.
- **posterior_step**: one posterior step beside the same step by ``torch.func.jacfwd``.
- **growth**: time per environment step against the numbers of environments N and steps T, latent units D
  and LSTM units H.
- **memory**: size of the rollout buffer.

Every figure is the median of several repeats after a warm-up, all candidates in turn in one process.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch as th

from benchmarks.common import Selection, Sizes, machine_info
from benchmarks.growth import measure_growth, measure_memory, print_growth, print_memory
from benchmarks.learning import BASELINE, CANDIDATES, compare_learning, print_learning
from benchmarks.posterior_step import compare_posterior_steps, print_posterior_steps

QUICK = Sizes(
    repeats=3,
    n_envs=(16, 64),
    dummy_n_envs=(),
    learn_steps=1600,
    step_latent_dims=(64,),
    step_hidden_sizes=(128,),
    growth={"n_envs": (16, 64), "n_steps": (25, 50), "latent_dim": (16, 64), "hidden_size": (64, 128)},
)
SECTIONS = {
    "learn": (compare_learning, print_learning),
    "posterior_step": (compare_posterior_steps, print_posterior_steps),
    "growth": (measure_growth, print_growth),
    "memory": (measure_memory, print_memory),
}
#: What --only understands, beside numbers of environments
WORDS = (
    *("bandit", "cartpole", "posterior-step", "growth", "memory"),
    *(BASELINE, *CANDIDATES, "batched", "dummy"),
    *Sizes().growth,
)


def measure(sizes: Sizes, device: th.device, selection: Selection) -> dict[str, Any]:
    """Measure and print, section by section.

    :param sizes: how large and how often
    :param device: where to run
    :param selection: which of the benchmarks
    :return: the machine and the repeats, then the records of each section
    """
    results: dict[str, Any] = {"machine": machine_info(device), "repeats": sizes.repeats}
    for section, (compare, show) in SECTIONS.items():
        records = results[section] = compare(sizes, device, selection)
        if records:
            show(records)
    return results


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser("benchmarks.throughput", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer sizes and repeats: under two minutes on 2 cores")
    parser.add_argument("--device", type=th.device, default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, default=Path("runs/throughput.json"), help="JSON file to write")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--repeats", type=int, help="repeats after the warm-up")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"run what has all of NAME's words, such as bandit/full/16 or growth; words: {', '.join(WORDS)}, N",
    )
    options = parser.parse_args(arguments)
    for word in {word for name in options.only for word in name.split("/")}:
        if word not in WORDS and not word.isdigit():
            parser.error(f"--only does not know {word!r}: choose from {', '.join(WORDS)} or a number of environments")
    for name in ("threads", "repeats"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be positive, got {value}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmarks.

    :param arguments: command line without the program's name
    """
    options = parse(arguments)
    th.set_num_threads(options.threads)
    sizes = QUICK if options.quick else Sizes()
    if options.device.type == "cuda":
        # A GPU wants large batches, which single environments in Python would keep waiting
        large = (16, 64, 256, 1024, 4096)
        sizes = replace(sizes, n_envs=large, step_batches=(256, 4096), growth={**sizes.growth, "n_envs": large})
    if options.repeats is not None:
        sizes = replace(sizes, repeats=options.repeats)
    results = measure(sizes, options.device, Selection(options.only))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    main()
