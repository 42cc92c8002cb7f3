"""Cores: sequences with resets inside against one step after another, and cores of a user's own."""

from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sb3_laplace import LaplaceRecurrentPPO
from sb3_laplace.cores import CORES, GRU, LSTM, Core, CoreState, GTrXL, MinGRU, TorchCell, core_class, sequences
from tests.helpers import make_policy


class LeakyCore(Core):
    """``h' = h + c' (tanh(V e + U h + b) - h)`` with a rate ``c' = (c + 1) / 2``: no closed form is given."""

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.of_input = nn.Linear(input_size, hidden_size, bias=bias)
        self.of_hidden = nn.Linear(hidden_size, hidden_size, bias=False)

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        # The rate has a shape of its own
        return ((1, self.hidden_size), (1, 1, self.hidden_size))

    def step(self, inputs: th.Tensor, state: CoreState) -> CoreState:
        hidden, rate = state[0][0], (state[1][0, :, 0] + 1) / 2
        updated = hidden + rate * ((self.of_input(inputs) + self.of_hidden(hidden)).tanh() - hidden)
        return updated.unsqueeze(0), rate.view(1, len(rate), 1, -1)


class InitializedLSTM(nn.LSTM):
    """A subclass of torch's that only starts elsewhere."""

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.25)


TORCH_CELLS = [name for name, core in CORES.items() if issubclass(core, TorchCell)]
ALL_CORES: dict[str, Any] = {**CORES, "leaky": LeakyCore, "initialized": core_class(InitializedLSTM)}


def make(name: str, layers: int = 1, **kwargs: Any) -> Core:
    core = ALL_CORES[name](3, 4, num_layers=layers, **kwargs).double()
    for parameter in core.parameters():
        nn.init.normal_(parameter, std=0.7)
    return core


def random_state(core: Core, n: int) -> CoreState:
    state = tuple(th.randn_like(part) for part in core.initial_state(n))
    if isinstance(core, GTrXL):
        # Its last part counts
        state[-1].copy_(th.randint(core.memory_length + 1, (1, n)))
    return state


def step_by_step(core: Core, inputs: th.Tensor, state: CoreState, starts: th.Tensor) -> th.Tensor:
    """Without the core's own ways of setting a state back and of running sequences."""
    output = []
    for t in range(inputs.shape[1]):
        begins = starts[:, t] != 0
        state = tuple(part.clone() for part in state)
        for part in state:
            part[:, begins] = 0.0
        if isinstance(core, nn.RNNBase):
            hidden, state = core(inputs[:, t].unsqueeze(0), state if len(state) == 2 else state[0])
            state = state if isinstance(state, tuple) else (state,)
            output.append(hidden[0])
        else:
            state = core.step(inputs[:, t], state)
            output.append(state[0][-1])
    return th.stack(output, dim=1)


@pytest.mark.parametrize("name", ALL_CORES)
@given(
    n_seq=st.integers(1, 5),
    length=st.integers(1, 12),
    layers=st.integers(1, 2),
    rate=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    common=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_sequences_equal_step_by_step(
    name: str, n_seq: int, length: int, layers: int, rate: float, common: bool, seed: int
) -> None:
    th.manual_seed(seed)
    core = make(name, 1 if name == "leaky" else layers)
    inputs = th.randn(n_seq, length, 3, dtype=th.float64, requires_grad=True)
    state = random_state(core, n_seq)
    starts = (th.rand(1 if common else n_seq, length) < rate).double().expand(n_seq, length)
    oracle = step_by_step(core, inputs, state, starts)
    weights = [inputs, *core.parameters()]
    oracle_gradients = th.autograd.grad(oracle.sin().sum(), weights)
    output = core.sequence(inputs, state, starts)
    th.testing.assert_close(output, oracle)
    for gradient, expected in zip(th.autograd.grad(output.sin().sum(), weights), oracle_gradients, strict=True):
        th.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("name", TORCH_CELLS)
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_one_step_equals_the_module(name: str, layers: int, bias: bool) -> None:
    core = make(name, layers, bias=bias)
    inputs, state = th.randn(5, 3, dtype=th.float64), random_state(core, 5)
    _, expected = core(inputs.unsqueeze(0), state if len(state) == 2 else state[0])
    expected = expected if isinstance(expected, tuple) else (expected,)
    updated = core.step(inputs, state)
    for part, oracle in zip(updated, expected, strict=True):
        th.testing.assert_close(part, oracle)
    th.testing.assert_close(core.hidden(updated), updated[0][-1])


@pytest.mark.parametrize("name", TORCH_CELLS)
def test_one_step_with_a_parametrized_weight(name: str) -> None:
    """torch computes such a weight whenever it is asked for it."""
    core = make(name)
    nn.utils.parametrizations.weight_norm(core, "weight_hh_l0")
    inputs, state = th.randn(5, 3, dtype=th.float64), random_state(core, 5)
    _, expected = core(inputs.unsqueeze(0), state if len(state) == 2 else state[0])
    th.testing.assert_close(core.step(inputs, state)[0], expected[0] if isinstance(expected, tuple) else expected)


@pytest.mark.parametrize("name", ALL_CORES)
def test_states_have_the_shapes_that_are_told(name: str) -> None:
    core = make(name)
    for part in (core.initial_state(6), core.step(th.randn(6, 3, dtype=th.float64), core.initial_state(6))):
        assert [tuple(one.shape) for one in part] == [(shape[0], 6, *shape[1:]) for shape in core.state_shapes]
    assert all((part == 0).all() for part in core.initial_state(6))


@pytest.mark.parametrize("name", ALL_CORES)
def test_reset_leaves_others_alone_and_keeps_no_nan(name: str) -> None:
    core = make(name)
    state = random_state(core, 3)
    for part in state:
        part[:, 1] = th.nan
    reset = core.reset(state, th.tensor([0.0, 1.0, 0.0]))
    for before, after in zip(state, reset, strict=True):
        assert (after[:, 1] == 0).all()
        th.testing.assert_close(after[:, [0, 2]], before[:, [0, 2]])


@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=60))
def test_groups_hold_every_fragment_once(lengths: list[int]) -> None:
    groups = list(sequences._groups_of_similar_length(np.array(lengths)))
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    for group in groups:
        assert np.array(lengths)[group].max() == np.array(lengths)[group][0]


def test_fragments_of_very_different_lengths_are_not_padded_to_the_longest() -> None:
    of_each = {200: 5, 50: 40, 3: 300}
    lengths = np.repeat([3, 50, 200], [of_each[length] for length in (3, 50, 200)])
    groups = [lengths[group].tolist() for group in sequences._groups_of_similar_length(lengths)]
    assert groups == [[length] * number for length, number in of_each.items()]
    # ... and similar ones, whose steps cost more than their padding, are one group
    (group,) = sequences._groups_of_similar_length(np.array([9, 10, 9, 10, 8]))
    assert sorted(group.tolist()) == list(range(5))


# -- in a policy --------------------------------------------------------------------------------------------

POSTERIORS: list[dict[str, Any]] = [
    {"latent_dim": 3, "posterior_kwargs": {"covariance": "full"}},
    {"latent_dim": None},
    {"latent_dim": 3, "posterior_kwargs": {"factorization": "stationary", "covariance": "full"}},
    {"latent_dim": 3, "posterior": "variational"},
]


@pytest.mark.parametrize("rnn_type", [LeakyCore, InitializedLSTM, GRU, MinGRU])
@pytest.mark.parametrize("kwargs", POSTERIORS)
def test_a_core_of_ones_own_learns_and_is_saved(rnn_type: type, kwargs: dict[str, Any], tmp_path: Any) -> None:
    policy_kwargs = {"rnn_type": rnn_type, "lstm_hidden_size": 8, **kwargs}
    model = LaplaceRecurrentPPO(
        "LaplaceLstmPolicy",
        "CartPole-v1",
        n_steps=32,
        batch_size=16,
        n_epochs=1,
        kl_coef=0.01,
        policy_kwargs=policy_kwargs,
        seed=0,
    )
    assert isinstance(model.policy.lstm_actor, rnn_type)
    assert isinstance(model.policy.lstm_critic, rnn_type)
    before = [parameter.detach().clone() for parameter in model.policy.lstm_actor.parameters()]
    model.learn(64)
    changed = [not th.equal(*pair) for pair in zip(before, model.policy.lstm_actor.parameters(), strict=True)]
    assert all(changed)
    model.save(tmp_path / "model")
    loaded = LaplaceRecurrentPPO.load(tmp_path / "model")
    obs, state, other_state = np.ones((2, 4), np.float32), None, None
    for _ in range(3):
        actions, state = model.predict(obs, state, deterministic=True)
        other_actions, other_state = loaded.predict(obs, other_state, deterministic=True)
        np.testing.assert_array_equal(actions, other_actions)
        np.testing.assert_array_equal(
            model.policy.posterior(state).variance, loaded.policy.posterior(other_state).variance
        )


def test_a_subclass_of_torchs_keeps_its_own_initialization() -> None:
    policy = LaplaceRecurrentPPO(
        "LaplaceLstmPolicy", "CartPole-v1", policy_kwargs={"rnn_type": InitializedLSTM, "lstm_hidden_size": 4}
    ).policy
    assert (policy.lstm_actor.weight_hh_l0 == 0.25).all()


@pytest.mark.parametrize(
    ("rnn_type", "message"),
    [
        (
            "transformer",
            r"rnn_type must be one of \['lstm', 'gru', .*\] or a sb3_laplace.Core class, got 'transformer'",
        ),
        (nn.Linear, "rnn_type must be one of"),
        (None, "rnn_type must be one of"),
        (type("Own", (nn.LSTM,), {"forward": lambda self, x: x}), "Own has a forward of its own"),
    ],
)
def test_unknown_cores(rnn_type: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_policy(rnn_type=rnn_type)


@pytest.mark.parametrize(
    ("rnn_type", "keywords", "message"),
    [
        ("lstm", {"proj_size": 2}, r"lstm_kwargs\['proj_size'\] = 2 is not supported"),
        ("lstm", {"bidirectional": True}, "is not supported"),
        ("lstm", {"batch_size": 2}, r"lstm_kwargs\['batch_size'\] = 2: LSTM takes \['bias', 'dropout'\]"),
        ("gru", {"nonlinearity": "tanh"}, r"lstm_kwargs\['nonlinearity'\] = 'tanh': GRU takes"),
        ("rnn", {"nonlinearity": "relu"}, "must be 'tanh', got 'relu'"),
        ("mingru", {"dropout": 0.1}, r"lstm_kwargs\['dropout'\] = 0.1: MinGRU takes \['bias'\]"),
        (LeakyCore, {"dropout": 0.1}, r"lstm_kwargs\['dropout'\] = 0.1: LeakyCore takes \['bias'\]"),
    ],
)
def test_keywords_that_a_core_does_not_take(rnn_type: Any, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_policy(rnn_type=rnn_type, lstm_kwargs=keywords)


def test_keywords_that_a_core_takes() -> None:
    assert make_policy(rnn_type=LeakyCore, lstm_kwargs={"bias": False}).lstm_actor.of_input.bias is None
    assert make_policy(rnn_type="mingru", lstm_kwargs={"bias": False}).lstm_actor.gates[0].bias is None
    assert not make_policy(rnn_type="rnn", lstm_kwargs={"bias": False, "nonlinearity": "tanh"}).lstm_actor.bias
    assert type(make_policy().lstm_actor) is LSTM

    class Open(LeakyCore):
        def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, **kwargs: Any) -> None:
            super().__init__(input_size, hidden_size, num_layers)
            self.given = kwargs

    assert make_policy(rnn_type=Open, lstm_kwargs={"any": 1}).lstm_actor.given == {"any": 1}


class EchoCore(Core):
    """Fixed random weights and a count of steps: no parameters, and a state that is no floating point number."""

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1) -> None:
        super().__init__()
        self.hidden_size, self.num_layers = hidden_size, num_layers
        self.register_buffer("weights", th.randn(input_size + hidden_size, hidden_size))

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.num_layers, self.hidden_size), (1,))

    def initial_state(self, n: int) -> CoreState:
        hidden, _ = super().initial_state(n)
        return hidden, th.zeros(1, n, dtype=th.long)

    def step(self, inputs: th.Tensor, state: CoreState) -> CoreState:
        hidden, count = state
        updated = (th.cat((inputs, hidden[-1]), 1) @ self.weights).tanh() / (1 + count[0]).sqrt().unsqueeze(1)
        return updated.expand(self.num_layers, -1, -1), count + 1


def test_a_core_without_parameters_that_counts() -> None:
    kwargs = {"rnn_type": EchoCore, "lstm_hidden_size": 8}
    model = LaplaceRecurrentPPO("LaplaceLstmPolicy", "CartPole-v1", n_steps=16, batch_size=16, policy_kwargs=kwargs)
    model.learn(48)
    assert model._last_lstm_states.pi.core[1].dtype == th.long


def test_several_layers_need_a_jacobian_of_their_own() -> None:
    policy = make_policy(rnn_type=EchoCore, n_lstm_layers=2)
    with pytest.raises(NotImplementedError, match=r"EchoCore has 2 layers: it has to override jacobian\(\)"):
        policy.act(th.rand(2, 4), policy.initial_states(2), th.zeros(2))
