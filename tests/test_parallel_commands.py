"""``sb3-laplace train`` under torchrun: one folder, one log, and steps of all ranks; and the benchmark of it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.parallel import Ring, Sizes, measure_allreduce
from sb3_laplace import LaplaceRecurrentPPO
from tests.test_parallel import LIMIT, start
from tests.zoo_helpers import BANDIT, BANDIT_NAME, one_line, train

RUN = Path("logs") / "laplace_ppo_lstm" / f"{BANDIT_NAME}_1"
SMALL = ["-params", "n_envs:2", "batch_size:100", "n_epochs:1", "policy_kwargs:dict(lstm_hidden_size=8)"]


def test_two_ranks_train_from_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["-n", "600", "--save-freq", "200", "--eval-freq", "300", "-tb", "tb", "--device", "cpu", "-P", *SMALL]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sb3_laplace"]
    process = start([*launch, "train", "--algo", "laplace_ppo_lstm", "--env", BANDIT, *options])
    output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, output
    # Steps of both ranks, in what is written and printed once
    assert {path.name for path in RUN.glob("rl_model_*.zip")} == {f"rl_model_{n}_steps.zip" for n in (200, 400, 600)}
    assert (RUN / f"{BANDIT_NAME}.zip").is_file()
    assert (RUN / "best_model.zip").is_file()
    assert yaml.load((RUN / BANDIT_NAME / "config.yml").read_text(), Loader=yaml.UnsafeLoader)["n_envs"] == 2
    assert output.count("Saving to") == output.count("Eval num_timesteps=300") == 1
    assert "600/600" in output
    assert [path.name for path in (RUN.parent).iterdir()] == [RUN.name]
    assert len(list(Path("tb").rglob("events*"))) == 1
    # One process goes on from a checkpoint of two
    with pytest.warns(UserWarning, match="was trained by 2 ranks and goes on with 1"):
        assert train("-i", RUN / "rl_model_400_steps.zip", "-n", 600) == 0
    model = LaplaceRecurrentPPO.load(RUN.with_name(f"{BANDIT_NAME}_2") / f"{BANDIT_NAME}.zip", device="cpu")
    assert model.num_timesteps == 600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"command": "tune"}, "a search for hyperparameters trains every agent in one process, torchrun has started 2"),
        ({"algo": "ppo_lstm"}, "--algo ppo_lstm trains in one process, torchrun has started 2; .*laplace_ppo_lstm"),
    ],
)
def test_what_takes_one_process_says_so(
    arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert train(**arguments) == 2
    one_line(capsys, message)


def test_the_model_of_the_all_reduce_finds_what_it_is_made_of() -> None:
    ring = Ring(latency=2e-5, bandwidth=5e8)
    # Two messages of half the gradient
    assert ring.seconds(2, 1e6) == pytest.approx(2 * (2e-5 + 1e-3))
    records = [{"bytes": size, "seconds": ring.seconds(4, size)} for size in (1e3, 1e5, 1e7)]
    fitted = Ring.fit(4, records)
    assert (fitted.latency, fitted.bandwidth) == (pytest.approx(2e-5), pytest.approx(5e8))


def test_the_all_reduce_is_measured_and_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    learn = {"n_weights": 1000, "learn_seconds": 1.0}
    result = measure_allreduce(Sizes(repeats=1, numbers=(10, 1000), ranks=(2,)), learn)
    assert [record["bytes"] for record in result["measured"][2]] == [40, 4000]
    assert all(record["seconds"] > 0 for record in result["measured"][2])
    assert [one["ranks"] for one in result["predicted"]] == [2, 8, 64]
    assert all(0 < one["efficiency"] < 1 for one in result["predicted"])
    assert "All-reduce, fitted to 2 ranks" in capsys.readouterr().out
