"""The commands over RL Zoo's programs: what a run saves, reads back, goes on from and refuses."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import rl_zoo3
import yaml
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_laplace import GymnasiumVecEnv, LaplaceRecurrentPPO
from sb3_laplace.cli.main import main
from sb3_laplace.zoo.algorithms import OUR_ALGORITHMS, default_config
from sb3_laplace.zoo.checkpoints import WholeCheckpointCallback
from sb3_laplace.zoo.experiment import LaplaceExperimentManager
from tests.envs_of_episodes import needs_mujoco
from tests.zoo_helpers import BANDIT, BANDIT_NAME, PENDULUM, one_line, train

RUN = Path("logs") / "laplace_ppo_lstm" / f"{BANDIT_NAME}_1"
SMALL = ["-params", "n_envs:4", "batch_size:100", "n_epochs:1", "policy_kwargs:dict(lstm_hidden_size=8)"]
POINT = "sb3_laplace/PointRobot-v0"
MUJOCO = [f"sb3_laplace/{name}-v0" for name in ("HalfCheetahVel", "HalfCheetahDir", "AntDir")]
ENVIRONMENTS = (
    BANDIT,
    "sb3_laplace/GridNavigation-v0",
    "sb3_laplace/FourierRegression-v0",
    "CartPoleNoVel-v1",
    PENDULUM,
    POINT,
    *(pytest.param(env, marks=needs_mujoco) for env in MUJOCO),
)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of 1000 steps on the bandit, with checkpoints and TensorBoard logs."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = ["-n", 1000, "--seed", 3, "-tb", "tb", "--eval-freq", 400, "--save-freq", 400]
        assert train(*options, *SMALL) == 0
    return folder


# -- training -----------------------------------------------------------------------------------------------


def test_the_folder_holds_what_rl_zoo_saves(finished: Path) -> None:
    run = finished / RUN
    for name in ("config.yml", "args.yml", "command.txt"):
        assert (run / BANDIT_NAME / name).is_file()
    config = yaml.load((run / BANDIT_NAME / "config.yml").read_text(), Loader=yaml.UnsafeLoader)
    assert config["n_envs"] == 4
    assert config["learning_rate"].startswith("lin_")
    assert np.load(run / "evaluations.npz")["timesteps"].tolist() == [400, 800]
    assert {file.name for file in run.glob("*.zip")} == {
        f"{BANDIT_NAME}.zip",
        "best_model.zip",
        "rl_model_400_steps.zip",
        "rl_model_800_steps.zip",
    }
    # One file for all of a batch
    assert [file.name for file in run.glob("*.csv")] == ["0.monitor.csv"]
    assert LaplaceRecurrentPPO.load(run / f"{BANDIT_NAME}.zip").num_timesteps == 1000


def test_the_posterior_is_watched(finished: Path) -> None:
    log = EventAccumulator(str(next((finished / "tb").rglob("LaplaceRecurrentPPO_1")))).Reload()
    assert {"posterior/entropy", "rollout/ep_rew_mean", "eval/mean_reward"} <= set(log.Tags()["scalars"])


def test_the_same_seed_gives_the_same_evaluations(finished: Path, workplace: Path) -> None:
    assert train("-n", 1000, "--seed", 3, "--eval-freq", 400, *SMALL) == 0
    first, second = (np.load(folder / RUN / "evaluations.npz") for folder in (finished, workplace))
    assert first.files == second.files
    for name in first.files:
        np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize("algo", [*OUR_ALGORITHMS, "ppo_lstm"])
@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_every_configuration_is_found_and_starts(algo: str, env: str, workplace: Path) -> None:
    assert train("-n", 16, "-params", "n_envs:2", "n_steps:8", "n_epochs:1", "batch_size:16", algo=algo, env=env) == 0
    model = next(workplace.glob(f"logs/{algo}/*_1/*.zip"))
    agent = (RecurrentPPO if algo == "ppo_lstm" else LaplaceRecurrentPPO).load(model)
    if algo != "ppo_lstm":
        posterior = {"laplace": "LaplacePosterior", "point": "PointPosterior", "vrnn": "VariationalPosterior"}
        assert type(agent.policy.latent_layer).__name__ == posterior[algo.split("_")[0]]


def test_rl_zoo_keeps_its_own_configurations() -> None:
    assert default_config("ppo", BANDIT) is None
    assert default_config("ppo_lstm", "MountainCarNoVel-v0") is None
    assert Path(default_config("ppo_lstm", PENDULUM) or "").parent.name == "zoo_configs"


def test_schedules_of_the_coefficients(finished: Path) -> None:
    model = LaplaceRecurrentPPO.load(finished / RUN / f"{BANDIT_NAME}.zip")
    assert callable(model.ent_coef)
    assert model.ent_coef(0.5) == pytest.approx(model.ent_coef(1.0) / 2)


class Identity(gym.Wrapper):
    """A wrapper of single environments."""


@pytest.mark.parametrize(
    ("env", "vec_env_type", "changes", "expected"),
    [
        (BANDIT, "dummy", {}, GymnasiumVecEnv),
        (BANDIT, "subproc", {}, GymnasiumVecEnv),
        (BANDIT, "dummy", {"env_kwargs": {"concentration": 0.3}}, GymnasiumVecEnv),
        (BANDIT, "dummy", {"env_wrapper": Identity}, DummyVecEnv),
        (BANDIT, "subproc", {"monitor_kwargs": {"info_keywords": ("regret",)}}, SubprocVecEnv),
        ("CartPoleNoVel-v1", "dummy", {}, DummyVecEnv),
        # Its batched form loses a step at the end of every episode
        ("CartPole-v1", "dummy", {}, DummyVecEnv),
    ],
)
def test_batched_environments_where_there_are(
    env: str, vec_env_type: str, changes: dict[str, Any], expected: type[VecEnv], workplace: Path
) -> None:
    manager = LaplaceExperimentManager(None, "laplace_ppo_lstm", env, "logs", seed=5, vec_env_type=vec_env_type)  # type: ignore[arg-type]
    vars(manager).update(changes, verbose=0)
    venv = manager.create_envs(2, no_log=True)
    assert type(venv) is expected
    if "env_kwargs" in changes:
        assert venv.get_attr("concentration") == [0.3, 0.3]
    venv.close()


def test_wrappers_of_batched_environments(workplace: Path) -> None:
    manager = LaplaceExperimentManager(None, "laplace_ppo_lstm", BANDIT, "logs", seed=5)  # type: ignore[arg-type]
    vars(manager).update(normalize=True, frame_stack=3, verbose=0)
    env = manager.create_envs(2, no_log=True)
    assert env.observation_space.shape == (21,)
    assert isinstance(env.unwrapped, GymnasiumVecEnv)
    again = manager.create_envs(2, no_log=True)
    np.testing.assert_array_equal(env.reset(), again.reset())


@pytest.mark.parametrize("name", ["wrappers.Trial", "Trial"])
def test_trials_in_a_configuration(name: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are batched where the environment is, and read back."""
    config = yaml.safe_load(Path(default_config("laplace_ppo_lstm", BANDIT) or "").read_text())[BANDIT]
    config.update(env_wrapper={f"sb3_laplace_envs.{name}": {"n_episodes": 2, "step_number": True, "trial_steps": 100}})
    Path("own.yml").write_text(yaml.safe_dump({BANDIT: config}))
    assert train("-n", 800, "-conf", "own.yml", *SMALL) == 0
    assert [file.name for file in RUN.glob("*.csv")] == ["0.monitor.csv"]
    rows = (RUN / "0.monitor.csv").read_text().splitlines()[2:]
    assert {row.split(",")[1] for row in rows} == {"100"}
    assert train("-f", "logs", "--no-render", "-n", 200, command="enjoy") == 0
    assert "Episode Length 100" in capsys.readouterr().out


def test_constructor_keywords_in_a_configuration(workplace: Path) -> None:
    """Of a wrapper, and of an id; the monitors stay although the environments are made anew."""
    config = yaml.safe_load(Path(default_config("laplace_ppo_lstm", BANDIT) or "").read_text())
    wrapper = {"sb3_laplace_envs.Trial": {"n_episodes": 2, "task_kwargs": {"concentration": [0.1, 0.2]}}}
    config[BANDIT].update(env_wrapper=wrapper)
    config[POINT].update(env_kwargs={"episode_length": 5, "task_kwargs": {"sparse": [True, False]}})
    Path("own.yml").write_text(yaml.safe_dump(config))
    # The monitors of single environments are within the trials, and count their episodes
    for env, n_files, length in ((BANDIT, 4, "50"), (POINT, 1, "15")):
        assert train("-n", 1600, "-conf", "own.yml", *SMALL, "n_steps:100", env=env) == 0
        files = list(next(Path("logs/laplace_ppo_lstm").glob(f"{env.replace('/', '-')}_1")).glob("*.csv"))
        assert len(files) == n_files
        rows = [row for file in files for row in file.read_text().splitlines()[2:]]
        assert {row.split(",")[1] for row in rows} == {length}
        assert len(rows) > 12


def test_which_wrappers_are_batched(workplace: Path) -> None:
    manager = LaplaceExperimentManager(None, "laplace_ppo_lstm", BANDIT, "logs", seed=5)  # type: ignore[arg-type]
    trial = "sb3_laplace_envs.wrappers.Trial"
    for env_wrapper, expected in (
        ([{trial: {"n_episodes": 2}}], GymnasiumVecEnv),
        ({trial: {"n_episodes": 2, "task_kwargs": {"concentration": [0.1, 0.2]}}}, DummyVecEnv),
        ([{trial: {"n_episodes": 2}}, "gymnasium.wrappers.NormalizeObservation"], DummyVecEnv),
        ("gymnasium.wrappers.NormalizeObservation", DummyVecEnv),
    ):
        _, manager.env_wrapper, _, _ = manager._preprocess_hyperparams(
            {"n_timesteps": 1, "policy": "LaplaceLstmPolicy", "env_wrapper": env_wrapper}
        )
        venv = manager.create_envs(2, no_log=True)
        assert type(venv) is expected
        venv.close()


# -- reading it back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", [[], ["--load-best"], ["--load-checkpoint", "400"], ["--n-envs", "2"]])
def test_enjoy(
    choice: list[str], finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    options = ["--algo", "laplace_ppo_lstm", "--env", BANDIT, "-f", "logs", "--no-render", "-n", "100"]
    assert main(["enjoy", *options, *choice]) == 0
    assert choice[:1] == ["--n-envs"] or "Mean reward" in capsys.readouterr().out


def test_plots(finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    monkeypatch.chdir(finished)
    assert main(["plot", "train", "-a", "laplace_ppo_lstm", "-e", BANDIT, "-f", "logs", "-w", "2"]) == 0
    assert len(pyplot.gca().lines) == 1
    pyplot.close("all")
    assert main(["plot", "all", "-a", "laplace_ppo_lstm", "-e", BANDIT, "-f", "logs", "-o", "results"]) == 0
    assert BANDIT_NAME in capsys.readouterr().out
    assert len(pyplot.gca().lines) == 1
    pyplot.close("all")
    assert (finished / "results.pkl").is_file()


# -- going on -----------------------------------------------------------------------------------------------


def test_continue_a_finished_agent(finished: Path, workplace: Path) -> None:
    agent = finished / RUN / f"{BANDIT_NAME}.zip"
    assert train("-n", 400, "-i", agent, *SMALL[:4]) == 0
    before, after = LaplaceRecurrentPPO.load(agent), LaplaceRecurrentPPO.load(workplace / RUN / f"{BANDIT_NAME}.zip")
    assert after.num_timesteps == 400
    assert after._n_updates == before._n_updates + 2
    assert after.policy.lstm_actor.hidden_size == 8


# Kills itself in the middle of a rollout, when it has written two checkpoints
KILLED = """
import os, signal, sys
from sb3_laplace.cli.main import main
from sb3_laplace.zoo.checkpoints import WholeCheckpointCallback as Callback

on_step = Callback._on_step

def die(callback):
    if callback.num_timesteps > 900:
        os.kill(os.getpid(), signal.SIGKILL)
    return on_step(callback)

Callback._on_step = die
main(sys.argv[1:])
"""


def test_a_killed_run_resumes(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SIGKILL in the middle; the rest is trained from the last checkpoint, with everything where it was."""
    n_envs, total, rate = 2, 4000, 1e-3
    settings = ["n_envs:2", "n_steps:100", "batch_size:100", "n_epochs:1", f"learning_rate:'lin_{rate}'"]
    settings.append("policy_kwargs:dict(lstm_hidden_size=8)")
    options = ["-n", total, "--seed", 0, "--save-freq", 400, "--eval-freq", -1, "-params", *settings]
    words = ["--algo", "laplace_ppo_lstm", "--env", PENDULUM, "--device", "cpu", *options]
    run = Path("logs/laplace_ppo_lstm") / f"{PENDULUM}_1"
    command = [sys.executable, "-c", KILLED, "train", *map(str, words)]
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == -signal.SIGKILL
    assert not (run / f"{PENDULUM}.zip").exists()

    last = max(run.glob("rl_model_*0_steps.zip"), key=lambda file: int(file.stem.split("_")[2]))
    done = int(last.stem.split("_")[2])
    assert done == 800
    saved = LaplaceRecurrentPPO.load(last)
    venv = DummyVecEnv([lambda: gym.make(PENDULUM)])
    seen = VecNormalize.load(str(run / f"rl_model_vecnormalize_{done}_steps.pkl"), venv).obs_rms.count

    # Neither the number of steps nor the hyperparameters are given again
    assert train("-i", last, "--eval-freq", -1, env=PENDULUM) == 0
    rates = [float(line.split("|")[2]) for line in capsys.readouterr().out.splitlines() if "learning_rate " in line]
    expected = [rate * (1 - steps / total) for steps in range(done + 200, total, 200)]
    assert rates == pytest.approx(expected[: len(rates)], rel=1e-2)
    resumed = run.with_name(f"{PENDULUM}_2")
    model = LaplaceRecurrentPPO.load(resumed / f"{PENDULUM}.zip")
    assert model.num_timesteps == total
    assert model._n_updates == saved._n_updates + (total - done) // 200
    normalized = VecNormalize.load(str(resumed / PENDULUM / "vecnormalize.pkl"), venv)
    assert normalized.obs_rms.count == pytest.approx(seen + total - done + n_envs)


def test_a_killed_process_leaves_no_half_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = VecNormalize(DummyVecEnv([lambda: gym.make(PENDULUM)]))
    model = LaplaceRecurrentPPO("LaplaceLstmPolicy", env, n_steps=8, policy_kwargs={"lstm_hidden_size": 4})
    callback = WholeCheckpointCallback(4, str(tmp_path), save_vecnormalize=True)
    model.learn(8, callback)
    files = {"rl_model_{}_steps.zip", "rl_model_vecnormalize_{}_steps.pkl"}
    whole = {name.format(steps) for name in files for steps in (4, 8)}
    assert {file.name for file in tmp_path.iterdir()} == whole

    def die(path: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(env, "save", die)
    with pytest.raises(KeyboardInterrupt):
        model.learn(8, callback, reset_num_timesteps=False)
    assert {file.name for file in tmp_path.iterdir()} == whole
    # Those after it are where they belong
    monkeypatch.undo()
    assert callback.save_path == str(tmp_path)
    model.learn(8, callback, reset_num_timesteps=False)
    assert whole < {file.name for file in tmp_path.iterdir()}
    assert not [file for file in tmp_path.iterdir() if file.is_dir()]


# -- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--env", "DirichletBandit-v0"], ["DirichletBandit-v0 not found", f"maybe meant {BANDIT}?"]),
        (["--algo", "laplace_ppo_lstn"], ["no algorithm 'laplace_ppo_lstn'", "maybe meant laplace_ppo_lstm?"]),
        (["--algo", "zzz"], ["no algorithm 'zzz'", "vrnn_ppo_lstm"]),
        (["--env", "CartPole-v1"], ["not found for laplace_ppo_lstm-CartPole-v1", "laplace_ppo_lstm.yml"]),
        (["-conf", "missing.yml"], ["missing.yml", "No such file"]),
        (["-conf", "own.yml"], ["own.yml", "no keyword 'n_step'", "maybe meant 'n_steps'"]),
        (["-conf", "policy.yml"], ["policy.yml", "unexpected keyword argument 'hidden'"]),
        (["-conf", "posterior.yml"], ["posterior.yml", "unexpected keyword argument 'std'"]),
        (["-conf", "broken.yml"], ["broken.yml"]),
        (["-params", "n_envs:2", "foo:1"], ["-params", "no keyword 'foo'"]),
        (["-i", "missing.zip"], ["-i takes", "'missing.zip'"]),
        (["-i", "text.zip"], ["'text.zip'", BANDIT]),
        (["--gym-packages", "no_such_package"], ["--gym-packages", "no_such_package"]),
        (["--env-kwargs", "colour:1"], ["colour"]),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], expected: list[str], workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {"policy": "LaplaceLstmPolicy", "n_timesteps": 100}
    for name, changes in {
        "own": {"n_step": 8},
        "policy": {"policy_kwargs": "dict(hidden=3)"},
        "posterior": {"policy_kwargs": {"posterior_kwargs": {"std": 1}}},
    }.items():
        Path(f"{name}.yml").write_text(yaml.safe_dump({BANDIT: {**entry, **changes}}))
    Path("broken.yml").write_text("a: [")
    Path("text.zip").write_text("no zip")
    assert train(*arguments) == 2
    message = one_line(capsys)
    for part in expected:
        assert part in message
    # Nothing that `enjoy` would take for a run
    assert not [path for path in workplace.glob("logs/*/*") if path.is_dir()]


def test_a_checkpoint_of_another_environment(
    finished: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("-i", finished / RUN / "best_model.zip", env="CartPoleNoVel-v1") == 2
    assert "Observation spaces do not match" in one_line(capsys)
    assert train("-i", finished / RUN / "rl_model_400_steps.zip", env="CartPoleNoVel-v1") == 2
    assert "no checkpoint of a run on CartPoleNoVel-v1" in one_line(capsys)
    assert train("-n", 400, "-i", finished / RUN / "rl_model_400_steps.zip") == 2
    assert "400 of 400 steps: nothing is left" in one_line(capsys)


def test_enjoy_and_plot_without_a_run(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--algo", "laplace_ppo_lstm", "--env", BANDIT, "-f", "logs", "--no-render"]
    assert main(["enjoy", *options]) == 2
    assert "folder was not found" in one_line(capsys)
    assert main(["plot", "train", "-a", "laplace_ppo_lstm", "-e", BANDIT, "-f", "logs"]) == 2
    assert "logs/laplace_ppo_lstm" in one_line(capsys)
    assert main(["plot", "everything"]) == 2
    assert "train, all, file" in one_line(capsys)


@pytest.mark.parametrize(
    ("missing", "command", "imported_anew"),
    [
        ("rl_zoo3", ["train"], ("sb3_laplace.zoo",)),
        ("requests", ["enjoy"], ("rl_zoo3.enjoy", "rl_zoo3.load_from_hub")),
        ("seaborn", ["plot", "train"], ("rl_zoo3.plots", "sb3_laplace.zoo.plots")),
    ],
)
def test_what_is_not_installed_is_named(
    missing: str,
    command: list[str],
    imported_anew: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in list(sys.modules):
        if name.startswith((missing, *imported_anew)):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(rl_zoo3, "plots", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(command) == 2
    assert f'{command[0]} needs {missing}: pip install "sb3-laplace[zoo]"' in one_line(capsys)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for command in ("train", "enjoy", "tune", "plot", "diagnose"):
        assert f"sb3-laplace {command} " in text
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "usage: sb3-laplace train" in text
    assert "--save-freq" in text
    assert main(["plot", "--help"]) == 0
