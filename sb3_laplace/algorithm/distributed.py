"""The processes that train one agent together: which of them this is, and what they tell one another.

They are those that torchrun has started, or a process group that the user has made. Where there is neither, or it has
one process, every function returns what this process has, and torch.distributed need not exist.
"""

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch as th
import torch.distributed as dist

T = TypeVar("T")


# -- who takes part -----------------------------------------------------------------------------------------


def rank() -> int:
    """Number of this process, from 0; known under torchrun before there is a process group."""
    if _has_group():
        return dist.get_rank()
    return int(os.environ["RANK"]) if _is_launched() else 0


def size() -> int:
    """Number of processes; known under torchrun before there is a process group."""
    if _has_group():
        return dist.get_world_size()
    return int(os.environ["WORLD_SIZE"]) if _is_launched() else 1


def place(device: th.device | str) -> None:
    """Give each process that torchrun has started on this machine a GPU of its own, where it is to use one.

    :param device: the device asked for: "auto" or "cuda" stands for the process's own GPU, any other is taken as it is
    :raises ValueError: if there are fewer GPUs than processes on this machine
    """
    if not _is_launched() or size() == 1 or str(device) not in ("auto", "cuda") or not th.cuda.is_available():
        return
    n_local, n_gpus = int(os.environ["LOCAL_WORLD_SIZE"]), th.cuda.device_count()
    if n_local > n_gpus:
        raise ValueError(
            f"device={str(device)!r} needs a GPU for each process: torchrun has started {n_local} on this machine, "
            f"which has {n_gpus}. Give --nproc-per-node={n_gpus}, or device='cpu'."
        )
    th.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def join(device: th.device) -> None:
    """Make the process group of torchrun's processes, unless there is one, or only one process. All must call it.

    :param device: where the agent is: gradients on a GPU go by nccl, everything else by gloo
    """
    if size() == 1 or _has_group():
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _is_launched() -> bool:
    return dist.is_available() and dist.is_torchelastic_launched()


# -- what they tell one another -----------------------------------------------------------------------------
# All ranks must call these in the same order.


def gather(value: T) -> list[T]:
    """What each rank has given, in their order.

    :param value: what can be pickled, without tensors on a GPU
    :raises ConnectionError: if another rank has ended
    """
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    with _exchange():
        dist.all_gather_object(values, value)
    return values


def from_first(value: T) -> T:
    """What rank 0 has given.

    :param value: what can be pickled, without tensors on a GPU
    :raises ConnectionError: if another rank has ended
    """
    if size() == 1:
        return value
    values: list[Any] = [value]
    with _exchange():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def summed(values: Sequence[float]) -> list[float]:
    """Sums over the ranks, in double precision.

    :param values: as many from each rank
    :raises ConnectionError: if another rank has ended
    """
    if size() == 1:
        return list(values)
    return _sum_over_ranks(th.tensor(values, dtype=th.float64)).tolist()


def mean_and_std(values: th.Tensor) -> tuple[th.Tensor | float, th.Tensor | float] | None:
    """Mean and standard deviation (with n - 1) of the values of all ranks together; None if there are fewer than two.

    :param values: shape (n,), n may differ between ranks
    :raises ConnectionError: if another rank has ended
    """
    if size() == 1:
        return (values.mean(), values.std()) if len(values) > 1 else None
    doubles = values.double()
    number, total, squares = summed([len(values), doubles.sum().item(), doubles.square().sum().item()])
    if number < 2:
        return None
    return total / number, max(0.0, (squares - total**2 / number) / (number - 1)) ** 0.5


def averaged(lists: dict[str, list[float]]) -> dict[str, list[float]]:
    """Means over the ranks, number by number.

    :param lists: lists of numbers by name, with the same names and lengths on all ranks
    :raises ConnectionError: if another rank has ended
    """
    if size() == 1:
        return lists
    gathered = gather(lists)
    return {
        name: [sum(numbers) / size() for numbers in zip(*(one[name] for one in gathered), strict=True)]
        for name in lists
    }


def average_gradients(parameters: Sequence[th.nn.Parameter]) -> None:
    """Replace gradients by their means over the ranks, in one all-reduce.

    A parameter without a gradient counts as 0 where another rank has one, and stays without one where none has.

    :param parameters: the same on all ranks
    :raises ConnectionError: if another rank has ended
    """
    if size() == 1:
        return
    given = [parameter.grad for parameter in parameters]
    parts = [
        parameter.new_zeros(parameter.numel()) if grad is None else grad.flatten()
        for parameter, grad in zip(parameters, given, strict=True)
    ]
    parts.append(parts[0].new_tensor([grad is not None for grad in given]))
    flat = _sum_over_ranks(th.cat(parts)) / size()
    *means, share = flat.split([len(part) for part in parts])
    for parameter, mean, exists in zip(parameters, means, share.tolist(), strict=True):
        parameter.grad = mean.view_as(parameter).to(parameter.dtype) if exists else None


def raise_together(error: Exception | None) -> None:
    """End all ranks where one has failed.

    :param error: what has happened on this rank, None if nothing
    :raises Exception: the error of this rank
    :raises ValueError: with the message of the first rank that has failed, on the others
    """
    messages = gather(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for number, message in enumerate(messages):
        if message is not None:
            raise ValueError(f"Rank {number} of {size()} has failed, which ends all: {message}")


def _sum_over_ranks(tensor: th.Tensor) -> th.Tensor:
    # A group that the user has made may know nothing but GPUs, or nothing but CPUs
    backends = dist.get_backend_config()
    device = tensor.device.type
    carried = tensor if device in backends else tensor.to("cuda" if "cuda" in backends else "cpu")
    with _exchange():
        dist.all_reduce(carried)
    return carried.to(tensor.device)


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            f"Rank {rank()} of {size()} cannot go on: another rank has ended (its own message says why) or does not "
            "answer. Checkpoints that are there can be resumed from."
        ) from error
