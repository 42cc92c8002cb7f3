"""Random agents in random environments: the ratio is one, nothing is NaN, saved is the same, one environment works."""

import io
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from sb3_laplace import LaplaceRecurrentPPO
from tests.helpers import CRITICS, randomize
from tests.test_laplace_recurrent_ppo import collect, largest_log_ratio

IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)
OBSERVATIONS: list[spaces.Space] = [
    spaces.Box(-1.0, 1.0, (3,), np.float32),
    spaces.Box(-1.0, 1.0, (2, 2), np.float64),
    spaces.Box(-3, 3, (2,), np.int64),
    spaces.Box(0, 255, (5, 4, 3), np.uint8),
    spaces.Discrete(4),
    spaces.MultiDiscrete([3, 2]),
    spaces.MultiBinary(3),
    spaces.Dict({"one": spaces.Box(-1.0, 1.0, (2,)), "other": spaces.Box(-2.0, 0.0, (3,), np.float64)}),
    spaces.Dict({"choice": spaces.Discrete(3), "bits": spaces.MultiBinary(2)}),
    IMAGE,
    spaces.Dict({"image": IMAGE, "vector": spaces.Box(-1.0, 1.0, (2,))}),
]
ACTIONS: list[spaces.Space] = [
    spaces.Discrete(3),
    spaces.Discrete(1),
    spaces.Box(-1.0, 1.0, (2,), np.float32),
    spaces.Box(-2.0, 5.0, (2, 1), np.float32),
    spaces.Box(0.0, 1.0, (), np.float32),
    spaces.MultiDiscrete([3, 2]),
    spaces.MultiBinary(2),
]


class FuzzEnv(gym.Env):
    """Random observations, rewards and targets of the actions; episodes end at random steps, in one of two ways."""

    def __init__(self, observations: spaces.Space, actions: spaces.Space, end_rate: float, cut_rate: float) -> None:
        self.observation_space, self.action_space = observations, actions
        self.end_rate, self.cut_rate = end_rate, cut_rate

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
            self.action_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        ended = bool(self.np_random.random() < self.end_rate)
        cut = ended and bool(self.np_random.random() < self.cut_rate)
        info = {"target": self.action_space.sample()}
        return self.observation_space.sample(), float(self.np_random.normal()), ended and not cut, cut, info


class Case(NamedTuple):
    """An environment and an agent."""

    observations: spaces.Space
    actions: spaces.Space
    n_envs: int
    end_rate: float
    cut_rate: float
    wrappers: tuple[str, ...]
    policy_kwargs: dict[str, Any]
    arguments: dict[str, Any]


@st.composite
def posteriors(draw: st.DrawFn) -> dict[str, Any]:
    """A posterior and its keywords."""

    def one_of(*choices: Any) -> Any:
        return draw(st.sampled_from(choices))

    name = one_of("laplace", "point", "constant_variance", "variational")
    kwargs = {"prior_std": one_of(0.02, 1.0)}
    if name in ("laplace", "variational"):
        kwargs["covariance"] = one_of("diagonal", "full")
    if name == "laplace":
        kwargs["factorization"] = one_of("markov", "stationary")
        kwargs["window"] = one_of("auto", 1, 2, None)
        kwargs["sum_means"], kwargs["normalize"] = draw(st.booleans()), draw(st.booleans())
        if kwargs["factorization"] == "stationary":
            kwargs["damping"] = one_of(None, 0.3)
        if kwargs["window"] == 1:
            kwargs["jacobian_dtype"] = one_of(None, "bfloat16")
    return {"posterior": name, "posterior_kwargs": kwargs, "latent_dim": one_of(None, 1, 3)}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    def one_of(*choices: Any) -> Any:
        return draw(st.sampled_from(choices))

    actions = one_of(*ACTIONS)
    n_steps = draw(st.integers(1, 9))
    sequence_length = one_of(None, *range(1, n_steps + 1))
    arguments: dict[str, Any] = {
        "n_steps": n_steps,
        "sequence_length": sequence_length,
        "batch_size": draw(st.none() | st.integers(sequence_length or 1, 20)),
        "n_epochs": one_of(1, 2),
        "ent_coef": one_of(0.0, 0.1),
        "clip_range_vf": one_of(None, 0.2),
        "normalize_advantage": draw(st.booleans()),
        "target_coef": one_of(0.0, 1.0),
        "reward_coef": one_of(0.0, 1.0),
        "decode_window": one_of(0, 2, "trial"),
        "seed": draw(st.integers(0, 99)),
    }
    posterior = draw(posteriors())
    arguments["kl_coef"] = 0.0 if posterior["posterior"] == "point" else one_of(None, 0.0, 0.1)
    if arguments["target_coef"]:
        arguments["policy_coef"] = one_of(1.0, 0.0)
    n_samples = draw(st.integers(0, 4))
    if isinstance(actions, spaces.Box) and n_samples <= 1:
        arguments["use_sde"], arguments["sde_sample_freq"] = draw(st.booleans()), one_of(-1, 2)
    core = one_of("lstm", "gru", "rnn", "mingru", "gtrxl")
    policy_kwargs = {
        **posterior,
        **CRITICS[one_of(*CRITICS)],
        "n_posterior_samples": n_samples,
        "rnn_type": core,
        "lstm_hidden_size": one_of(4, 1),
        "n_lstm_layers": one_of(1, 2),
        "lstm_kwargs": one_of({"n_heads": 1, "memory_length": 2}, {"n_heads": 1, "gating": None})
        if core == "gtrxl"
        else one_of(None, {"bias": False}),
        "head_inputs": one_of((), ("hidden",), ("features",), ("hidden", "features")),
        "share_features_extractor": draw(st.booleans()),
        "detach_critic": draw(st.booleans()),
        "net_arch": one_of([4], [], {"pi": [3], "vf": [5]}),
    }
    if isinstance(actions, spaces.Box) and not arguments.get("use_sde"):
        policy_kwargs["state_dependent_std"] = draw(st.booleans())
    if arguments["reward_coef"]:
        policy_kwargs["reward_decoder_kwargs"] = {"net_arch": [3], "next_obs": draw(st.booleans())}
    if policy_kwargs.get("shared_lstm"):
        # SB3's shared LSTM reads the actor's features
        policy_kwargs["share_features_extractor"] = True
    return Case(
        one_of(*OBSERVATIONS),
        actions,
        n_envs=draw(st.integers(1, 3)),
        end_rate=one_of(0.0, 0.2, 0.6, 1.0),
        cut_rate=one_of(0.0, 0.5, 1.0),
        wrappers=tuple(name for name in ("monitor", "stack", "normalize") if draw(st.booleans())),
        policy_kwargs=policy_kwargs,
        arguments=arguments,
    )


def make_env(case: Case) -> VecEnv:
    """The environments under those of the wrappers that their observations allow."""
    make = lambda: FuzzEnv(case.observations, case.actions, case.end_rate, case.cut_rate)  # noqa: E731
    env: VecEnv = DummyVecEnv([make] * case.n_envs)
    parts = case.observations.spaces.values() if isinstance(case.observations, spaces.Dict) else [case.observations]
    boxes, has_image = all(isinstance(part, spaces.Box) for part in parts), any(map(is_image_space, parts))
    if "monitor" in case.wrappers:
        env = VecMonitor(env)
    if "stack" in case.wrappers and boxes:
        env = VecFrameStack(env, 2)
    if has_image and case.n_envs == 2:
        # Else it is the algorithm that does it
        env = VecTransposeImage(env)
    if "normalize" in case.wrappers:
        env = VecNormalize(env, norm_obs=boxes and not has_image)
    return env


def make_model(case: Case, env: VecEnv) -> LaplaceRecurrentPPO:
    kwargs = dict(case.policy_kwargs)
    policy = "LaplaceLstmPolicy"
    if isinstance(case.observations, spaces.Dict):
        policy = "LaplaceMultiInputLstmPolicy"
        kwargs["features_extractor_kwargs"] = {"cnn_output_dim": 4}
    elif case.observations is IMAGE:
        policy = "LaplaceCnnLstmPolicy"
        kwargs["features_extractor_kwargs"] = {"features_dim": 4}
    model = LaplaceRecurrentPPO(policy, env, policy_kwargs=kwargs, device="cpu", **case.arguments)
    # Not the convolutions: large weights one after the other make features of thousands, whose rounding shows
    for name, module in model.policy.named_children():
        if not name.endswith("features_extractor"):
            randomize(module, seed=case.arguments["seed"])
    return model


def assert_saved_is_the_same(model: LaplaceRecurrentPPO) -> None:
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    loaded = LaplaceRecurrentPPO.load(file, device="cpu")
    state = loaded_state = None
    starts = np.ones(model.n_envs, dtype=bool)
    for obs in (model._last_obs, model.env.reset(), model.env.reset()):
        action, state = model.predict(obs, state, starts, deterministic=True)
        loaded_action, loaded_state = loaded.predict(obs, loaded_state, starts, deterministic=True)
        np.testing.assert_array_equal(action, loaded_action)
        posterior, other = model.policy.posterior(state), loaded.policy.posterior(loaded_state)
        assert th.equal(posterior.mean, other.mean)
        assert th.equal(posterior.precision, other.precision)
        starts = np.arange(model.n_envs) == 1


def assert_one_environment_works(model: LaplaceRecurrentPPO) -> None:
    state = None
    model.observation_space.seed(0)
    for _ in range(3):
        action, state = model.predict(model.observation_space.sample(), state)
        assert model.action_space.contains(action), action
        posterior = model.policy.posterior(state)
        assert posterior.mean.shape == (1, model.policy.latent_layer.latent_dim)
        assert posterior.mean.isfinite().all()
        assert not posterior.variance.isnan().any()


def play(case: Case) -> None:
    note(f"{case.policy_kwargs} {case.arguments}")
    model = make_model(case, make_env(case))
    # The second rollout goes on from the middle of episodes, with the weights of the first update
    for _ in range(2):
        collect(model)
        assert largest_log_ratio(model) < 1e-4
        model.train()
        assert np.isfinite(model.policy.parameters_to_vector()).all()
        losses = {name: value for name, value in model.logger.name_to_value.items() if name.endswith("loss")}
        assert losses
        assert np.isfinite(list(losses.values())).all(), losses
    assert_saved_is_the_same(model)
    assert_one_environment_works(model)


SLOW_TO_DRAW = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=30, suppress_health_check=SLOW_TO_DRAW)
@given(case=cases())
def test_any_agent_in_any_environment(case: Case) -> None:
    play(case)


# Other examples at every run; what fails is printed in full
@pytest.mark.slow
@settings(max_examples=500, derandomize=False, print_blob=True, suppress_health_check=SLOW_TO_DRAW)
@given(case=cases())
def test_many_agents_in_many_environments(case: Case) -> None:
    play(case)
