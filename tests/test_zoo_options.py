"""Options of the commands over RL Zoo's programs: one line for each that is wrong, or that would be ignored."""

import builtins
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import optuna
import pytest
import yaml
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import VecEnv

from sb3_laplace import LaplaceRecurrentPPO, make_vec_env
from sb3_laplace.cli.main import main
from sb3_laplace.policies.laplace_lstm_policy import LaplaceLstmPolicy
from sb3_laplace.zoo.experiment import LaplaceExperimentManager
from tests.helpers import RandomEnv
from tests.zoo_helpers import BANDIT, BANDIT_NAME, one_line, train

QUICK = ["-n", "16", "--eval-freq", "-1"]
SMALL = ["-params", "n_envs:2", "n_steps:8", "batch_size:16", "n_epochs:1"]
TUNE = ["-n", "16", "--n-trials", "3", "--n-evaluations", "1", "--eval-episodes", "1"]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Zips of untrained agents on the bandit: one for each posterior, and RecurrentPPO's."""
    folder = tmp_path_factory.mktemp("agents")
    env = make_vec_env(BANDIT, n_envs=2)
    for posterior in ("laplace", "point", "variational", "constant_variance"):
        kwargs = {"lstm_hidden_size": 6, "posterior": posterior}
        LaplaceRecurrentPPO("LaplaceLstmPolicy", env, policy_kwargs=kwargs, device="cpu").save(folder / posterior)
    RecurrentPPO("MlpLstmPolicy", env, policy_kwargs={"lstm_hidden_size": 6}, device="cpu").save(folder / "recurrent")
    return folder


# -- values that are none -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "tune", "enjoy"])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--env-kwargs", "a=0.3"], "--env-kwargs: must be NAME:VALUE, .*'a=0.3'"),
        (["--env-kwargs", "a:text"], "--env-kwargs: must be NAME:VALUE, .*'a:text'"),
        (["--env-kwargs", ":3"], "--env-kwargs: must be NAME:VALUE, .*':3'"),
        (["--device", "gpu"], "--device gpu: Expected one of"),
        (["--device", "meta"], "--device meta: "),
        (["-n", "0"], "--n-timesteps must be at least 1, got 0"),
        (["-n", "-5"], "--n-timesteps must be at least 1, got -5"),
        (["-n", "many"], "--n-timesteps: invalid int value: 'many'"),
        (["--num-threads", "0"], "--num-threads must be at least 1, got 0"),
        (["--seed", "99999999999"], "--seed must be at most 4294967295"),
        (["--no-such-option"], "unrecognized arguments: --no-such-option"),
    ],
)
def test_everywhere(command: str, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ["-f", "logs"]
    assert main([command, "--algo", "laplace_ppo_lstm", "--env", BANDIT, *folder, *arguments]) == 2
    one_line(capsys, expected)
    assert not Path("logs").exists()


@pytest.mark.parametrize("command", ["train", "tune"])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--hyperparams", "kl_coef:lin_0.1"], "--hyperparams: must be NAME:VALUE, .*'kl_coef:lin_0.1'"),
        (["--eval-env-kwargs", "a=0.3"], "--eval-env-kwargs: must be NAME:VALUE"),
        (["--track"], "--track needs wandb: pip install wandb"),
        (["--eval-episodes", "0"], "--eval-episodes must be at least 1"),
        (["--n-eval-envs", "0"], "--n-eval-envs must be at least 1"),
        (["--wandb-entity", "me"], "--wandb-entity does nothing without --track"),
        (["-f", "file"], "--log-folder: .*file"),
        (["-tb", "file/below"], "--tensorboard-log: .*file"),
        (["-params", "vf_coef:'a'"], "-params: vf_coef must be a number, got 'a'"),
        (["-params", "n_epochs:1.5"], "-params: n_epochs must be an integer, got 1.5"),
        (["-params", "policy_kwargs:3"], "-params: policy_kwargs must be a dictionary or None, got 3"),
        (["-params", "kl_coef:'fast'"], r"-params: kl_coef must be a number >= 0, .* got 'fast'"),
        (["-params", "kl_coef:'lin_x'"], r"-params: kl_coef must be a number or lin_<number>, got 'lin_x'"),
        (["-params", "clip_range:'a'"], r"-params: clip_range must be a number or lin_<number>, got 'a'"),
        (["-params", "n_envs:0"], "-params: n_envs must be an integer of at least 1, got 0"),
        (["-params", "policy:3"], "-params: policy must be text, got 3"),
        (["-params", "seed:3"], "-params: seed is what --seed sets"),
        (["-params", "_init_setup_model:False"], "-params: laplace_ppo_lstm has no keyword '_init_setup_model'"),
    ],
)
def test_training_and_tuning(
    command: str, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    Path("file").touch()
    assert train(*QUICK[:2], *arguments, command=command) == 2
    one_line(capsys, expected)
    assert not [path for path in Path().glob("logs/*/*") if path.is_dir()]


def test_without_n_as_configured() -> None:
    """-1 is RL Zoo's default, "as configured"."""
    own = {BANDIT: {"policy": "LaplaceLstmPolicy", "n_timesteps": 32, "n_envs": 2, "n_steps": 8, "batch_size": 16}}
    Path("own.yml").write_text(yaml.safe_dump(own))
    for i, number in enumerate(([], ["-n", "-1"]), start=1):
        assert train("-conf", "own.yml", "--eval-freq", -1, *number) == 0
        run = Path("logs/laplace_ppo_lstm") / f"{BANDIT_NAME}_{i}"
        assert LaplaceRecurrentPPO.load(run / f"{BANDIT_NAME}.zip").num_timesteps == 32


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--n-trials", "0"], "--n-trials must be at least 1, got 0"),
        (["--n-trials", "-3"], "--n-trials must be at least 1, got -3"),
        (["--max-total-trials", "0"], "--max-total-trials must be at least 1"),
        (["--n-jobs", "0"], "--n-jobs must be at least 1"),
        (["--n-evaluations", "0"], "--n-evaluations must be at least 1"),
        (["--n-startup-trials", "-1"], "--n-startup-trials must be at least 0"),
        (["--sampler", "auto"], "--sampler auto needs optunahub"),
        (["-i", "agent.zip"], "--trained-agent does nothing in a search"),
        (["--trial-id", "0"], "--trial-id does nothing in a search"),
        (["--save-freq", "5"], "--save-freq does nothing in a search"),
        (["--progress"], "--progress does nothing in a search"),
    ],
)
def test_tuning(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "optunahub", None)
    assert train(*arguments, command="tune") == 2
    one_line(capsys, expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--log-interval", "0"], "--log-interval must be at least 1"),
        (["--trial-id", "3"], "--trial-id needs --storage and --study-name"),
        (["--trial-id", "0"], "--trial-id needs --storage and --study-name"),
        (["--trial-id", "0", "--storage", "a.log"], "--trial-id needs --storage and --study-name"),
        (["--trial-id", "-1", "--storage", "a.log", "--study-name", "s"], "--trial-id must be at least 0"),
        (["--trial-id", "0", "--storage", "a.log", "--study-name", "s"], "--storage: there is no file 'a.log'"),
        (["--storage", "a.log"], "--storage does nothing without --trial-id"),
        (["--study-name", "s"], "--study-name does nothing without --trial-id"),
        (["--n-jobs", "2"], "--n-jobs does nothing without --optimize-hyperparameters"),
        (["-conf", "list.yml"], "list.yml: it must hold hyperparameters by environment"),
        (["-conf", "short.yml"], "short.yml: there is no n_timesteps"),
    ],
)
def test_training(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("list.yml").write_text("- a")
    Path("short.yml").write_text(yaml.safe_dump({BANDIT: {"policy": "LaplaceLstmPolicy"}}))
    assert train(*QUICK, *arguments) == 2
    one_line(capsys, expected)
    assert not Path("a.log").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--n-envs", "0"], "--n-envs must be at least 1"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--load-best", "--load-last-checkpoint"], "--load-best and --load-last-checkpoint exclude each other"),
        (["--deterministic", "--stochastic"], "--deterministic and --stochastic exclude each other"),
        ([], "-f is needed"),
    ],
)
def test_enjoying(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(*arguments, command="enjoy") == 2
    one_line(capsys, expected)


# -- what is to blame ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-params", "policy_kwargs:dict(hidden=3)"], "error: -params: .*'hidden'"),
        (["-params", "learning_rate:-1.0"], "error: -params: Invalid learning rate"),
        (["-params", "policy_kwargs:'dict('"], "error: -params: .*never closed"),
        (["-params", "env_wrapper:'no.such'"], "error: -params: No module named 'no'"),
        (["-params", "policy_kwargs:dict(lstm_hidden_size=-3)"], "error: -params: "),
        (["--env-kwargs", "colour:1"], "error: --env-kwargs: .*'colour'"),
        (["--eval-env-kwargs", "colour:1"], "error: --eval-env-kwargs: .*'colour'"),
        (["--env-kwargs", "n_arms:3", "-params", "n_envs:2", "learning_rate:-1.0"], "error: -params: Invalid learning"),
        (["-conf", "bad.yml", "-params", "env_wrapper:'no.such'"], "error: -params: No module"),
        (["-conf", "bad.yml", "-params", "n_envs:2"], "error: bad.yml: .*'hidden'"),
        (["-conf", "bad.yml", "--env-kwargs", "n_arms:3"], "error: bad.yml: .*'hidden'"),
    ],
)
def test_errors_name_the_option_they_come_from(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {"policy": "LaplaceLstmPolicy", "n_timesteps": 100, "policy_kwargs": "dict(hidden=3)"}
    Path("bad.yml").write_text(yaml.safe_dump({BANDIT: entry}))
    assert train("-n", 16, *arguments) == 2
    one_line(capsys, expected)
    assert not [path for path in Path().glob("logs/*/*") if path.is_dir()]


def test_environments_in_processes_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    """They would only say that the connection was reset."""
    assert train(*QUICK, "--vec-env", "subproc", "--env-kwargs", "colour:1", env="CartPoleNoVel-v1") == 2
    one_line(capsys, "error: --env-kwargs: .*'colour'")


def test_a_trial_that_cannot_be_made_ends_the_search(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    optuna.logging.enable_propagation()
    try:
        assert train(*TUNE, "-params", "n_envs:2", "policy_kwargs:dict(hidden=3)", command="tune") == 2
    finally:
        optuna.logging.disable_propagation()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("sb3-laplace: error: -params: ")
    assert "'hidden'" in last
    failed = [record for record in caplog.records if "failed" in record.getMessage()]
    # One of three trials, and Optuna shows no traceback
    assert {record.getMessage().split()[1] for record in failed} == {"0"}
    assert {record.exc_info for record in failed} == {None}


# -- during training ----------------------------------------------------------------------------------------


class Broken(RandomEnv):
    """Fails in its fifth step with an exception of its own making."""

    def __init__(self, error: str) -> None:
        super().__init__()
        self.error, self.n_steps = error, 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.n_steps += 1
        if self.n_steps == 5:
            raise getattr(builtins, self.error)("no fifth step")
        return super().step(action)


@pytest.fixture
def broken() -> str:
    if "BrokenTestEnv-v0" not in gym.registry:
        gym.register("BrokenTestEnv-v0", entry_point=Broken)
    entry = {"policy": "LaplaceLstmPolicy", "n_timesteps": 16, "policy_kwargs": "dict(lstm_hidden_size=4)"}
    Path("own.yml").write_text(yaml.safe_dump({"BrokenTestEnv-v0": entry}))
    return "BrokenTestEnv-v0"


def test_a_file_that_cannot_be_written_while_training(broken: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(*QUICK, "-conf", "own.yml", "--env-kwargs", "error:'OSError'", env=broken) == 2
    one_line(capsys, "error: no fifth step")


@pytest.mark.parametrize("error", ["ValueError", "TypeError", "KeyError", "RuntimeError"])
def test_bugs_of_an_environment_keep_their_traceback(broken: str, error: str) -> None:
    with pytest.raises(getattr(builtins, error), match="no fifth step"):
        train(*QUICK, "-conf", "own.yml", "--env-kwargs", f"error:'{error}'", env=broken)


def test_weights_that_diverge_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert train(*QUICK, *SMALL, "gamma:1e30") == 2
    one_line(capsys, "not finite")


def test_bugs_of_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, agents: Path) -> None:
    """A shape that does not fit raises the same ValueError as an argument, but no statement of ours raises it."""
    monkeypatch.setattr(LaplaceLstmPolicy, "act", lambda *_: np.zeros(2) + np.zeros(3))
    with pytest.raises(ValueError, match="broadcast"):
        train(*QUICK, *SMALL)
    monkeypatch.undo()
    monkeypatch.delattr("sb3_laplace.algorithm.laplace_recurrent_ppo.SequenceRolloutBuffer")
    for arguments in ([], ["-i", agents / "laplace.zip"]):
        with pytest.raises(NameError, match="SequenceRolloutBuffer"):
            train(*QUICK, *SMALL, *arguments)


# -- going on with an agent ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algo", "agent", "filed"),
    [
        ("point_ppo_lstm", "laplace", "laplace_ppo_lstm"),
        ("vrnn_ppo_lstm", "laplace", "laplace_ppo_lstm"),
        ("laplace_ppo_lstm", "point", "point_ppo_lstm"),
        ("laplace_ppo_lstm", "variational", "vrnn_ppo_lstm"),
        ("point_ppo_lstm", "constant_variance", "laplace_ppo_lstm"),
        ("ppo_lstm", "laplace", "laplace_ppo_lstm"),
        ("ppo", "point", "point_ppo_lstm"),
    ],
)
def test_agents_are_filed_as_what_they_are(
    algo: str, agent: str, filed: str, agents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zip_file = agents / f"{agent}.zip"
    Path("own.yml").write_text(yaml.safe_dump({BANDIT: {"policy": "MlpPolicy", "n_timesteps": 16, "n_envs": 2}}))
    configured = ["-conf", "own.yml"] if algo == "ppo" else SMALL
    assert train(*QUICK, "-i", zip_file, *configured, algo=algo) == 2
    one_line(capsys, f"{agent}.zip: the agent has a .*Posterior, which --algo {filed} trains, not {algo}$")
    assert not [path for path in Path().glob("logs/*/*") if path.is_dir()]


@pytest.mark.parametrize(
    ("algo", "agent"),
    [
        ("laplace_ppo_lstm", "laplace"),
        ("laplace_ppo_lstm", "constant_variance"),
        ("point_ppo_lstm", "point"),
        ("vrnn_ppo_lstm", "variational"),
        ("ppo_lstm", "recurrent"),
    ],
)
def test_config_yml_has_the_policy_of_the_agent(algo: str, agent: str, agents: Path) -> None:
    assert train(*QUICK, "-i", agents / f"{agent}.zip", *SMALL, algo=algo) == 0
    run = Path("logs") / algo / f"{BANDIT_NAME}_1"
    config = yaml.load((run / BANDIT_NAME / "config.yml").read_text(), Loader=yaml.UnsafeLoader)
    model = (RecurrentPPO if algo == "ppo_lstm" else LaplaceRecurrentPPO).load(run / f"{BANDIT_NAME}.zip")
    # 128 in the configuration
    assert config["policy_kwargs"]["lstm_hidden_size"] == model.policy.lstm_actor.hidden_size == 6
    assert config["policy_kwargs"].get("posterior") == model.policy_kwargs.get("posterior")
    assert config["n_steps"] == 8


@pytest.mark.parametrize("change", ["policy_kwargs:dict(lstm_hidden_size=8)", "policy:'LaplaceCnnLstmPolicy'"])
def test_the_policy_of_an_agent_stays(change: str, agents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(*QUICK, "-i", agents / "laplace.zip", *SMALL, change) == 2
    one_line(capsys, f"-params {change.split(':')[0]} cannot change the agent of -i")


def test_a_configuration_of_another_posterior(capsys: pytest.CaptureFixture[str]) -> None:
    """Keywords of the policy replace all of the configuration's, its posterior too."""
    assert train(*QUICK, *SMALL, "policy_kwargs:dict(lstm_hidden_size=8)", algo="point_ppo_lstm") == 2
    one_line(capsys, "error: -params: the agent has a LaplacePosterior, which --algo laplace_ppo_lstm trains")
    assert not [path for path in Path().glob("logs/*/*") if path.is_dir()]


# -- evaluation ---------------------------------------------------------------------------------------------


def test_evaluation_has_the_environment_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[bool, list[Any]] = {}
    create = LaplaceExperimentManager.create_envs

    def spy(self: Any, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        env = create(self, n_envs, eval_env, no_log)
        made[eval_env] = env.get_attr("concentration")
        return env

    monkeypatch.setattr(LaplaceExperimentManager, "create_envs", spy)
    configured = [*SMALL, "env_kwargs:dict(concentration=0.3)"]
    assert train("-n", 16, *configured) == 0
    assert made == {True: [0.3], False: [0.3, 0.3]}
    assert train("-n", 16, *configured, "--eval-env-kwargs", "concentration:0.4") == 0
    assert made == {True: [0.4], False: [0.3, 0.3]}
