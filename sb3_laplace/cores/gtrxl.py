"""The gated transformer-XL: attention over the last steps of an episode as a memory."""

from collections.abc import Callable, Sequence
from typing import Any

import torch as th
from torch import nn

from sb3_laplace.checks import check_choice, check_integer
from sb3_laplace.cores.attention import Pullback, RelativeAttention, normalize, normalize_pullback
from sb3_laplace.cores.base import Core, CoreState
from sb3_laplace.cores.jacobians import PullbackJacobian

_GATINGS = ("gru", None)
# b_g of the paper's experiments: an update gate of sigmoid(-2) = .12
_GATE_BIAS = 2.0
# Inner width of the position-wise network, in units of the block's
_EXPANSION = 2

#: From rows, shape (n, R, H), to rows times the Jacobians of two inputs
GatePullback = Callable[[th.Tensor], tuple[th.Tensor, th.Tensor]]


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
        _, z, n = self._parts(stream, added)
        return stream + z * (n - stream)

    def _parts(self, stream: th.Tensor, added: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        r_added, z_added, n_added = self.of_added(added).chunk(3, dim=-1)
        r_stream, z_stream = self.of_stream(stream).chunk(2, dim=-1)
        r = (r_added + r_stream).sigmoid()
        z = (z_added + z_stream - self.bias).sigmoid()
        return r, z, (n_added + self.of_reset(r * stream)).tanh()

    def pullback(self, stream: th.Tensor, added: th.Tensor) -> tuple[th.Tensor, GatePullback]:
        """The new stream, and rows times its Jacobians with respect to both.

        :param stream: x, shape (n, H)
        :param added: y, shape (n, H)
        """
        r, z, n = self._parts(stream, added)
        of_r, of_z, of_n = stream * r * (1 - r), (n - stream) * z * (1 - z), z * (1 - n.square())
        of_r, of_z, of_n, keep, reset = (part.unsqueeze(1) for part in (of_r, of_z, of_n, 1 - z, r))

        def pull(rows: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
            rows_n = rows * of_n
            rows_reset = rows_n @ self.of_reset.weight
            gates = th.cat((rows_reset * of_r, rows * of_z, rows_n), dim=-1)
            n_stream = len(self.of_stream.weight)
            of_stream = rows * keep + rows_reset * reset + gates[..., :n_stream] @ self.of_stream.weight
            return of_stream, gates @ self.of_added.weight

        return stream + z * (n - stream), pull


class Sum(nn.Module):
    """The residual connection without a gate."""

    def forward(self, stream: th.Tensor, added: th.Tensor) -> th.Tensor:
        """The new stream, shape (..., H).

        :param stream: shape (..., H)
        :param added: shape (..., H)
        """
        return stream + added

    def pullback(self, stream: th.Tensor, added: th.Tensor) -> tuple[th.Tensor, GatePullback]:
        """The new stream, and rows times its Jacobians with respect to both: as they are.

        :param stream: shape (n, H)
        :param added: shape (n, H)
        """
        return stream + added, lambda rows: (rows, rows)


class Block(nn.Module):
    """One block, with layer norm on the inputs of its two parts (identity map reordering, section 3.1).

    ``y = g_1(x, relu(attention(norm(x), norm(memory))))``, ``x' = g_2(y, relu(W_2 relu(W_1 norm(y))))``.

    :param size: width H
    :param n_heads: number of heads
    :param memory_length: number of steps that the attention looks back
    :param gating: "gru" for gates, None for sums
    """

    gates: Sequence[GruGate | Sum]

    def __init__(self, size: int, n_heads: int, memory_length: int, gating: str | None) -> None:
        super().__init__()
        self.attention = RelativeAttention(size, n_heads, memory_length)
        self.widen, self.narrow = nn.Linear(size, _EXPANSION * size), nn.Linear(_EXPANSION * size, size)
        gates = (Sum() if gating is None else GruGate(size) for _ in range(2))
        self.gates = nn.ModuleList(gates)  # type: ignore[assignment]

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
        return self.gates[1](stream, self.narrow(self.widen(normalize(stream)).relu()).relu())

    def pullback(self, stream: th.Tensor, present: th.Tensor, memory: th.Tensor, number: th.Tensor) -> Pullback:
        """Rows times the Jacobian of :meth:`step` with respect to the stream, all keys and values held fixed.

        :param stream: shape (n, H), and so on as in :meth:`step`
        """
        query, of_query = normalize_pullback(stream)
        attended, of_attention = self.attention.pullback(query, present, memory, number)
        between, of_first = self.gates[0].pullback(stream, attended.relu())
        normalized, of_normalized = normalize_pullback(between)
        inner = self.widen(normalized)
        added = self.narrow(inner.relu())
        _, of_second = self.gates[1].pullback(between, added.relu())
        is_attended, is_inner, is_added = ((part > 0).to(stream).unsqueeze(1) for part in (attended, inner, added))

        def pull(rows: th.Tensor) -> th.Tensor:
            of_between, of_added = of_second(rows)
            of_inner = (of_added * is_added) @ self.narrow.weight * is_inner
            of_stream, of_attended = of_first(of_between + of_normalized(of_inner @ self.widen.weight))
            return of_stream + of_query(of_attention(of_attended * is_attended))

        return pull


class GTrXL(Core):
    """The gated transformer-XL (Parisotto et al. 2020, "Stabilizing Transformers for Reinforcement Learning").

    A linear map of the features goes through ``num_layers`` blocks; the last one's output is h_t. In a
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
        if inputs.is_cpu and self.blocks[0].attention.block_length(inputs.shape[1]) == inputs.shape[1]:
            # What none of them reads is left out, which is all of it where rollouts begin with episodes. (A GPU would
            # have to be waited for.)
            longest = int((number[0] * (episode_starts[:, 0] == 0)).max())
            memory = memory[:, :, self.memory_length - longest :]
        # The memory is of the episode that goes on with the first step, as far as there is any: of none is episode -1
        age = th.arange(memory.shape[2], 0, -1, device=number.device)
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
    def jacobian(self, inputs: th.Tensor, state: CoreState) -> PullbackJacobian:
        """``S = dg(x) / dx`` at x = h_t: g is one more pass of the last block, at the updated state, as for a cell.

        In that pass the block's output stands for what entered it: x makes the query and is what gates and sums carry
        on. All keys and values are held fixed: those of the memory, and those of the step's own input, which it takes
        in once more as a cell does; of a past one where a window asks for that.

        It is dense and costs much: of W with D rows (D = H for the identity) a product ``W S`` takes about 18 D H^2
        multiplications with gates, 6 without, and 2 M H^2 for keys and values of the memory. Of an LSTM it is D H^2.

        :param inputs: what :meth:`jacobian_inputs` returned, shape (N, H), or of L steps for each environment, shape
            (N, L, H)
        :param state: state at which to differentiate, of N environments
        """
        batch, flat = inputs.shape[:-1], inputs.flatten(0, -2)
        # The environment of each input
        envs = None if len(batch) == 1 else th.arange(batch[0], device=inputs.device).repeat_interleave(batch[1])
        at = (self.hidden(state), state[1][-1], state[2][0])

        def pull(index: slice, rows: th.Tensor) -> th.Tensor:
            stream, memory, number = (part[index if envs is None else envs[index]] for part in at)
            with th.no_grad():
                return self.blocks[-1].pullback(stream, flat[index], memory, number)(rows)

        return PullbackJacobian(pull, flat.new_ones(batch), self.hidden_size)
