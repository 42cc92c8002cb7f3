"""Callbacks: what they log, and that watching changes nothing."""

import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.callbacks import (
    BaseCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from sb3_laplace import GymnasiumVecEnv, LaplaceRecurrentPPO, PosteriorCallback, make_vec_env
from sb3_laplace.callbacks import PosteriorEvalCallback
from sb3_laplace.callbacks import posterior as callbacks
from sb3_laplace.evaluation.traces import PosteriorTrace
from sb3_laplace.plots import traces as plots
from tests.helpers import RandomEnv, randomize
from tests.test_player import ENVS

BANDIT = "sb3_laplace/DirichletBandit-v0"
POSTERIORS: dict[str, dict[str, Any]] = {
    "diagonal": {},
    "full": {"posterior_kwargs": {"covariance": "full"}},
    "variational-full": {"posterior": "variational", "posterior_kwargs": {"covariance": "full"}},
    "constant": {"posterior": "constant_variance"},
    "point": {"posterior": "point"},
}
SCALARS = {
    *("entropy", "entropy_first_step", "entropy_last_step", "kl", "kl_first_step", "kl_last_step"),
    *("kl_mean", "kl_covariance", "variance_max", "variance_min", "mean_step", "moved_to_claimed_latent"),
}


def bandit(n_envs: int = 2, seed: int = 0, trial_length: int = 5) -> Any:
    return make_vec_env(BANDIT, n_envs=n_envs, seed=seed, env_kwargs={"trial_length": trial_length})


def small_model(env: Any = None, policy_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> LaplaceRecurrentPPO:
    policy_kwargs = {"lstm_hidden_size": 6, "net_arch": [8], **(policy_kwargs or {})}
    arguments = {"n_steps": 10, "batch_size": 10, "n_epochs": 1, "seed": 0, "device": "cpu", **kwargs}
    return LaplaceRecurrentPPO("LaplaceLstmPolicy", env or bandit(), policy_kwargs=policy_kwargs, **arguments)


class Recorder(BaseCallback):
    """The posterior's steps of the last rollout and of all, and what was logged of the last."""

    def _on_training_start(self) -> None:
        self.all_steps: list[Any] = []

    def _on_rollout_start(self) -> None:
        self.steps: list[Any] = []
        self.starts: list[np.ndarray] = []

    def _on_step(self) -> bool:
        self.steps.append(self.locals["step"].posterior)
        self.all_steps.append(self.steps[-1])
        self.starts.append(np.asarray(self.locals["episode_starts"]) != 0)
        return True

    def _on_rollout_end(self) -> None:
        logged = self.logger.name_to_value
        self.posterior = {name[10:]: value for name, value in logged.items() if name.startswith("posterior/")}


def events_in(folder: Path) -> EventAccumulator:
    (run,) = folder.iterdir()
    events = EventAccumulator(str(run), size_guidance={"images": 0, "histograms": 0, "scalars": 0})
    events.Reload()
    return events


# -- PosteriorCallback --------------------------------------------------------------------------------------


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_scalars_are_the_means_over_the_rollout(posterior: str) -> None:
    # With the default prior, what a step changes would be below the tolerances
    kwargs = {"prior_std": 1.0, **POSTERIORS[posterior].get("posterior_kwargs", {})}
    model = small_model(policy_kwargs={**POSTERIORS[posterior], "posterior_kwargs": kwargs})
    randomize(model.policy)
    recorder = Recorder()
    model.learn(20, callback=[PosteriorCallback(n_watched=2), recorder])
    logged = recorder.posterior
    steps = recorder.steps
    with th.inference_mode():
        parts = [step.posterior.kl_parts(step.previous) for step in steps]
        expected = {
            "entropy": np.array([step.posterior.entropy().numpy() for step in steps]),
            "kl_mean": np.array([part.mean.numpy() for part in parts]),
            "kl_covariance": np.array([part.covariance.numpy() for part in parts]),
            "variance_max": np.array([step.posterior.variance.amax(-1).numpy() for step in steps]),
            "variance_min": np.array([step.posterior.variance.amin(-1).numpy() for step in steps]),
            "mean_step": np.array([(step.posterior.mean - step.previous.mean).norm(dim=-1).numpy() for step in steps]),
        }
    expected["kl"] = expected["kl_mean"] + expected["kl_covariance"]
    starts = np.array(recorder.starts)
    assert np.argwhere(starts).tolist() == [[0, 0], [0, 1], [5, 0], [5, 1]]
    for name in ("entropy", "kl"):
        expected[f"{name}_first_step"] = expected[name][starts]
        expected[f"{name}_last_step"] = expected[name][[4, 9]]
    if posterior == "point":
        expected = {name: expected[name] for name in ("mean_step", "variance_max", "variance_min")}
    for name, values in expected.items():
        assert logged[name] == pytest.approx(values.mean(), rel=1e-3, abs=1e-6), name
    assert set(logged) - {"moved_to_claimed_latent"} == set(expected)


def test_moved_to_claimed() -> None:
    """Against the definition, by matrices in double precision; a posterior that claims nothing has none."""
    model = small_model(policy_kwargs={"posterior_kwargs": {"covariance": "full", "prior_std": 1.0}})
    recorder = Recorder()
    model.learn(10, callback=[PosteriorCallback(n_watched=2), recorder])
    moved = claimed = 0.0
    for step, starts in zip(recorder.steps, recorder.starts, strict=True):
        difference = (step.posterior.mean - step.previous.mean).double()
        precision = step.previous.precision.double()
        d = th.einsum("ni,nij,nj->n", difference, precision, difference) / 6
        e = 1 - (precision @ step.posterior.covariance.double()).diagonal(dim1=1, dim2=2).sum(1) / 6
        moved += float(d[~starts].sum())
        claimed += float(e[~starts].sum())
    assert recorder.posterior["moved_to_claimed_latent"] == pytest.approx(moved / claimed, rel=1e-3)

    constant = Recorder()
    small_model(policy_kwargs={"posterior": "constant_variance"}).learn(10, callback=[PosteriorCallback(), constant])
    assert "moved_to_claimed_latent" not in constant.posterior


@pytest.mark.parametrize(
    ("policy_kwargs", "expected"),
    [
        ({"posterior_kwargs": {"prior_std": 1e-3}}, True),
        ({"posterior_kwargs": {"prior_std": 1e-3, "covariance": "full"}}, True),
        ({"posterior_kwargs": {"prior_std": 3.0}}, False),
        ({"posterior_kwargs": {"prior_std": 1e-3, "normalize": True}}, False),
        ({"posterior": "constant_variance"}, False),
        ({"posterior": "point"}, False),
    ],
)
def test_a_nearly_constant_posterior_is_said_to_be_one_at_the_end(policy_kwargs: dict, expected: bool) -> None:
    """Once for each training, and only of 30 trials or more."""
    callback = PosteriorCallback(n_watched=2)
    model = small_model(policy_kwargs=policy_kwargs)
    randomize(model.policy)
    for n_steps, is_enough in ((140, False), (300, True), (150, True)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.learn(n_steps, callback=callback)
        said = [str(one.message) for one in caught if "nearly constant" in str(one.message)]
        assert len(said) == (expected and is_enough), n_steps


@pytest.mark.parametrize("batch_size", [1, 200])
def test_statistics_in_batches(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, batched = Recorder(), Recorder()
    small_model().learn(20, callback=[PosteriorCallback(), whole])
    monkeypatch.setattr(callbacks, "_BATCH_SIZE", batch_size)
    small_model().learn(20, callback=[PosteriorCallback(), batched])
    assert batched.posterior == pytest.approx(whole.posterior)


@pytest.mark.parametrize("posterior", ["diagonal", "full"])
def test_watching_changes_nothing(posterior: str, tmp_path: Path) -> None:
    def weights(callback: BaseCallback | None) -> np.ndarray:
        model = small_model(policy_kwargs=POSTERIORS[posterior], tensorboard_log=str(tmp_path))
        model.learn(80, callback=callback)
        return np.append(model.policy.parameters_to_vector(), np.random.random())  # noqa: NPY002

    np.testing.assert_array_equal(weights(PosteriorCallback(figure_freq=1)), weights(None))


def test_few_full_covariances_are_watched_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "_ONE_IN", 4)
    watched = []

    class Watcher(Recorder):
        def _on_rollout_end(self) -> None:
            super()._on_rollout_end()
            watched.append(len(callback._watched) if callback._is_watched else 0)

    for n_envs, expected in ((1, [1, 0, 0, 0, 1]), (2, [1, 0, 1, 0, 1]), (9, [2] * 5)):
        watched.clear()
        callback = PosteriorCallback()
        model = small_model(bandit(n_envs), policy_kwargs=POSTERIORS["full"])
        model.learn(50 * n_envs, callback=[callback, Watcher()])
        assert watched == expected


def test_what_is_in_tensorboard(tmp_path: Path) -> None:
    model = small_model(tensorboard_log=str(tmp_path))
    model.learn(120, callback=PosteriorCallback(figure_freq=2))
    events = events_in(tmp_path)
    tags = events.Tags()
    assert {f"posterior/{name}" for name in SCALARS} <= set(tags["scalars"])
    # Six rollouts of 20 steps
    assert [event.step for event in events.Images("posterior/within_trial")] == [40, 80, 120]
    histograms = events.Histograms("posterior/variance")
    assert [event.step for event in histograms] == [40, 80, 120]
    scalars = {name: events.Scalars(f"posterior/{name}") for name in ("variance_min", "variance_max")}
    histogram = histograms[-1].histogram_value
    assert scalars["variance_min"][-1].value * 0.5 <= histogram.min <= histogram.max <= prior_variance(model) * 1.001
    # The layout names tags that exist, as regular expressions
    layout = events.SummaryMetadata("custom_scalars__config__")
    assert layout.plugin_data.plugin_name == "custom_scalars"
    charts = layout_of(events)
    assert charts["entropy"] == [f"^posterior/entropy{suffix}$" for suffix in ("", "_first_step", "_last_step")]
    for patterns in charts.values():
        for pattern in patterns:
            assert [tag for tag in tags["scalars"] if re.match(pattern, tag)] == [pattern.strip("^$")]


def prior_variance(model: LaplaceRecurrentPPO) -> float:
    return float(model.policy.latent_layer.prior(1).variance.max())


def layout_of(events: EventAccumulator) -> dict[str, list[str]]:
    (event,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    return {chart.title: list(chart.multiline.tag) for group in layout.category for chart in group.chart}


def test_curves_are_means_by_step_of_the_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict[str, np.ndarray]] = []
    within_trial = plots.within_trial
    monkeypatch.setattr(plots, "within_trial", lambda means: drawn.append(means) or within_trial(means))
    recorder = Recorder()
    # Rollouts of 7 steps cut trials of 5: the curves take two rollouts
    kwargs = {"posterior_kwargs": {"prior_std": 1.0}}
    model = small_model(n_steps=7, batch_size=7, tensorboard_log=str(tmp_path), policy_kwargs=kwargs)
    randomize(model.policy)
    model.learn(28, callback=[PosteriorCallback(figure_freq=2), recorder])
    (means,) = drawn
    assert set(means) == {"entropy (nats)", "KL, mean part", "KL, covariance part"}
    with th.inference_mode():
        entropies = np.array([step.posterior.entropy().numpy() for step in recorder.all_steps])
    expected = [entropies[[i for i in range(14) if i % 5 == step]].mean() for step in range(5)]
    assert (np.diff(expected) < -0.01).all()
    np.testing.assert_allclose(means["entropy (nats)"], expected, rtol=1e-4)


def test_without_matplotlib_there_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sb3_laplace.plots.traces", None)
    monkeypatch.delattr("sb3_laplace.plots.traces", raising=False)
    model = small_model(tensorboard_log=str(tmp_path))
    with pytest.warns(UserWarning, match="matplotlib is not installed") as messages:
        model.learn(60, callback=PosteriorCallback(figure_freq=1))
    assert len([message for message in messages if "matplotlib" in str(message.message)]) == 1
    tags = events_in(tmp_path).Tags()
    assert "posterior/variance" in tags["histograms"]
    assert not tags["images"]


@pytest.mark.filterwarnings("ignore:.*resets an environment in the step after")
@pytest.mark.parametrize("n_watched", [None, 1])
def test_steps_spent_on_a_reset_do_not_count(n_watched: int | None) -> None:
    """Two trials of four steps each: the same numbers whether or not a step is spent on each reset."""

    class FourSteps(RandomEnv):
        def reset(self, **kwargs: Any) -> tuple[Any, dict]:
            self.n_steps = 0
            return super().reset(**kwargs)

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            obs, reward, *_ = super().step(action)
            self.n_steps += 1
            return obs, reward, False, self.n_steps == 4, {}

    logged = []
    for mode, n_steps in ((AutoresetMode.SAME_STEP, 8), (AutoresetMode.NEXT_STEP, 10)):
        env = GymnasiumVecEnv(SyncVectorEnv([FourSteps] * 2, autoreset_mode=mode))
        recorder = Recorder()
        model = small_model(env, n_steps=n_steps, batch_size=n_steps)
        model.learn(n_steps, callback=[PosteriorCallback(n_watched=n_watched), recorder])
        logged.append(recorder.posterior)
    assert set(logged[0]) == SCALARS
    assert logged[1] == pytest.approx(logged[0], rel=1e-5)


@pytest.mark.parametrize("arguments", [{"n_watched": 0}, {"n_watched": 1.5}, {"figure_freq": -1}])
def test_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        PosteriorCallback(**arguments)


# -- PosteriorEvalCallback ----------------------------------------------------------------------------------


def test_evaluations_are_those_of_sb3(tmp_path: Path) -> None:
    """The same trials as SB3's EvalCallback plays: the same npz, the same best model."""
    learned = {}
    for name, make in (
        ("ours", lambda env, **kwargs: PosteriorEvalCallback(env, n_eval_trials=5, **kwargs)),
        ("theirs", lambda env, **kwargs: EvalCallback(env, n_eval_episodes=5, **kwargs)),
    ):
        callback = make(
            bandit(2, seed=5),
            eval_freq=20,
            log_path=str(tmp_path / name),
            best_model_save_path=str(tmp_path / name),
            verbose=0,
        )
        model = small_model()
        model.learn(160, callback=callback)
        learned[name] = model.policy.parameters_to_vector()
        assert callback.best_mean_reward > -np.inf
    ours, theirs = (dict(np.load(tmp_path / name / "evaluations.npz")) for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert ours["timesteps"].tolist() == theirs["timesteps"].tolist() == [40, 80, 120, 160]
    np.testing.assert_array_equal(ours["ep_lengths"], theirs["ep_lengths"])
    # SB3 lists trials as they end, we by environment
    np.testing.assert_allclose(np.sort(ours["results"], 1), np.sort(theirs["results"], 1))
    assert len(np.unique(ours["results"])) > 1
    np.testing.assert_array_equal(learned["ours"], learned["theirs"])
    assert LaplaceRecurrentPPO.load(tmp_path / "ours" / "best_model", device="cpu").num_timesteps in (40, 80, 120, 160)


@pytest.mark.parametrize("bad", [-np.inf, np.nan])
def test_a_return_that_is_not_finite_is_not_the_best(bad: float, tmp_path: Path) -> None:
    """As with SB3's EvalCallback: the mean is what the environment paid, and no model is saved for it."""

    class Bad(RandomEnv):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            obs, _, *ends, info = super().step(action)
            return obs, bad, *ends, info  # type: ignore[return-value]

    for name, callback_class in (("ours", PosteriorEvalCallback), ("theirs", EvalCallback)):
        callback = callback_class(
            DummyVecEnv([lambda: Monitor(Bad())]), eval_freq=5, best_model_save_path=str(tmp_path / name), verbose=0
        )
        small_model(DummyVecEnv([lambda: Monitor(RandomEnv())])).learn(10, callback=callback)
        np.testing.assert_array_equal(callback.last_mean_reward, bad)
        assert callback.best_mean_reward == -np.inf
        assert not list((tmp_path / name).iterdir())


def test_lengths_are_those_of_sb3_where_lives_end_episodes(tmp_path: Path) -> None:
    for name, callback_class in (("ours", PosteriorEvalCallback), ("theirs", EvalCallback)):
        env = ENVS["lives-above-monitor"]()
        callback = callback_class(env, eval_freq=10, log_path=str(tmp_path / name), verbose=0)
        small_model(ENVS["lives-above-monitor"]()).learn(10, callback=callback)
    ours, theirs = (dict(np.load(tmp_path / name / "evaluations.npz")) for name in ("ours", "theirs"))
    assert set(theirs["ep_lengths"].ravel().tolist()) == set(ours["ep_lengths"].ravel().tolist()) == {7}
    assert set(theirs["results"].ravel().tolist()) == set(ours["results"].ravel().tolist()) == {7.0}


@pytest.mark.parametrize("deterministic", [True, False])
def test_evaluating_changes_nothing(deterministic: bool) -> None:
    weights = []
    for evaluates in (True, False):
        callback = PosteriorEvalCallback(
            bandit(2), n_eval_trials=2, eval_freq=5, deterministic=deterministic, verbose=0
        )
        model = small_model()
        model.learn(60, callback=callback if evaluates else None)
        weights.append(model.policy.parameters_to_vector())
    np.testing.assert_array_equal(*weights)


def test_evaluation_writes_traces_and_logs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    callback = PosteriorEvalCallback(bandit(3), n_eval_trials=4, eval_freq=10, log_path=str(tmp_path / "log"))
    model = small_model(tensorboard_log=str(tmp_path / "tb"))
    model.learn(40, callback=callback)
    traces = [PosteriorTrace.load(tmp_path / "log" / "traces" / f"{steps}.npz") for steps in (20, 40)]
    events = events_in(tmp_path / "tb")
    for tag, value_of in (
        ("mean_reward", lambda trace: trace.returns.mean()),
        ("mean_ep_length", lambda trace: 5),
        ("entropy", lambda trace: trace.entropy.mean()),
        ("kl_mean", lambda trace: trace.kl_mean.mean()),
        ("kl_covariance", lambda trace: trace.kl_covariance.mean()),
        ("regret", lambda trace: trace.regret.sum(1).mean()),
    ):
        logged = events.Scalars(f"eval/{tag}")
        assert [event.step for event in logged] == [20, 40]
        np.testing.assert_allclose([event.value for event in logged], [value_of(t) for t in traces], rtol=1e-5)
    assert "Eval num_timesteps=20, trial_reward=" in capsys.readouterr().out


def test_children_of_the_evaluation() -> None:
    callback = PosteriorEvalCallback(
        bandit(2),
        callback_on_new_best=StopTrainingOnRewardThreshold(-1.0),
        n_eval_trials=2,
        eval_freq=5,
        verbose=0,
    )
    model = small_model()
    model.learn(1000, callback=callback)
    assert model.num_timesteps == 10


class SuccessEnv(RandomEnv):
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        obs, reward, terminated, truncated, _ = super().step(action)
        return obs, reward, terminated, truncated, {"is_success": terminated}


def test_success_rate_and_vec_normalize(tmp_path: Path) -> None:
    def env(training: bool) -> VecNormalize:
        return VecNormalize(DummyVecEnv([lambda: Monitor(SuccessEnv())] * 2), training=training)

    callback = PosteriorEvalCallback(env(False), n_eval_trials=20, eval_freq=40, log_path=str(tmp_path), verbose=0)
    model = small_model(env(True))
    model.learn(80, callback=callback)
    successes = np.load(tmp_path / "evaluations.npz")["successes"]
    assert successes.shape == (1, 20)
    # Half of the trials end by termination
    assert 0 < successes.mean() < 1
    assert callback.eval_env.obs_rms.count == pytest.approx(model.get_vec_normalize_env().obs_rms.count)
    with pytest.raises(ValueError, match="eval_env must be wrapped in VecNormalize"):
        model.learn(40, callback=PosteriorEvalCallback(bandit(2), n_eval_trials=2, eval_freq=20, verbose=0))


def test_an_interrupt_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    eval_env = bandit(2)
    model = small_model()

    def interrupted(actions: np.ndarray) -> None:
        if eval_env.step_infos:
            raise KeyboardInterrupt
        type(eval_env).step_async(eval_env, actions)

    monkeypatch.setattr(eval_env, "step_async", interrupted)
    with pytest.warns(UserWarning, match="Interrupted"), pytest.raises(KeyboardInterrupt):
        model.learn(40, callback=PosteriorEvalCallback(eval_env, n_eval_trials=2, eval_freq=5, verbose=0))


def test_evaluation_arguments() -> None:
    with pytest.raises(ValueError, match="n_eval_trials"):
        PosteriorEvalCallback(bandit(1), n_eval_trials=0)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_within_an_event_callback(covariance: str) -> None:
    """Every event logs the statistics of its step."""
    seen: list[tuple[int, float]] = []

    class Reader(PosteriorCallback):
        def _on_step(self) -> bool:
            result = super()._on_step()
            seen.append((self.num_timesteps, self.logger.name_to_value["posterior/entropy"]))
            expected = self.locals["step"].posterior.posterior.entropy().double().mean()
            assert seen[-1][1] == pytest.approx(float(expected), rel=1e-5)
            return result

    env = make_vec_env("sb3_laplace/DirichletBandit-v0", n_envs=2, seed=0)
    kwargs = {"lstm_hidden_size": 8, "posterior_kwargs": {"covariance": covariance}}
    model = LaplaceRecurrentPPO("LaplaceLstmPolicy", env, n_steps=20, batch_size=40, policy_kwargs=kwargs)
    model.learn(80, callback=EveryNTimesteps(12, Reader(n_watched=2)))
    assert [steps for steps, _ in seen] == [12, 24, 36, 48, 60, 72]
