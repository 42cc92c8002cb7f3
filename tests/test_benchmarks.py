"""The benchmarks run, measure what they say, and write what they measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch as th

from benchmarks import cores, throughput
from benchmarks.common import Selection, Sizes, against_target, interleave
from benchmarks.learning import BASELINE, CANDIDATES, LearnCase, LearnTimer, bandit_cases
from benchmarks.posterior_step import StepCase, StepCaseInputs
from sb3_laplace import LaplaceRecurrentPPO

CPU = th.device("cpu")
TINY = Sizes(
    repeats=1,
    n_envs=(4,),
    dummy_n_envs=(2,),
    baseline_n_envs=(2,),
    n_steps=5,
    hidden_size=8,
    latent_dim=4,
    learn_steps=10,
    cartpole_n_envs=2,
    cartpole_n_steps=8,
    cartpole_hidden_size=4,
    step_batches=(3,),
    step_latent_dims=(2,),
    step_hidden_sizes=(4,),
    step_seconds=1e-4,
    growth={"n_envs": (2, 3), "latent_dim": (4,)},
    growth_n_envs=2,
    memory_n_envs=2,
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    # The command line's own sizes take minutes
    monkeypatch.setattr(throughput, "QUICK", TINY)


def run(folder: Path, *arguments: str) -> dict[str, Any]:
    out = folder / "new" / "figures.json"
    throughput.main(["--quick", "--threads", "1", "--out", str(out), *arguments])
    return json.loads(out.read_text())


@pytest.mark.usefixtures("tiny")
def test_everything_is_measured_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = run(tmp_path)
    assert set(results) == {"machine", "repeats", *throughput.SECTIONS}
    assert {"cpu_count", "torch", "threads", "device"} <= set(results["machine"])

    learn = results["learn"]
    assert [(record["candidate"], record["env"]) for record in learn] == [
        (BASELINE, "dummy"),
        *[(name, env) for env in ("batched", "dummy") for name in CANDIDATES],
        *[(name, "dummy") for name in (BASELINE, "point", "full")],
    ]
    for record in learn:
        assert {"ratio", "ratio_to_n_envs", "target", "met", "spread"} <= set(record)
        seconds = {part: values[0] for part, values in record["seconds"].items()}
        assert record["steps_per_second"] == pytest.approx(record["steps_per_learn"] / seconds["learn"])
        assert 0 < seconds["rollout"] + seconds["update"] < seconds["learn"]
    # Four environments have no RecurrentPPO beside them: they are compared with two
    assert all(record["ratio_to_n_envs"] == 2 for record in learn)

    assert [record["candidate"] for record in results["posterior_step"]] == ["full", "diagonal", "identity-diagonal"]
    for record in results["posterior_step"]:
        assert record["speedup"] == pytest.approx(record["jacfwd_ms"] / record["step_ms"])
        assert record["draw_ms"] > 0
    assert [(record["axis"], record["n_envs"]) for record in results["growth"]] == [
        ("n_envs", 2),
        ("n_envs", 3),
        ("latent_dim", 2),
    ]
    without, with_kl = results["memory"]
    # 2 x 5 precision matrices of 4 x 4 float32
    assert with_kl["megabytes"] - without["megabytes"] == pytest.approx(2 * 5 * 4 * 4 * 4e-6)
    printed = capsys.readouterr().out
    assert all(f"{title}: " in printed for title in ("bandit", "cartpole", "posterior step", "growth", "memory"))


@pytest.mark.usefixtures("tiny")
def test_only_what_is_asked_for(tmp_path: Path) -> None:
    results = run(tmp_path, "--only", "cartpole/point", "bandit/full/4")
    kept = [(record["workload"], record["candidate"], record["n_envs"]) for record in results["learn"]]
    # RecurrentPPO comes along, for the ratio
    assert kept == [
        ("bandit", BASELINE, 2),
        ("bandit", "full", 4),
        ("cartpole", BASELINE, 2),
        ("cartpole", "point", 2),
    ]
    assert results["posterior_step"] == results["growth"] == results["memory"] == []


@pytest.mark.parametrize("arguments", [["--only", "bandit/typo"], ["--threads", "0"], ["--repeats", "0"]])
def test_bad_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        throughput.parse(arguments)
    assert arguments[0] in capsys.readouterr().err


def test_a_candidates_learn_calls_go_on_training_the_model_described() -> None:
    case = next(case for case in bandit_cases(TINY) if case.path == ("bandit", "full-kl", "batched", 4))
    assert case.steps_per_learn == 20
    timer = LearnTimer(case, CPU, folder=None)
    for n_calls in (1, 2):
        seconds = timer()
        assert timer.model.num_timesteps == 20 * n_calls
        assert timer.model._n_updates == 4 * n_calls
        assert 0 < seconds["rollout"] + seconds["update"] < seconds["learn"]
    timer.close()
    # Four minibatches an epoch
    assert timer.model.batch_size == 4 * 5 // 4
    assert isinstance(timer.model, LaplaceRecurrentPPO)
    assert timer.model.kl_coef == 0.01


def test_cartpole_stays_the_same_work() -> None:
    """Neither agent learns: else their episodes would grow, each at its own pace."""
    for name in (BASELINE, "point"):
        timer = LearnTimer(LearnCase("cartpole", name, "dummy", 2, 8, 4, None, 0), CPU, folder=None)
        before = [parameter.detach().clone() for parameter in timer.model.policy.parameters()]
        timer()
        timer.close()
        for parameter, old in zip(timer.model.policy.parameters(), before, strict=True):
            assert th.equal(parameter, old)


def test_memories_are_timed_beside_the_lstm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cores, "SIZES", ((3, 2),))
    cores.main(["--repeats", "2", "--threads", "1"])
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in cores.CORES)
    records = cores.compare_cores([(3, 2)], 1, CPU)
    assert [record["core"] for record in records] == list(cores.CORES)
    lstm = records[0]["milliseconds"]
    for record in records:
        assert record["ratio"] == pytest.approx(record["milliseconds"] / lstm)
    with pytest.raises(SystemExit):
        cores.main(["--repeats", "0"])
    assert "--repeats must be positive, got 0" in capsys.readouterr().err


def test_the_gru_and_torchs_are_the_same_work() -> None:
    timers = [cores.PassTimer(cores.CORES[name](64, 128), 3, 2, CPU) for name in ("GRU", "GRU of torch")]
    timers[1].module.load_state_dict(timers[0].module.state_dict())
    th.testing.assert_close(timers[0].forward(), timers[1].forward())


@pytest.mark.parametrize("candidate", ["full", "diagonal", "identity-diagonal"])
def test_both_posterior_steps_do_the_same(candidate: str) -> None:
    inputs = StepCaseInputs(StepCase(candidate, n_envs=3, latent_dim=5, hidden_size=5), CPU)
    ours = inputs.step().posterior.precision
    assert (ours > inputs.precision).any()
    th.testing.assert_close(ours, inputs.autodiff_precision())


def test_rounds_are_interleaved_and_the_first_does_not_count() -> None:
    calls: list[str] = []

    def measure(name: str) -> str:
        calls.append(name)
        return f"{name}{calls.count(name)}"

    results = interleave("title", [lambda: measure("a"), lambda: measure("b")], repeats=2)
    assert calls == ["a", "b"] * 3
    assert results == [["a2", "a3"], ["b2", "b3"]]


def test_selection_and_targets() -> None:
    assert Selection().keeps("growth", "n_envs")
    assert Selection(["bandit/16", "memory"]).keeps("bandit", "full", "batched", 16)
    assert not Selection(["bandit/16", "memory"]).keeps("bandit", "full", "batched", 64)
    assert against_target(2.0, 2.0) == {"target": 2.0, "met": True}
    assert not against_target(2.0, 1.0, at_most=True)["met"]
    assert against_target(2.0, None) == {"target": None, "met": None}


def test_the_peer_in_jax_learns_and_is_timed(tmp_path: Path) -> None:
    pytest.importorskip("jax")
    from benchmarks import jax_peer

    peer = jax_peer.Peer(jax_peer.point_case(64, Sizes(learn_steps=400_000)))
    assert peer() > 0
    # A random arm's chance is a fifth, on average
    assert float(peer.rewards[:10].mean()) == pytest.approx(0.2, abs=0.02)
    assert float(peer.rewards[-10:].mean()) > 0.24
    arguments = ["--n-envs", "4", "--learn-steps", "200", "--repeats", "1", "--threads", "1"]
    (record,) = jax_peer.main([*arguments, "--out", str(tmp_path / "peer.json")])
    assert record["ratio"] == pytest.approx(record["ours"] / record["peer"])
    assert json.loads((tmp_path / "peer.json").read_text())["records"] == [record]
