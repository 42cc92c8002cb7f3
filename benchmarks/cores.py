"""How long the recurrent memories take over sequences, forward and backward, beside torch's LSTM.

Run ``python -m benchmarks.cores --threads 1``. Whole sequences without episode starts inside, one layer of 128 units on
64 features, gradients of inputs and weights. Milliseconds are medians; ratios to the LSTM too are medians, over rounds
in which all candidates take their turn.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence

import torch as th
from torch import nn

from benchmarks.common import Record, clock, interleave, machine_info, print_table
from sb3_laplace.cores import GRU, LSTM, RNN, Core, MinGRU

#: Steps and sequences
SIZES = ((50, 4), (400, 4), (400, 32))
N_FEATURES, N_HIDDEN = 64, 128
#: The LSTM is torch's as it is
CORES: dict[str, Callable[[int, int], nn.Module]] = {
    "LSTM": LSTM,
    "GRU": GRU,
    "GRU of torch": nn.GRU,
    "RNN": RNN,
    "minGRU": MinGRU,
}


class PassTimer:
    """Times a forward and a backward pass over sequences.

    :param module: the memory, a core of ours or a module of torch
    :param length: steps T
    :param n_sequences: sequences N
    :param device: where to compute
    """

    def __init__(self, module: nn.Module, length: int, n_sequences: int, device: th.device) -> None:
        self.module, self.device = module.to(device), device
        generator = th.Generator().manual_seed(0)
        shape = (n_sequences, length)
        self.inputs = th.randn(*shape, N_FEATURES, generator=generator).to(device).requires_grad_()
        self.gradient = th.randn(*shape, N_HIDDEN, generator=generator).to(device)
        self.starts = th.zeros(shape, device=device)

    def forward(self) -> th.Tensor:
        """Hidden states, shape (N, T, H)."""
        if isinstance(self.module, Core):
            return self.module.sequence(self.inputs, self.module.initial_state(len(self.inputs)), self.starts)
        output: th.Tensor = self.module(self.inputs.transpose(0, 1))[0].transpose(0, 1)
        return output

    def __call__(self) -> float:
        """Milliseconds."""
        self.inputs.grad = None
        self.module.zero_grad()
        start = clock(self.device)
        self.forward().backward(self.gradient)
        return 1000 * (clock(self.device) - start)


def compare_cores(sizes: Sequence[tuple[int, int]], repeats: int, device: th.device) -> list[Record]:
    """Time all memories at all sizes.

    :param sizes: steps and sequences
    :param repeats: rounds after the warm-up
    :param device: where to compute
    """
    records: list[Record] = []
    for length, n_sequences in sizes:
        th.manual_seed(0)
        timers = [PassTimer(make(N_FEATURES, N_HIDDEN), length, n_sequences, device) for make in CORES.values()]
        results = dict(zip(CORES, interleave(f"{length} x {n_sequences}", timers, repeats), strict=True))
        for name, milliseconds in results.items():
            ratios = [mine / lstm for mine, lstm in zip(milliseconds, results["LSTM"], strict=True)]
            times = {"milliseconds": statistics.median(milliseconds), "ratio": statistics.median(ratios)}
            records.append({"core": name, "n_steps": length, "n_sequences": n_sequences, **times})
    return records


def print_cores(records: list[Record]) -> None:
    """Print the table."""
    print_table(
        f"forward and backward over sequences, {N_FEATURES} features, {N_HIDDEN} units",
        ("memory", "steps", "sequences", "milliseconds", "to LSTM"),
        [
            (
                record["core"],
                str(record["n_steps"]),
                str(record["n_sequences"]),
                f"{record['milliseconds']:.2f}",
                f"{record['ratio']:.2f} x",
            )
            for record in records
        ],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark.

    :param arguments: command line without the program's name
    """
    parser = argparse.ArgumentParser("benchmarks.cores", description=__doc__.partition("\n")[0])
    parser.add_argument("--device", type=th.device, default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--repeats", type=int, default=30, help="repeats after the warm-up")
    options = parser.parse_args(arguments)
    for name in ("threads", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be positive, got {getattr(options, name)}")
    th.set_num_threads(options.threads)
    print(", ".join(f"{name} {value}" for name, value in machine_info(options.device).items()))
    print_cores(compare_cores(SIZES, options.repeats, options.device))


if __name__ == "__main__":
    main()
