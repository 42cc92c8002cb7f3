"""A rollout buffer for recurrent policies: whole sequences, as tensors on the training device."""

from collections.abc import Generator, Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_laplace.policies.types import RecurrentState, RecurrentStates, SequenceRolloutBufferSamples, TensorOrDict

# How stored tensors are told apart by their names
_COLUMNS, _MEMORY = "columns/", "memory/"


class SequenceRolloutBuffer(RolloutBuffer):
    """Rollouts cut into the fewest nearly equal sequences; a minibatch is a random set of whole ones.

    What a minibatch needs is stored environment-major, (n_envs, n_steps, ...), so that each sequence is
    contiguous; recurrent states are kept only where a sequence starts. Rewards, values, log-probabilities,
    episode starts, advantages and returns are numpy arrays (n_steps, n_envs) as in SB3, which computes GAE on them.

    :param buffer_size: number of steps per environment, n_steps
    :param observation_space: observation space
    :param action_space: action space
    :param device: device of the stored tensors
    :param gae_lambda: trade-off of bias against variance for Generalized Advantage Estimation
    :param gamma: discount factor
    :param n_envs: number of environments
    :param sequence_length: longest sequence, in steps
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
        sequence_length: int = 128,
    ) -> None:
        n_chunks = -(-buffer_size // sequence_length)
        # The first `longer` sequences have one step more than the rest
        shorter, longer = divmod(buffer_size, n_chunks)
        self.chunk_lengths = np.full(n_chunks, shorter) + (np.arange(n_chunks) < longer)
        self.chunk_starts = np.concatenate(([0], np.cumsum(self.chunk_lengths)[:-1]))
        self.max_length = int(self.chunk_lengths[0])
        # Everything stored environment-major, by name, allocated when first seen
        self._stored: dict[str, th.Tensor] = {}
        self._states: dict[str, th.Tensor] = {}
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)

    def reset(self) -> None:
        # Stored tensors are kept: every entry is written again before it is read
        shape = (self.buffer_size, self.n_envs)
        self.rewards, self.returns, self.episode_starts, self.advantages = (
            np.zeros(shape, dtype=np.float32) for _ in range(4)
        )
        # Values and log-probabilities stay on the device until the rollout is over: fetching them from a GPU at every
        # step would wait for it
        self._of_policy = th.zeros(2, *shape, device=self.device)
        self.values, self.log_probs = self._of_policy.cpu().numpy()
        self.pos, self.full = 0, False

    @property
    def nbytes(self) -> int:
        """Memory of the stored tensors, in bytes."""
        return sum(part.numel() * part.element_size() for part in (*self._stored.values(), *self._states.values()))

    @property
    def observations(self) -> np.ndarray | dict[str, np.ndarray]:  # type: ignore[override]
        """Observations as SB3's buffers have them, shape (n_steps, n_envs, ...), or a dict of these.

        Zero before the first rollout.
        """
        prefix = "observations/"
        parts = {key.removeprefix(prefix): self._as_numpy(key) for key in self._stored if key.startswith(prefix)}
        return parts.get("", parts) if parts else self._zeros(self.observation_space)

    @property
    def actions(self) -> np.ndarray:  # type: ignore[override]
        """Actions as the policy returned them, shape (n_steps, n_envs, ...). Zero before the first rollout."""
        return self._as_numpy("action") if "action" in self._stored else self._zeros(self.action_space)

    def _zeros(self, space: spaces.Space) -> Any:
        if isinstance(space, spaces.Dict):
            return {key: self._zeros(part) for key, part in space.spaces.items()}
        dtype = np.float32 if space.dtype == np.float64 else space.dtype
        return np.zeros((self.buffer_size, self.n_envs, *(space.shape or ())), dtype=dtype)

    def _as_numpy(self, name: str) -> np.ndarray:
        return self._stored[name].transpose(0, 1).cpu().numpy()

    def add(  # type: ignore[override]
        self,
        obs: TensorOrDict,
        action: th.Tensor,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: th.Tensor,
        log_prob: th.Tensor,
        lstm_states: RecurrentStates,
        noise: th.Tensor | None = None,
        columns: Mapping[str, TensorOrDict] | None = None,
        memory: Mapping[str, th.Tensor] | None = None,
    ) -> None:
        """Store one step of all environments.

        :param obs: observations as tensors, shape (n_envs, ...), or a dict of these
        :param action: actions as the policy returned them, shape (n_envs, ...)
        :param reward: shape (n_envs,)
        :param episode_start: whether an episode starts with this step, shape (n_envs,)
        :param value: shape (n_envs, 1)
        :param log_prob: shape (n_envs,)
        :param lstm_states: recurrent states before the step, as far as sequences need them
        :param noise: noise of the latents, shape (K, n_envs, D)
        :param columns: what else minibatches hold of each step, by name, each (n_envs, ...) or a dict of these
        :param memory: the same of what minibatches have views of, by name, each (n_envs, ...)
        """
        stored = {"action": action}
        for name, value_or_dict in {"observations": obs, **_prefixed(_COLUMNS, columns)}.items():
            parts = value_or_dict if isinstance(value_or_dict, dict) else {"": value_or_dict}
            stored |= {f"{name}/{key}": part for key, part in parts.items()}
        stored |= _prefixed(_MEMORY, memory)
        if noise is not None:
            stored["noise"] = noise.transpose(0, 1)
        if self.pos == 0:
            # What is no longer given would be read as if it were of this rollout
            self._stored = {name: tensor for name, tensor in self._stored.items() if name in stored}
        for name, column in stored.items():
            self._store(name, column)
        self.rewards[self.pos] = reward
        self.episode_starts[self.pos] = episode_start
        if value.is_cpu:
            # The same memory, at a fraction of what writing to a tensor costs
            self.values[self.pos], self.log_probs[self.pos] = value.flatten().numpy(), log_prob.numpy()
        else:
            self._of_policy[0, self.pos], self._of_policy[1, self.pos] = value.flatten(), log_prob
        chunk = int(np.searchsorted(self.chunk_starts, self.pos))
        if chunk < len(self.chunk_starts) and self.chunk_starts[chunk] == self.pos:
            for name, state in (("pi", lstm_states.pi), ("vf", lstm_states.vf)):
                for index, part in enumerate(state.core):
                    self._store_state(f"{name}/core/{index}", chunk, part)
                for index, part in enumerate(state.posterior):
                    self._store_state(f"{name}/posterior/{index}", chunk, part.unsqueeze(0))
        self.pos += 1
        self.full = self.pos == self.buffer_size
        if self.full:
            # On a CPU they have been the same memory all along
            self.values, self.log_probs = self._of_policy.cpu().numpy()

    def _store(self, name: str, value: th.Tensor) -> None:
        # Policies compute in float32 whatever the space's own floating point type
        dtype = th.float32 if value.dtype == th.float64 and "observations/" in name else value.dtype
        shape = (self.n_envs, self.buffer_size, *value.shape[1:])
        stored = self._stored.get(name)
        # Shape and type change between rollouts with the number of samples, or the policy's own type
        if stored is None or (self.pos == 0 and (stored.shape, stored.dtype) != (shape, dtype)):
            self._stored[name] = th.zeros(shape, dtype=dtype, device=self.device)
        self._stored[name][:, self.pos] = value

    def _store_state(self, name: str, chunk: int, value: th.Tensor) -> None:
        # (layers, n_envs, ...) -> (layers, n_envs, n_chunks, ...): a sequence is one entry of the two middle ones
        layers, n_envs, *rest = value.shape
        shape = (layers, n_envs, len(self.chunk_starts), *rest)
        stored = self._states.get(name)
        if stored is None or (chunk == 0 and (stored.shape, stored.dtype) != (shape, value.dtype)):
            self._states[name] = th.zeros(shape, dtype=value.dtype, device=self.device)
        self._states[name][:, :, chunk] = value

    def get(  # type: ignore[override]
        self, batch_size: int | None = None
    ) -> Generator[SequenceRolloutBufferSamples, None, None]:
        """Minibatches of whole sequences in random order, nearly equal in number.

        :param batch_size: at most this many steps in a minibatch (one sequence at least); None for all
        """
        assert self.full, "The rollout buffer must be full before sampling from it."
        # Packed: one gather for all numbers of a step
        numbers = np.stack((self.episode_starts, self.values, self.log_probs, self.advantages, self.returns), axis=-1)
        self._stored["numbers"] = th.as_tensor(np.ascontiguousarray(numbers.swapaxes(0, 1)), device=self.device)
        n_sequences = self.n_envs * len(self.chunk_starts)
        per_batch = n_sequences if batch_size is None else max(1, batch_size // self.max_length)
        n_batches = -(-n_sequences // per_batch)
        order = np.random.permutation(n_sequences)  # noqa: NPY002  (the generator that SB3 seeds)
        for sequences in np.array_split(order, n_batches):
            # In order, neighbouring sequences are read from neighbouring memory
            yield self._get_sequences(np.sort(sequences))

    def _get_sequences(self, sequences: np.ndarray) -> SequenceRolloutBufferSamples:
        """Gather sequences, numbered ``environment * n_chunks + chunk``."""
        n_chunks = len(self.chunk_starts)
        chunks = sequences % n_chunks
        lengths = self.chunk_lengths[chunks]
        length = int(lengths.max())
        equal = bool((self.chunk_lengths == length).all())
        index = th.as_tensor(sequences, device=self.device)
        if not equal:
            # Padding repeats the last step of the sequence and is masked
            steps = np.minimum(np.arange(length), lengths[:, None] - 1)
            flat = (sequences // n_chunks)[:, None] * self.buffer_size + self.chunk_starts[chunks][:, None] + steps
            index_padded = th.as_tensor(flat, device=self.device)
            mask = th.as_tensor(np.arange(length) < lengths[:, None], device=self.device).flatten()

        def gather(stored: th.Tensor) -> th.Tensor:
            if equal:
                return stored.view(self.n_envs * n_chunks, length, *stored.shape[2:])[index]
            return stored.flatten(0, 1)[index_padded]

        def gather_flat(name: str) -> th.Tensor:
            return gather(self._stored[name]).flatten(0, 1)

        def gather_parts(name: str) -> Any:
            prefix = f"{name}/"
            parts = {key.removeprefix(prefix): gather_flat(key) for key in self._stored if key.startswith(prefix)}
            # None where nothing is stored; what is no dict is stored under the empty key
            return parts if parts and "" not in parts else parts.get("")

        def states(name: str) -> RecurrentState:
            parts = {key: part.flatten(1, 2)[:, index] for key, part in self._states.items() if key.startswith(name)}
            core = tuple(part for key, part in parts.items() if "/core/" in key)
            return RecurrentState(core, tuple(part[0] for key, part in parts.items() if "/posterior/" in key))

        starts, values, log_probs, advantages, returns = gather_flat("numbers").T.contiguous()
        noise = self._stored.get("noise")
        begin = self.chunk_starts[chunks]
        spans = list(zip((sequences // n_chunks).tolist(), begin.tolist(), (begin + lengths).tolist(), strict=True))
        column_names = {key.split("/")[1] for key in self._stored if key.startswith(_COLUMNS)}
        in_memory = {key: part for key, part in self._stored.items() if key.startswith(_MEMORY)}
        return SequenceRolloutBufferSamples(
            observations=gather_parts("observations"),
            actions=gather_flat("action"),
            old_values=values,
            old_log_prob=log_probs,
            advantages=advantages,
            returns=returns,
            lstm_states=RecurrentStates(states("pi"), states("vf")),
            episode_starts=starts,
            mask=None if equal else mask,
            noise=None if noise is None else gather(noise).permute(2, 0, 1, 3),
            columns={name: gather_parts(_COLUMNS + name) for name in column_names},
            memory={
                key.removeprefix(_MEMORY): [part[env, start:end] for env, start, end in spans]
                for key, part in in_memory.items()
            },
        )


def _prefixed(prefix: str, values: Mapping[str, Any] | None) -> dict[str, Any]:
    return {prefix + name: value for name, value in (values or {}).items()}
