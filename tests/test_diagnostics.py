"""The diagnosis: on beliefs whose right verdict is known, and its confidence intervals."""

import json
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from sb3_laplace.evaluation.bootstrap import Bootstrap, Estimate
from sb3_laplace.evaluation.diagnostics import Diagnosis, diagnose
from sb3_laplace.evaluation.findings import MIN_TRIALS, NOT_APPLICABLE, NOT_ENOUGH_DATA, UNDECIDED
from sb3_laplace.evaluation.task_moves import NO_TASK
from sb3_laplace.evaluation.trace_recorder import COLUMNS, TASK_COLUMNS
from sb3_laplace.evaluation.traces import PosteriorTrace

DIM = 3


def make_trace(
    n_trials: int = 200, n_steps: int = 30, lengths: np.ndarray | None = None, **columns: np.ndarray
) -> PosteriorTrace:
    """A trace with the columns given, and NaN elsewhere."""
    if lengths is None:
        lengths = np.full(n_trials, n_steps)
    inside = np.arange(n_steps) < lengths[:, None]
    metrics = {name: columns.pop(name) for name in ("regret",) if name in columns}
    arrays = {name: np.full((n_trials, n_steps), np.nan) for name in COLUMNS if name != "episode_start"}
    arrays["reward"] = np.zeros((n_trials, n_steps))
    arrays.update(columns)
    return PosteriorTrace(
        lengths=lengths,
        complete=np.ones(n_trials, dtype=bool),
        latent_dim=DIM,
        metrics={name: np.where(inside, array, np.nan) for name, array in metrics.items()},
        **{name: np.where(inside, array, np.nan) for name, array in arrays.items()},
    )


def conjugate_update(
    n_trials: int = 400,
    n_steps: int = 30,
    overstated: float = 1.0,
    noise_precision: float = 0.5,
    seed: int = 0,
    space: str = "task",
) -> PosteriorTrace:
    """Bayesian inference of a Gaussian mean from noisy observations, the first belief being the prior's.

    :param overstated: factor by which the reported precision exceeds the right one
    :param noise_precision: what the belief takes the observations' precision for; it is 0.5
    :param space: "task" for a trace with a read-out of the task, which is the latent itself
    """
    rng = np.random.default_rng(seed)
    task = rng.normal(size=(n_trials, DIM)) / math.sqrt(2.0)
    mean, precision = np.zeros((n_trials, DIM)), 2.0
    names = ("entropy", "kl_mean", "kl_covariance", "expected_move")
    columns: dict[str, list[np.ndarray]] = {name: [] for name in names + TASK_COLUMNS * (space == "task")}
    for step in range(n_steps):
        previous_mean, previous = mean, precision
        if step:
            observed = task + rng.normal(size=task.shape) / math.sqrt(0.5)
            precision = previous + noise_precision
            mean = (previous * previous_mean + noise_precision * observed) / precision
        ratio = previous / precision
        columns["entropy"].append(np.full(n_trials, 0.5 * DIM * math.log(2 * math.pi * math.e / precision)))
        columns["kl_mean"].append(0.5 * overstated * previous * ((mean - previous_mean) ** 2).sum(1))
        columns["kl_covariance"].append(np.full(n_trials, 0.5 * DIM * (ratio - 1 - math.log(ratio))))
        columns["expected_move"].append(np.full(n_trials, 1 - ratio))
        if space == "task":
            columns["task_move"].append(((mean - previous_mean) ** 2).sum(1))
            columns["task_expected_move"].append(np.full(n_trials, DIM * (1 / previous - 1 / precision) / overstated))
    return make_trace(n_trials, n_steps, **{name: np.stack(parts, 1) for name, parts in columns.items()})


def verdict(trace: PosteriorTrace, name: str) -> str:
    return diagnose(trace).findings[name].verdict


# -- overconfidence: the martingale test --------------------------------------------------------------------


def test_a_bayesian_update_moves_as_much_as_it_claims() -> None:
    finding = diagnose(conjugate_update()).findings["overconfidence"]
    assert finding.verdict == "calibrated"
    assert finding.space == "task"
    for part in ("", "_early", "_middle", "_late"):
        number = finding.numbers["moved_to_claimed" + part]
        assert number.low < 1 < number.high
        assert number.value == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("factor", "expected"), [(4.0, "overconfident"), (0.25, "underconfident")])
def test_a_precision_wrong_by_four_is_flagged(factor: float, expected: str) -> None:
    finding = diagnose(conjugate_update(overstated=factor)).findings["overconfidence"]
    assert finding.verdict == expected
    assert finding.numbers["moved_to_claimed"].value == pytest.approx(factor, rel=0.05)


@pytest.mark.parametrize(
    ("factor", "expected"),
    [(4.0, "moves more than claimed"), (0.25, "moves less than claimed"), (1.0, "moves as claimed")],
)
def test_a_trace_without_a_read_out_is_judged_in_the_latent(factor: float, expected: str) -> None:
    """All of a hidden state moves, the position of a robot too: that is no evidence about a belief."""
    trace = conjugate_update(overstated=factor, space="latent")
    for readout, reason in ((None, "the trace has no read-out of the task"), (NO_TASK, NO_TASK)):
        trace.settings = {} if readout is None else {"task_readout": readout}
        finding = diagnose(trace).findings["overconfidence"]
        assert (finding.verdict, finding.space) == (expected, "latent")
        assert finding.meaning.startswith(f"In the latent ({reason}) the whole hidden state, which also holds what is")
        assert "no evidence that the belief about a task is" in finding.meaning
        for part in ("", "_early", "_middle", "_late"):
            assert finding.numbers["moved_to_claimed" + part].value == pytest.approx(factor, rel=0.05)


def test_thirds_are_judged_each_by_itself() -> None:
    """Of 30 steps: 1 to 9, 10 to 20 and 21 to 29."""
    trace = conjugate_update()
    for steps, factor in ((slice(1, 10), 0.5), (slice(10, 21), 3.0), (slice(21, 30), 9.0)):
        trace.task_move[:, steps] *= factor
    numbers = diagnose(trace).findings["overconfidence"].numbers
    assert list(numbers) == [f"moved_to_claimed{part}" for part in ("", "_early", "_middle", "_late")]
    ratios = [number.value for number in list(numbers.values())[1:]]
    assert ratios == pytest.approx([0.5, 3.0, 9.0], rel=0.05)
    meaning = diagnose(trace).findings["overconfidence"].meaning
    assert meaning.endswith(" Early underconfident, then overconfident, late overconfident.")
    assert "Early" not in diagnose(conjugate_update()).findings["overconfidence"].meaning


def test_trials_without_a_read_out_do_not_count_in_it() -> None:
    trace = conjugate_update()
    trace.settings["task_readout"] = {"r2": 0.5, "n_trials": 300}
    trace.task_move[300:], trace.task_expected_move[300:] = np.nan, np.nan
    trace.task_move[:300] *= 4.0
    finding = diagnose(trace).findings["overconfidence"]
    assert (finding.verdict, finding.space) == ("overconfident", "task")
    assert finding.numbers["moved_to_claimed"].value == pytest.approx(4.0, rel=0.05)
    assert finding.meaning.startswith("In the task's read-out (R^2 0.50) the belief moves more")
    # Too few for a verdict
    trace.task_move[MIN_TRIALS - 1 :] = np.nan
    finding = diagnose(trace).findings["overconfidence"]
    assert (finding.verdict, finding.space) == ("moves as claimed", "latent")
    assert "a verdict on a read-out of the task takes 30 trials" in finding.meaning


def test_a_wrong_noise_level_is_flagged() -> None:
    """Observations taken for four times as precise as they are, prior and all else right."""
    finding = diagnose(conjugate_update(noise_precision=2.0)).findings["overconfidence"]
    assert finding.verdict == "overconfident"
    assert finding.numbers["moved_to_claimed_late"].value > 2


def test_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Over 100 simulated experiments of 50 trials, the 90% interval holds 1 about 90 times."""
    held = 0
    for seed in range(100):
        trace = conjugate_update(50, 10, seed=seed)
        number = diagnose(trace, n_bootstrap=200, confidence_level=0.9).findings["overconfidence"].numbers
        held += number["moved_to_claimed"].low < 1 < number["moved_to_claimed"].high
    assert 80 <= held <= 98


def test_a_constant_variance_claims_nothing() -> None:
    trace = conjugate_update()
    trace.expected_move[:] = 0.0
    assert verdict(trace, "overconfidence") == NOT_APPLICABLE


def test_too_wide_an_interval_is_undecided() -> None:
    trace = conjugate_update(40, 8)
    # One trial in ten moves a hundred times as much, the others little: right on average
    factors = np.where(np.arange(40) % 10 == 0, 9.1, 0.1)
    trace.task_move *= factors[:, None]
    assert verdict(trace, "overconfidence") == UNDECIDED


# -- entropy, consistency -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slopes", "expected"),
    [
        ((-1.0, -0.1), "falls and levels off"),
        ((-1.0, -1.0), "falls steadily"),
        ((-1.0, 0.5), "falls, then rises"),
        ((0.0, 0.0), "does not fall"),
        ((0.3, -1.0), "does not fall"),
    ],
)
def test_entropy(slopes: tuple[float, float], expected: str) -> None:
    steps = np.arange(30)
    path = np.where(steps < 15, slopes[0] * steps, slopes[0] * 15 + slopes[1] * (steps - 15))
    noise = np.random.default_rng(0).normal(scale=0.1, size=(200, 30))
    finding = diagnose(make_trace(entropy=path + noise)).findings["entropy"]
    assert finding.verdict == expected
    assert finding.numbers["nats_per_step_early"].value == pytest.approx(slopes[0], abs=0.02)
    assert finding.numbers["nats_per_step_late"].value == pytest.approx(slopes[1], abs=0.02)


def test_a_bayesian_update_is_consistent() -> None:
    finding = diagnose(conjugate_update()).findings["consistency"]
    assert finding.verdict == "consistent"
    # Precision 2 + t / 2: the covariance part is known, steps 1..9 against 21..29
    precision = 2 + 0.5 * np.arange(30)
    ratio = precision[:-1] / precision[1:]
    part = ratio - 1 - np.log(ratio)
    assert finding.numbers["covariance_part_ratio"].value == pytest.approx(part[-9:].mean() / part[:9].mean())


@pytest.mark.parametrize("constant", ["kl_mean", "kl_covariance"])
def test_a_part_that_does_not_go_down_is_inconsistent(constant: str) -> None:
    trace = conjugate_update()
    getattr(trace, constant)[:] = 1.0
    finding = diagnose(trace).findings["consistency"]
    assert finding.verdict == "inconsistent"
    assert constant.removeprefix("kl_") in finding.meaning


def test_a_covariance_part_of_zero_does_not_count() -> None:
    trace = conjugate_update()
    trace.kl_covariance[:] = 0.0
    finding = diagnose(trace).findings["consistency"]
    assert finding.verdict == "consistent"
    assert math.isnan(finding.numbers["covariance_part_ratio"].value)


# -- performance, calibration of the policy -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("late", "n_trials", "expected"), [(1.0, 200, "yes"), (0.0, 200, "no"), (-1.0, 200, "no"), (0.0, 30, UNDECIDED)]
)
def test_performance_by_reward(late: float, n_trials: int, expected: str) -> None:
    rewards = np.random.default_rng(1).normal(1.0, 0.5 if n_trials == 200 else 3.0, size=(n_trials, 30))
    rewards[:, 15:] += late
    assert verdict(make_trace(n_trials, reward=rewards), "performance") == expected


def test_performance_prefers_regret() -> None:
    rewards = np.linspace(0, -1, 30) + np.zeros((200, 1))
    regret = np.linspace(1, 0, 30) + np.zeros((200, 1))
    finding = diagnose(make_trace(reward=rewards, regret=regret)).findings["performance"]
    assert finding.verdict == "yes"
    assert finding.numbers["change"].value == pytest.approx(-20 / 29)


@pytest.mark.parametrize(
    ("excess", "expected"), [(0.0, "calibrated"), (0.2, "overconfident"), (-0.2, "underconfident")]
)
def test_discrete_policies(excess: float, expected: str) -> None:
    rng = np.random.default_rng(0)
    right = rng.uniform(0.2, 0.8, size=(400, 30))
    is_best = rng.random((400, 30)) < right
    trace = make_trace(400, regret=np.where(is_best, 0.0, 0.3), confidence=right + excess)
    finding = diagnose(trace).findings["policy_calibration"]
    assert finding.verdict == expected
    assert finding.numbers["gap"].value == pytest.approx(excess, abs=0.02)
    assert finding.numbers["calibration_error"].value == pytest.approx(abs(excess), abs=0.02)


@pytest.mark.parametrize(("spread", "expected"), [(1.0, "calibrated"), (2.0, "overconfident"), (0.3, "underconfident")])
def test_predictions(spread: float, expected: str) -> None:
    """Targets of another spread than the predictions'."""
    normal = NormalDist()
    quantiles = np.vectorize(normal.cdf)(spread * np.random.default_rng(0).normal(size=(200, 30)))
    finding = diagnose(make_trace(target_quantile=quantiles)).findings["policy_calibration"]
    assert finding.verdict == expected
    expected_coverage = 1 - 2 * normal.cdf(normal.inv_cdf(0.05) / spread)
    assert finding.numbers["coverage_90"].value == pytest.approx(expected_coverage, abs=0.02)


# -- too little data ----------------------------------------------------------------------------------------


def test_no_verdict_on_few_trials() -> None:
    diagnosis = diagnose(conjugate_update(MIN_TRIALS - 1))
    assert {finding.verdict for finding in diagnosis.findings.values()} == {NOT_ENOUGH_DATA}
    assert "here are 29" in diagnosis.findings["entropy"].meaning


def test_no_verdict_on_short_or_incomplete_trials() -> None:
    trace = conjugate_update(60)
    trace.complete[20:] = False
    assert verdict(trace, "entropy") == NOT_ENOUGH_DATA
    assert verdict(conjugate_update(60, 6), "entropy") == NOT_ENOUGH_DATA


def test_short_trials_that_are_left_out_are_counted() -> None:
    trace = conjugate_update()
    n_trials = len(trace.lengths)
    assert diagnose(trace).notes == []
    trace.lengths[:3] = 6
    diagnosis = diagnose(trace)
    assert diagnosis.n_trials == n_trials - 3
    (note,) = diagnosis.notes
    assert note.startswith(
        f"Left out: 3 of {n_trials} complete trials, which have fewer than 7 steps. Where it is success"
    )


def test_a_point_posterior_has_only_a_performance() -> None:
    diagnosis = diagnose(make_trace())
    assert {name for name, finding in diagnosis.findings.items() if finding.verdict == NOT_APPLICABLE} == {
        "entropy",
        "consistency",
        "overconfidence",
        "policy_calibration",
    }


def test_parts_of_trials_of_unequal_lengths() -> None:
    """Early and late are parts of each trial, not of the longest one."""
    lengths = np.tile([7, 31], 50)
    steps = np.arange(31)
    # Parts of 2 steps (1, 2 and 5, 6) and of 10 (1..10 and 21..30)
    rewards = np.where(lengths[:, None] == 7, (steps >= 5) * 1.0, (steps >= 21) * 1.0)
    numbers = diagnose(make_trace(100, 31, lengths, reward=rewards)).findings["performance"].numbers
    assert numbers["reward_per_step_early"].value == 0
    assert numbers["reward_per_step_late"].value == 1


# -- a posterior that hardly changes ------------------------------------------------------------------------


def with_growth(growth: float, posterior: str = "LaplacePosterior", **kwargs: Any) -> PosteriorTrace:
    """A trace of a posterior whose precision grows by a factor 1 + growth from the first step to the last."""
    trace = conjugate_update()
    trace.settings = {"posterior": posterior, "posterior_kwargs": kwargs}
    trace.entropy[:] = 7.0 - 0.5 * DIM * math.log(1.0 + growth) * np.linspace(0, 1, 30)
    return trace


def test_a_nearly_constant_posterior_is_said_to_be_one() -> None:
    (note,) = diagnose(with_growth(0.009)).notes
    assert note.startswith(
        "This posterior is nearly constant, its precision grows by 0.9% within a trial: it can learn"
    )
    assert note.count(". ") == 0
    diagnosis = diagnose(with_growth(0.0))
    assert "grows by 0% within" in diagnosis.notes[0]
    assert "This posterior is nearly constant" in diagnosis.table()
    assert diagnosis.to_dict()["notes"] == diagnosis.notes


def test_no_false_alarm_of_constancy() -> None:
    assert diagnose(with_growth(0.011)).notes == []
    assert diagnose(conjugate_update()).notes == []
    # These are constant by design
    for posterior in ("ConstantVariancePosterior", "PointPosterior", "VariationalPosterior"):
        assert diagnose(with_growth(0.0, posterior)).notes == []
    assert diagnose(with_growth(0.0, normalize=True)).notes == []
    # The memory starts afresh at the last step: what was learned before counts
    trace = with_growth(0.5)
    trace.entropy[:, 29] = 7.0
    assert diagnose(trace).notes == []
    trace.complete[MIN_TRIALS - 1 :] = False
    assert diagnose(trace).notes == []


# -- bootstrap, output --------------------------------------------------------------------------------------


def test_bootstrap_of_a_mean_is_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=1000)
    estimate = Bootstrap(n_resamples=4000).ratio(values)
    error = values.std() / math.sqrt(1000)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert estimate.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def log_normal(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Over 50 trials a ratio of 1: numerators with a long tail (sigma 1.5), denominators without."""
    return np.exp(1.5 * rng.normal(size=50) - 1.5**2 / 2), rng.uniform(0.9, 1.1, size=50)


def normal(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(1.0, 0.5, size=50), rng.normal(1.0, 0.1, size=50)


@pytest.mark.parametrize(("draw", "least"), [(log_normal, 0.86), (normal, 0.92)])
def test_coverage_of_ratios(draw: Any, least: float) -> None:
    """How often the 95% interval holds the truth: of percentiles it would be 0.82 for the long tail."""
    rng = np.random.default_rng(0)
    estimates = [Bootstrap(500).ratio(*draw(rng)) for _ in range(400)]
    held = np.mean([estimate.low <= 1.0 <= estimate.high for estimate in estimates])
    assert least < held < 0.985


@pytest.mark.parametrize("gap", [0.0, 0.05, 0.1])
def test_coverage_of_calibration_errors(gap: float) -> None:
    """Of 30 trials: no policy without gaps is said to have one, and gaps are found."""
    rng = np.random.default_rng(0)
    estimates = []
    for _ in range(150):
        right = rng.uniform(0.2, 0.7, size=(30, 20))
        trace = make_trace(30, 20, regret=(rng.random(right.shape) > right) * 0.3, confidence=right + gap)
        finding = diagnose(trace, n_bootstrap=200).findings["policy_calibration"]
        estimates.append(finding.numbers["calibration_error"])
    held = np.mean([estimate.low <= gap <= estimate.high for estimate in estimates])
    assert held >= (0.97 if gap == 0.0 else 0.9)
    mean = np.mean([estimate.value for estimate in estimates])
    assert mean == pytest.approx(gap, abs=0.02)


def test_steps_at_which_the_memory_starts_afresh_do_not_count() -> None:
    """A life lost: there the mean moves from the prior's, which is no estimate."""
    trace = conjugate_update()
    trace.task_move[:, 11] = 100.0
    assert verdict(trace, "overconfidence") == "overconfident"
    trace.episode_start[:, 11] = 1.0
    assert verdict(trace, "overconfidence") == "calibrated"


def test_rewards_that_are_not_finite_have_no_performance() -> None:
    rewards = np.ones((200, 30))
    rewards[3, 5] = -np.inf
    finding = diagnose(make_trace(reward=rewards)).findings["performance"]
    assert (finding.verdict, finding.meaning) == (NOT_APPLICABLE, "Not all rewards are finite.")


def test_numbers_without_spread() -> None:
    assert Bootstrap().ratio(np.full(40, 2.0)) == Estimate(2.0, 2.0, 2.0)
    assert math.isnan(Bootstrap().ratio(np.ones(40), np.zeros(40)).value)


def test_bootstrap_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=50)
    whole = Bootstrap(100).ratio(values)
    monkeypatch.setattr("sb3_laplace.evaluation.bootstrap._CHUNK", 350)
    assert Bootstrap(100).ratio(values) == whole


def test_seeded() -> None:
    trace = conjugate_update(50)
    first, again, other = (diagnose(trace, seed=seed).to_dict() for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize(("name", "value"), [("n_bootstrap", 10), ("confidence_level", 1.0)])
def test_arguments(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        diagnose(conjugate_update(50), **{name: value})  # type: ignore[arg-type]


def test_table_and_json(tmp_path: Path) -> None:
    diagnosis: Diagnosis = diagnose(conjugate_update())
    table = diagnosis.table()
    assert "Is the posterior overconfident?        CALIBRATED" in table
    assert "400 complete trials" in table
    assert max(map(len, table.splitlines())) <= 110
    diagnosis.save(tmp_path / "diagnosis.json")
    # NaN is no JSON
    document = json.loads((tmp_path / "diagnosis.json").read_text(), parse_constant=pytest.fail)
    assert document["findings"]["overconfidence"]["verdict"] == "calibrated"
    assert document["findings"]["overconfidence"]["numbers"]["moved_to_claimed"]["value"] == pytest.approx(1, abs=0.1)
    assert document["findings"]["policy_calibration"]["numbers"] == {}


def test_numbers_are_readable() -> None:
    assert str(Estimate(1234.5, 1000.0, 2000.0)) == "1,234 [1,000, 2,000]"
    assert str(Estimate(math.nan, math.nan, math.nan)) == "-"
