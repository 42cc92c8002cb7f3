"""Blocks of steps, in which recurrences run over sequences on a CPU.

The steps of a recurrence are small operations one after another, and most of their time is spent on getting each of
them started: memory, views of one step in the tensors of all, autograd's bookkeeping. So both passes of a layer are
written by hand. They go through the sequence in blocks of steps, in buffers that stay in the processor's cache and are
used again, as are their views of single steps. What does not depend on the step before, products with the inputs and
gradients of the weights among it, is done for a block at once.
"""

import torch as th

# Numbers in a block's widest buffer: 512 kB in float32
_BLOCK_SIZE = 2**17
# Views of more steps would take longer to make than they save
_LONGEST_BLOCK = 128

#: For each step of a block, its views in the buffers
Steps = list[tuple[th.Tensor, ...]]


def block_length(width: int) -> int:
    """Number of steps in a block.

    :param width: numbers in a step of the widest buffer
    """
    return max(1, min(_LONGEST_BLOCK, _BLOCK_SIZE // width))


def per_step(*buffers: th.Tensor) -> Steps:
    """Views of each step.

    :param buffers: each of shape (B, ...)
    """
    return list(zip(*(buffer.unbind() for buffer in buffers), strict=True))
