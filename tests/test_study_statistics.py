"""Statistics of studies against brute force and SciPy."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from sb3_laplace.studies.statistics import (
    band,
    estimate,
    interquartile_mean,
    mean,
    probability_of_improvement,
)

SCORES = st.integers(1, 9).flatmap(lambda n: arrays(np.float64, n, elements=st.floats(-1e3, 1e3, width=32)))


def all_resamples(scores: np.ndarray) -> np.ndarray:
    """Every way to draw as many with replacement, shape (n**n, n)."""
    return np.array(list(itertools.product(scores, repeat=len(scores))))


@given(st.lists(SCORES, min_size=1, max_size=4))
def test_interquartile_mean_is_the_trimmed_mean_of_all_runs(strata: list[np.ndarray]) -> None:
    expected = stats.trim_mean(np.concatenate(strata), 0.25)
    assert interquartile_mean(*strata) == pytest.approx(expected, abs=1e-9, rel=1e-9)


def test_environments_count_alike_in_the_mean() -> None:
    assert mean(np.array([1.0, 1.0, 1.0]), np.array([3.0])) == 2.0


def test_the_interval_of_all_possible_resamples() -> None:
    """4 runs have 256 equally probable resamples, whose quantiles are known."""
    scores = np.array([0.0, 1.0, 3.0, 10.0])
    means = all_resamples(scores).mean(1)
    found = estimate(mean, [scores])
    assert found.value == scores.mean()
    # Within what 2000 draws leave unsure: the quantiles of the percentiles 1.5 to 3.5 and 96.5 to 98.5
    assert np.quantile(means, 0.015) <= found.low <= np.quantile(means, 0.035)
    assert np.quantile(means, 0.965) <= found.high <= np.quantile(means, 0.985)


def test_the_interval_is_that_of_scipys_stratified_bootstrap() -> None:
    rng = np.random.default_rng(3)
    strata = [rng.normal(size=6), rng.normal(5.0, 3.0, size=9), rng.exponential(size=5)]
    for statistic in (mean, interquartile_mean):
        found = estimate(statistic, strata)
        scipys = stats.bootstrap(
            strata,
            lambda *samples, axis, statistic=statistic: statistic(*samples),
            n_resamples=20_000,
            method="percentile",
            vectorized=True,
            random_state=0,
        )
        width = scipys.confidence_interval.high - scipys.confidence_interval.low
        np.testing.assert_allclose(found[1:], scipys.confidence_interval, atol=0.08 * width)


def test_strata_are_drawn_within_themselves() -> None:
    """Between environments there is nothing to be unsure of: were runs drawn from all, the interval would be wide."""
    found = estimate(mean, [np.zeros(5), np.full(5, 100.0)])
    assert found == (50.0, 50.0, 50.0)


@given(SCORES.filter(lambda scores: len(scores) > 1), st.floats(0.1, 10.0), st.floats(-100.0, 100.0))
def test_estimates_move_and_scale_with_the_scores(scores: np.ndarray, scale: float, shift: float) -> None:
    for statistic in (mean, interquartile_mean):
        before = np.array(estimate(statistic, [scores]))
        after = np.array(estimate(statistic, [scale * scores + shift]))
        np.testing.assert_allclose(after, scale * before + shift, rtol=1e-6, atol=1e-6 * (1 + scale * 1e3))
        assert before[1] <= before[2]


@given(SCORES, st.randoms())
def test_the_order_of_the_runs_does_not_change_the_value(scores: np.ndarray, random: object) -> None:
    shuffled = scores.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for statistic in (mean, interquartile_mean):
        assert estimate(statistic, [shuffled]).value == pytest.approx(estimate(statistic, [scores]).value, abs=1e-9)


def test_one_run_has_no_interval() -> None:
    found = estimate(mean, [np.array([3.0])])
    assert found.value == 3.0
    assert np.isnan(found[1:]).all()
    # But one beside an environment with several has
    assert np.isfinite(estimate(mean, [np.array([3.0]), np.array([1.0, 2.0])])).all()


# Few values, so that there are ties
@given(*2 * [st.lists(st.integers(0, 3), min_size=1, max_size=6)])
def test_probability_of_improvement_is_mann_whitneys(agent: list[int], baseline: list[int]) -> None:
    u = stats.mannwhitneyu(agent, baseline).statistic / (len(agent) * len(baseline))
    found = probability_of_improvement([np.array(agent)], [np.array(baseline)])
    assert found.value == pytest.approx(u)
    reverse = probability_of_improvement([np.array(agent)], [np.array(baseline)], sign=-1)
    assert found.value + reverse.value == pytest.approx(1.0)


def test_probability_of_improvement_by_brute_force() -> None:
    agent, baseline = np.array([1.0, 4.0, 6.0]), np.array([2.0, 3.0, 5.0])
    shares = [
        np.mean([x > y for x in xs for y in ys])
        for xs, ys in itertools.product(all_resamples(agent), all_resamples(baseline))
    ]
    found = probability_of_improvement([agent], [baseline])
    assert found.value == pytest.approx(5 / 9)
    assert np.quantile(shares, 0.015) <= found.low <= np.quantile(shares, 0.035)
    assert np.quantile(shares, 0.965) <= found.high <= np.quantile(shares, 0.985)


def test_probability_of_improvement_is_averaged_over_environments() -> None:
    better, alike = [np.array([5.0, 6.0]), np.array([1.0, 1.0])], [np.array([1.0, 2.0]), np.array([1.0, 1.0])]
    assert probability_of_improvement(better, alike) == (0.75, 0.75, 0.75)


def test_bands_leave_out_what_is_missing() -> None:
    curves = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]])
    means, low, high = band(curves)
    np.testing.assert_equal(means, [2.0, 5.0, np.nan])
    assert (low[0], high[0]) == (1.0, 3.0)
    assert np.isnan([low[1:], high[1:]]).all()
