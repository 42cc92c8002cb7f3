"""Exported actors against predict(), step by step."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import RecurrentPPO

from sb3_laplace import (
    Core,
    FullGaussian,
    HiddenStatePosterior,
    LaplaceMultiInputLstmPolicy,
    LaplacePosterior,
    LatentPosterior,
    export_policy,
)
from sb3_laplace.posthoc.exported_actor import ExportedActor, _entropy
from tests.helpers import ACTION_SPACES, make_policy, randomize

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

N_STEPS = 1000


class Leaky(Core):
    """h' = h + rate (tanh(V e + U h) - h)."""

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.candidate = th.nn.Linear(input_size + hidden_size, hidden_size)
        self.rate = th.nn.Parameter(th.linspace(-3.0, 3.0, hidden_size))

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((1, self.hidden_size),)

    def step(self, inputs: th.Tensor, state: tuple[th.Tensor, ...]) -> tuple[th.Tensor, ...]:
        hidden = state[0][0]
        candidate = self.candidate(th.cat((inputs, hidden), dim=1)).tanh()
        return ((hidden + self.rate.sigmoid() * (candidate - hidden)).unsqueeze(0),)


#: Policies, and whether their posterior's entropy is exported
CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "lstm": ({}, False),
    "two layers": ({"n_lstm_layers": 2}, True),
    "gru full": ({"rnn_type": "gru", "latent_dim": 4, "posterior_kwargs": {"covariance": "full"}}, True),
    "lstm diagonal": ({"latent_dim": 4}, True),
    "rnn": ({"rnn_type": "rnn", "head_inputs": ("hidden", "features")}, False),
    "gtrxl": ({"rnn_type": "gtrxl", "n_lstm_layers": 2, "lstm_kwargs": {"memory_length": 5, "gating": None}}, False),
    "gtrxl full": (
        {"rnn_type": "gtrxl", "lstm_kwargs": {"memory_length": 5}, "posterior_kwargs": {"covariance": "full"}},
        True,
    ),
    "mingru": ({"rnn_type": "mingru", "latent_dim": 3, "n_lstm_layers": 2}, True),
    "own core": ({"rnn_type": Leaky, "latent_dim": 3}, False),
    "sum of means": ({"latent_dim": 3, "posterior_kwargs": {"sum_means": True}}, False),
    "stationary": ({"posterior_kwargs": {"factorization": "stationary"}}, False),
    "variational": ({"posterior": "variational", "posterior_kwargs": {"covariance": "full"}}, True),
    "constant": ({"posterior": "constant_variance"}, True),
    "point": ({"posterior": "point", "shared_lstm": True, "enable_critic_lstm": False}, False),
}


def reader(path: Path) -> Any:
    """What a user of the file writes: a function of arrays."""
    if path.suffix == ".pt2":
        module = th.export.load(path).module()
        return lambda observation, state, starts: [
            part.numpy()
            for part in module(th.as_tensor(observation), tuple(map(th.as_tensor, state)), th.as_tensor(starts))
        ]
    session = onnxruntime.InferenceSession(path)

    def run(observation: np.ndarray, state: Any, starts: np.ndarray) -> list[np.ndarray]:
        states = {f"state_{i}": part for i, part in enumerate(state)}
        return session.run(None, {"observation": observation, **states, "episode_start": starts})

    return run


def assert_plays_alike(
    policy: Any, path: Path, with_entropy: bool, n_steps: int = N_STEPS, tolerance: float = 1e-5
) -> None:
    """The file beside predict(), each with its own state, with resets at random steps."""
    rng = np.random.default_rng(0)
    run, n = reader(path), 4
    space = policy.observation_space
    space.seed(0)
    # Whatever it holds: an episode starts
    ours = tuple(np.full(part.shape, 0.3, np.float32) for part in ExportedActor(policy, with_entropy).initial_state(n))
    n_state, theirs, starts = len(ours), None, np.ones(n, dtype=bool)
    for _ in range(n_steps):
        observation = np.stack([space.sample() for _ in range(n)])
        actions, theirs = policy.predict(observation, theirs, starts, deterministic=True)
        out = run(observation, ours, starts)
        ours = tuple(out[1 : 1 + n_state])
        np.testing.assert_allclose(out[0], actions, atol=tolerance)
        np.testing.assert_allclose(ours[0], theirs[0], atol=tolerance)
        if with_entropy:
            expected = policy.posterior(theirs).entropy().numpy()
            np.testing.assert_allclose(out[-1], expected, rtol=tolerance, atol=tolerance)
        starts = rng.random(n) < 0.05


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("name", CASES)
def test_it_plays_as_predict_does(name: str, suffix: str, tmp_path: Path) -> None:
    kwargs, with_entropy = CASES[name]
    policy = make_policy(action_space=ACTION_SPACES["box"], **kwargs)
    path = tmp_path / f"actor{suffix}"
    export_policy(policy, path, entropy=with_entropy)
    # Layer norm makes more of a rounding error than gates do
    tolerance = 1e-4 if "gtrxl" in name else 1e-5
    assert_plays_alike(policy, path, with_entropy, tolerance=tolerance)


@pytest.mark.parametrize("space", ["discrete", "multi_discrete", "multi_binary", "squashed", "gsde", "std"])
def test_every_action_space(space: str, tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {"state_dependent_std": space == "std"}
    if space in ("squashed", "gsde"):
        kwargs |= {"use_sde": True, "squash_output": space == "squashed"}
    policy = make_policy(action_space=ACTION_SPACES.get(space, spaces.Box(-2.0, 3.0, (2,))), **kwargs)
    export_policy(policy, tmp_path / "actor.onnx")
    assert_plays_alike(policy, tmp_path / "actor.onnx", False, 50)


def test_dict_observations(tmp_path: Path) -> None:
    space = spaces.Dict({"a": spaces.Box(-1, 1, (3,)), "image": spaces.Box(0, 255, (1, 36, 36), np.uint8)})
    policy = LaplaceMultiInputLstmPolicy(space, spaces.Discrete(4), lambda _: 1e-3, lstm_hidden_size=8)
    randomize(policy, 0.1)
    for suffix in (".onnx", ".pt2"):
        # Which plays it beside predict()
        export_policy(policy, tmp_path / f"actor{suffix}")
    names = [one.name for one in onnxruntime.InferenceSession(tmp_path / "actor.onnx").get_inputs()]
    assert names == ["observation_a", "observation_image", "state_0", "state_1", "episode_start"]


def test_elimination_has_the_determinant() -> None:
    factors = th.randn(5, 30, 30, dtype=th.float64)
    gaussian = FullGaussian(th.zeros(5, 30, dtype=th.float64), factors @ factors.mT + th.eye(30))
    th.testing.assert_close(_entropy(gaussian), gaussian.entropy())


def test_the_agent_is_left_as_it_is(tmp_path: Path) -> None:
    policy = make_policy()
    policy.set_training_mode(True)
    before = {name: part.clone() for name, part in policy.state_dict().items()}
    validates = th.distributions.Distribution._validate_args
    export_policy(policy, tmp_path / "actor.pt2")
    assert policy.training
    assert th.distributions.Distribution._validate_args == validates
    assert all(th.equal(part, before[name]) for name, part in policy.state_dict().items())


class Own(LatentPosterior):
    """A posterior with a state of its own, of which nothing is known."""

    def initial_state(self, n_envs: int) -> Any:
        return (self.prior_mean.expand(n_envs, -1),)

    def reset(self, state: Any, episode_starts: th.Tensor) -> Any:
        return state

    from_state = step = draw = replay = None


class Branches(HiddenStatePosterior):
    def distribution(self, hidden: th.Tensor) -> Any:
        mean = self.latent_mean(hidden)
        if bool((mean > 0).all()):
            mean = mean + 1
        return self.prior(len(mean)).__class__(mean, self.prior_precision.expand_as(mean))


class Faster(LaplacePosterior):
    def step(self, given: Any) -> Any:
        step = super().step(given)
        step.posterior.mean = step.posterior.mean + 1.0
        return step


@pytest.mark.parametrize(
    ("kwargs", "entropy", "message"),
    [
        ({"posterior": Own}, False, "Own cannot be exported, a posterior with a state of its own"),
        ({"posterior": "point"}, True, "entropy=True cannot be exported with PointPosterior: a point has no entropy"),
        ({"posterior_kwargs": {"factorization": "stationary"}}, True, "entropy=True cannot .* with a window of past"),
        ({"posterior_kwargs": {"jacobian_dtype": "bfloat16"}}, True, "entropy=True cannot .* jacobian_dtype"),
        ({"rnn_type": Leaky}, True, "entropy=True cannot be exported with Leaky, whose Jacobian is by autodiff"),
        ({"posterior": Branches}, False, r"torch.export cannot trace this policy \(.*posterior Branches"),
        ({"posterior": Faster}, False, r"what was exported differs from predict\(\): after 1 steps"),
        ({}, 1, "entropy must be True or False, got 1"),
    ],
)
def test_what_cannot_be_exported_is_named(kwargs: Any, entropy: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export_policy(make_policy(action_space=ACTION_SPACES["box"], **kwargs), tmp_path / "actor.pt2", entropy=entropy)


def test_bad_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"path must end in \.onnx or \.pt2, got 'actor.pt'"):
        export_policy(make_policy(), "actor.pt")
    with pytest.raises(ValueError, match="model must be a LaplaceRecurrentPPO or its policy, got a RecurrentPPO"):
        export_policy(RecurrentPPO("MlpLstmPolicy", "CartPole-v1"), "actor.onnx")
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "onnxscript":
            raise ImportError("no", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"needs onnxscript: pip install 'sb3-laplace\[export\]'"):
        export_policy(make_policy(), tmp_path / "actor.onnx")
