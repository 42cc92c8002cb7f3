"""The gated transformer-XL against the paper's equations, one step, one layer and one head at a time."""

import math
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sb3_laplace import LaplaceCnnLstmPolicy, LaplaceMultiInputLstmPolicy, LaplaceRecurrentPPO, make_vec_env
from sb3_laplace.cores import CoreState, GTrXL, PullbackJacobian, jacobians
from sb3_laplace.cores.attention import _SHORTEST_BLOCK
from tests.helpers import make_policy, randomize
from tests.test_laplace_recurrent_ppo import collect, largest_log_ratio, random_vec_env, small_model


def make(layers: int = 1, heads: int = 2, memory_length: int = 3, gating: str | None = "gru", seed: int = 0) -> GTrXL:
    th.manual_seed(seed)
    core = GTrXL(3, 4, num_layers=layers, n_heads=heads, memory_length=memory_length, gating=gating).double()
    for parameter in core.parameters():
        nn.init.normal_(parameter, std=0.7)
    return core


# -- the equations ------------------------------------------------------------------------------------------


def norm(x: th.Tensor) -> th.Tensor:
    return (x - x.mean()) / ((x - x.mean()).pow(2).mean() + 1e-5).sqrt()


def gate(of: Any, x: th.Tensor, y: th.Tensor) -> th.Tensor:
    """Parisotto et al. 2020, section 3.2."""
    if not list(of.parameters()):
        return x + y
    h = len(x)
    w_r, w_z, w_n = of.of_added.weight[:h], of.of_added.weight[h : 2 * h], of.of_added.weight[2 * h :]
    u_r, u_z, u_n = of.of_stream.weight[:h], of.of_stream.weight[h:], of.of_reset.weight
    r = 1 / (1 + th.exp(-(w_r @ y + u_r @ x)))
    z = 1 / (1 + th.exp(-(w_z @ y + u_z @ x - of.bias)))
    return (1 - z) * x + z * th.tanh(w_n @ y + u_n @ (r * x))


def encoding(distance: int, size: int) -> th.Tensor:
    """Transformer-XL's: sines, then cosines."""
    angles = [distance / 10000 ** (2 * k / size) for k in range((size + 1) // 2)]
    return th.tensor(([math.sin(a) for a in angles] + [math.cos(a) for a in angles])[:size], dtype=th.float64)


def block_output(block: Any, x: th.Tensor, read: list[tuple[int, th.Tensor]]) -> th.Tensor:
    """One block, which attends to inputs (not yet normalized) at distances.

    :param x: what enters it, shape (H,)
    :param read: distance and input of each step that is read
    """
    attention, h = block.attention, len(x)
    d = h // attention.n_heads
    side_by_side = []
    for head in range(attention.n_heads):
        rows = slice(head * d, (head + 1) * d)
        w_q, w_k, w_v, w_r = (
            of.weight[rows] for of in (attention.queries, attention.keys, attention.values, attention.positions)
        )
        u, v = attention.content_bias[head, 0], attention.position_bias[head, 0]
        q = w_q @ norm(x)
        logits = [
            ((q + u) @ (w_k @ norm(one)) + (q + v) @ (w_r @ encoding(distance, h))) / math.sqrt(d)
            for distance, one in read
        ]
        weights = th.stack(logits).exp() / th.stack(logits).exp().sum()
        side_by_side.append(sum(weight * (w_v @ norm(one)) for weight, (_, one) in zip(weights, read, strict=True)))
    attended = attention.output.weight @ th.cat(side_by_side) + attention.output.bias
    y = gate(block.gates[0], x, attended.clamp(min=0))
    inner = (block.widen.weight @ norm(y) + block.widen.bias).clamp(min=0)
    return gate(block.gates[1], y, (block.narrow.weight @ inner + block.narrow.bias).clamp(min=0))


class Oracle:
    """One environment, one step after another."""

    def __init__(self, core: GTrXL) -> None:
        self.core = core
        self.entered: list[list[th.Tensor]] = [[] for _ in core.blocks]

    def step(self, features: th.Tensor, start: bool) -> th.Tensor:
        if start:
            self.entered = [[] for _ in self.core.blocks]
        x = self.core.embedding.weight @ features + self.core.embedding.bias
        for block, entered in zip(self.core.blocks, self.entered, strict=True):
            entered.append(x)
            t = len(entered) - 1
            first = max(0, t - self.core.memory_length)
            x = block_output(block, x, [(t - j, entered[j]) for j in range(first, t + 1)])
        return x

    def sequence(self, inputs: th.Tensor, starts: th.Tensor) -> th.Tensor:
        return th.stack([self.step(*pair) for pair in zip(inputs, starts.tolist(), strict=True)])


def stepped(core: GTrXL, inputs: th.Tensor, state: CoreState, starts: th.Tensor) -> tuple[th.Tensor, CoreState]:
    hidden = []
    for features, start in zip(inputs.unbind(1), starts.unbind(1), strict=True):
        state = core.step(features, core.reset(state, start))
        hidden.append(core.hidden(state))
    return th.stack(hidden, dim=1), state


#: With sequences in one block and in several
CASES = given(
    length=st.one_of(st.integers(1, 8), st.integers(_SHORTEST_BLOCK - 1, _SHORTEST_BLOCK + 9)),
    memory_length=st.integers(1, 9),
    layers=st.integers(1, 3),
    heads=st.sampled_from([1, 2, 4]),
    gating=st.sampled_from(["gru", None]),
    rate=st.sampled_from([0.0, 0.1, 0.5]),
    n_before=st.integers(0, 10),
    seed=st.integers(0, 2**31),
)


@CASES
def test_steps_and_sequences_are_the_equations(
    length: int, memory_length: int, layers: int, heads: int, gating: str | None, rate: float, n_before: int, seed: int
) -> None:
    core = make(layers, heads, memory_length, gating, seed)
    inputs = th.randn(2, n_before + length, 3, dtype=th.float64)
    starts = (th.rand(2, n_before + length) < rate).double()
    with th.no_grad():
        oracle = th.stack([Oracle(core).sequence(*one) for one in zip(inputs, starts, strict=True)])
        by_steps, _ = stepped(core, inputs, core.initial_state(2), starts)
        # In the middle of episodes too
        state = core.initial_state(2)
        if n_before:
            state = stepped(core, inputs[:, :n_before], state, starts[:, :n_before])[1]
        at_once = core.sequence(inputs[:, n_before:], state, starts[:, n_before:])
    # The encodings are rounded to single precision
    th.testing.assert_close(by_steps, oracle, rtol=1e-6, atol=1e-6)
    th.testing.assert_close(at_once, by_steps[:, n_before:])


@CASES
def test_gradients_are_those_of_steps_with_a_constant_memory(
    length: int, memory_length: int, layers: int, heads: int, gating: str | None, rate: float, n_before: int, seed: int
) -> None:
    core = make(layers, heads, memory_length, gating, seed)
    inputs = th.randn(2, n_before + length, 3, dtype=th.float64)
    starts = (th.rand(2, n_before + length) < rate).double()
    state = core.initial_state(2)
    if n_before:
        with th.no_grad():
            state = stepped(core, inputs[:, :n_before], state, starts[:, :n_before])[1]
    inputs, starts = inputs[:, n_before:].requires_grad_(), starts[:, n_before:]
    weights = [inputs, *core.parameters()]
    by_steps = th.autograd.grad(stepped(core, inputs, state, starts)[0].sin().sum(), weights)
    at_once = th.autograd.grad(core.sequence(inputs, state, starts).sin().sum(), weights)
    for gradient, expected in zip(at_once, by_steps, strict=True):
        th.testing.assert_close(gradient, expected)


def test_the_same_numbers_as_ever() -> None:
    core = GTrXL(2, 4, num_layers=2, n_heads=2, memory_length=2)
    with th.no_grad():
        for index, parameter in enumerate(core.parameters()):
            parameter.copy_(th.linspace(-1, 1, parameter.numel()).view_as(parameter).add(0.3 * index).sin())
        inputs = th.linspace(-2, 2, 10).view(1, 5, 2)
        hidden = core.sequence(inputs, core.initial_state(1), th.tensor([[1.0, 0, 0, 1, 0]]))
    expected = [
        [0.73776, 0.08828, -0.36465, -0.77523],
        [-0.01583, -0.14977, -0.19037, -0.22602],
        [-0.52760, -0.27425, 0.00557, 0.29026],
        [-0.44341, -0.19796, 0.05739, 0.43749],
        [-0.24352, -0.04777, 0.18349, 0.65389],
    ]
    th.testing.assert_close(hidden[0], th.tensor(expected), rtol=1e-4, atol=1e-5)


# -- what is remembered -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2])
def test_nothing_before_the_episode_or_out_of_reach_matters(layers: int) -> None:
    core = make(layers, memory_length=3)
    n_steps, start = 2 * _SHORTEST_BLOCK, 10
    inputs, starts = th.randn(1, n_steps, 3, dtype=th.float64), th.zeros(1, n_steps)
    starts[0, start] = 1.0
    state = stepped(core, th.randn(1, 7, 3, dtype=th.float64), core.initial_state(1), th.zeros(1, 7))[1]
    other_state = stepped(core, th.randn(1, 2, 3, dtype=th.float64), core.initial_state(1), th.zeros(1, 2))[1]

    def hidden(inputs: th.Tensor, state: CoreState) -> tuple[th.Tensor, th.Tensor]:
        with th.no_grad():
            return core.sequence(inputs, state, starts)[0], stepped(core, inputs, state, starts)[0][0]

    changed = inputs.clone()
    changed[0, :start] *= -1e6
    for before, after in zip(hidden(inputs, state), hidden(changed, other_state), strict=True):
        assert not th.equal(before[:start], after[:start])
        assert th.equal(before[start:], after[start:])

    # A step of the episode changes those that it reaches, through all layers, and no later one
    changed, at = inputs.clone(), start + 4
    changed[0, at] += 1.0
    for before, after in zip(hidden(inputs, state), hidden(changed, state), strict=True):
        differs = (before != after).any(-1).nonzero().flatten()
        assert differs.tolist() == list(range(at, at + layers * core.memory_length + 1))


def test_the_state_is_as_large_as_ever_and_does_not_know_the_time() -> None:
    core = make(layers=2, memory_length=3)
    inputs = th.randn(1, 6, 3, dtype=th.float64)
    states = []
    with th.no_grad():
        for n_before in (10, 200):
            before = th.randn(1, n_before, 3, dtype=th.float64)
            state = stepped(core, before, core.initial_state(1), th.zeros(1, n_before))[1]
            assert [part.shape for part in state] == [part.shape for part in core.initial_state(1)]
            # As many steps as all layers reach back
            states.append(stepped(core, inputs.repeat(1, 2, 1), state, th.zeros(1, 12))[1])
    for part, other in zip(*states, strict=True):
        th.testing.assert_close(part, other, rtol=0, atol=0)
    assert states[0][2].tolist() == [[3.0]]


def test_a_step_leaves_the_state_before_it_as_it_was() -> None:
    core = make(layers=2)
    state = stepped(core, th.randn(2, 5, 3, dtype=th.float64), core.initial_state(2), th.zeros(2, 5))[1]
    before = [part.clone() for part in state]
    core.step(th.randn(2, 3, dtype=th.float64), state)
    assert all(map(th.equal, state, before))


def test_it_begins_near_the_identity() -> None:
    th.manual_seed(0)
    core, ungated = (GTrXL(3, 64, num_layers=4, gating=gating) for gating in ("gru", None))
    inputs = th.randn(100, 3)
    with th.no_grad():
        for one, far in ((core, False), (ungated, True)):
            stream = one.embedding(inputs)
            hidden = one.hidden(one.step(inputs, one.initial_state(100)))
            cosine = nn.functional.cosine_similarity(hidden, stream).mean()
            assert (cosine < 0.9) == far, cosine
    assert all((gate.bias == 2.0).all() for block in core.blocks for gate in block.gates)


# -- the Jacobian -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gating", ["gru", None])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("memory_length", [1, 4])
def test_the_jacobian_is_autodiffs(gating: str | None, layers: int, memory_length: int) -> None:
    """Of the equations: the last block once more, with its output for its input, keys and values as they are."""
    core = make(layers, 2, memory_length, gating)
    oracles = [Oracle(core), Oracle(core)]
    state, features = core.initial_state(2), None
    for t in range(7):
        # The memory of one environment is full, the other's is not
        features, starts = th.randn(2, 3, dtype=th.float64), th.tensor([t == 0, t == 5])
        state = core.step(features, core.reset(state, starts))
        hidden = [oracle.step(*one) for oracle, one in zip(oracles, zip(features, starts, strict=True), strict=True)]

    def jacobian(env: int, own: th.Tensor) -> th.Tensor:
        entered = oracles[env].entered[-1][-memory_length:]
        memory = [(len(entered) - i, one) for i, one in enumerate(entered)]
        # block_output computes keys and values of what it is given, whatever x is
        fixed = [(distance, one.detach()) for distance, one in [*memory, (0, own)]]
        of = lambda x: block_output(core.blocks[-1], x, fixed)  # noqa: E731
        return th.autograd.functional.jacobian(of, hidden[env].detach())

    present = [oracle.entered[-1][-1] for oracle in oracles]
    expected = th.stack([jacobian(env, one) for env, one in enumerate(present)])
    found = core.jacobian(core.jacobian_inputs(features, state), state)
    tolerance = {"rtol": 1e-6, "atol": 1e-6}
    th.testing.assert_close(found.dense(), expected, **tolerance)
    assert core.jacobian_inputs(features, state).shape == (2, core.jacobian_input_size(3, 4, layers))

    # Past inputs at the present state
    past = [[th.randn(4, dtype=th.float64) for _ in range(3)] for _ in range(2)]
    expected = th.stack([th.stack([jacobian(env, one) for one in past[env]]) for env in range(2)])
    windowed = core.jacobian(th.stack([th.stack([norm(one) for one in ones]) for ones in past]), state)
    th.testing.assert_close(windowed.dense().view(2, 3, 4, 4), expected, **tolerance)
    weight = th.rand(2, 3, dtype=th.float64)
    total = (expected @ expected.mT * weight.square()[..., None, None]).sum(1)
    th.testing.assert_close(windowed.scale(weight).summed_outer_product(), total, **tolerance)


def test_what_a_posterior_asks_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # Blocks of 8
    monkeypatch.setattr(jacobians, "_BLOCK_SIZE", 1)
    th.manual_seed(0)
    matrices, rate = th.randn(50, 4, 4, dtype=th.float64), th.rand(50, dtype=th.float64)
    jacobian = PullbackJacobian(lambda index, rows: rows @ matrices[index], rate, 4).scale(rate)
    dense, projection = matrices * rate.square().view(-1, 1, 1), th.randn(3, 4, dtype=th.float64)
    for w, expected in ((None, dense), (projection, projection @ dense)):
        th.testing.assert_close(th.cat([block for _, block in jacobian.blocks(w)]), expected)
    assert next(iter(jacobian.blocks(None, th.bfloat16)))[1].dtype == th.bfloat16
    th.testing.assert_close(jacobian.row_norms_squared(), dense.square().sum(-1))
    norms = jacobian.projected_norm_squared(jacobian.projected_gram(projection))
    th.testing.assert_close(norms, (projection @ dense).square().sum((-2, -1)))


# -- in a policy --------------------------------------------------------------------------------------------

KWARGS: dict[str, Any] = {"rnn_type": "gtrxl", "lstm_kwargs": {"n_heads": 2, "memory_length": 3}}


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("end_rate", [0.0, 0.1, 0.6])
def test_ratio_is_one_in_the_middle_of_training(layers: int, end_rate: float) -> None:
    """A rollout begins with a memory that older weights have made."""
    kwargs = {**KWARGS, "n_lstm_layers": layers, "latent_dim": 3}
    env = random_vec_env(end_rate=end_rate)
    model = small_model(env, n_steps=13, sequence_length=5, batch_size=10, learning_rate=0.05, policy_kwargs=kwargs)
    for _ in range(2):
        collect(model)
        assert largest_log_ratio(model) < 1e-5
        model.train()
        assert largest_log_ratio(model) > 1e-3


def test_the_buffer_holds_a_memory_for_each_sequence_only() -> None:
    sizes = []
    for memory_length in (3, 4):
        lstm_kwargs = {"n_heads": 2, "memory_length": memory_length}
        model = small_model(n_steps=12, sequence_length=6, policy_kwargs={**KWARGS, "lstm_kwargs": lstm_kwargs})
        collect(model)
        sizes.append(model.rollout_buffer.nbytes)
    # A step more in float32: of 3 environments, 2 sequences, the actor's core and the critic's, 8 units
    assert sizes[1] - sizes[0] == 4 * 3 * 2 * 2 * 8


@pytest.mark.parametrize("posterior", ["laplace", "point", "variational"])
def test_it_is_saved_and_goes_on(posterior: str, tmp_path: Any) -> None:
    model = small_model(policy_kwargs={**KWARGS, "posterior": posterior, "latent_dim": 3})
    model.learn(72)
    model.save(tmp_path / "model")
    for weights_only in (False, True):
        loaded = LaplaceRecurrentPPO.load(tmp_path / "model", weights_only=weights_only, env=random_vec_env())
        obs, states = np.ones((2, 4), np.float32), [None, None]
        for _ in range(5):
            (actions, states[0]), (others, states[1]) = (
                one.predict(obs, state, deterministic=True) for one, state in zip((model, loaded), states, strict=True)
            )
            np.testing.assert_array_equal(actions, others)
            for part, other in zip(*states, strict=True):
                np.testing.assert_array_equal(part, other)
        loaded.learn(36)


def test_another_posterior_on_the_same_network() -> None:
    kwargs = {**KWARGS, "n_lstm_layers": 2, "posterior": "point", "latent_dim": None}
    source = small_model(policy_kwargs=kwargs)
    source.learn(36)
    model = LaplaceRecurrentPPO.from_recurrent_ppo(source, n_posterior_samples=0)
    obs, states = np.random.default_rng(0).random((5, 2, 4), np.float32), [None, None]
    for one in obs:
        (actions, states[0]), (others, states[1]) = (
            each.predict(one, state, deterministic=True) for each, state in zip((source, model), states, strict=True)
        )
        np.testing.assert_array_equal(actions, others)
    # It is more certain than the prior
    assert (model.policy.posterior(states[1]).entropy() < model.policy.latent_layer.prior(2).entropy()).all()


@pytest.mark.parametrize("space", ["dict", "image"])
def test_observations_of_every_kind(space: str) -> None:
    image = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    observations = spaces.Dict({"a": spaces.Box(-1, 1, (3,)), "b": spaces.Discrete(3)}) if space == "dict" else image
    policy = "LaplaceMultiInputLstmPolicy" if space == "dict" else "LaplaceCnnLstmPolicy"
    actions = spaces.Box(-1.0, 1.0, (2,), np.float32)
    model = small_model(
        random_vec_env(observation_space=observations, action_space=actions), policy, policy_kwargs=KWARGS
    )
    assert isinstance(model.policy, LaplaceMultiInputLstmPolicy if space == "dict" else LaplaceCnnLstmPolicy)
    collect(model)
    assert largest_log_ratio(model) < 1e-5
    model.learn(36)


def test_batched_environments() -> None:
    env = make_vec_env("sb3_laplace/DirichletBandit-v0", n_envs=4, seed=0, env_kwargs={"trial_length": 7})
    model = small_model(env, n_steps=16, batch_size=32, policy_kwargs={**KWARGS, "latent_dim": 3})
    collect(model)
    collect(model)
    assert largest_log_ratio(model) < 1e-5
    model.learn(128)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"memory_length": 0}, r"lstm_kwargs\['memory_length'\] must be .*, got 0"),
        ({"memory_length": 2.5}, r"lstm_kwargs\['memory_length'\] must be .*, got 2.5"),
        ({"n_heads": 0}, r"lstm_kwargs\['n_heads'\] must be .*, got 0"),
        ({"n_heads": 3}, r"lstm_kwargs\['n_heads'\] must divide lstm_hidden_size = 8, got 3"),
        ({"gating": "highway"}, r"lstm_kwargs\['gating'\] must be 'gru' or None, got 'highway'"),
        ({"bias": False}, r"lstm_kwargs\['bias'\] = False: GTrXL takes \['n_heads', 'memory_length', 'gating'\]"),
    ],
)
def test_bad_arguments(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_policy(rnn_type="gtrxl", lstm_kwargs=keywords)


def test_a_state_of_another_memory_is_refused() -> None:
    policy = make_policy(**KWARGS)
    randomize(policy)
    state = policy.predict(np.ones((2, 4), np.float32))[1]
    other = make_policy(**{**KWARGS, "lstm_kwargs": {"n_heads": 2, "memory_length": 5}})
    with pytest.raises(ValueError, match=r"state\[1\] must have shape \(1, 2, 5, 8\), got \(1, 2, 3, 8\)"):
        other.predict(np.ones((2, 4), np.float32), state)
