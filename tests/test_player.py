"""The player: the same trials and returns as SB3's evaluate_policy, whatever wraps the environment; and its users."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor, VecNormalize

from sb3_laplace import GymnasiumVecEnv, LaplaceRecurrentPPO, PosteriorTrace, calibrate_prior_std, posterior_trace
from sb3_laplace.evaluation import player
from sb3_laplace.evaluation.player import Player, forked_random
from tests.helpers import RandomEnv, randomize


class Scripted(gym.Env):
    """Episodes of seven steps that pay given rewards; observations random, whatever the agent does."""

    observation_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, rewards: tuple[float, ...] = (1.0,) * 7, info: dict[str, Any] | None = None) -> None:
        self.rewards, self.info = rewards, info or {}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.step_count = 0
        return self._observe(), {}

    def _observe(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, 4).astype(np.float32)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        reward = self.rewards[self.step_count]
        self.step_count += 1
        return self._observe(), reward, self.step_count == len(self.rewards), False, dict(self.info)


class Scaled(gym.RewardWrapper):
    def reward(self, reward: Any) -> float:
        return 0.1 * float(reward)


class Lives(gym.Wrapper):
    """Ends the agent's episode every third step, and begins the true one again only when it is over."""

    over = True

    def reset(self, **kwargs: Any) -> tuple[Any, dict]:
        if self.over:
            self.over, self.n_steps = False, 0
            return self.env.reset(**kwargs)
        obs, _, terminated, truncated, info = self.env.step(0)
        self.over = terminated or truncated
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.n_steps += 1
        self.over = terminated or truncated
        return obs, reward, terminated or self.n_steps % 3 == 0, truncated, info


def small_model(env: Any, **kwargs: Any) -> LaplaceRecurrentPPO:
    policy_kwargs = {"lstm_hidden_size": 5, "net_arch": [8], **kwargs.pop("policy_kwargs", {})}
    arguments = {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "seed": 0, "device": "cpu", **kwargs}
    model = LaplaceRecurrentPPO("LaplaceLstmPolicy", env, policy_kwargs=policy_kwargs, **arguments)
    randomize(model.policy)
    return model


def dummy(make: Any, n_envs: int = 2) -> DummyVecEnv:
    return DummyVecEnv([make] * n_envs)


HALVES = (0.5, -1.25, 2.0, 0.25, 4.0, 0.5, 1.0)
ENVS: dict[str, Any] = {
    "monitor": lambda: dummy(lambda: Monitor(Scripted(HALVES))),
    "no-monitor": lambda: dummy(lambda: Scripted(HALVES)),
    "rewards-scaled-above-monitor": lambda: dummy(lambda: Scaled(Monitor(Scripted(HALVES)))),
    "lives-above-monitor": lambda: dummy(lambda: Lives(Monitor(Scripted(HALVES)))),
    "random-lengths": lambda: dummy(lambda: Monitor(RandomEnv())),
    "minus-infinity": lambda: dummy(lambda: Monitor(Scripted((1.0, 1.0, -np.inf, 1.0, 1.0, 1.0, 1.0)))),
    "minus-infinity-no-monitor": lambda: dummy(lambda: Scripted((1.0, -np.inf, 1.0))),
    "not-a-number": lambda: dummy(lambda: Monitor(Scripted((1.0, np.nan, 1.0)))),
    "not-a-number-no-monitor": lambda: dummy(lambda: Scripted((1.0, np.nan, 1.0))),
    "beyond-single-precision": lambda: dummy(lambda: Monitor(Scripted((1.0, 1e39, 1.0)))),
    "vec-monitor": lambda: VecMonitor(dummy(lambda: Scripted(HALVES))),
    "normalized": lambda: VecNormalize(dummy(lambda: Monitor(Scripted(HALVES))), training=False),
    "batched": lambda: GymnasiumVecEnv(SyncVectorEnv([Scripted] * 2, autoreset_mode=AutoresetMode.SAME_STEP)),
}


@pytest.mark.parametrize("name", ENVS)
@pytest.mark.filterwarnings("ignore:Evaluation environment is not wrapped", "ignore:overflow", "ignore:invalid value")
def test_returns_and_lengths_are_those_of_evaluate_policy(name: str) -> None:
    env, theirs = ENVS[name](), ENVS[name]()
    model = small_model(env)
    for one in (env, theirs):
        one.seed(3)
    trace = posterior_trace(model, env, 5, deterministic=True)
    returns, lengths = evaluate_policy(model, theirs, 5, deterministic=True, return_episode_rewards=True)
    assert trace.returns.dtype == np.float64
    np.testing.assert_array_equal(np.sort(trace.returns), np.sort(returns))
    np.testing.assert_array_equal(np.sort(trace.episode_lengths), np.sort(lengths))
    assert trace.complete.all()
    expected = {"minus-infinity": -np.inf, "not-a-number": np.nan, "beyond-single-precision": 1e39}
    if name in expected:
        np.testing.assert_array_equal(trace.returns, expected[name])


def test_a_value_that_is_no_number_is_told_from_the_end(tmp_path: Any) -> None:
    """-inf and NaN stay in their place, and files keep them."""
    env = DummyVecEnv([lambda: Scripted((1.0, -np.inf, np.nan)), lambda: Scripted((1.0, 2.0))])
    trace = posterior_trace(small_model(env), env, 2)
    assert trace.lengths.tolist() == [3, 2]
    np.testing.assert_array_equal(trace.reward, [[1.0, -np.inf, np.nan], [1.0, 2.0, np.nan]])
    for totals in (trace.returns, trace.totals(trace.reward)):
        np.testing.assert_array_equal(totals, [np.nan, 3.0])
    trace.to_csv(tmp_path / "trace.csv")
    rows = [line.split(",") for line in (tmp_path / "trace.csv").read_text().splitlines()]
    column = rows[0].index("reward")
    assert [row[column] for row in rows[1:]] == ["1", "-inf", "", "1", "2"]
    trace.save(tmp_path / "trace.npz")
    loaded = PosteriorTrace.load(tmp_path / "trace.npz")
    np.testing.assert_array_equal(loaded.reward, trace.reward)
    np.testing.assert_array_equal(loaded.returns, trace.returns)


def test_lives_are_episodes_of_the_agent_and_parts_of_the_trial() -> None:
    env = ENVS["lives-above-monitor"]()
    trace = posterior_trace(small_model(env), env, 2, deterministic=True)
    # Of seven steps the reset after each third one takes one: three, one unseen, three
    assert trace.lengths.tolist() == [6, 6]
    assert trace.episode_lengths.tolist() == [7, 7]
    np.testing.assert_array_equal(trace.episode_start, [[1, 0, 0, 1, 0, 0]] * 2)
    np.testing.assert_array_equal(trace.reward, [[*HALVES[:3], *HALVES[4:]]] * 2)


def test_monitor_that_never_sees_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(player, "_MAX_EPISODES", 10)
    env = dummy(lambda: gym.wrappers.TimeLimit(Monitor(Scripted()), 3))
    with pytest.raises(ValueError, match="Monitor saw no episode end while 10 of the agent's ended"):
        posterior_trace(small_model(env), env, 2)


# -- NEXT_STEP autoreset ------------------------------------------------------------------------------------


def batched(mode: AutoresetMode, wrapper: Any = lambda env: env) -> VecEnv:
    env = wrapper(GymnasiumVecEnv(SyncVectorEnv([partial(Scripted, HALVES)] * 2, autoreset_mode=mode)))
    env.seed(5)
    return env


MODES = (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP)


@pytest.mark.filterwarnings("ignore:.*resets an environment in the step after")
@pytest.mark.parametrize("wrapper", [lambda env: env, VecMonitor, partial(VecNormalize, training=False)])
def test_steps_spent_on_a_reset_belong_to_no_trial(wrapper: Any) -> None:
    envs = [batched(mode, wrapper) for mode in MODES]
    model = small_model(batched(MODES[0], wrapper), policy_kwargs={"latent_dim": None})
    same, following = (posterior_trace(model, env, 5, deterministic=True) for env in envs)
    assert following.lengths.tolist() == [7] * 5
    for name, array in same.columns().items():
        # Of other random draws
        tolerance = 0.05 if name == "confidence" else 1e-5
        np.testing.assert_allclose(following.columns()[name], array, rtol=tolerance, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(following.returns, same.returns)
    assert following.returns.tolist() == [7.0] * 5


@pytest.mark.filterwarnings("ignore:.*resets an environment in the step after")
@pytest.mark.parametrize("criterion", ["return", "likelihood"])
def test_calibration_scores_are_those_of_trials(criterion: str) -> None:
    results = []
    for mode in MODES:
        env = batched(mode)
        results.append(calibrate_prior_std(small_model(env), env, [1e-4, 0.1], 6, criterion=criterion))
    if criterion == "return":
        assert results[0].scores.tolist() == results[1].scores.tolist() == [7.0, 7.0]
    else:
        np.testing.assert_allclose(results[0].scores[0], results[0].unsampled, rtol=1e-3)
        assert (results[1].scores / results[0].scores < 1.2).all()
        assert (results[1].scores / results[0].scores > 0.8).all()


# -- calibration: what it plays, and what it leaves behind --------------------------------------------------


def test_calibration_under_vec_normalize() -> None:
    """Returns are the environment's, also without Monitor, and the statistics stay as they are."""
    env = VecNormalize(dummy(lambda: Scripted(HALVES)))
    model = small_model(env).learn(64)
    counts = env.obs_rms.count, env.ret_rms.count
    result = calibrate_prior_std(model, env, [0.1], n_trials=4)
    assert (env.obs_rms.count, env.ret_rms.count) == counts
    assert env.training
    assert result.unsampled == 7.0


def test_calibration_needs_finite_scores_and_an_effect() -> None:
    env = dummy(lambda: Scripted((1.0, -np.inf)))
    with pytest.raises(ValueError, match=r"cannot compare scores that are not finite: the means are \[-inf\]"):
        calibrate_prior_std(small_model(env), env, [0.1], n_trials=2)
    kwargs = {"posterior_kwargs": {"factorization": "stationary", "damping": 2.0}}
    with pytest.raises(ValueError, match=r"prior_std has no effect on the model's posterior: .* damping = 2.0"):
        calibrate_prior_std(small_model(env, policy_kwargs=kwargs), env, [0.1], n_trials=2)


def test_training_goes_on_from_a_right_observation() -> None:
    env = dummy(lambda: Monitor(Scripted()))
    model = small_model(env).learn(24)
    observation = model._last_obs
    calibrate_prior_std(model, dummy(lambda: Scripted()), [0.1], n_trials=2)
    assert model._last_obs is observation
    resets = []
    reset = Scripted.reset
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scripted, "reset", lambda self, **kwargs: resets.append(reset(self, **kwargs)) or resets[-1])
        calibrate_prior_std(model, model.get_env(), [0.1], n_trials=3)
        del resets[:]
        seen: list[th.Tensor] = []
        model.learn(16, callback=lambda its, _: seen.append(its["obs_tensor"]) or True, reset_num_timesteps=False)
    # The first thing that the agent sees is what the environments were reset to
    np.testing.assert_array_equal(seen[0], [obs for obs, _ in resets[:2]])


def test_generators_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = th.get_rng_state()
    with forked_random(th.device("cpu"), seed=3):
        first = th.rand(2)
    assert th.equal(th.get_rng_state(), before)
    with forked_random(th.device("cpu"), seed=3):
        assert th.equal(th.rand(2), first)
    forked: list[Any] = []
    fork_rng = th.random.fork_rng
    monkeypatch.setattr(th.random, "fork_rng", lambda devices: forked.extend(devices) or fork_rng(devices=[]))
    with forked_random(th.device("cuda", 0)):
        pass
    assert forked == [th.device("cuda", 0)]


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs CUDA")
def test_calibration_leaves_the_generator_of_cuda() -> None:
    env = dummy(lambda: Scripted())
    model = small_model(env, device="cuda")
    before = th.cuda.get_rng_state()
    calibrate_prior_std(model, env, [0.1], n_trials=2)
    assert th.equal(th.cuda.get_rng_state(), before)


def test_a_player_left_early_thaws_the_statistics() -> None:
    env = VecNormalize(dummy(lambda: Scripted()))
    steps = Player(small_model(env), env, 4).play(seed=0)
    next(steps)
    assert not env.training
    steps.close()
    assert env.training


# -- names and attributes of an environment's own -----------------------------------------------------------

NAMES = (
    "lengths",
    "complete",
    "returns",
    "reward",
    "entropy",
    "trial",
    "step",
    "value",
    "trials",
    "file",
    "episode_start",
)


@pytest.mark.parametrize("is_batched", [False, True])
def test_metrics_have_a_namespace_of_their_own(is_batched: bool, tmp_path: Any) -> None:
    make = partial(Scripted, HALVES, {name: 40.0 + i for i, name in enumerate(NAMES)})
    env: VecEnv = dummy(make)
    if is_batched:
        env = GymnasiumVecEnv(SyncVectorEnv([make] * 2, autoreset_mode=AutoresetMode.SAME_STEP))
    trace = posterior_trace(small_model(env), env, 3)
    trace.save(tmp_path / "trace.npz")
    loaded = PosteriorTrace.load(tmp_path / "trace.npz")
    trace.to_csv(tmp_path / "trace.csv")
    header, *rows = [line.split(",") for line in (tmp_path / "trace.csv").read_text().splitlines()]
    assert len(set(header)) == len(header)
    assert len(rows) == 21
    for one in (trace, loaded):
        assert one.lengths.tolist() == [7] * 3
        assert one.complete.tolist() == [True] * 3
        np.testing.assert_array_equal(one.reward, [HALVES] * 3)
        assert set(one.metrics) == set(NAMES)
        for i, name in enumerate(NAMES):
            np.testing.assert_array_equal(one.metrics[name], 40.0 + i)
            assert {float(row[header.index(f"metrics/{name}")]) for row in rows} == {40.0 + i}
    assert {float(row[header.index("step")]) for row in rows} == set(range(7))


@pytest.mark.parametrize("scale", [None, np.ones(3), "wide", -1.0, 0.0, True, 7.0])
def test_attributes_of_another_meaning_are_not_used(scale: Any) -> None:
    class Attributed(Scripted):
        action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        action_scale, trial_length, spec = scale, "seven", {"id": 3}

    env = dummy(lambda: Attributed(HALVES, {"target": 0.0}))
    model = small_model(env)
    trace = posterior_trace(model, env, 2)
    assert np.isfinite(trace.target_quantile).all()
    # What it is taken for is said
    assert trace.settings["action_scale"] == (7.0 if repr(scale) == "7.0" else 1.0)
    assert trace.settings["env"] == "Attributed"
    # And none is without targets
    env = dummy(lambda: Attributed(HALVES))
    assert "action_scale" not in posterior_trace(model, env, 2).settings


def test_a_bound_is_no_length() -> None:
    gym.register("BoundedTestEnv-v0", entry_point=Scripted, max_episode_steps=400_000)
    try:
        env = dummy(lambda: gym.make("BoundedTestEnv-v0"))
        assert posterior_trace(small_model(env), env, 3).lengths.tolist() == [7] * 3
    finally:
        gym.registry.pop("BoundedTestEnv-v0")


class Unpicklable(Scripted):
    """A specification and attributes that hold what does not pickle."""

    def __init__(self) -> None:
        super().__init__(HALVES)
        self.spec = gym.envs.registration.EnvSpec("Unpicklable-v0", entry_point=lambda: None)  # type: ignore[arg-type]
        self.action_scale = self.trial_length = lambda: None


WORKERS: dict[str, Any] = {
    "Unpicklable-v0": lambda: SubprocVecEnv([Unpicklable] * 2, start_method="fork"),
    "AsyncVectorEnv": lambda: GymnasiumVecEnv(
        AsyncVectorEnv([Unpicklable] * 2, context="fork", autoreset_mode=AutoresetMode.SAME_STEP)
    ),
}


@pytest.mark.parametrize("name", WORKERS)
def test_workers_are_asked_for_what_pickles(name: str) -> None:
    env = WORKERS[name]()
    try:
        trace = posterior_trace(small_model(env), env, 3)
        assert trace.lengths.tolist() == [7] * 3
        assert trace.settings["env"] == name
        # They are there and play on
        assert posterior_trace(small_model(env), env, 2).lengths.tolist() == [7] * 2
    finally:
        env.close()
