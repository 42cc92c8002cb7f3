"""The policy against sb3-contrib's (invariant 1), and what must not leak (invariants 5 and 7)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates

from sb3_laplace import LaplaceLstmPolicy, LaplaceRecurrentPPO, MlpFeatures
from sb3_laplace.policies.types import RecurrentState, RecurrentStates
from sb3_laplace.posteriors.laplace import LaplaceState
from tests.helpers import ACTION_SPACES, CRITICS, make_policy, randomize

BOX = spaces.Box(-1.0, 1.0, (4,), np.float32)
# A prior of the size of what observations add to it: beside a precision of 2,500 no tolerance shows a mistake
POSTERIORS: list[dict[str, Any]] = [
    {"latent_dim": latent_dim, "posterior_kwargs": {"covariance": covariance, "prior_std": 1.0}}
    for latent_dim in (None, 3)
    for covariance in ("diagonal", "full")
]
#: The same with past inputs
WINDOWS: list[dict[str, Any]] = [
    {"posterior_kwargs": {"prior_std": 1.0, "factorization": factorization, "window": window, **more}}
    for factorization, window, more in (
        ("stationary", None, {"normalize": True}),
        ("stationary", 2, {"sum_means": True}),
        ("markov", 3, {"covariance": "full"}),
    )
]


def pair(action_space: spaces.Space, **kwargs: Any) -> tuple[LaplaceLstmPolicy, RecurrentActorCriticPolicy]:
    """Ours with the identity latent and K = 0, and sb3-contrib's with the same weights."""
    ours = make_policy(BOX, action_space, latent_dim=None, n_posterior_samples=0, **kwargs)
    randomize(ours, std=0.3)
    theirs = RecurrentActorCriticPolicy(BOX, action_space, lambda _: 1e-3, lstm_hidden_size=8, **kwargs)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def point_states(states: RecurrentStates) -> RNNStates:
    return RNNStates(states.pi.core, states.vf.core)


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("space", ACTION_SPACES)
def test_same_agent_as_recurrent_ppo(critic: str, layers: int, space: str) -> None:
    ours, theirs = pair(ACTION_SPACES[space], n_lstm_layers=layers, **CRITICS[critic])
    n_envs, n_steps = 5, 12
    observations = th.rand(n_steps, n_envs, 4) * 2 - 1
    starts = (th.rand(n_steps, n_envs) < 0.25).float()
    our_states = ours.initial_states(n_envs)
    their_states = first = point_states(our_states)
    actions = []
    for t in range(n_steps):
        values = ours.predict_values(observations[t], our_states.vf, starts[t])
        th.testing.assert_close(values, theirs.predict_values(observations[t], their_states.vf, starts[t]))
        with th.no_grad():
            a, v, logp, our_states = ours(observations[t], our_states, starts[t], deterministic=True)
            a2, v2, logp2, their_states = theirs(observations[t], their_states, starts[t], deterministic=True)
        actions.append(a)
        for mine, other in ((a, a2), (v, v2), (logp, logp2), (our_states.pi.core[0], their_states.pi[0])):
            th.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)
    # Whole sequences, resets anywhere
    arguments = (observations.transpose(0, 1).flatten(0, 1), th.stack(actions, 1).flatten(0, 1), first)
    flat_starts = starts.T.flatten()
    expected = theirs.evaluate_actions(*arguments, flat_starts)
    found = ours.evaluate_actions(arguments[0], arguments[1], first, flat_starts)
    for mine, other in zip(found, expected, strict=True):
        th.testing.assert_close(mine, other, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("space", ACTION_SPACES)
def test_predict_is_recurrent_ppos(space: str) -> None:
    ours, theirs = pair(ACTION_SPACES[space])
    ours_state = theirs_state = None
    start = np.ones(3, dtype=bool)
    for _ in range(6):
        obs = BOX.sample()[None].repeat(3, 0)
        ours_action, ours_state = ours.predict(obs, ours_state, start, deterministic=True)
        theirs_action, theirs_state = theirs.predict(obs, theirs_state, start, deterministic=True)
        np.testing.assert_allclose(ours_action, theirs_action, rtol=1e-5, atol=1e-6)
        start = np.random.default_rng(0).random(3) < 0.3
    single, state = ours.predict(BOX.sample(), deterministic=True)
    assert single.shape == ACTION_SPACES[space].shape
    assert [part.shape for part in state] == [(1, 1, 8)] * 4


def test_initial_weights_are_recurrent_ppos() -> None:
    th.manual_seed(3)
    theirs = RecurrentActorCriticPolicy(BOX, spaces.Discrete(3), lambda _: 1e-3)
    th.manual_seed(3)
    ours = LaplaceLstmPolicy(BOX, spaces.Discrete(3), lambda _: 1e-3, latent_dim=None)
    for name, weight in theirs.state_dict().items():
        assert th.equal(ours.state_dict()[name], weight), name
    assert ours.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize(
    ("kwargs", "latent_dim", "prior_std"),
    [
        ({}, 8, 1.0),
        ({"lstm_hidden_size": 100}, 64, 1.0),
        ({"posterior": "variational"}, 8, 1.0),
        ({"latent_dim": None}, None, 0.02),
        ({"latent_dim": 3}, 3, 1.0),
        ({"posterior_kwargs": {"prior_std": 0.5}}, 8, 0.5),
    ],
)
def test_default_latent(kwargs: dict[str, Any], latent_dim: int | None, prior_std: float) -> None:
    policy = make_policy(**kwargs)
    assert policy._get_constructor_parameters()["latent_dim"] == latent_dim
    assert policy.latent_layer.latent_dim == latent_dim or (latent_dim is None and policy.latent_layer.latent_dim == 8)
    assert policy.latent_layer.prior_std == prior_std


def test_a_point_is_the_hidden_state_by_default() -> None:
    assert make_policy(posterior="point").latent_layer.mean_net is None


def test_k0_draws_no_random_number() -> None:
    policy = make_policy(n_posterior_samples=0)
    observations = th.rand(2, 4)
    before = th.get_rng_state()
    policy.get_distribution(observations, policy.initial_states(2).pi, th.zeros(2))
    assert th.equal(before, th.get_rng_state())


@pytest.mark.parametrize("kwargs", [*POSTERIORS, *WINDOWS])
@given(seed=st.integers(0, 2**31), reset_at=st.integers(1, 5))
def test_nothing_leaks(kwargs: dict[str, Any], seed: int, reset_at: int) -> None:
    """A new episode starts from the prior; environments never touch; a batch of one is its slice."""
    policy = make_policy(**kwargs)
    generator = th.Generator().manual_seed(seed)
    observations = th.rand(8, 3, 4, generator=generator) * 2 - 1

    def play(columns: slice, steps: range, starts_at: int) -> tuple[th.Tensor, ...]:
        state = policy.initial_states(len(range(3)[columns])).pi
        for t in steps:
            start = th.full((state.core[0].shape[1],), float(t == starts_at))
            with th.no_grad():
                _, state = policy.get_distribution(observations[t, columns], state, start, deterministic=True)
        # Of past inputs only what the posterior makes of them: those of earlier episodes may still be there, unread
        posterior = policy.latent_layer.from_state(state.core[0][-1], state.posterior)
        return (*state.core, posterior.mean.unsqueeze(0), posterior.precision.unsqueeze(0))

    together = play(slice(0, 3), range(8), reset_at)
    alone = play(slice(1, 2), range(8), reset_at)
    fresh = play(slice(0, 3), range(reset_at, 8), -1)
    for part, one, new in zip(together, alone, fresh, strict=True):
        th.testing.assert_close(part[:, 1:2], one, rtol=1e-5, atol=1e-5)
        th.testing.assert_close(part, new, rtol=1e-5, atol=1e-5)


def test_one_environments_reset_leaves_the_others() -> None:
    policy = make_policy(latent_dim=3, posterior_kwargs={"covariance": "full", "prior_std": 1.0})
    state = policy.initial_states(2).pi
    observations = th.rand(4, 2, 4)
    for obs in observations:
        _, state = policy.get_distribution(obs, state, th.zeros(2))
    _, reset_one = policy.get_distribution(observations[0], state, th.tensor([1.0, 0.0]))
    _, reset_none = policy.get_distribution(observations[0], state, th.zeros(2))
    _, first = policy.get_distribution(observations[0], policy.initial_states(2).pi, th.zeros(2))
    for one, none, new in zip(reset_one.flatten(), reset_none.flatten(), first.flatten(), strict=True):
        th.testing.assert_close(one[:, 1], none[:, 1])
        th.testing.assert_close(one[:, 0], new[:, 0])
        assert not th.allclose(one[:, 0], none[:, 0])


def curvature(policy: LaplaceLstmPolicy, obs: th.Tensor, state: tuple[np.ndarray, ...]) -> th.Tensor:
    """J J^T at the updated states by autodiff through the policy's own step, shape (N, D, D)."""
    hidden, cell = (th.as_tensor(part) for part in state[:2])

    def next_mean(h: th.Tensor, c: th.Tensor, features: th.Tensor) -> th.Tensor:
        updated = policy.lstm_actor.step(features.view(1, -1), (h.view(1, 1, -1), c.view(1, 1, -1)))
        return policy.latent_layer.latent_mean(updated[0][-1, 0])

    with th.no_grad():
        jacobian = th.stack([th.func.jacfwd(next_mean)(*one) for one in zip(hidden[-1], cell[-1], obs, strict=True)])
    return jacobian @ jacobian.mT


@pytest.mark.parametrize("kwargs", POSTERIORS)
@given(seed=st.integers(0, 2**31))
def test_precision_grows(kwargs: dict[str, Any], seed: int) -> None:
    """Markov: by J J^T at each step, so the difference is positive semi-definite and entropy never rises."""
    policy = make_policy(**kwargs)
    generator = th.Generator().manual_seed(seed)
    state, previous = None, policy.latent_layer.prior(2)
    for _ in range(6):
        obs = th.rand(2, 4, generator=generator) * 2 - 1
        _, state = policy.predict(obs.numpy(), state)
        posterior = policy.posterior(state)
        added, expected = posterior.precision - previous.precision, curvature(policy, obs, state)
        # The size of rounding, far below that of what is added
        rounding = 2e-6 * float(posterior.precision.abs().max())
        assert expected.abs().max() > 1000 * rounding
        if added.dim() == 3:
            assert th.linalg.eigvalsh(added).min() > -rounding
        else:
            expected = expected.diagonal(dim1=-2, dim2=-1)
            assert added.min() >= 0
        th.testing.assert_close(added, expected, rtol=1e-5, atol=rounding)
        assert (posterior.entropy() <= previous.entropy() - 1e-3).all()
        previous = posterior


@pytest.mark.parametrize("kwargs", POSTERIORS)
def test_the_precision_of_a_million_observations_is_usable(kwargs: dict[str, Any]) -> None:
    """In float32: what one observation adds a million times, then a hundred more steps."""
    policy = make_policy(**kwargs)
    with th.no_grad():
        state = policy.initial_states(2).pi
        observation = th.rand(2, 4)
        for _ in range(200):
            _, state = policy.get_distribution(observation, state, th.zeros(2))
        before = state.posterior.precision
        _, state = policy.get_distribution(observation, state, th.zeros(2))
        core, (mean, precision) = state
        curvature = precision - before
        assert curvature.abs().max() > 0
        state = RecurrentState(core, LaplaceState(mean, precision + 1e6 * curvature))
        previous = policy.latent_layer.from_state(core[0][-1], state.posterior)
        for _ in range(100):
            _, state = policy.get_distribution(observation, state, th.zeros(2))
            posterior = policy.latent_layer.from_state(state.core[0][-1], state.posterior)
            for number in (posterior.precision, posterior.entropy(), posterior.kl(previous), posterior.sample(2)):
                assert number.isfinite().all()
            previous = posterior


@pytest.mark.slow
@pytest.mark.parametrize("kwargs", POSTERIORS)
def test_million_steps_for_real(kwargs: dict[str, Any]) -> None:
    policy = make_policy(**kwargs)
    state = policy.initial_states(1).pi
    with th.inference_mode():
        for t in range(1_000_000):
            previous = state
            features = th.rand(1, 4)
            _, _, state = policy._advance(features, state, th.zeros(1))
            if t % 50_000 == 0 or t == 999_999:
                q = policy.latent_layer.from_state(state.core[0][-1], state.posterior)
                p = policy.latent_layer.from_state(previous.core[0][-1], previous.posterior)
                for number in (q.precision, q.entropy(), q.kl(p), q.sample(1)):
                    assert number.isfinite().all()


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("latent_dim", [None, 5])
def test_bfloat16_jacobians(covariance: str, latent_dim: int | None) -> None:
    """The documented error: about 0.3% in what an observation adds to the precision."""
    kwargs: dict[str, Any] = {"latent_dim": latent_dim, "lstm_hidden_size": 64}
    posterior = {"covariance": covariance, "prior_std": 1.0}
    exact = make_policy(posterior_kwargs=posterior, **kwargs)
    rough = make_policy(posterior_kwargs={**posterior, "jacobian_dtype": "bfloat16"}, **kwargs)
    rough.load_state_dict(exact.state_dict())
    obs = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    added = [
        policy.posterior(policy.predict(obs)[1]).precision - policy.latent_layer.prior(16).precision
        for policy in (exact, rough)
    ]
    error = ((added[1] - added[0]).norm() / added[0].norm()).item()
    if covariance == "diagonal" and latent_dim is None:
        assert error == 0.0  # no product to speed up
    else:
        assert 0.0 < error < 0.01


@pytest.mark.parametrize("head_inputs", [("hidden",), ("features",), ("hidden", "features")])
@pytest.mark.parametrize("critic", CRITICS)
def test_head_inputs(head_inputs: tuple[str, ...], critic: str) -> None:
    policy = make_policy(latent_dim=3, head_inputs=head_inputs, n_posterior_samples=2, **CRITICS[critic])
    assert policy.mlp_extractor.policy_net[0].in_features == 3 + 8 * ("hidden" in head_inputs) + 4 * (
        "features" in head_inputs
    )
    obs, states = th.rand(3, 4), policy.initial_states(3)
    step = policy.act(obs, states, th.zeros(3))
    evaluation = policy.evaluate_sequences(obs, step.actions, states, th.zeros(3), noise=step.noise.unsqueeze(2))
    th.testing.assert_close(evaluation.log_prob, step.log_prob)
    th.testing.assert_close(evaluation.values, step.values)


@pytest.mark.parametrize("detach", [True, False])
def test_detach_critic(detach: bool) -> None:
    policy = make_policy(detach_critic=detach, **CRITICS["shared"])
    states = policy.initial_states(2)
    values, _, _ = policy.evaluate_actions(th.rand(2, 4), th.zeros(2), states, th.zeros(2))
    values.sum().backward()
    gradient = policy.lstm_actor.weight_ih_l0.grad
    assert (gradient is None) == detach


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_gradient_of_the_precision_is_never_taken(covariance: str) -> None:
    """The KL's gradient reaches the network through the mean only."""
    kwargs: dict[str, Any] = {"latent_dim": 3, "posterior_kwargs": {"covariance": covariance}, **CRITICS["shared"]}
    policy = make_policy(n_posterior_samples=0, **kwargs)
    states = policy.initial_states(2)
    obs, actions, starts = th.rand(2 * 4, 4), th.zeros(8), th.zeros(8)
    memory = th.diag_embed(th.rand(2, 4, 3) + 1) + 0.1
    stored = memory if covariance == "full" else memory.diagonal(dim1=-2, dim2=-1)
    evaluation = policy.evaluate_sequences(obs, actions, states, starts, memory={"previous_precision": list(stored)})
    mean = policy.latent_layer.latent_mean(
        policy.lstm_actor(obs.view(2, 4, 4).transpose(0, 1), states.pi.core)[0].transpose(0, 1)
    )
    initial_mean = policy.latent_layer.latent_mean(states.pi.core[0][-1])
    previous = th.cat((initial_mean.unsqueeze(1), mean[:, :-1]), 1).detach()
    moved = (mean - previous).unsqueeze(-1)
    oracle = 0.5 * (moved.mT @ (memory if covariance == "full" else th.diag_embed(stored)) @ moved)[..., 0, 0]
    kl = evaluation.posterior.kl()
    th.testing.assert_close(kl, oracle)
    parameters = [policy.lstm_actor.weight_hh_l0, policy.latent_layer.mean_net.weight]
    for found, expected in zip(
        th.autograd.grad(kl.sum(), parameters), th.autograd.grad(oracle.sum(), parameters), strict=True
    ):
        th.testing.assert_close(found, expected)


def test_policy_saves_and_loads_itself(tmp_path: Any) -> None:
    policy = make_policy(latent_dim=3, n_posterior_samples=2, posterior_kwargs={"covariance": "full"})
    randomize(policy, seed=5)
    policy.save(tmp_path / "policy.pt")
    loaded = LaplaceLstmPolicy.load(tmp_path / "policy.pt")
    obs = BOX.sample()
    action, state = policy.predict(obs, deterministic=True)
    loaded_action, loaded_state = loaded.predict(obs, deterministic=True)
    assert action == loaded_action
    for part, other in zip(state, loaded_state, strict=True):
        np.testing.assert_array_equal(part, other)


def test_mlp_features(tmp_path: Path) -> None:
    kwargs = {"features_extractor_class": MlpFeatures, "features_extractor_kwargs": {"net_arch": [6, 5]}}
    policy_kwargs = {**kwargs, "lstm_hidden_size": 8, "head_inputs": ("features",)}
    model = LaplaceRecurrentPPO("LaplaceLstmPolicy", "CartPole-v1", n_steps=16, policy_kwargs=policy_kwargs)
    features = model.policy.pi_features_extractor
    observations = th.rand(3, 4)
    first, second = features.net[1], features.net[3]
    expected = (second(first(observations).relu())).relu()
    th.testing.assert_close(features(observations), expected)
    assert model.policy.lstm_actor.input_size == 5
    model.learn(32)
    model.save(tmp_path / "model")
    loaded = LaplaceRecurrentPPO.load(tmp_path / "model")
    th.testing.assert_close(loaded.policy.pi_features_extractor(observations), features(observations))


def test_nan_logits_are_refused() -> None:
    policy = make_policy(n_posterior_samples=0)
    with th.no_grad():
        policy.action_net.weight.fill_(th.nan)
    for deterministic in (True, False):
        with pytest.raises(ValueError, match="The policy's action logits are not finite"):
            policy.predict(np.zeros((2, 4), np.float32), deterministic=deterministic)


@pytest.mark.parametrize(
    ("net_arch", "message"),
    [([], "must list one layer"), (8, "must list the sizes of layers, got 8"), ([0], "must be an integer >= 1, got 0")],
)
def test_bad_mlp_features(net_arch: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=f"net_arch of MlpFeatures {message}"):
        MlpFeatures(BOX, net_arch)
