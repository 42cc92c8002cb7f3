"""Attention with relative positions over a bounded memory: by steps, by sequences, and its derivative."""

import math
from collections.abc import Callable

import torch as th
from torch import nn
from torch.nn import functional as F

# Sequences are attended to in blocks of as many steps as the memory is long, and of no fewer than these
_SHORTEST_BLOCK = 32
_LAYER_NORM_EPS = 1e-5

#: From rows, shape (n, R, H), to rows times a Jacobian, one for each of n inputs
Pullback = Callable[[th.Tensor], th.Tensor]


def normalize(inputs: th.Tensor) -> th.Tensor:
    """Layer norm without a gain and a bias of its own: in the linear maps that follow there are both.

    :param inputs: shape (..., H)
    """
    return F.layer_norm(inputs, inputs.shape[-1:], eps=_LAYER_NORM_EPS)


def normalize_pullback(inputs: th.Tensor) -> tuple[th.Tensor, Pullback]:
    """:func:`normalize`, and rows times its Jacobian.

    :param inputs: shape (n, H)
    """
    normalized = normalize(inputs)
    # As torch's layer norm has it
    scale = (inputs.var(-1, correction=0) + _LAYER_NORM_EPS).rsqrt().view(-1, 1, 1)
    along = normalized.unsqueeze(1)

    def pull(rows: th.Tensor) -> th.Tensor:
        return (rows - rows.mean(-1, keepdim=True) - along * (rows * along).mean(-1, keepdim=True)) * scale

    return normalized, pull


def sinusoids(distances: th.Tensor, size: int) -> th.Tensor:
    """Encodings of distances: ``sin(distance w_k)`` for all k, then ``cos``, ``w_k = 10000^{-2 k / size}``.

    :param distances: shape (n,)
    :param size: numbers in an encoding
    :return: shape (n, size)
    """
    frequencies = 10000.0 ** (-th.arange(0, size, 2, dtype=th.float64) / size)
    angles = distances.to(th.float64).unsqueeze(1) * frequencies
    return th.cat((angles.sin(), angles.cos()), dim=1)[:, :size]


class RelativeAttention(nn.Module):
    """Transformer-XL's attention (Dai et al. 2019, section 3.3) of each step to itself and to the M steps before it.

    Of a head with queries q = W_q x, keys W_k x and values W_v x of width d, R the encodings of distances, step i gives
    step j the weight ``softmax_j((q_i + u) . W_k x_j + (q_i + v) . W_r R_{i - j})`` of logits divided by sqrt(d); the
    heads' weighted values, side by side, go through a last linear map. Only distances count, no position does.

    It reads inputs that are normalized.

    :param size: width of inputs and outputs H
    :param n_heads: number of heads, which divides H
    :param memory_length: M
    """

    distances: th.Tensor
    encodings: th.Tensor

    def __init__(self, size: int, n_heads: int, memory_length: int) -> None:
        super().__init__()
        self.n_heads, self.head_size, self.memory_length = n_heads, size // n_heads, memory_length
        self.queries, self.keys, self.values, self.positions = (nn.Linear(size, size, bias=False) for _ in range(4))
        self.output = nn.Linear(size, size)
        self.content_bias = nn.Parameter(th.zeros(n_heads, 1, self.head_size))
        self.position_bias = nn.Parameter(th.zeros(n_heads, 1, self.head_size))
        # As the memory is sorted: the oldest step first, the present one last
        distances = th.arange(memory_length, -1, -1)
        self.register_buffer("distances", distances, persistent=False)
        encodings = sinusoids(distances, size).to(self.output.weight.dtype)
        self.register_buffer("encodings", encodings, persistent=False)

    def _of_heads(self, weight: th.Tensor) -> th.Tensor:
        """A linear map's rows by heads, shape (heads, d, H)."""
        return weight.unflatten(0, (self.n_heads, self.head_size))

    def _of_distances(self) -> th.Tensor:
        """``W_r R`` of all distances, the largest first, shape (heads, d, M + 1)."""
        return self._of_heads(self.positions.weight) @ self.encodings.T

    def step(self, query: th.Tensor, present: th.Tensor, memory: th.Tensor, number: th.Tensor) -> th.Tensor:
        """One step of N environments.

        No key and no value is ever formed: ``q . (W_k x) = (W_k^T q) . x``, and the sum of values is W_v times that of
        inputs. So a step costs O(heads M H + H^2), and not the O(M H^2) of the memory's keys and values, which change
        with the weights and cannot be kept.

        :param query: what the queries are of, shape (N, H)
        :param present: what key and value of the present step are of, shape (N, H)
        :param memory: the same of the M steps before it, the newest last, shape (N, M, H)
        :param number: how many of them there have been, the newest ones, shape (N,)
        :return: shape (N, H)
        """
        heads = (self.n_heads, self.head_size)
        queries = self.queries(query).unflatten(-1, heads).transpose(0, 1) / math.sqrt(self.head_size)
        u, v = (bias / math.sqrt(self.head_size) for bias in (self.content_bias, self.position_bias))
        wanted = ((queries + u) @ self._of_heads(self.keys.weight)).transpose(0, 1)
        of_content = th.cat((wanted @ memory.mT, wanted @ present.unsqueeze(-1)), dim=-1)
        of_position = ((queries + v) @ self._of_distances()).transpose(0, 1)
        is_unread = self.distances > number.view(-1, 1, 1)
        weights = (of_content + of_position).masked_fill(is_unread, -math.inf).softmax(-1)
        read = weights[..., :-1] @ memory + weights[..., -1:] * present.unsqueeze(1)
        values = read.transpose(0, 1) @ self._of_heads(self.values.weight).mT
        return self.output(values.transpose(0, 1).flatten(1))

    def pullback(
        self, query: th.Tensor, present: th.Tensor, memory: th.Tensor, number: th.Tensor
    ) -> tuple[th.Tensor, Pullback]:
        """A step as :meth:`step` takes it, and rows times its Jacobian with respect to the query.

        ``sum_j a_j v_j`` of a head has the Jacobian ``sum_j a_j (v_j - sum_i a_i v_i) (W_k x_j + W_r R_j)^T / sqrt(d)``
        with respect to q: a matrix (d, d), whatever the memory's length.

        :return: shape (n, H), and the function of the rows
        """
        read = th.cat((memory, present.unsqueeze(1)), dim=1)
        # (n, heads, M + 1, d)
        keys, values = (
            of(read).unflatten(-1, (self.n_heads, self.head_size)).transpose(1, 2) for of in (self.keys, self.values)
        )
        queries = self.queries(query).view(-1, self.n_heads, 1, self.head_size)
        of_distances = self._of_distances().mT
        logits = (queries + self.content_bias) @ keys.mT + (queries + self.position_bias) @ of_distances.mT
        is_unread = self.distances > number.view(-1, 1, 1, 1)
        weights = (logits / math.sqrt(self.head_size)).masked_fill(is_unread, -math.inf).softmax(-1)
        attended = weights @ values
        spread = (weights.mT * (values - attended)).mT @ (keys + of_distances) / math.sqrt(self.head_size)

        def pull(rows: th.Tensor) -> th.Tensor:
            of_heads = (rows @ self.output.weight).unflatten(-1, (self.n_heads, self.head_size)).transpose(1, 2)
            return (of_heads @ spread).transpose(1, 2).flatten(2) @ self.queries.weight

        return self.output(attended.flatten(1)), pull

    def block_length(self, length: int) -> int:
        """Number of steps B of a block of :meth:`sequence`: of several blocks, or all of one.

        :param length: steps T of the sequences
        """
        return min(length, max(self.memory_length, _SHORTEST_BLOCK))

    def sequence(self, inputs: th.Tensor, memory: th.Tensor, episodes: th.Tensor) -> th.Tensor:
        """All steps of S sequences at once.

        A sequence that is longer than the memory is cut into blocks of B steps, whose queries read the M + B steps that
        end with the block: time and memory grow as T (M + B), not as T^2.

        :param inputs: shape (S, T, H)
        :param memory: inputs of the L = M steps before, the newest last, shape (S, L, H); where there is one block only
            L may be less, if no sequence reads more
        :param episodes: which episode each step of the memory and of the sequence is of, shape (S, L + T): a step reads
            those of its own
        :return: shape (S, T, H)
        """
        length, kept = inputs.shape[1], memory.shape[1]
        size = self.block_length(length)
        # The last block is padded by steps that come after all others, and which nothing reads
        padding = -length % size
        inputs = F.pad(inputs, (0, 0, 0, padding))
        episodes = F.pad(episodes, (0, padding))
        queries = self._by_heads(self.queries(inputs) / math.sqrt(self.head_size), size, size).mT
        u, v = (bias / math.sqrt(self.head_size) for bias in (self.content_bias, self.position_bias))
        read = th.cat((memory, inputs), dim=1)
        keys, values = (self._by_heads(of(read), kept + size, size) for of in (self.keys, self.values))
        # No step of a block is further than this from one that it reads
        reach = min(self.memory_length, kept + size - 1)
        of_position = _skewed((queries + v) @ self._of_distances()[..., self.memory_length - reach :])
        # (S, blocks, heads, B, L + B)
        logits = (queries + u) @ keys + of_position[..., reach - kept :]
        of_query, of_key = episodes[:, kept:].unfold(1, size, size), episodes.unfold(1, kept + size, size)
        is_other = of_query.unsqueeze(-1) != of_key.unsqueeze(-2)
        weights = logits.masked_fill(is_other.unsqueeze(2), -math.inf).softmax(-1)
        attended = (weights @ values.mT).transpose(2, 3).flatten(3).flatten(1, 2)
        return self.output(attended[:, :length])

    def _by_heads(self, inputs: th.Tensor, length: int, stride: int) -> th.Tensor:
        """Windows of each head's part of the inputs, shape (S, windows, heads, d, length).

        :param inputs: shape (S, n, H)
        :param length: steps in a window
        :param stride: steps from one to the next
        """
        of_heads = inputs.unflatten(-1, (self.n_heads, self.head_size))
        if length == inputs.shape[1]:
            # A view, whose gradient takes no sum over windows
            return of_heads.permute(0, 2, 3, 1).unsqueeze(1)
        return of_heads.unfold(1, length, stride)


def _skewed(of_distances: th.Tensor) -> th.Tensor:
    """From logits by distance to logits by key, minus infinity where a key is out of reach.

    Row i holds those of the keys i to i + M. One after another, with B of minus infinity behind each row, they are the
    rows of a matrix that is one column narrower (Transformer-XL's relative shift).

    :param of_distances: shape (..., B, M + 1), the largest distance first
    :return: shape (..., B, M + B)
    """
    size, n_distances = of_distances.shape[-2:]
    width = n_distances - 1 + size
    flat = F.pad(of_distances, (0, size), value=-math.inf).flatten(-2)
    return flat[..., : size * width].unflatten(-1, (size, width))
