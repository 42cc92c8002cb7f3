"""The gated transformer-XL: attention over the last steps of an episode as a memory."""

from collections.abc import Sequence
from typing import Any

import torch as th
from torch import nn

from sb3_laplace.checks import check_choice, check_integer
from sb3_laplace.cores.attention import RelativeAttention, normalize
from sb3_laplace.cores.base import Core, CoreState
from sb3_laplace.cores.jacobians import DenseJacobian

_GATINGS = ("gru", None)
# b_g of the paper's experiments: an update gate of sigmoid(-2) = .12
_GATE_BIAS = 2.0
# Inner width of the position-wise network, in units of the block's
_EXPANSION = 2
# Jacobians that are differentiated at once: forward-mode autodiff keeps H copies of every one
_AUTODIFF_CHUNK = 32


class GruGate(nn.Module):
    """Gate of the GRU kind (Parisotto et al. 2020, section 3.2) between a residual stream x and what is added to it, y.

    ``r = sigmoid(W_r y + U_r x)``, ``z = sigmoid(W_z y + U_z x - b_g)``, ``n = tanh(W_n y + U_n (r x))``,
    ``(1 - z) x + z n``. With b_g = 2 it begins near the identity.

    :param size: width of both
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.of_added = nn.Linear(size, 3 * size, bias=False)
        self.of_stream = nn.Linear(size, 2 * size, bias=False)
        self.of_reset = nn.Linear(size, size, bias=False)
        self.bias = nn.Parameter(th.full((size,), _GATE_BIAS))

    def forward(self, stream: th.Tensor, added: th.Tensor) -> th.Tensor:
        """The new stream, shape (..., H).

        :param stream: x, shape (..., H)
        :param added: y, shape (..., H)
        """
        r_added, z_added, n_added = self.of_added(added).chunk(3, dim=-1)
        r_stream, z_stream = self.of_stream(stream).chunk(2, dim=-1)
        r = (r_added + r_stream).sigmoid()
        z = (z_added + z_stream - self.bias).sigmoid()
        n = (n_added + self.of_reset(r * stream)).tanh()
        return stream + z * (n - stream)


class Sum(nn.Module):
    """The residual connection without a gate."""

    def forward(self, stream: th.Tensor, added: th.Tensor) -> th.Tensor:
        """The new stream, shape (..., H).

        :param stream: shape (..., H)
        :param added: shape (..., H)
        """
        return stream + added


class Block(nn.Module):
    """One block, with layer norm on the inputs of its two parts (identity map reordering, section 3.1).

    ``y = g_1(x, relu(attention(norm(x), norm(memory))))``, ``x' = g_2(y, relu(mlp(norm(y))))``.

    :param size: width H
    :param n_heads: number of heads
    :param memory_length: number of steps that the attention looks back
    :param gating: "gru" for gates, None for sums
    """

    def __init__(self, size: int, n_heads: int, memory_length: int, gating: str | None) -> None:
        super().__init__()
        self.attention = RelativeAttention(size, n_heads, memory_length)
        self.mlp = nn.Sequential(nn.Linear(size, _EXPANSION * size), nn.ReLU(), nn.Linear(_EXPANSION * size, size))
        self.gates = nn.ModuleList(Sum() if gating is None else GruGate(size) for _ in range(2))

    def step(self, stream: th.Tensor, present: th.Tensor, memory: th.Tensor, number: th.Tensor) -> th.Tensor:
        """One step of N environments, shape (N, H).

        :param stream: what enters the block, shape (N, H)
        :param present: what key and value of this step are of: the same, normalized
        :param memory: that of the steps before, the newest last, shape (N, M, H)
        :param number: how many of them there have been, shape (N,)
        """
        return self._finish(stream, self.attention.step(normalize(stream), present, memory, number))

    def sequence(self, stream: th.Tensor, memory: th.Tensor, episodes: th.Tensor) -> th.Tensor:
        """All steps of S sequences, shape (S, T, H).

        :param stream: what enters the block, shape (S, T, H)
        :param memory: what entered it in the M steps before, normalized, the newest last, shape (S, M, H)
        :param episodes: which episode each step is of, shape (S, M + T)
        """
        return self._finish(stream, self.attention.sequence(normalize(stream), memory, episodes))

    def _finish(self, stream: th.Tensor, attended: th.Tensor) -> th.Tensor:
        stream = self.gates[0](stream, attended.relu())
        return self.gates[1](stream, self.mlp(normalize(stream)).relu())


class GTrXL(Core):
    """The gated transformer-XL (Parisotto et al. 2020, "Stabilizing Transformers for Reinforcement Learning").

    A linear map of the features goes through ``num_layers`` blocks, :class:`Block`; the last one's output is h_t. In a
    block step t attends to itself and to at most ``memory_length`` steps of its episode before it: to what entered the
    same block then. So h_t depends on at most ``num_layers * memory_length`` steps before t, and the state is as large
    as it ever gets from the beginning. Positions are relative (Transformer-XL's): nothing depends on the time.

    The state, of N environments:

    - h_t, shape (1, N, H), which nothing is computed from
    - the memory: what entered each block in the last steps, normalized, the newest last, shape (layers, N, M, H)
    - how many of them are of this episode, shape (1, N). Of zero the memory is empty.

    The memory holds inputs and not their keys and values, so that none of them is older than the weights that query
    them. Weights that change meanwhile leave it as they leave an LSTM's state: what a rollout begins with was computed
    by older ones, and rollout and update read the same of it. In an update gradients flow through what is inside of a
    sequence, and what its first step remembers is a constant.

    :param input_size: number of features F
    :param hidden_size: width of the blocks H
    :param num_layers: number of blocks
    :param n_heads: number of heads, which divides H
    :param memory_length: number of steps M that a block looks back
    :param gating: "gru" for gates in the place of residual connections (GTrXL), None for sums (TrXL-I)
    :raises ValueError: if an argument is out of range
    """

    blocks: Sequence[Block]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        n_heads: int = 4,
        memory_length: int = 64,
        gating: str | None = "gru",
    ) -> None:
        super().__init__()
        self.check_keywords({"n_heads": n_heads, "memory_length": memory_length, "gating": gating})
        if hidden_size % n_heads != 0:
            raise ValueError(f"lstm_kwargs['n_heads'] must divide lstm_hidden_size = {hidden_size}, got {n_heads!r}.")
        self.hidden_size, self.num_layers, self.memory_length = hidden_size, num_layers, memory_length
        self.embedding = nn.Linear(input_size, hidden_size)
        blocks = (Block(hidden_size, n_heads, memory_length, gating) for _ in range(num_layers))
        self.blocks = nn.ModuleList(blocks)  # type: ignore[assignment]

    @classmethod
    def check_keywords(cls, keywords: dict[str, Any]) -> None:
        """Check the keywords as far as they do not depend on the width.

        :param keywords: ``lstm_kwargs`` of the policy
        :raises ValueError: naming the one that is unknown or out of range
        """
        super().check_keywords(keywords)
        for name in ("n_heads", "memory_length"):
            if name in keywords:
                check_integer(f"lstm_kwargs[{name!r}]", keywords[name], minimum=1)
        if "gating" in keywords:
            check_choice("lstm_kwargs['gating']", keywords["gating"], _GATINGS)

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((1, self.hidden_size), (self.num_layers, self.memory_length, self.hidden_size), (1,))

    def step(self, inputs: th.Tensor, state: CoreState) -> CoreState:
        _, memory, number = state
        stream = self.embedding(inputs)
        entered = []
        for layer, block in enumerate(self.blocks):
            present = normalize(stream)
            entered.append(present)
            stream = block.step(stream, present, memory[layer], number[0])
        # One copy for all layers. It cannot be in place: the state before the step is its owner's.
        memory = th.cat((memory[:, :, 1:], th.stack(entered).unsqueeze(2)), dim=2)
        return stream.unsqueeze(0), memory, (number + 1).clamp(max=self.memory_length)

    def sequence(self, inputs: th.Tensor, state: CoreState, episode_starts: th.Tensor) -> th.Tensor:
        """Hidden states over sequences: all steps in one call, each attending to those of its own episode.

        :param inputs: features, shape (N, T, F)
        :param state: state before the first step
        :param episode_starts: 1 where an episode starts, shape (N, T)
        :return: shape (N, T, H)
        """
        _, memory, number = state
        of_steps = (episode_starts != 0).cumsum(1)
        # The memory is of the episode that goes on with the first step, as far as there is any: of none is episode -1
        age = th.arange(self.memory_length, 0, -1, device=number.device)
        of_memory = -(age > number[0].unsqueeze(1)).to(of_steps)
        episodes = th.cat((of_memory, of_steps), dim=1)
        stream = self.embedding(inputs)
        for layer, block in enumerate(self.blocks):
            stream = block.sequence(stream, memory[layer], episodes)
        return stream

    # -- Jacobians --------------------------------------------------------------------------------------

    @classmethod
    def jacobian_input_size(cls, input_size: int, hidden_size: int, num_layers: int) -> int:
        return hidden_size

    def jacobian_inputs(self, features: th.Tensor, state: CoreState) -> th.Tensor:
        """What the last block's key and value of this step are of, shape (N, H)."""
        return state[1][-1, :, -1]

    @th.no_grad()
    def jacobian(self, inputs: th.Tensor, state: CoreState) -> DenseJacobian:
        """``S = dg(x) / dx`` at x = h_t: g is one more pass of the last block, at the updated state, as for a cell.

        In that pass the block's output stands for what entered it: x makes the query and is what gates and sums carry
        on. All keys and values are held fixed: those of the memory, and those of the step's own input, which it takes
        in once more as a cell does; of a past one where a window asks for that.

        It is dense, and by ``torch.func``: of H H numbers for each Jacobian, in about the time that H steps of the last
        block take (20 H^3 multiplications with gates), whatever its posterior makes of it. With M steps in the memory
        M H (heads + 1) numbers are read for each.

        :param inputs: what :meth:`jacobian_inputs` returned, shape (N, H), or of L steps for each environment, shape
            (N, L, H)
        :param state: state at which to differentiate, of N environments
        """
        block = self.blocks[-1]

        def output(stream: th.Tensor, present: th.Tensor, memory: th.Tensor, number: th.Tensor) -> th.Tensor:
            one = (part.unsqueeze(0) for part in (stream, present, memory, number))
            return block.step(*one).squeeze(0)

        differentiate = th.func.jacfwd(output)
        if inputs.dim() == 3:
            differentiate = th.func.vmap(differentiate, in_dims=(None, 0, None, None), chunk_size=_AUTODIFF_CHUNK)
            chunk_size = max(1, _AUTODIFF_CHUNK // inputs.shape[1])
        else:
            chunk_size = _AUTODIFF_CHUNK
        differentiate = th.func.vmap(differentiate, chunk_size=chunk_size)
        # Tensors made under inference_mode, in which users may call this, cannot be differentiated. Leaving it turns
        # gradients on again.
        with th.inference_mode(False), th.no_grad():
            given = (self.hidden(state), inputs, state[1][-1], state[2][0])
            return DenseJacobian(differentiate(*(part.clone() for part in given)))
