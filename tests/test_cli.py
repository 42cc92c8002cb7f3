"""The command line: what it writes and prints, and one line for every kind of bad input."""

import html
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecNormalize

from sb3_laplace import LaplaceRecurrentPPO, evaluate_belief, make_vec_env
from sb3_laplace.cli.agents import load_agent, make_env, parse_env_kwargs
from sb3_laplace.cli.main import main
from sb3_laplace.errors import InputError
from sb3_laplace.evaluation.traces import PosteriorTrace
from tests.helpers import RandomEnv

BANDIT = "sb3_laplace/DirichletBandit-v0"
POLICY_KWARGS = {"lstm_hidden_size": 6, "net_arch": [8]}


class InterruptedEnv(RandomEnv):
    """Ctrl-C in the third trial of eight steps."""

    def __init__(self) -> None:
        super().__init__(end_rate=0.0)
        self.n_steps = 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.n_steps += 1
        if self.n_steps > 20:
            raise KeyboardInterrupt
        obs, reward, *_ = super().step(action)
        return obs, reward, False, self.n_steps % 8 == 0, {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Zips of untrained agents: ours, RecurrentPPO's, another algorithm's, and files that are none."""
    folder = tmp_path_factory.mktemp("agents")
    env = make_vec_env(BANDIT, n_envs=2, seed=0)
    arguments: dict[str, Any] = {"policy_kwargs": POLICY_KWARGS, "seed": 0, "device": "cpu"}
    LaplaceRecurrentPPO("LaplaceLstmPolicy", env, **arguments).save(folder / "ours.zip")
    RecurrentPPO("MlpLstmPolicy", env, **arguments).save(folder / "recurrent.zip")
    point = {**arguments, "policy_kwargs": {**POLICY_KWARGS, "posterior": "point"}}
    LaplaceRecurrentPPO("LaplaceLstmPolicy", env, **point).save(folder / "point.zip")
    PPO("MlpPolicy", env, device="cpu").save(folder / "ppo.zip")
    (folder / "text.zip").write_text("no zip")
    whole = (folder / "ours.zip").read_bytes()
    (folder / "cut.zip").write_bytes(whole[: len(whole) // 2])
    normalized = VecNormalize(env)
    normalized.obs_rms.mean[:] = 0.5
    normalized.save(str(folder / "normalize.pkl"))
    LaplaceRecurrentPPO("LaplaceLstmPolicy", RandomEnv(), **arguments).save(folder / "random.zip")
    gym.register("InterruptedTestEnv-v0", entry_point=InterruptedEnv)
    gym.register("RandomTestEnv-v0", entry_point=RandomEnv)
    return folder


def run(*arguments: object, n_trials: int = 32) -> int:
    return main(["diagnose", *map(str, arguments), "--n-trials", str(n_trials), "--device", "cpu"])


def test_diagnose(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "new" / "folder"
    model = folder / "ours.zip"
    assert run(model, "--env", BANDIT, "--env-kwargs", "trial_length=8", "--out", out) == 0
    printed = capsys.readouterr()
    assert "ours on sb3_laplace/DirichletBandit-v0" in printed.out
    assert "Does entropy fall?                     FALLS" in printed.out
    assert str(out / "report.html") in printed.out
    assert printed.err == ""
    trace = PosteriorTrace.load(out / "trace.npz")
    assert trace.reward.shape == (32, 8)
    assert trace.settings["env_kwargs"] == {"trial_length": 8}
    document = json.loads((out / "diagnosis.json").read_text())
    assert document["agents"]["ours"]["n_trials"] == 32
    assert "<!doctype html>" in (out / "report.html").read_text()


def test_diagnose_trials_of_several_episodes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    point = "sb3_laplace/PointRobot-v0"
    env = make_vec_env(point, n_envs=2, seed=0)
    LaplaceRecurrentPPO("LaplaceLstmPolicy", env, policy_kwargs=POLICY_KWARGS, seed=0).save(tmp_path / "point.zip")
    out = tmp_path / "out"
    assert run(tmp_path / "point.zip", "--env", point, "--env-kwargs", "episode_length=4", "--out", out) == 0
    assert "Does it do better in later episodes?" in capsys.readouterr().out
    trace = PosteriorTrace.load(out / "trace.npz")
    assert trace.returns_by_episode.shape == (32, 3)
    np.testing.assert_allclose(trace.returns_by_episode, trace.reward.reshape(32, 3, 4).sum(2), rtol=1e-5)
    assert "episodes" in json.loads((out / "diagnosis.json").read_text())["agents"]["point"]["findings"]
    assert "Return by episode" in (out / "report.html").read_text()


def test_seeded(folder: Path, tmp_path: Path) -> None:
    rewards = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(folder / "ours", "--env", BANDIT, "--out", tmp_path / name, "--seed", seed, n_trials=3) == 0
        rewards[name] = PosteriorTrace.load(tmp_path / name / "trace.npz").reward
    np.testing.assert_array_equal(rewards["a"], rewards["b"])
    assert not np.array_equal(rewards["a"], rewards["c"])


def test_compare(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Ours, RecurrentPPO's and one of the same name: all on the same tasks."""
    model = folder / "ours.zip"
    others = (folder / "recurrent.zip", folder / "ours.zip")
    assert run(model, "--env", BANDIT, "--compare", *others, "--out", tmp_path, "--deterministic") == 0
    traces = [PosteriorTrace.load(tmp_path / f"trace{suffix}.npz") for suffix in ("", "-recurrent", "-ours (2)")]
    np.testing.assert_array_equal(traces[0].reward, traces[2].reward)
    assert all(trace.settings["deterministic"] for trace in traces)
    assert list(json.loads((tmp_path / "diagnosis.json").read_text())["agents"]) == [
        "ours (1)",
        "recurrent",
        "ours (2)",
    ]
    assert "recurrent on" in capsys.readouterr().out


@pytest.mark.parametrize("agent", ["ours", "recurrent"])
def test_calibrate(agent: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Fitted to other trials, then judged on the same as before, and saved."""
    env = ("--env", BANDIT, "--env-kwargs", "trial_length=12", "--deterministic")
    assert run(folder / f"{agent}.zip", *env, "--calibrate", "--out", tmp_path, n_trials=40) == 0
    printed = capsys.readouterr().out
    assert f"{agent} on {BANDIT}" in printed
    assert f"{agent}-calibrated on {BANDIT}" in printed
    assert "Moved to claimed (task space)" in printed
    assert f"Calibrated model: {tmp_path / f'{agent}-calibrated.zip'}" in printed
    traces = [PosteriorTrace.load(tmp_path / name) for name in ("trace.npz", f"trace-{agent}-calibrated.npz")]
    # The mean, which it acts on, is what it was
    np.testing.assert_array_equal(traces[0].reward, traces[1].reward)
    assert not np.allclose(traces[0].entropy, traces[1].entropy)
    document = json.loads((tmp_path / "diagnosis.json").read_text(), parse_constant=pytest.fail)
    calibration = document["calibration"]
    assert (calibration["n_fitted"], calibration["n_reported"]) == (20, 20)
    assert list(calibration["after"]) == ["all", "early", "middle", "late"]
    layer = load_agent(tmp_path / f"{agent}-calibrated", "cpu", weights_only=True).policy.latent_layer
    assert layer.noise_std == calibration["noise_std"]
    assert list(layer.prior_std) == calibration["prior_std"]
    numbers = [document["agents"][name]["findings"]["overconfidence"]["numbers"] for name in document["agents"]]
    before, after = (abs(np.log(number["moved_to_claimed"]["value"])) for number in numbers)
    assert after < before
    report = (tmp_path / "report.html").read_text()
    assert "Set: noise std" in report
    assert f"<th>{agent}-calibrated</th>" in report


def test_a_calibration_is_of_other_trials(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def spy(*arguments: Any) -> Any:
        seeds.append(arguments[2])
        return make_env(*arguments)

    monkeypatch.setattr("sb3_laplace.cli.diagnose.make_env", spy)
    arguments = (folder / "ours.zip", "--env", BANDIT, "--env-kwargs", "trial_length=8", "--calibrate")
    assert run(*arguments, "--out", tmp_path, "--seed", 7, n_trials=40) == 0
    # The look at the environment, before, the calibration, after: none of its 40 environments has a seed of another's
    assert seeds[:2] == [7, 7]
    assert seeds[3] == 7
    assert min((seeds[2] - 7) % 2**32, (7 - seeds[2]) % 2**32) > 40


def test_a_calibration_that_fails_keeps_what_was_played(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = ("--env", BANDIT, "--env-kwargs", "trial_length=3", "--calibrate")
    assert run(folder / "ours.zip", *env, "--out", tmp_path / "a") == 2
    assert "error: --calibrate: Calibration takes 20 complete trials of at least 4 steps" in capsys.readouterr().err

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sb3_laplace.cli.diagnose.calibrate_posterior", interrupted)
    assert run(folder / "ours.zip", *env, "--out", tmp_path / "b") == 130
    assert "Interrupted: going on with what has been played." in capsys.readouterr().err
    for out in "ab":
        assert PosteriorTrace.load(tmp_path / out / "trace.npz").complete.all()
        assert list(json.loads((tmp_path / out / "diagnosis.json").read_text())) == ["agents"]
        assert not list((tmp_path / out).glob("*.zip"))


def test_beside_the_exact_belief(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Of each agent where the task has an oracle, on enough trials of observations as they are."""
    model, other = folder / "ours.zip", folder / "recurrent.zip"
    options = ("--env-kwargs", "trial_length=5", "--compare", other, "--seed", "3", "--out", tmp_path / "a")
    assert run(model, "--env", f"sb3_laplace:{BANDIT}", *options) == 0
    printed = capsys.readouterr().out
    expected = evaluate_belief(load_agent(model, "cpu"), BANDIT, 32, 3, {"trial_length": 5})
    assert f"Beside the exact belief: {expected.table()}" in printed
    expected.to_csv(tmp_path / "expected.csv")
    assert (tmp_path / "a" / "belief.csv").read_text() == (tmp_path / "expected.csv").read_text()
    assert (tmp_path / "a" / "belief-recurrent.csv").exists()
    assert html.escape(expected.table()) in (tmp_path / "a" / "report.html").read_text()
    assert run(model, "--env", BANDIT, "--out", tmp_path / "b", n_trials=19) == 0
    normalized = ("--vecnormalize", folder / "normalize.pkl")
    assert run(model, "--env", BANDIT, "--out", tmp_path / "c", *normalized, n_trials=20) == 0
    assert run(folder / "random.zip", "--env", "RandomTestEnv-v0", "--out", tmp_path / "d", n_trials=20) == 0
    for name in "bcd":
        assert not list((tmp_path / name).glob("belief*"))
        assert "exact belief" not in (tmp_path / name / "report.html").read_text()


def test_a_recurrent_ppo_agent_acts_as_before(folder: Path) -> None:
    agent, before = load_agent(folder / "recurrent", "cpu"), RecurrentPPO.load(folder / "recurrent", device="cpu")
    obs = make_vec_env(BANDIT, n_envs=4, seed=1).reset()
    state, old_state = None, None
    for _ in range(3):
        action, state = agent.predict(obs, state, deterministic=True)
        old_action, old_state = before.predict(obs, old_state, deterministic=True)
        np.testing.assert_array_equal(action, old_action)
    assert isinstance(agent, LaplaceRecurrentPPO)
    assert agent.policy.n_posterior_samples == 0
    assert th.isfinite(agent.policy.posterior(state).entropy()).all()


def test_vecnormalize(folder: Path, tmp_path: Path) -> None:
    env = make_env(BANDIT, 300, 0, {}, str(folder / "normalize.pkl"))
    # The fewest environments that play 300 trials in two rounds
    assert env.num_envs == 150
    assert isinstance(env, VecNormalize)
    assert not env.training
    assert not env.norm_reward
    model = folder / "ours.zip"
    normalized = ("--vecnormalize", folder / "normalize.pkl")
    assert run(model, "--env", BANDIT, "--out", tmp_path / "a", *normalized, n_trials=4) == 0
    assert run(model, "--env", BANDIT, "--out", tmp_path / "b", n_trials=4) == 0
    entropies = [PosteriorTrace.load(tmp_path / name / "trace.npz").entropy for name in "ab"]
    assert not np.array_equal(*entropies)


@pytest.mark.parametrize("algorithm", [LaplaceRecurrentPPO, RecurrentPPO])
@pytest.mark.parametrize("normalized", [False, True])
def test_an_agent_of_other_observations_is_named(
    algorithm: type[RecurrentPPO], normalized: bool, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The mark of VecNormalize is in the zip of every agent that has been trained."""
    env = make_vec_env(BANDIT, n_envs=2, seed=0)
    policy = "LaplaceLstmPolicy" if algorithm is LaplaceRecurrentPPO else "MlpLstmPolicy"
    training_env = VecNormalize(env) if normalized else env
    model = algorithm(policy, training_env, n_steps=4, n_epochs=1, policy_kwargs=POLICY_KWARGS, device="cpu")
    model.learn(8).save(tmp_path / "trained.zip")
    statistics = ("--vecnormalize", folder / "normalize.pkl")
    for given in (False, True):
        # One that was not trained has no observations to be compared with
        others = ("--env", BANDIT, "--compare", folder / "ours.zip", "--out", tmp_path / "out")
        assert run(tmp_path / "trained.zip", *others, *(statistics if given else ()), n_trials=2) == 0
        printed = capsys.readouterr().err
        if algorithm is RecurrentPPO:
            note, printed = printed.split("\n", 1)
            assert "the code pickled in it was run" in note
        if given == normalized:
            assert printed == ""
        elif normalized:
            assert printed.startswith("sb3-laplace: warning: trained was trained under VecNormalize, without --vecn")
            assert len(printed.splitlines()) == 1
        else:
            assert printed == "sb3-laplace: warning: trained was not trained under VecNormalize\n"


def test_bugs_keep_their_traceback(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_laplace.cli.diagnose.posterior_trace", lambda *_, **__: np.zeros(2) + np.zeros(3))
    with pytest.raises(ValueError, match="broadcast"):
        run(folder / "ours.zip", "--env", BANDIT, "--out", tmp_path)


def test_a_folder_that_cannot_be_written_is_found_first(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError("not here")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("sb3_laplace.cli.diagnose.posterior_trace", None)
    assert run(folder / "ours.zip", "--env", BANDIT, "--out", tmp_path) == 2
    assert capsys.readouterr().err == "sb3-laplace: error: --out: not here\n"


def test_environments_without_a_batched_form(folder: Path) -> None:
    assert make_env("CartPole-v1", 40, 0, {}).num_envs == 14


def test_env_kwargs() -> None:
    items = ["a=1", "b=0.5", "c=text", "d=[1, 2]", "e=true", "f=a=b"]
    assert parse_env_kwargs(items) == {"a": 1, "b": 0.5, "c": "text", "d": [1, 2], "e": True, "f": "a=b"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.zip", "--env", BANDIT], r"there is no file '.*missing.zip'"),
        (["text.zip", "--env", BANDIT], r"text.zip' cannot be loaded \(ValueError\): .*zip"),
        (["cut.zip", "--env", BANDIT], r"cut.zip' cannot be loaded"),
        (["ppo.zip", "--env", BANDIT], r"ppo.zip' cannot be loaded .* not recurrent"),
        (["ours.zip", "--env", BANDIT, "--compare", "missing.zip"], r"there is no file '.*missing.zip'"),
        (["ours.zip", "--env", "CartPole-v1"], r"does not fit .*\(7,\).* and Box\(.*\(4,\).*Discrete\(5\) \(agent\)"),
        (["ours.zip", "--env", "Nowhere-v0"], r"environment 'Nowhere-v0' cannot be made: .*Nowhere"),
        (["ours.zip", "--env", "no_module:Nowhere-v0"], "cannot be made: No module named"),
        (["ours.zip", "--env", BANDIT, "--env-kwargs", "n_arms=1"], "n_arms"),
        (["ours.zip", "--env", BANDIT, "--env-kwargs", "wrong=1"], "wrong"),
        (["ours.zip", "--env", BANDIT, "--env-kwargs", "n_arms"], "NAME=VALUE, got 'n_arms'"),
        (["ours.zip", "--env", BANDIT, "--vecnormalize", "missing.pkl"], "missing.pkl' holds no VecNormalize"),
        (["ours.zip", "--env", BANDIT, "--vecnormalize", "text.zip"], "text.zip' holds no VecNormalize"),
        (["ours.zip", "--env", BANDIT, "--n-trials", "0"], "--n-trials must be at least 1, got 0"),
        (["ours.zip", "--env", BANDIT, "--seed", "-1"], "--seed must be at least 0, got -1"),
        (["ours.zip", "--env", BANDIT, "--device", "nowhere"], "--device nowhere: Expected one of"),
        (["ours.zip", "--env", BANDIT, "--device", "meta"], "--device meta: "),
        (["ours.zip", "--env", BANDIT, "--seed", "4294967296"], "--seed must be at most 4294967295"),
        (["ours.zip", "--env", BANDIT, "--n-trials", "many"], "--n-trials: invalid int value: 'many'"),
        (["ours.zip", "--env", BANDIT, "--env-kwargs", "a:0.3"], "NAME=VALUE, got 'a:0.3'"),
        (["ours.zip"], "required: --env"),
        (["point.zip", "--env", BANDIT, "--calibrate"], "must have a Laplace posterior, got PointPosterior"),
        (["trace.npz", "--env", BANDIT, "--calibrate"], "--calibrate takes a model, and 'trace.npz' is a trace"),
        (["ours.zip", "--env", BANDIT, "--calibrate", "--n-trials", "19"], "--n-trials of at least 20, got 19"),
        (["ours.zip", "--env", BANDIT, "--out", "text.zip"], "--out: .*text.zip"),
        (["ours.zip", "--env", BANDIT, "--env-kwargs", "trial_length=100001"], "Trials of 100001 steps .* GiB"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert main(["diagnose", *arguments]) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("sb3-laplace: error: ")
    assert printed.out == ""
    assert re.search(message, lines[0])


def test_an_interrupt_keeps_what_was_collected(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = (folder / "random.zip", "--env", "InterruptedTestEnv-v0", "--compare", folder / "random.zip")
    assert run(*arguments, "--out", tmp_path, n_trials=48) == 130
    printed = capsys.readouterr()
    assert "Interrupted: going on with 32 of 48 trials." in printed.err
    trace = PosteriorTrace.load(tmp_path / "trace.npz")
    assert trace.interrupted
    assert trace.complete.sum() == 32
    # Those under way are kept too
    assert trace.n_trials == 48
    assert (tmp_path / "report.html").exists()
    assert len(json.loads((tmp_path / "diagnosis.json").read_text())["agents"]) == 1


@pytest.mark.parametrize("failure", [KeyboardInterrupt, InputError("no belief")])
def test_what_was_played_outlives_its_belief(
    failure: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The belief comes after the trials; with --calibrate the agent is not calibrated then."""

    def evaluate(*_: Any) -> None:
        raise failure

    monkeypatch.setattr("sb3_laplace.cli.diagnose.evaluate_belief", evaluate)
    options = ("--env", BANDIT, "--env-kwargs", "trial_length=5", "--calibrate", "--out", tmp_path)
    assert run(folder / "ours.zip", *options) == (130 if failure is KeyboardInterrupt else 2)
    expected = "Interrupted: going on with" if failure is KeyboardInterrupt else "error: no belief"
    assert expected in capsys.readouterr().err
    assert PosteriorTrace.load(tmp_path / "trace.npz").complete.all()
    assert list(json.loads((tmp_path / "diagnosis.json").read_text())) == ["agents"]
    assert not list(tmp_path.glob("*.zip"))


def test_an_interrupt_before_anything(folder: Path, capsys: pytest.CaptureFixture, monkeypatch: Any) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sb3_laplace.cli.diagnose.load_agent", interrupted)
    assert run(folder / "ours.zip", "--env", BANDIT) == 130
    assert capsys.readouterr().err == "sb3-laplace: interrupted\n"


def test_without_matplotlib_all_but_the_report(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sb3_laplace.plots.traces", None)
    monkeypatch.delattr("sb3_laplace.plots.traces", raising=False)
    assert run(folder / "ours.zip", "--env", BANDIT, "--out", tmp_path, n_trials=2) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["diagnosis.json", "trace.npz"]
    assert "no report: A report needs matplotlib" in capsys.readouterr().err


def test_help_and_module(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sb3-laplace", "diagnose", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("sb3_laplace", run_name="__main__")
    text = " ".join(capsys.readouterr().out.split())
    assert "runs the pickled code in the file" in text
    assert "only open files that you trust" in text
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("sb3-laplace: error: the following arguments are required: COMMAND")


def test_agents_are_loaded_without_running_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where that is possible; else it is said, or refused."""
    ours, theirs = str(tmp_path / "ours.zip"), str(tmp_path / "theirs.zip")
    env = make_vec_env(BANDIT, n_envs=2, seed=0)
    kwargs: dict[str, Any] = {"n_steps": 10, "policy_kwargs": {"lstm_hidden_size": 4}}
    LaplaceRecurrentPPO("LaplaceLstmPolicy", env, learning_rate=lambda progress: 1e-3 * progress, **kwargs).save(ours)
    RecurrentPPO("MlpLstmPolicy", env, **kwargs).save(theirs)
    options = ["--env", BANDIT, "--n-trials", "4", "--out", str(tmp_path / "out")]
    assert main(["diagnose", ours, *options, "--weights-only"]) == 0
    assert "the code pickled in it was run" not in capsys.readouterr().err
    assert main(["diagnose", theirs, *options]) == 0
    assert "theirs.zip holds no plain settings, the code pickled in it was run" in capsys.readouterr().err
    for arguments, message in (
        ([theirs, *options, "--weights-only"], "--weights-only: .*holds no settings that can be read"),
        ([ours, *options, "--weights-only", "--vecnormalize", "x.pkl"], "--weights-only: VecNormalize"),
    ):
        assert main(["diagnose", *arguments]) == 2
        assert re.search(message, capsys.readouterr().err)
