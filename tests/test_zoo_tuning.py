"""Tuning: search spaces, several processes on one study, studies that are resumed or locked."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

from sb3_laplace import LaplaceRecurrentPPO, make_vec_env
from sb3_laplace.cli.main import main
from sb3_laplace.cores import CORES
from sb3_laplace.zoo import search_spaces, storage
from sb3_laplace.zoo.algorithms import OUR_ALGORITHMS
from sb3_laplace.zoo.search_spaces import fit_to_configuration, register_search_spaces
from sb3_laplace.zoo.trials import SeedOfTrial

BANDIT = "sb3_laplace/DirichletBandit-v0"
BANDIT_NAME = "sb3_laplace-DirichletBandit-v0"
STUDY = Path("logs") / "laplace_ppo_lstm" / f"{BANDIT_NAME}.log"
AGENT = ["--algo", "laplace_ppo_lstm", "--env", BANDIT, "--device", "cpu", "-n", "64"]
TUNE = [*AGENT, "--n-evaluations", "1"]
SMALL = ["--eval-episodes", "1", "-params", "n_envs:4"]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and rollouts of 16 steps in 2 minibatches at the most."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search_spaces, "_MAX_ROLLOUT", 64)
    monkeypatch.setattr(search_spaces, "_MAX_MINIBATCHES", 2)
    return tmp_path


def tune(*arguments: Any) -> int:
    return main(["tune", *TUNE, *map(str, arguments), *SMALL])


def load_study(path: Path = STUDY) -> optuna.Study:
    backend = optuna.storages.journal.JournalFileBackend(str(path.absolute()))
    return optuna.load_study(study_name=BANDIT_NAME, storage=optuna.storages.JournalStorage(backend))


# -- search spaces ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", OUR_ALGORITHMS)
def test_search_spaces_build_agents_and_convert_back(algo: str) -> None:
    register_search_spaces()
    env = make_vec_env(BANDIT, n_envs=2)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen, cores = set(), set()
    for _ in range(8):
        trial = study.ask()
        sampled = HYPERPARAMS_SAMPLER[algo](trial, 0, 2, {})
        assert HYPERPARAMS_CONVERTER[algo](trial.params) == sampled
        model = LaplaceRecurrentPPO("LaplaceLstmPolicy", env, **fit_to_configuration(sampled, {}, 2))
        assert model.policy.latent_layer.latent_dim == trial.params["latent_dim"]
        seen.add(type(model.policy.latent_layer).__name__)
        assert type(model.policy.lstm_actor) is CORES[trial.params["rnn_type"]]
        cores.add(trial.params["rnn_type"])
        expected = {"learning_rate", "latent_dim", "rnn_type"}
        if algo != "point_ppo_lstm":
            expected |= {"covariance", "prior_std", "kl_coef", "kl_is_auto", "n_posterior_samples"}
            number = trial.params["kl_coef"]
            assert model.kl_coef == (f"auto_{number!r}" if trial.params["kl_is_auto"] else number)
        assert expected <= set(trial.params)
    assert len(seen) == 1
    assert len(cores) > 1


def test_a_trial_of_a_study_from_before_there_were_other_memories() -> None:
    register_search_spaces()
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    sampled = HYPERPARAMS_SAMPLER["laplace_ppo_lstm"](trial, 0, 2, {})
    del sampled["policy_kwargs"]["rnn_type"]
    params = {name: value for name, value in trial.params.items() if name != "rnn_type"}
    assert HYPERPARAMS_CONVERTER["laplace_ppo_lstm"](params) == sampled


@pytest.mark.parametrize("algo", OUR_ALGORITHMS)
def test_a_configured_memory_stays(algo: str) -> None:
    register_search_spaces()
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    sampled = HYPERPARAMS_SAMPLER[algo](trial, 0, 2, {search_spaces.HAS_MEMORY: True})
    assert "rnn_type" not in trial.params
    assert HYPERPARAMS_CONVERTER[algo](trial.params) == sampled
    configured = {"policy_kwargs": {"rnn_type": "gtrxl", "lstm_kwargs": {"memory_length": 3}}}
    policy_kwargs = fit_to_configuration(sampled, configured, 2)["policy_kwargs"]
    assert (policy_kwargs["rnn_type"], policy_kwargs["lstm_kwargs"]) == ("gtrxl", {"memory_length": 3})


def test_tune_with_a_memory_of_ones_own(workplace: Path) -> None:
    given = ["policy_kwargs:dict(rnn_type='gru', enable_critic_lstm=False, shared_lstm=True)"]
    assert main(["tune", *TUNE, "--n-trials", "1", *SMALL, *given]) == 0
    (trial,) = load_study().trials
    assert "rnn_type" not in trial.params
    assert "latent_dim" in trial.params


def test_what_is_not_sampled_stays() -> None:
    configured = {
        "use_sde": True,
        "policy_kwargs": {"shared_lstm": True, "net_arch": [8], "posterior_kwargs": {"normalize": True}},
    }
    sampled = {
        "n_steps": 4096,
        "batch_size": 4,
        "policy_kwargs": {"net_arch": [64], "n_posterior_samples": 3, "posterior_kwargs": {"prior_std": 0.5}},
    }
    fitted = fit_to_configuration(sampled, configured, n_envs=256)
    assert fitted == {
        "n_steps": 256,
        "batch_size": 1024,
        "policy_kwargs": {
            "shared_lstm": True,
            "net_arch": [64],
            "n_posterior_samples": 1,
            "posterior_kwargs": {"normalize": True, "prior_std": 0.5},
        },
    }
    assert fit_to_configuration(sampled, {}, n_envs=1)["n_steps"] == 4096


# -- studies ------------------------------------------------------------------------------------------------


def test_two_processes_share_a_study_that_is_resumed(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = "from sb3_laplace.zoo import search_spaces as s; s._MAX_ROLLOUT, s._MAX_MINIBATCHES = 64, 2; "
    command = small + "import sys; from sb3_laplace.cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", command, "tune", *TUNE, "--n-trials", "2", *SMALL]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    study = load_study()
    assert [trial.number for trial in study.trials] == list(range(4))
    assert {trial.state for trial in study.trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert sorted(study.best_params) == sorted(study.trials[0].params)
    assert study.trials[0].user_attrs["n_steps"] <= 16

    # The same command goes on, and nothing looks like a run of `train`
    assert tune("--n-trials", 1) == 0
    assert len(load_study().trials) == 5
    assert "Number of finished trials:  5" in capsys.readouterr().out
    assert not [path for path in STUDY.parent.iterdir() if path.is_dir()]

    # An agent with what a trial found, in the rest of the configuration
    options = ["--storage", str(STUDY), "--study-name", BANDIT_NAME, "--trial-id"]
    train = ["train", *AGENT, *options]
    assert main([*train, "0", "--eval-freq", "-1", *SMALL[2:]]) == 0
    model = LaplaceRecurrentPPO.load(STUDY.parent / f"{BANDIT_NAME}_1" / f"{BANDIT_NAME}.zip")
    params = study.trials[0].params
    number = params["kl_coef"]
    assert model.kl_coef == (f"auto_{number!r}" if params["kl_is_auto"] else number)
    assert model.policy_kwargs["latent_dim"] == params["latent_dim"]
    assert model.policy_kwargs["shared_lstm"]
    assert main([*train, "99", *SMALL]) == 2
    assert "no study 'sb3_laplace-DirichletBandit-v0' with a trial 99" in capsys.readouterr().err


def test_a_locked_study(workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(storage, "_PATIENCE", 0.2)
    STUDY.parent.mkdir(parents=True)
    STUDY.touch()
    lock = STUDY.with_name(f"{STUDY.name}.lock")
    lock.symlink_to(STUDY.absolute())
    assert tune("--n-trials", 1) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"the study in {str(STUDY.absolute())!r} is locked by another process" in error
    assert str(lock.absolute()) in error
    assert not STUDY.read_text()


def test_a_locked_database(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    connection = sqlite3.connect("studies.db", isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    assert tune("--n-trials", 1, "--storage", "sqlite:///studies.db?timeout=0.1") == 2
    assert "database is locked" in capsys.readouterr().err.strip().splitlines()[-1]
    connection.close()


@pytest.mark.parametrize("url", ["nodatabase", "sqlite:////no/such/folder/study.db", "nodriver://host/name"])
def test_a_storage_that_is_none(url: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune("--n-trials", 1, "--storage", url) == 2
    assert f"--storage {url!r}" in capsys.readouterr().err.strip().splitlines()[-1]


def test_an_algorithm_without_search_space(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--algo", "crossq", "--env", "Pendulum-v1", "--n-trials", "1"]) == 2
    assert "crossq has no search space" in capsys.readouterr().err


# -- several seeds -------------------------------------------------------------------------------------------


def test_a_trial_is_the_mean_over_its_seeds(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each agent has the trial's hyperparameters and environments of its own."""
    trained: list[tuple[Any, ...]] = []

    def objective(manager: Any, trial: Any) -> float:
        rate = trial.suggest_float("learning_rate", 1e-5, 1.0)
        trained.append((manager.seed, rate, trial.number))
        for step in (1, 2):
            trial.report(10.0 * len(trained) + step, step)
        return float(len(trained))

    monkeypatch.setattr(ExperimentManager, "objective", objective)
    assert tune("--n-trials", 1, "--n-seeds", 3, "--seed", 5, "--n-evaluations", 2) == 0
    (trial,) = load_study().trials
    assert trial.value == 2.0
    assert [seed for seed, _, _ in trained] == [5, 10_005, 20_005]
    assert {rate for _, rate, _ in trained} == {trial.params["learning_rate"]}
    assert [number for _, _, number in trained] == ["0_seed_0", "0_seed_1", "0_seed_2"]
    # 11, 12; then the means of 11 and 21, 12 and 22; then with 31 and 32 too
    assert trial.intermediate_values == {1: 11.0, 2: 12.0, 3: 16.0, 4: 17.0, 5: 21.0, 6: 22.0}


def test_trials_of_several_seeds_train_and_are_pruned(workplace: Path) -> None:
    assert tune("--n-trials", 3, "--n-seeds", 2, "--pruner", "none") == 0
    trials = load_study().trials
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert all(set(trial.intermediate_values) == {1, 2} for trial in trials)


def test_a_seed_that_is_worse_than_others_prunes_its_trial() -> None:
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=1))

    def play(returns: tuple[float, float]) -> bool:
        trial, before = study.ask(), []  # type: ignore[var-annotated]
        for number, value in enumerate(returns):
            seed = SeedOfTrial(trial, number, 1, before)
            seed.report(value, 1)
            if seed.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                return True
            before.append(seed.evaluations)
        study.tell(trial, sum(returns) / 2)
        return False

    assert not play((5.0, 5.0))
    assert play((4.0, 100.0))
    # Means over two seeds are compared with such: 5.5 with 5
    assert not play((9.0, 2.0))
    # As good as the median of first seeds, but 2.5 in the mean where the median is 5.25
    assert play((5.0, 0.0))


def test_seeds_that_are_none(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune("--n-seeds", 0) == 2
    assert "--n-seeds must be at least 1, got 0" in capsys.readouterr().err
    assert main(["train", *AGENT, "--n-seeds", "2"]) == 2
