"""Trials of several episodes in traces, the diagnosis, the report and the environments of SB3."""

import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_laplace import GymnasiumVecEnv, LaplaceRecurrentPPO, diagnose, make_vec_env, posterior_trace, write_report
from sb3_laplace.evaluation.traces import PosteriorTrace
from sb3_laplace.plots import traces as plots
from sb3_laplace_envs import Trial, VectorTrial
from tests.envs.trial_oracle import ACTION_SPACES, OBSERVATION_SPACES, Anything, sample_task, set_task
from tests.test_diagnostics import make_trace


def make_cartpole() -> gym.Env:
    return gym.make("CartPole-v1", max_episode_steps=30)


def batched(**limits: int) -> VecEnv:
    return GymnasiumVecEnv(
        VectorTrial(SyncVectorEnv([make_cartpole] * 4, autoreset_mode=AutoresetMode.SAME_STEP), **limits)
    )


def single(**limits: int) -> VecEnv:
    return DummyVecEnv([lambda: Trial(make_cartpole(), **limits)] * 4)


def agent(env: VecEnv) -> LaplaceRecurrentPPO:
    policy_kwargs = {"lstm_hidden_size": 6, "net_arch": [8], "latent_dim": 3}
    return LaplaceRecurrentPPO("LaplaceLstmPolicy", env, policy_kwargs=policy_kwargs, seed=0, device="cpu")


@pytest.mark.parametrize("make", [batched, single])
def test_returns_by_episode(make, tmp_path: Path) -> None:
    env = make(n_episodes=3)
    trace = posterior_trace(agent(env), env, n_trials=10)
    assert trace.returns_by_episode.shape == (10, 3)
    # Cart-pole pays 1 a step, and every step belongs to an episode
    np.testing.assert_array_equal(trace.returns_by_episode.sum(1), trace.lengths)
    np.testing.assert_array_equal(trace.returns, trace.lengths)
    trace.save(tmp_path / "trace.npz")
    loaded = PosteriorTrace.load(tmp_path / "trace.npz")
    np.testing.assert_array_equal(loaded.returns_by_episode, trace.returns_by_episode)


@pytest.mark.parametrize(("limits", "length"), [({"n_episodes": 3}, 90), ({"n_episodes": 3, "trial_steps": 50}, 50)])
@pytest.mark.parametrize("make", [batched, single])
def test_a_trial_that_rollouts_cut_is_said(make, limits: dict[str, int], length: int) -> None:
    for n_steps, is_cut in ((length - 1, True), (length, False)):
        model = agent(make(**limits))
        model.n_steps = model.rollout_buffer.buffer_size = n_steps
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.learn(1, callback=lambda locals_, globals_: False)
        said = [str(one.message) for one in caught if "n_steps" in str(one.message)]
        expected = f"Trials have up to {length} steps, rollouts n_steps = {n_steps}: a trial is cut"
        assert [one.startswith(expected) for one in said] == [True] * is_cut


@pytest.mark.parametrize(
    ("arguments", "is_cut"),
    [
        ({"batch_size": 45}, True),
        ({"batch_size": 90}, False),
        # Asked for
        ({"batch_size": 45, "sequence_length": 45}, False),
    ],
)
def test_a_trial_that_sequences_cut_is_said(arguments: dict[str, int], is_cut: bool) -> None:
    model = LaplaceRecurrentPPO("LaplaceLstmPolicy", batched(n_episodes=3), n_steps=90, **arguments)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(1, callback=lambda locals_, globals_: False)
    expected = "Trials have up to 90 steps, the network is trained on sequences of at most 45, which is what batch_size"
    said = [str(one.message) for one in caught if "Trials have up to" in str(one.message)]
    assert [one.startswith(expected) for one in said] == [True] * is_cut


@pytest.mark.parametrize("batch", [SyncVectorEnv, AsyncVectorEnv])
def test_attributes_of_trials_over_single_environments(batch) -> None:
    env = GymnasiumVecEnv(
        VectorTrial(batch([make_cartpole] * 2, autoreset_mode=AutoresetMode.SAME_STEP), trial_steps=7)
    )
    assert env.has_attr("trial_length")
    assert env.get_attr("trial_length") == [7, 7]
    assert env.get_attr("spec")[0].max_episode_steps == 30
    assert not env.has_attr("no_such_attribute")
    env.close()


def test_nothing_is_said_of_trials_without_a_limit_or_of_none() -> None:
    endless = DummyVecEnv([lambda: Trial(gym.make("CartPole-v1").unwrapped, 3)])
    bandit = make_vec_env("sb3_laplace/DirichletBandit-v0", vec_env_cls=DummyVecEnv)
    for env, is_cut in ((endless, False), (DummyVecEnv([make_cartpole]), False), (bandit, True)):
        model = LaplaceRecurrentPPO("LaplaceLstmPolicy", env, n_steps=8, n_epochs=1, batch_size=8)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.learn(8)
        assert ["up to 50 steps" in str(one.message) for one in caught if "Trials" in str(one.message)] == [
            True
        ] * is_cut


@pytest.mark.parametrize("make", [batched, single])
def test_an_episode_cut_short_has_no_return(make) -> None:
    env = make(trial_steps=50)
    trace = posterior_trace(agent(env), env, n_trials=8)
    assert (trace.lengths == 50).all()
    n_episodes = np.isfinite(trace.returns_by_episode).sum(1)
    assert n_episodes.max() == trace.returns_by_episode.shape[1]
    total = np.nansum(trace.returns_by_episode, axis=1)
    assert (total <= 50).all()
    assert (total < 50).any()
    assert (total > 20).all()


def test_single_and_batched_agree() -> None:
    one, other = batched(n_episodes=2), single(n_episodes=2)
    model = agent(one)
    for env in (one, other):
        env.seed(3)
    returns = [posterior_trace(model, env, 8, deterministic=True).returns_by_episode for env in (one, other)]
    np.testing.assert_array_equal(*returns)


def test_evaluate_policy_counts_trials() -> None:
    env = batched(n_episodes=3)
    returns, lengths = evaluate_policy(agent(env), env, n_eval_episodes=8, return_episode_rewards=True)
    assert returns == lengths
    assert min(lengths) >= 3 * 8


@pytest.mark.parametrize("observation_space", ["box", "image", "dict", "multi_discrete"])
@pytest.mark.parametrize("is_batched", [True, False])
def test_training_behind_sb3s_wrappers(observation_space: str, is_batched: bool) -> None:
    def make() -> gym.Env:
        return Anything(OBSERVATION_SPACES[observation_space], ACTION_SPACES["box"])

    kwargs: dict[str, Any] = {"n_episodes": 2, "sample_task": sample_task, "set_task": set_task}
    env: VecEnv = DummyVecEnv([lambda: Trial(make(), **kwargs)] * 3)
    if is_batched:
        env = GymnasiumVecEnv(VectorTrial(SyncVectorEnv([make] * 3, autoreset_mode=AutoresetMode.DISABLED), **kwargs))
    if observation_space != "multi_discrete":  # which SB3 does not stack
        env = VecFrameStack(env, 2)
    env = VecNormalize(VecMonitor(env), norm_obs=observation_space == "box")
    policy = "LaplaceLstmPolicy" if observation_space == "box" else "LaplaceMultiInputLstmPolicy"
    policy_kwargs: dict[str, Any] = {"lstm_hidden_size": 6, "net_arch": [8]}
    if observation_space in ("image", "dict"):
        # SB3's network for images takes larger ones
        policy_kwargs |= {"normalize_images": False, "features_extractor_class": Flat}
    # Episodes end at random; the seed makes it the same number of trials each time
    model = LaplaceRecurrentPPO(
        policy, env, n_steps=24, batch_size=24, policy_kwargs=policy_kwargs, device="cpu", seed=0
    )
    model.learn(5 * 72)
    assert len(model.ep_info_buffer or ()) > 3


class Flat(BaseFeaturesExtractor):
    """All that is observed, side by side."""

    def __init__(self, space: spaces.Dict) -> None:
        super().__init__(space, sum(spaces.flatdim(part) for part in space.values()))

    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        return th.cat([part.float().flatten(1) for part in observations.values()], dim=1)


def test_trials_of_one_episode() -> None:
    trace = make_trace(4, 5)
    np.testing.assert_array_equal(trace.returns_by_episode, trace.returns[:, None])
    assert "episodes" not in diagnose(make_trace()).findings
    assert plots.episodes({"agent": trace}) is None


@pytest.mark.parametrize(("gain", "expected"), [(3.0, "yes"), (0.0, "no"), (-3.0, "no"), (0.25, "undecided")])
def test_verdict(gain: float, expected: str) -> None:
    rng = np.random.default_rng(0)
    trace = make_trace(200, 30)
    trace.returns_by_episode = rng.normal(5.0, 1.0 if abs(gain) != 0.25 else 5.0, (200, 3))
    trace.returns_by_episode[:, 2] += gain
    # The last of the episodes that there were is the second for some, and trials of one episode do not count
    trace.returns_by_episode[:20, 1] += gain
    trace.returns_by_episode[:20, 2] = np.nan
    trace.returns_by_episode[20:60, 1:] = np.nan
    trace.returns_by_episode[20:60, 0] = 100.0
    finding = diagnose(trace).findings["episodes"]
    assert finding.verdict == expected
    assert finding.question == "Does it do better in later episodes?"
    assert finding.numbers["first_episode"].value == pytest.approx(5.0, abs=1.0)
    assert finding.numbers["change"].value == pytest.approx(gain, abs=0.3 if abs(gain) != 0.25 else 1.2)


def test_too_few_trials_of_several_episodes() -> None:
    trace = make_trace(200, 30)
    trace.returns_by_episode = np.full((200, 2), np.nan)
    trace.returns_by_episode[:, 0] = trace.returns_by_episode[:29, 1] = 1.0
    assert diagnose(trace).findings["episodes"].verdict == "not enough data"


def test_report(tmp_path: Path) -> None:
    several, one = make_trace(40, 30), make_trace(40, 30)
    several.returns_by_episode = np.arange(120.0).reshape(40, 3)
    figure = plots.episodes({"several": several, "one": one})
    line, point = figure.axes[0].lines
    np.testing.assert_allclose(line.get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(line.get_ydata(), several.returns_by_episode.mean(0))
    np.testing.assert_allclose(point.get_xdata(), [1])
    traces = {"one": one, "several": several}
    write_report(tmp_path / "report.html", traces, {name: diagnose(trace) for name, trace in traces.items()})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Does it do better in later episodes?" in page
    assert "Return by episode" in page
