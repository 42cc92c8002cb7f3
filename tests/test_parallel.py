"""Training by several processes: the same gradient as one, one count of everything, and one end for all."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
import torch.distributed as dist
from stable_baselines3.common.callbacks import CheckpointCallback

from sb3_laplace import LaplaceRecurrentPPO
from sb3_laplace.algorithm import distributed
from sb3_laplace.algorithm.parallel import _interleaved
from tests.parallel_worker import (
    MINIBATCHES,
    N_ENVS,
    gradient,
    gradient_model,
    progress_bars,
    random_envs,
    ratios,
    small_model,
    summary,
)
from tests.test_laplace_recurrent_ppo import collect

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch has no torch.distributed")
ROOT = Path(__file__).parent.parent
SCENARIOS = (
    *("same_data", "balances", "whole_run", "unseeded", "latent_balance", "stopped", "early", "reward_kinds"),
    *("failing", "differing", "resumed"),
)
# Longer than any machine needs
LIMIT = 300


def start(arguments: list[str], **environment: str) -> subprocess.Popen:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "envs")])
    # Each test is one of torchrun's own processes if these are told of another
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("TORCHELASTIC", "MASTER"))}
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**inherited, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def torchrun(n_ranks: int, folder: Path, *names: str) -> tuple[int, str]:
    """Run scenarios; the exit code and all output."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_ranks}"]
    process = start([*launch, str(ROOT / "tests" / "parallel_worker.py"), str(folder), *names])
    output, _ = process.communicate(timeout=LIMIT)
    return process.returncode, output


def results_of(folder: Path, name: str, n_ranks: int = 2) -> list[Any]:
    return [pickle.loads((folder / f"{name}-{rank}.pkl").read_bytes()) for rank in range(n_ranks)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[LaplaceRecurrentPPO, Path]:
    """A rollout of both ranks' environments, its agent moved on so that ratios are not 1; an agent to go on with."""
    folder = tmp_path_factory.mktemp("parallel")
    model = gradient_model(2 * N_ENVS)
    collect(model)
    parameters = model.get_parameters()
    generator = th.Generator().manual_seed(1)
    parameters["policy"] = {
        name: part + 0.05 * th.randn(part.shape, generator=generator) if part.is_floating_point() else part
        for name, part in parameters["policy"].items()
    }
    model.set_parameters(parameters)
    (folder / "whole.pkl").write_bytes(pickle.dumps({"buffer": model.rollout_buffer, "parameters": parameters}))
    small_model(random_envs(4)).learn(96).save(folder / "single")
    return model, folder


@pytest.fixture(scope="module")
def finished(whole: tuple[LaplaceRecurrentPPO, Path]) -> Path:
    """The folder of all scenarios of two ranks under torchrun."""
    code, output = torchrun(2, whole[1], *SCENARIOS)
    assert code == 0, output
    (whole[1] / "output.txt").write_text(output)
    return whole[1]


# -- the same gradient --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MINIBATCHES)
def test_two_ranks_have_the_gradient_of_one(name: str, whole: tuple[LaplaceRecurrentPPO, Path], finished: Path) -> None:
    """On halves of the environments each, also where the minibatches have as many sequences, but not as many steps."""
    model, _ = whole
    first, second = MINIBATCHES[name]
    n_sequences = N_ENVS * len(model.rollout_buffer.chunk_starts)
    expected = gradient(model, np.concatenate([first, second + n_sequences]))
    for found in (result[name] for result in results_of(finished, "same_data")):
        assert found["approx_kl"] == pytest.approx(expected["approx_kl"], rel=1e-4)
        assert expected["approx_kl"] > 1e-3
        pairs = list(zip(found["grads"], expected["grads"], strict=True))
        assert [one is None for one, _ in pairs] == [other is None for _, other in pairs]
        for one, other in pairs:
            if other is not None:
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    largest = max(np.abs(grad).max() for grad in expected["grads"] if grad is not None)
    assert largest > 1e-2


# -- the ratio that kl_coef="auto" follows ------------------------------------------------------------------


def test_moves_and_claims_are_those_of_all_ranks(finished: Path) -> None:
    first, second = results_of(finished, "balances")
    assert first == second
    expected = ratios(slice(None))
    for name, values in expected.items():
        # The last rollout is rank 0's alone
        assert first[name][:2] == pytest.approx(values[:2], rel=1e-6)
        assert len(first[name]) == 3
    own = ratios(slice(0, 20))
    assert all(abs(own[name][0] - first[name][0]) > 1e-3 for name in expected)


# -- whole runs ---------------------------------------------------------------------------------------------


def test_ranks_are_one_agent_in_different_environments(finished: Path) -> None:
    first, second = results_of(finished, "whole_run")
    np.testing.assert_array_equal(first["weights"], second["weights"])
    assert not np.array_equal(first["tasks"], second["tasks"])
    assert not np.array_equal(first["observations"], second["observations"])
    assert first["kl_multiplier"] == second["kl_multiplier"]
    assert 1e-4 not in first["kl_multiplier"]


def test_steps_and_schedules_are_global(finished: Path) -> None:
    for result in results_of(finished, "whole_run"):
        # 2 ranks x 4 environments x 20 steps = 160 a rollout, of which half is a rank's
        assert result["num_timesteps"] == 640
        assert result["n_calls"][0] == 80
        assert result["n_updates"] == 4 * 2
        # At the end of the first rollout progress is that of the start; the last update has none left
        assert result["progress"] == [1.0, 0.75, 0.5, 0.25]
        assert result["learning_rate"] == 0.0


def test_statistics_are_of_all_ranks(finished: Path) -> None:
    results = results_of(finished, "whole_run")
    observations = np.concatenate([result["observations"] for result in results]).astype(np.float64)
    for result in results:
        mean, variance, count, return_variance, return_count = result["statistics"]
        # SB3 starts from 1e-4 observations
        assert count == pytest.approx(len(observations), abs=1e-3)
        np.testing.assert_allclose(mean, observations.mean(0), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(variance, observations.var(0), rtol=1e-4, atol=1e-5)
        assert return_count == pytest.approx(640, abs=1e-3)
        assert return_variance == results[0]["statistics"][3]
    # Both ranks' episodes, in turn
    own = [[episode["r"] for episode in result["own_episodes"]] for result in results]
    assert len(own[0]) == len(own[1]) == 16
    for result in results:
        found = [episode["r"] for episode in result["episodes"]]
        assert sorted(found) == sorted(own[0] + own[1])
        assert sorted(found[-2:]) == sorted([own[0][-1], own[1][-1]])


def test_the_last_episodes_are_those_of_all_ranks() -> None:
    """SB3 keeps the last: they must not be one rank's."""
    found = _interleaved([[1, 2, 3], [], [10, 20]])
    assert sorted(found) == [1, 2, 3, 10, 20]
    assert sorted(found[-2:]) == [3, 20]
    assert [one for one in found if one < 10] == [1, 2, 3]


def test_rank_0_alone_writes(finished: Path) -> None:
    first, second = results_of(finished, "whole_run")
    assert first["n_calls"][1:] == [80, 80]
    assert second["n_calls"][1:] == [0, 0]
    assert (first["bar"], second["bar"]) == ([True], [])
    names = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert names == [f"rl_model_{steps}_steps.zip" for steps in (160, 320, 480, 640)]
    assert len(list((finished / "triggered").iterdir())) > 0
    assert (finished / "best" / "best_model.zip").is_file()
    log = (finished / "log-0" / "progress.json").read_text()
    for name in ("time/fps", "rollout/ep_rew_mean", "train/approx_kl", "posterior/entropy", "eval/mean_reward"):
        assert name in log
    assert (finished / "log-1" / "progress.json").read_text() == ""


def test_what_a_script_has_seeded_alike_differs(finished: Path) -> None:
    first, second = results_of(finished, "unseeded")
    assert not np.array_equal(first["tasks"], second["tasks"])
    np.testing.assert_array_equal(first["weights"], second["weights"])


def test_the_coefficient_follows_all_ranks_in_the_latent_too(finished: Path) -> None:
    first, second = results_of(finished, "latent_balance")
    assert first["kl_multiplier"] == second["kl_multiplier"]
    assert first["kl_multiplier"] not in (None, [1e-4])
    np.testing.assert_array_equal(first["weights"], second["weights"])


def test_a_callback_of_any_rank_ends_all(finished: Path) -> None:
    for result in results_of(finished, "stopped"):
        # Two ranks of 4 environments: one whole rollout of 12 steps, then 12 steps of rank 0 and 5 of rank 1
        assert result["num_timesteps"] == 2 * 48 + 48 + 20
        assert result["n_updates"] == 2


def test_target_kl_is_decided_together(finished: Path) -> None:
    first, second = results_of(finished, "early")
    assert first["n_updates"] == second["n_updates"] < 3 * 20
    np.testing.assert_array_equal(first["weights"], second["weights"])
    assert (finished / "output.txt").read_text().count("Early stopping") == 0


def test_rewards_have_one_likelihood(finished: Path) -> None:
    assert results_of(finished, "reward_kinds") == [True, True]


def test_an_error_of_one_rank_is_raised_on_all(finished: Path) -> None:
    first, second = results_of(finished, "failing")
    assert second[0] == ("environment 0 returned the reward nan at step 3 of the rollout; rewards must be finite.")
    assert first[0] == f"Rank 1 of 2 has failed, which ends all: ValueError: {second[0]}"
    assert second[1].startswith("The loss is not finite")
    assert first[1] == f"Rank 1 of 2 has failed, which ends all: ValueError: {second[1]}"


def test_ranks_that_differ_are_refused(finished: Path) -> None:
    for result in results_of(finished, "differing"):
        assert "n_envs must be equal on all 2 of them, got 2 on rank 0, 3 on rank 1." in result[0]
        assert "batch_size must be equal on all 2 of them, got 12 on rank 0, 24 on rank 1." in result[1]
        assert "The ranks no longer have the same weights" in result[2]


def test_going_on_with_other_ranks_says_what_happens(finished: Path, recwarn: pytest.WarningsRecorder) -> None:
    first, second = results_of(finished, "resumed")
    (message,) = (text for text in first["warnings"] if "rank" in text)
    assert "was trained by 1 rank and goes on with 2: each update now takes 2 x 48 = 96 steps" in message
    assert not [text for text in second["warnings"] if "rank" in text]
    assert first["num_timesteps"] == second["num_timesteps"] == 96 + 96
    model = LaplaceRecurrentPPO.load(finished / "resumed", env=random_envs(4), device="cpu")
    assert model.n_ranks == first["n_ranks"] == 2
    with pytest.warns(UserWarning, match="was trained by 2 ranks and goes on with 1"):
        model.learn(48, reset_num_timesteps=False)
    assert model.num_timesteps == 96 + 96 + 48


# -- ends, and other ways to start --------------------------------------------------------------------------


def test_a_killed_rank_ends_the_run(tmp_path: Path) -> None:
    """torchrun ends the others at once; the checkpoint is whole."""
    code, output = torchrun(2, tmp_path, "killed")
    assert code != 0
    assert "Signal 9 (SIGKILL)" in output
    (*_, last) = sorted((tmp_path / "killed").glob("*.zip"))
    assert LaplaceRecurrentPPO.load(last, device="cpu").num_timesteps > 0
    assert not list((tmp_path / "killed").glob(".*.part"))


def test_a_group_of_the_users_is_respected(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib, torch.distributed as dist; from tests.parallel_worker import main; "
        "dist.init_process_group('gloo', init_method='file://' + sys.argv[1], rank=int(sys.argv[2]), world_size=2); "
        "main(pathlib.Path(sys.argv[3]), ['own_group']); dist.destroy_process_group()"
    )
    processes = [start(["-c", script, str(tmp_path / "store"), str(rank), str(tmp_path)]) for rank in range(2)]
    outputs = [process.communicate(timeout=LIMIT)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    first, second = results_of(tmp_path, "own_group")
    assert first["kept"]
    assert (first["backend"], first["num_timesteps"]) == ("gloo", 48)
    np.testing.assert_array_equal(first["weights"], second["weights"])


@pytest.mark.parametrize("how", ["unavailable", "one rank"])
def test_one_process_is_as_it_was(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = summary(small_model(random_envs(2)).learn(48))
    if how == "unavailable":
        monkeypatch.setattr(dist, "is_available", lambda: False)
        # None of the others exists then
        for name in ("is_initialized", "is_torchelastic_launched", "get_rank", "get_world_size"):
            monkeypatch.delattr(dist, name)
    else:
        for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "1"}.items():
            monkeypatch.setenv(name, value)
    model = small_model(random_envs(2)).learn(48)
    np.testing.assert_array_equal(summary(model)["weights"], expected["weights"])
    assert "n_ranks" not in vars(model)
    monkeypatch.undo()
    assert not dist.is_initialized()


def test_gpus_are_one_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(th.cuda, "is_available", lambda: True)
    monkeypatch.setattr(th.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(th.cuda, "set_device", chosen.append)
    distributed.place("cuda")
    assert chosen == []
    variables = {"TORCHELASTIC_RUN_ID": "x", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for device in ("cpu", "cuda:0", "auto", "cuda"):
        distributed.place(device)
    assert chosen == [1, 1]
    assert (distributed.rank(), distributed.size()) == (5, 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"torchrun has started 4 on this machine, which has 2\. Give"):
        distributed.place("auto")
    distributed.place("cpu")


def test_callbacks_are_as_given_with_one_process() -> None:
    model = small_model(random_envs(2))
    (bar,) = progress_bars(model)
    assert type(bar).__name__ == "ProgressBarCallback"
    checkpoints = CheckpointCallback(1, "unused")
    assert model._init_callback(checkpoints) is checkpoints
