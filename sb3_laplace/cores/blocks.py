"""Blocks of steps, in which recurrences run over sequences on a CPU.

The steps of a recurrence are small operations one after another, and most of their time is spent on getting each of
them started: memory, views of one step in the tensors of all, autograd's bookkeeping. So both passes of a layer are
written by hand. They go through the sequence in blocks of steps, in buffers that stay in the processor's cache and are
used again, as are their views of single steps. What does not depend on the step before, products with the inputs and
gradients of the weights among it, is done for a block at once.
"""

from collections.abc import Callable
from functools import lru_cache
from threading import get_ident
from typing import TypeVar

import torch as th

# Numbers in a block's widest buffer: 512 kB in float32
_BLOCK_SIZE = 2**17
# Views of more steps would take longer to make than they save
_LONGEST_BLOCK = 128

#: For each step of a block, its views in the buffers
Steps = list[tuple[th.Tensor, ...]]
_Buffers = TypeVar("_Buffers")


def block_length(width: int) -> int:
    """Number of steps in a block.

    :param width: numbers in a step of the widest buffer
    """
    return max(1, min(_LONGEST_BLOCK, _BLOCK_SIZE // width))


def used_again(make: Callable[[int, int, int, th.dtype], _Buffers]) -> Callable[[int, int, int, th.dtype], _Buffers]:
    """Buffers that are made once for each size, and for each thread, which writes to its own.

    :param make: makes them, of the number of steps in a block, of sequences and of hidden units, and the type
    """

    # Whoever calls first may do so in inference mode, whose tensors could not be written to outside of it
    @lru_cache(maxsize=16)
    @th.inference_mode(False)
    @th.no_grad()
    def of_thread(thread: int, size: int, n: int, n_hidden: int, dtype: th.dtype) -> _Buffers:
        return make(size, n, n_hidden, dtype)

    return lambda size, n, n_hidden, dtype: of_thread(get_ident(), size, n, n_hidden, dtype)


def per_step(*buffers: th.Tensor) -> Steps:
    """Views of each step.

    :param buffers: each of shape (B, ...)
    """
    return list(zip(*(buffer.unbind() for buffer in buffers), strict=True))
