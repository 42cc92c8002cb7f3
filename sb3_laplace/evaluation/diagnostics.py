"""A verdict on an agent's posterior, from a trace: does it learn, settle, claim to know what it knows."""

import json
import math
import os
import textwrap
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from sb3_laplace.checks import check_integer
from sb3_laplace.evaluation.bootstrap import Bootstrap, Estimate
from sb3_laplace.evaluation.constancy import constancy
from sb3_laplace.evaluation.findings import (
    MIN_STEPS,
    MIN_TRIALS,
    MORE_TRIALS,
    NOT_APPLICABLE,
    UNDECIDED,
    Finding,
    Trials,
)
from sb3_laplace.evaluation.overconfidence import judge_overconfidence
from sb3_laplace.evaluation.traces import PosteriorTrace
from sb3_laplace.posteriors import LaplacePosterior

# What has come down by less than a tenth has not gone down
_LESS = 0.9
#: Largest difference of a probability that counts as calibrated
_CLOSE_PROBABILITY = 0.05
_N_BINS = 10
# Longest line of a table
_WIDTH = 110


@dataclass
class Diagnosis:
    """The answers to all questions about an agent.

    :param findings: by name: performance, entropy, consistency, overconfidence, policy_calibration; and episodes, where
        trials have several
    :param n_trials: number of complete trials that they rest on
    :param confidence_level: of the intervals
    :param settings: those of the trace
    :param notes: what else is to be said, a sentence each: that the posterior is nearly constant
    """

    findings: dict[str, Finding]
    n_trials: int
    confidence_level: float
    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def table(self) -> str:
        """The verdicts as a table of text, each with its numbers below."""
        width = max(len(finding.question) for finding in self.findings.values())
        lines = []
        for finding in self.findings.values():
            lines.append(f"{finding.question:<{width}}  {finding.verdict.upper()}")
            shown = [(name, number) for name, number in finding.numbers.items() if math.isfinite(number.value)]
            lines += [f"    {name.replace('_', ' '):<{width - 4}}  {number}" for name, number in shown]
            lines += textwrap.wrap(finding.meaning, _WIDTH, initial_indent="    ", subsequent_indent="    ")
        for note in self.notes:
            lines += textwrap.wrap(note, _WIDTH)
        level = f"{100 * self.confidence_level:g}%"
        lines.append(f"({self.n_trials} complete trials; {level} bootstrap confidence intervals over trials)")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything in what JSON can hold; numbers that do not exist are None."""
        result = asdict(self)
        for name, finding in self.findings.items():
            result["findings"][name]["numbers"] = {
                key: {part: value if math.isfinite(value) else None for part, value in number._asdict().items()}
                for key, number in finding.numbers.items()
            }
        return result

    def save(self, path: str | os.PathLike) -> None:
        """Write :meth:`to_dict` as JSON.

        :param path: the file
        """
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.to_dict(), file, indent=2)


def diagnose(
    trace: PosteriorTrace, n_bootstrap: int = 1000, confidence_level: float = 0.95, seed: int = 0
) -> Diagnosis:
    """Judge an agent's posterior by what it did in a trace.

    Each question has a function whose docstring defines its verdicts:
    :func:`~sb3_laplace.evaluation.diagnostics.judge_performance`,
    :func:`~sb3_laplace.evaluation.diagnostics.judge_episodes` (where trials have several),
    :func:`~sb3_laplace.evaluation.diagnostics.judge_entropy`,
    :func:`~sb3_laplace.evaluation.diagnostics.judge_consistency`,
    :func:`~sb3_laplace.evaluation.overconfidence.judge_overconfidence` and
    :func:`~sb3_laplace.evaluation.diagnostics.judge_policy_calibration`. Confidence intervals come from a bootstrap
    over trials, which are independent (the steps of one are not); :mod:`sb3_laplace.evaluation.bootstrap` says how
    often they hold the truth. Only complete trials of at least 7 steps count
    (:data:`~sb3_laplace.evaluation.findings.MIN_STEPS`), and there is no verdict on fewer than 30
    (:data:`~sb3_laplace.evaluation.findings.MIN_TRIALS`). The first step of a trial, before which nothing was
    observed, is left out, and so is every other at which the agent's memory starts afresh (a life lost): there q_{t-1}
    is the prior, whose mean is no estimate. The early part of a trial is the first third of the steps after the first,
    the late part the last third. Overconfidence is judged in the linear read-out of the task where the trace has one,
    and its finding says so. A Laplace posterior whose precision grows by less than 1% within a trial is said to be
    nearly constant (:func:`~sb3_laplace.evaluation.constancy.constancy`).

    :param trace: the trace
    :param n_bootstrap: number of bootstrap resamples
    :param confidence_level: of the confidence intervals, between 0 and 1
    :param seed: of the resampling
    :raises ValueError: if an argument is out of range
    """
    check_integer("n_bootstrap", n_bootstrap, minimum=100)
    if not 0.0 < confidence_level < 1.0:
        raise ValueError(f"confidence_level must lie between 0 and 1, got {confidence_level!r}.")
    data = Trials(trace, Bootstrap(n_bootstrap, confidence_level, seed))
    judges = {
        "performance": judge_performance,
        **({"episodes": judge_episodes} if trace.returns_by_episode.shape[1] > 1 else {}),
        "entropy": judge_entropy,
        "consistency": judge_consistency,
        "overconfidence": judge_overconfidence,
        "policy_calibration": judge_policy_calibration,
    }
    findings = {name: judge(data) for name, judge in judges.items()}
    return Diagnosis(findings, data.n_trials, confidence_level, trace.settings, _notes(data))


def _notes(data: Trials) -> list[str]:
    """What a reader of the verdicts has to know besides."""
    notes = _constancy(data)
    if data.n_short:
        notes.append(
            f"Left out: {data.n_short} of {data.n_trials + data.n_short} complete trials, which have fewer than "
            f"{MIN_STEPS} steps. Where it is success (or failure) that ends a trial early, the returns above are of "
            "those that went on."
        )
    return notes


def _constancy(data: Trials) -> list[str]:
    """What is said of a Laplace posterior that hardly learns. (One that is normalized has a precision that need not
    grow, others claim nothing, or another thing.)"""
    trace = data.trace
    is_laplace = trace.settings.get("posterior") == LaplacePosterior.__name__
    is_normalized = (trace.settings.get("posterior_kwargs") or {}).get("normalize", False)
    if not is_laplace or is_normalized or not data.enough or not data.exists(trace.entropy):
        return []
    entropy = data.get(trace.entropy)
    # Where the memory starts afresh within a trial, the precision is lowest again: the trial's lowest entropy counts
    fall = float((entropy[:, 0] - np.nanmin(entropy, axis=1)).mean())
    note = constancy(fall, trace.latent_dim)
    return [] if note is None else [note]


def judge_performance(data: Trials) -> Finding:
    """Does the agent do better late in a trial than early?

    ``change``: regret per step where the environment reports one (else reward per step), averaged over the
    late part less over the early part. ``early`` and ``late`` are the two averages.

    - *yes*: the interval of the change lies on the better side of 0
    - *no*: it does not, and excludes an improvement by more than 10% of the early average
    - *undecided*: neither
    - *not applicable*: there is no regret, and rewards are not finite
    """
    question = "Does it do better late in a trial?"
    if not data.enough:
        return data.no_verdict(question)
    has_regret = data.exists(data.trace.regret)
    if not has_regret and not data.exists(data.trace.reward):
        return Finding(question, NOT_APPLICABLE, {}, "Not all rewards are finite.")
    name = "regret" if has_regret else "reward"
    values = data.get(data.trace.regret if has_regret else data.trace.reward)  # type: ignore[arg-type]
    early, late = data.mean(values, "early"), data.mean(values, "late")
    numbers = {
        f"{name}_per_step_early": data.average(early),
        f"{name}_per_step_late": data.average(late),
        "change": data.average(late - early),
    }
    return _improvement(question, numbers, f"The {name} per step", "within a trial", -1.0 if has_regret else 1.0)


def judge_episodes(data: Trials) -> Finding:
    """Does the agent do better in the later episodes of a trial than in the first?

    Of trials with several episodes: ``first_episode`` and ``last_episode`` are their average returns, ``change`` is the
    last less the first. Verdicts as for :func:`judge_performance`.
    """
    question = "Does it do better in later episodes?"
    returns = data.get(data.trace.returns_by_episode)
    n_episodes = np.isfinite(returns).sum(1)
    several = n_episodes > 1
    if not data.enough or several.sum() < MIN_TRIALS:
        return data.no_verdict(question)
    returns, weights = np.where(several[:, None], returns, 0.0), several.astype(np.float64)
    first, last = returns[:, 0], returns[np.arange(len(returns)), np.where(several, n_episodes - 1, 0)]
    numbers = {
        "first_episode": data.ratio(first, weights),
        "last_episode": data.ratio(last, weights),
        "change": data.ratio(last - first, weights),
    }
    return _improvement(question, numbers, "The return", "from the first episode to the last")


def _improvement(question: str, numbers: dict[str, Estimate], what: str, where: str, sign: float = 1.0) -> Finding:
    """Whether something improves, by the first of the numbers, how it is early, and their ``change``.

    :param sign: -1 for what is better when it is lower
    """
    early, change = next(iter(numbers.values())), numbers["change"]
    # The ends of the interval as improvements
    least, most = sorted((sign * change.low, sign * change.high))
    if least > 0:
        return Finding(question, "yes", numbers, f"{what} improves {where}.")
    if most <= 0.1 * abs(early.value):
        return Finding(question, "no", numbers, f"{what} does not improve {where}.")
    return Finding(question, UNDECIDED, numbers, MORE_TRIALS)


def judge_entropy(data: Trials) -> Finding:
    """Does the posterior's entropy fall within a trial?

    ``early`` and ``late``: change of H(q_t) over the early (late) part of a trial divided by its number of
    steps, in nats per step.

    - *falls and levels off*: the early interval lies below 0, and that of late / early below 0.9
    - *falls, then rises*: the early interval lies below 0, the late one above 0
    - *falls steadily*: the early interval lies below 0, and none of the above
    - *does not fall*: the early interval does not lie below 0
    - *not applicable*: the posterior has no entropy (a point)

    A Markov posterior's entropy falls by construction: whether it *should* is the question of
    :func:`~sb3_laplace.evaluation.overconfidence.judge_overconfidence`.
    """
    question = "Does entropy fall?"
    if not data.enough:
        return data.no_verdict(question)
    if not data.exists(data.trace.entropy):
        return Finding(question, NOT_APPLICABLE, {}, "The posterior has no entropy.")
    entropy = data.get(data.trace.entropy)
    changes = np.diff(entropy, axis=1, prepend=np.nan)
    early, late = data.mean(changes, "early"), data.mean(changes, "late")
    numbers = {"nats_per_step_early": data.average(early), "nats_per_step_late": data.average(late)}
    if not numbers["nats_per_step_early"].high < 0:
        return Finding(question, "does not fall", numbers, "The belief does not sharpen early in a trial.")
    if numbers["nats_per_step_late"].low > 0:
        return Finding(question, "falls, then rises", numbers, "The belief sharpens early in a trial and blurs late.")
    if data.ratio(late, early).high < _LESS:
        meaning = "The belief sharpens early in a trial and more slowly late."
        return Finding(question, "falls and levels off", numbers, meaning)
    return Finding(question, "falls steadily", numbers, "The belief sharpens late in a trial no less than early.")


def judge_consistency(data: Trials) -> Finding:
    """Does KL(q_t || q_{t-1}) go down within a trial? (The paper's consistency.)

    ``mean_part_ratio``, ``covariance_part_ratio``: the KL's mean (covariance) part averaged over the late part
    of trials, divided by its average over the early part.

    - *consistent*: the intervals of both ratios lie below 0.9
    - *inconsistent*: the interval of a ratio does not reach below 0.9: successive posteriors differ late as
      much as early
    - *undecided*: neither
    - *not applicable*: the posterior has no KL (a point)

    A part that is zero throughout (the covariance part of a constant variance) has no ratio and does not count.
    """
    question = "Do successive posteriors settle?"
    if not data.enough:
        return data.no_verdict(question)
    if not data.exists(data.trace.kl_mean) or not data.exists(data.trace.kl_covariance):
        return Finding(question, NOT_APPLICABLE, {}, "There is no KL divergence between points.")
    numbers = {}
    for name, array in (("mean_part", data.trace.kl_mean), ("covariance_part", data.trace.kl_covariance)):
        values = data.get(array)
        numbers[f"{name}_ratio"] = data.ratio(data.mean(values, "late"), data.mean(values, "early"))
    ratios = {name: ratio for name, ratio in numbers.items() if math.isfinite(ratio.value)}
    rising = [name.removesuffix("_ratio").replace("_", " ") for name, ratio in ratios.items() if ratio.low >= _LESS]
    if rising:
        meaning = f"No decline within a trial of the KL's {' and '.join(rising)}."
        return Finding(question, "inconsistent", numbers, meaning)
    if ratios and all(ratio.high < _LESS for ratio in ratios.values()):
        return Finding(question, "consistent", numbers, "Successive posteriors differ less and less within a trial.")
    return Finding(question, UNDECIDED, numbers, MORE_TRIALS)


def judge_policy_calibration(data: Trials) -> Finding:
    """Is the policy, averaged over draws from the posterior, as sure as it is right?

    Discrete actions, where the environment reports a regret: ``confidence`` is the mean probability of the
    action taken, ``accuracy`` how often that action was the best (no regret), ``gap`` their difference.
    Choosing each action with the probability that it is the best (Thompson sampling) has a gap of 0; a greedy
    policy is overconfident by this measure, and may earn more for it. ``calibration_error`` is the root mean
    square of the gaps in 10 bins of confidence, weighted by how many steps are in each. What chance alone adds to it
    is taken off, so that its interval reaches down to 0 for a policy without gaps, however few the trials.

    One continuous action, where the environment reports a target: ``coverage_50`` and ``coverage_90`` are how
    often the target lies in the central 50% (90%) of the predictions for draws from the posterior, ``gap``
    is 0.9 - coverage_90.

    - *overconfident*: the interval of the gap lies above 0.05
    - *underconfident*: it lies below -0.05
    - *calibrated*: it lies between these
    - *undecided*: none of these
    - *not applicable*: there is neither a regret nor a target
    """
    question = "Is the policy as sure as it is right?"
    if not data.enough:
        return data.no_verdict(question)
    trace = data.trace
    as_sure = "The policy is as sure as it is right."
    if data.exists(trace.regret) and data.exists(trace.confidence):
        numbers = _confidence_and_accuracy(data)
        # One that acts at random is, too
        as_sure = f"The policy is as sure as it is right: in {numbers['accuracy'].value:.0%} of its choices."
    elif data.exists(trace.target_quantile):
        distance = np.abs(data.get(trace.target_quantile) - 0.5)
        numbers = {
            "coverage_50": data.average(data.mean(distance < 0.25, "all")),
            "coverage_90": data.average(data.mean(distance < 0.45, "all")),
            "gap": data.average(0.9 - data.mean(distance < 0.45, "all")),
        }
    else:
        return Finding(question, NOT_APPLICABLE, {}, "The environment reports neither a regret nor a target.")
    gap = numbers["gap"]
    if gap.low > _CLOSE_PROBABILITY:
        return Finding(question, "overconfident", numbers, "The policy is surer than it is right.")
    if gap.high < -_CLOSE_PROBABILITY:
        return Finding(question, "underconfident", numbers, "The policy is less sure than it is right.")
    if gap.low > -_CLOSE_PROBABILITY and gap.high < _CLOSE_PROBABILITY:
        return Finding(question, "calibrated", numbers, as_sure)
    return Finding(question, UNDECIDED, numbers, MORE_TRIALS)


def _confidence_and_accuracy(data: Trials) -> dict[str, Estimate]:
    confidence = data.get(data.trace.confidence)
    regret: Any = data.trace.regret
    is_best = (data.get(regret) < 1e-6).astype(np.float64)
    bins = reliability_bins(confidence)
    in_bin = [(bins == b).astype(np.float64) for b in range(_N_BINS)]
    gaps = np.stack([data.mean((confidence - is_best) * inside, "all") for inside in in_bin], axis=1)
    weights = np.stack([data.mean(inside, "all") for inside in in_bin], axis=1)
    return {
        "confidence": data.average(data.mean(confidence, "all")),
        "accuracy": data.average(data.mean(is_best, "all")),
        "gap": data.average(data.mean(confidence - is_best, "all")),
        "calibration_error": data.bootstrap.root_mean_square(gaps, weights),
    }


def reliability_bins(confidence: np.ndarray) -> np.ndarray:
    """Index of the bin that each probability falls into, -1 for NaN.

    :param confidence: probabilities, any shape
    """
    bins = np.clip(np.nan_to_num(confidence, nan=-1.0) * _N_BINS, -1, _N_BINS - 1)
    return np.floor(bins).astype(np.int64)
