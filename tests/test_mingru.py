"""minGRU against plain loops over its equations, and what its diagonal Jacobian makes of a posterior."""

import copy
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sb3_laplace import (
    LaplaceCnnLstmPolicy,
    LaplaceMultiInputLstmPolicy,
    LaplaceRecurrentPPO,
)
from sb3_laplace.cores import Core, DiagonalJacobian, MinGRU, blocks
from sb3_laplace.cores.mingru import parallel_scan
from sb3_laplace.cores.mingru_layer import unroll_mingru_layer
from tests.helpers import ACTION_SPACES, make_policy, randomize


def make(layers: int = 1, dtype: th.dtype = th.float64, std: float = 0.7, **kwargs: Any) -> MinGRU:
    core = MinGRU(3, 4, num_layers=layers, **kwargs).to(dtype)
    for parameter in core.parameters():
        nn.init.normal_(parameter, std=std)
    return core


def by_the_equations(core: MinGRU, inputs: th.Tensor, state: th.Tensor, starts: th.Tensor) -> th.Tensor:
    """Hidden states of the top layer, number by number where it matters, shape (N, T, H)."""
    hidden, output = list(state), []
    for t in range(inputs.shape[1]):
        stream = None
        for layer, linear in enumerate(core.gates):
            v_z, v_g = linear.weight.chunk(2)
            b_z, b_g = (0.0, 0.0) if linear.bias is None else linear.bias.chunk(2)
            e = inputs[:, t] if stream is None else stream
            z = 1 / (1 + th.exp(-(e @ v_z.T + b_z)))
            x = e @ v_g.T + b_g
            g = th.where(x >= 0, x + 0.5, 1 / (1 + th.exp(-x)))
            before = th.where(starts[:, t, None] != 0, 0.0, hidden[layer])
            hidden[layer] = (1 - z) * before + z * g
            if layer < len(core.gates) - 1:
                stream = hidden[layer] if stream is None else stream + hidden[layer]
                norm, up, activation, down = core.mlps[layer]
                centred = stream - stream.mean(-1, keepdim=True)
                scaled = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
                stream = stream + down(activation(up(scaled * norm.weight + norm.bias)))
        output.append(hidden[-1])
    return th.stack(output, 1)


@given(
    n=st.integers(1, 4),
    length=st.integers(1, 12),
    layers=st.integers(1, 3),
    bias=st.booleans(),
    rate=st.sampled_from([0.0, 0.2, 1.0]),
    block_size=st.sampled_from([1, 50, 2**17]),
    seed=st.integers(0, 2**31),
)
def test_sequences_are_the_equations(
    n: int, length: int, layers: int, bias: bool, rate: float, block_size: int, seed: int
) -> None:
    th.manual_seed(seed)
    core = make(layers, bias=bias)
    inputs = th.randn(n, length, 3, dtype=th.float64, requires_grad=True)
    state = th.rand(layers, n, 4, dtype=th.float64).requires_grad_()
    starts = (th.rand(n, length) < rate).double()
    arguments = [inputs, state, *core.parameters()]
    oracle = by_the_equations(core, inputs, state, starts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_BLOCK_SIZE", block_size)
        output = core.sequence(inputs, (state,), starts)
        found = th.autograd.grad(output.sin().sum(), arguments)
    th.testing.assert_close(output, oracle)
    for mine, expected in zip(found, th.autograd.grad(oracle.sin().sum(), arguments), strict=True):
        th.testing.assert_close(mine, expected)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_step_by_step_is_by_sequence(layers: int) -> None:
    core = make(layers, th.float32)
    inputs, state = th.randn(5, 70, 3), core.initial_state(5)
    starts = (th.rand(5, 70) < 0.1).float()
    expected = []
    for t in range(70):
        state = core.step(inputs[:, t], core.reset(state, starts[:, t]))
        expected.append(core.hidden(state))
    output = core.sequence(inputs, core.initial_state(5), starts)
    th.testing.assert_close(output, th.stack(expected, 1), rtol=1e-5, atol=1e-5)
    free = core.sequence(inputs, core.initial_state(5), th.zeros(5, 70))
    th.testing.assert_close(core.unroll(inputs.transpose(0, 1), core.initial_state(5)), free.transpose(0, 1))


@pytest.mark.parametrize("keep", [None, th.tensor([[1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]], dtype=th.float64)])
@pytest.mark.parametrize("block_size", [1, 2**17])
def test_numerical_gradients(keep: th.Tensor | None, block_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_BLOCK_SIZE", block_size)
    th.manual_seed(0)
    inputs, hidden = th.randn(2, 4, 3, dtype=th.float64), th.rand(2, 5, dtype=th.float64)
    weight, bias = th.randn(10, 3, dtype=th.float64), th.randn(10, dtype=th.float64)
    arguments = [part.requires_grad_() for part in (inputs, hidden, weight, bias)]
    assert th.autograd.gradcheck(lambda x, h, w, b: unroll_mingru_layer(x, h, keep, w, b), arguments)


def test_where_the_candidate_changes_its_form() -> None:
    """At 0 the slope is that of x + 0.5."""
    core = make(bias=False)
    inputs = th.zeros(1, 2, 3, dtype=th.float64, requires_grad=True)
    state, starts = core.initial_state(1), th.zeros(1, 2)
    (oracle,) = th.autograd.grad(by_the_equations(core, inputs, state[0], starts).sum(), inputs)
    th.testing.assert_close(th.autograd.grad(core.sequence(inputs, state, starts).sum(), inputs)[0], oracle)


@given(n=st.integers(1, 3), length=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_the_parallel_scan_is_the_recurrence(n: int, length: int, seed: int) -> None:
    """What runs on a GPU and under autocast."""
    th.manual_seed(seed)
    a, b = (th.rand(n, length, 2, dtype=th.float64).requires_grad_() for _ in range(2))
    initial = th.randn(n, 2, dtype=th.float64, requires_grad=True)
    state, states = initial, []
    for t in range(length):
        state = a[:, t] * state + b[:, t]
        states.append(state)
    oracle, found = th.stack(states, 1), parallel_scan(a, b, initial)
    th.testing.assert_close(found, oracle)
    for mine, expected in zip(
        *(th.autograd.grad(output.sin().sum(), [a, b, initial]) for output in (found, oracle)), strict=True
    ):
        th.testing.assert_close(mine, expected)


def test_autocast_is_near() -> None:
    core, inputs, starts = make(2, th.float32, std=0.3), th.randn(3, 9, 3), (th.rand(3, 9) < 0.2).float()
    expected = core.sequence(inputs, core.initial_state(3), starts)
    with th.autocast("cpu", th.bfloat16):
        rough = core.sequence(inputs, core.initial_state(3), starts)
    assert not th.equal(rough, expected)
    th.testing.assert_close(rough.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("offset", [-40.0, -15.0, 0.0, 15.0, 40.0])
@pytest.mark.parametrize("scan", ["layer", "parallel"])
def test_a_thousand_steps_with_gates_near_0_and_1(offset: float, scan: str) -> None:
    th.manual_seed(0)
    core = make(1, th.float32)
    with th.no_grad():
        core.gates[0].bias[:4] += offset
    inputs, hidden = th.randn(2, 1000, 3, requires_grad=True), th.rand(2, 4)
    z, g = core.gates[0](inputs).chunk(2, -1)
    z, g = z.sigmoid(), th.where(g >= 0, g + 0.5, g.sigmoid())
    if scan == "layer":
        found = core.sequence(inputs, (hidden.unsqueeze(0),), th.zeros(2, 1000))
    else:
        found = parallel_scan(1 - z, z * g, hidden)
    exact = by_the_equations(
        copy.deepcopy(core).double(), inputs.double(), hidden.double().unsqueeze(0), th.zeros(2, 1000)
    )
    th.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-5)
    gradient, expected = (th.autograd.grad(output.sum(), inputs)[0] for output in (found, exact))
    assert gradient.isfinite().all()
    if scan == "layer":
        th.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_what_is_no_number_ends_with_its_episode() -> None:
    core = make()
    state = th.full((1, 2, 4), th.nan, dtype=th.float64)
    inputs, starts = th.randn(2, 3, 3, dtype=th.float64), th.tensor([[1.0, 0.0, 0.0]] * 2)
    output = core.sequence(inputs, (state,), starts)
    th.testing.assert_close(output, core.sequence(inputs, core.initial_state(2), starts))


def test_a_second_derivative_is_refused() -> None:
    core, inputs = make(), th.randn(2, 3, 3, dtype=th.float64, requires_grad=True)
    output = core.sequence(inputs, core.initial_state(2), th.zeros(2, 3))
    (gradient,) = th.autograd.grad(output.sin().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_fixed_numbers() -> None:
    """Of two layers with weights of sines: nobody changes what a saved agent computes without seeing it here."""
    core = MinGRU(2, 3, num_layers=2).double()
    with th.no_grad():
        for i, parameter in enumerate(core.parameters()):
            parameter.copy_((th.arange(parameter.numel(), dtype=th.float64) + i).sin().view_as(parameter))
    assert list(core.state_dict()) == [
        *(f"gates.{layer}.{name}" for layer in range(2) for name in ("weight", "bias")),
        *(f"mlps.0.{part}.{name}" for part in (0, 1, 3) for name in ("weight", "bias")),
    ]
    inputs = th.arange(8, dtype=th.float64).cos().view(1, 4, 2)
    output = core.sequence(inputs, core.initial_state(1), th.tensor([[1.0, 0.0, 1.0, 0.0]]))
    expected = [
        [0.12523923197968997, 0.33175930252498087, 0.22440679111909415],
        [0.14411844239610494, 0.8195879465146467, 0.24509371083109727],
        [0.11459060330058737, 0.37556942614975886, 0.19675629801995917],
        [0.14014940288113464, 0.6780171386461673, 0.2809099252354095],
    ]
    th.testing.assert_close(output[0], th.tensor(expected, dtype=th.float64), rtol=1e-9, atol=1e-9)


# -- the Jacobian -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(th.float32, 1e-5), (th.float64, 1e-12)])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_closed_form_is_autodiffs(layers: int, bias: bool, dtype: th.dtype, tolerance: float) -> None:
    core = make(layers, dtype, bias=bias)
    features, before = th.randn(5, 3, dtype=dtype), (th.rand(layers, 5, 4, dtype=dtype),)
    state = core.step(features, before)
    inputs = core.jacobian_inputs(features, state)
    assert inputs.shape == (5, core.jacobian_input_size(3, 4, layers))
    found = core.jacobian(inputs, state)
    assert isinstance(found, DiagonalJacobian)
    assert not found.diagonal.requires_grad

    # The step as it is, of which only the top layer's state before it varies
    def updated(hidden: th.Tensor, e: th.Tensor, below: th.Tensor) -> th.Tensor:
        return core.step(e[None], (th.cat((below, hidden[None]))[:, None],))[0][-1, 0]

    rows = zip(state[0][-1], features, before[0][:-1].transpose(0, 1), strict=True)
    oracle = th.stack([th.func.jacfwd(updated)(*one) for one in rows])
    th.testing.assert_close(found.diagonal.diag_embed(), oracle, rtol=tolerance, atol=tolerance)
    # Past inputs at one state
    past = th.randn(5, 6, inputs.shape[1], dtype=dtype)
    several = core.jacobian(past, state).diagonal
    assert several.shape == (5, 6, 4)
    for i in range(6):
        th.testing.assert_close(several[:, i], core.jacobian(past[:, i], state).diagonal)
    if layers == 1:
        th.testing.assert_close(Core.jacobian(core, inputs, state).matrix, oracle, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("window", [1, 3])
def test_full_is_diagonal_with_the_identity_latent(window: int) -> None:
    policies = [
        make_policy(
            rnn_type="mingru",
            latent_dim=None,
            posterior_kwargs={"covariance": covariance, "prior_std": 1.0, "window": window},
        )
        for covariance in ("diagonal", "full")
    ]
    states: list[Any] = [None, None]
    for observation in np.random.default_rng(0).uniform(-1, 1, (6, 3, 4)).astype(np.float32):
        for i, policy in enumerate(policies):
            _, states[i] = policy.predict(observation, states[i], deterministic=True)
    diagonal, full = (policy.posterior(state) for policy, state in zip(policies, states, strict=True))
    th.testing.assert_close(full.precision, diagonal.precision.diag_embed())
    th.testing.assert_close(full.entropy(), diagonal.entropy())


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_a_projected_posterior_is_w_diag_w(covariance: str) -> None:
    policy = make_policy(
        rnn_type="mingru", latent_dim=3, posterior_kwargs={"covariance": covariance, "prior_std": 1.0, "noise_std": 0.5}
    )
    core, w = policy.lstm_actor, policy.latent_layer.mean_net.weight.detach()
    state, expected, hidden = None, th.eye(3).expand(2, 3, 3), core.initial_state(2)
    for observation in np.random.default_rng(0).uniform(-1, 1, (4, 2, 4)).astype(np.float32):
        _, state = policy.predict(observation, state, deterministic=True)
        features = th.as_tensor(observation)
        hidden = core.step(features, hidden)
        keeps = 1 - core.gates[0](features)[:, :8].sigmoid()
        jacobian = w * keeps.detach().unsqueeze(1)
        expected = expected + 4 * jacobian @ jacobian.mT
    if covariance == "diagonal":
        expected = expected.diagonal(dim1=1, dim2=2)
    th.testing.assert_close(policy.posterior(state).precision, expected)


# -- in a policy --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("space", ACTION_SPACES)
def test_every_action_space(space: str, layers: int) -> None:
    policy = make_policy(action_space=ACTION_SPACES[space], rnn_type="mingru", n_lstm_layers=layers)
    state = None
    for _ in range(3):
        actions, state = policy.predict(np.zeros((2, 4), np.float32), state)
    assert all(ACTION_SPACES[space].contains(action) for action in actions)
    assert state[0].shape == (layers, 2, 8)


@pytest.mark.parametrize(
    ("policy_class", "space"),
    [
        (LaplaceCnnLstmPolicy, spaces.Box(0, 255, (1, 36, 36), np.uint8)),
        (
            LaplaceMultiInputLstmPolicy,
            spaces.Dict({"a": spaces.Box(-1, 1, (3,)), "image": spaces.Box(0, 255, (1, 36, 36), np.uint8)}),
        ),
    ],
)
def test_images_and_dictionaries(policy_class: Any, space: spaces.Space) -> None:
    policy = policy_class(space, spaces.Discrete(3), lambda _: 1e-3, rnn_type="mingru", lstm_hidden_size=8)
    randomize(policy, 0.1)
    space.seed(0)
    _, state = policy.predict(space.sample())
    assert np.isfinite(policy.posterior(state).entropy().numpy()).all()


def test_a_learned_agent_is_converted_to_another_posterior(tmp_path: Any) -> None:
    kwargs = {"rnn_type": "mingru", "lstm_hidden_size": 8, "n_lstm_layers": 2, "posterior": "point"}
    model = LaplaceRecurrentPPO(
        "LaplaceLstmPolicy", "CartPole-v1", n_steps=32, batch_size=16, n_epochs=1, policy_kwargs=kwargs, seed=0
    )
    model.learn(64)
    model.save(tmp_path / "model")
    loaded = LaplaceRecurrentPPO.load(tmp_path / "model", weights_only=True)
    bayesian = LaplaceRecurrentPPO.from_recurrent_ppo(loaded, posterior="laplace")
    observation = np.full((2, 4), 0.1, np.float32)
    expected = model.predict(observation, deterministic=True)
    for other in (loaded, bayesian):
        actions, state = other.predict(observation, deterministic=True)
        np.testing.assert_array_equal(actions, expected[0])
        np.testing.assert_array_equal(state[0], expected[1][0])
    assert (bayesian.policy.posterior(state).precision > bayesian.policy.latent_layer.prior_precision).all()
