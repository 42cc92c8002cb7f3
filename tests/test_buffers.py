"""The sequence buffer: every step once, in whole sequences, with the right state and returns."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_laplace.algorithm.buffers import SequenceRolloutBuffer
from sb3_laplace.policies.types import RecurrentState, RecurrentStates

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)


def filled(n_steps: int, n_envs: int, sequence_length: int, seed: int = 0) -> SequenceRolloutBuffer:
    """A buffer whose observation is (step, env), with states and noise that say where they are from."""
    rng = np.random.default_rng(seed)
    buffer = SequenceRolloutBuffer(
        n_steps, BOX, spaces.Discrete(3), "cpu", 0.9, 0.95, n_envs, sequence_length=sequence_length
    )
    envs = th.arange(n_envs, dtype=th.float32)
    for t in range(n_steps):
        mark = th.full((n_envs,), float(t))
        state = (1000 * mark + envs).view(1, n_envs, 1)
        buffer.add(
            th.stack((mark, envs), 1),
            th.full((n_envs,), t),
            rng.normal(size=n_envs).astype(np.float32),
            rng.random(n_envs) < 0.3,
            th.as_tensor(rng.normal(size=(n_envs, 1)), dtype=th.float32),
            -mark,
            lstm_states=RecurrentStates(
                RecurrentState((state, state + 0.25), (state[0] + 0.5,)), RecurrentState((state + 0.75,))
            ),
            noise=th.stack((mark, mark + 0.5)).unsqueeze(-1) + 100 * envs.view(1, -1, 1),
            columns={"one": mark, "several": {"a": mark + 1, "b": th.stack((mark, envs), 1)}},
            memory={"precision": (mark + 100 * envs).unsqueeze(-1)},
        )
    buffer.compute_returns_and_advantage(th.ones(n_envs, 1), np.zeros(n_envs, dtype=bool))
    return buffer


@given(
    n_steps=st.integers(1, 20),
    n_envs=st.integers(1, 5),
    sequence_length=st.integers(1, 20),
    batch_size=st.one_of(st.none(), st.integers(1, 60)),
)
def test_every_step_once_in_whole_sequences(
    n_steps: int, n_envs: int, sequence_length: int, batch_size: int | None
) -> None:
    buffer = filled(n_steps, n_envs, sequence_length)
    lengths = buffer.chunk_lengths
    assert lengths.sum() == n_steps
    assert lengths.max() <= sequence_length
    assert lengths.max() - lengths.min() <= 1
    assert len(lengths) == -(-n_steps // sequence_length)
    seen = []
    for samples in buffer.get(batch_size):
        pi, vf = samples.lstm_states
        n_seq = pi.core[0].shape[1]
        steps, envs = samples.observations.view(n_seq, -1, 2).unbind(-1)
        mask = th.ones_like(steps, dtype=th.bool) if samples.mask is None else samples.mask.view(n_seq, -1)
        if batch_size is not None:
            assert mask.sum() <= max(batch_size, sequence_length)
        assert (mask.sum(1) >= lengths.min()).all()
        first = 1000 * steps[:, 0] + envs[:, 0]
        (own,), (of_critic,) = pi.posterior, vf.core
        for index, state in enumerate((*(part[0] for part in pi.core), own, of_critic[0])):
            th.testing.assert_close(state[:, 0], first + 0.25 * index)
        assert vf.posterior == ()
        # One step after another, of one environment
        assert ((steps[:, 1:] - steps[:, :-1] == 1) | ~mask[:, 1:]).all()
        assert (envs == envs[:, :1]).all()
        th.testing.assert_close(samples.noise[0, ..., 0], steps + 100 * envs)
        th.testing.assert_close(samples.noise[1, ..., 0], steps + 0.5 + 100 * envs)
        for memory, its_steps, its_envs, valid in zip(samples.memory["precision"], steps, envs, mask, strict=True):
            th.testing.assert_close(memory[:, 0], (its_steps + 100 * its_envs)[valid])
        columns = samples.columns
        th.testing.assert_close(columns["one"].view(n_seq, -1), steps)
        th.testing.assert_close(columns["several"]["a"].view(n_seq, -1), steps + 1)
        th.testing.assert_close(columns["several"]["b"], samples.observations)
        t, e = steps.long().numpy(), envs.long().numpy()
        for found, stored in (
            (samples.advantages, buffer.advantages),
            (samples.returns, buffer.returns),
            (samples.old_values, buffer.values),
            (samples.episode_starts, buffer.episode_starts),
        ):
            np.testing.assert_array_equal(found.view(n_seq, -1).numpy(), stored[t, e])
        th.testing.assert_close(samples.old_log_prob.view(n_seq, -1), -steps)
        assert th.equal(samples.actions.view(n_seq, -1).float(), steps)
        seen += list(zip(t[mask.numpy()].tolist(), e[mask.numpy()].tolist(), strict=True))
    assert sorted(seen) == [(t, e) for t in range(n_steps) for e in range(n_envs)]


def test_advantages_are_sb3s() -> None:
    buffer = filled(9, 4, 5)
    oracle = RolloutBuffer(9, BOX, spaces.Discrete(3), "cpu", 0.9, 0.95, 4)
    for t in range(9):
        oracle.add(
            np.zeros((4, 2)),
            np.zeros((4, 1)),
            buffer.rewards[t],
            buffer.episode_starts[t],
            th.as_tensor(buffer.values[t]),
            th.zeros(4),
        )
    oracle.compute_returns_and_advantage(th.ones(4, 1), np.zeros(4, dtype=bool))
    np.testing.assert_array_equal(buffer.advantages, oracle.advantages)
    np.testing.assert_array_equal(buffer.returns, oracle.returns)


def test_a_second_rollout_replaces_the_first() -> None:
    buffer = filled(6, 2, 3)
    first = next(buffer.get(None))
    buffer.reset()
    with pytest.raises(AssertionError, match="must be full"):
        next(buffer.get(None))
    for t in range(6):
        state = th.full((1, 2, 1), 7.0)
        buffer.add(
            th.full((2, 2), -1.0),
            th.full((2,), t),
            np.ones(2),
            np.zeros(2),
            th.zeros(2, 1),
            th.zeros(2),
            lstm_states=RecurrentStates(RecurrentState((state, state), (state[0],)), RecurrentState((state,))),
            noise=th.zeros(2, 2, 1),
        )
    buffer.compute_returns_and_advantage(th.zeros(2, 1), np.zeros(2, dtype=bool))
    second = next(buffer.get(None))
    assert (second.observations == -1).all()
    assert (second.lstm_states.pi.core[0] == 7).all()
    # What is not given any more is gone
    assert not second.columns
    assert not second.memory
    assert not th.equal(first.returns, second.returns)


def test_memory_of_the_largest_buffer() -> None:
    """Full covariance, D = 64, 256 environments x 50 steps: at most 250 MB, nothing D x D without a KL."""
    buffer = SequenceRolloutBuffer(50, BOX, spaces.Discrete(3), "cpu", 0.9, 0.95, 256, sequence_length=50)
    states = RecurrentStates(*[RecurrentState((th.zeros(1, 256, 128),) * 2)] * 2)
    step = (th.zeros(256, 2), th.zeros(256), np.zeros(256), np.zeros(256), th.zeros(256, 1), th.zeros(256))
    buffer.add(*step, lstm_states=states, noise=th.zeros(1, 256, 64))
    assert buffer.nbytes < 6e6
    buffer.add(*step, lstm_states=states, noise=th.zeros(1, 256, 64), memory={"precision": th.zeros(256, 64, 64)})
    assert buffer.nbytes < 250e6
