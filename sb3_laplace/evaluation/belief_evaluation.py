"""What :func:`~sb3_laplace.evaluate_belief` returns: scores by step, a table, files."""

import csv
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from sb3_laplace.evaluation.belief_scores import (
    REGION_LEVELS,
    BeliefRecord,
    Scores,
    Simulation,
    fit_readout,
    intervals,
    summarize,
    unexplained,
)
from sb3_laplace.evaluation.bootstrap import Bootstrap, Estimate

#: Trials that are needed, one half to fit on and one to score
MIN_TRIALS = 20
# Steps in the table, which have confidence intervals
_N_SELECTED = 8


@dataclass(frozen=True)
class BeliefEvaluation:
    """An agent's belief beside the exact one, by step, on trials that nothing was fitted on.

    ``B m_t + b`` is the linear read-out of the true task, fitted on as many other trials; R is the second moment of
    what it misses of the exact mean there, one for all steps. ``scores`` hold, by name, an array (T,) each:

    ==================  ====================================================================================
    r2                  how much of the exact mean's variance between trials ``B m_t + b`` explains; NaN where
                        all exact means are the same, as before anything is observed
    bias                root mean square over trials of ``|B m_t + b - exact mean|`` in exact standard deviations
                        (roots of the total variance, at least 0.01 of the prior's)
    claimed_variance    ``tr B Sigma_t B^T``, what the agent's posterior claims
    total_variance      ``tr (B Sigma_t B^T + R)``, with what the read-out cannot explain
    exact_variance      trace of the exact covariance
    coverage_50         how often the 50% region of ``N(B m_t + b, B Sigma_t B^T + R)`` holds the true task;
                        coverage_90, coverage_95 likewise
    log_score           mean log-density of the true task under that Gaussian, in nats, in coordinates in which
                        the prior's covariance is the identity
    exact_coverage_50   the same of the Gaussian with the exact mean and covariance, to hold the agent's against;
                        exact_coverage_90, exact_coverage_95, exact_log_score
    lost                what the agent's Gaussian loses of the exact one's log-score, in expectation over the exact
                        posterior: the KL divergence of the exact mean and covariance from the agent's
    lost_by_mean        the same with the exact covariance in place of the agent's: lost by the mean alone
    lost_by_width       the same with the exact mean: lost by the covariance alone
    claimed_lost        lost and lost_by_width of the agent's covariance without R; claimed_lost_by_width
    exact_from_latent   how much of the exact mean's variance a small network explains from m_t
    latent_from_exact   how much of the variance of m_t one explains from the exact mean and variances
    ==================  ====================================================================================

    All that needs the agent's covariance is NaN for a point. Regions are those of the chi-square
    distribution of the squared Mahalanobis distance, in the directions in which tasks vary at all (one fewer than
    arms or possible cells, whose probabilities sum to 1). Standard deviations of at least 0.01 of the prior's are
    used in each, and the degrees of freedom are the directions that exceed it (all if none does). Exact posteriors are
    no Gaussians, that of a one-hot cell least of all: even the exact belief's coverage is not nominal.

    :param steps: numbers of steps taken before, 0 to T - 1
    :param scores: by name
    :param intervals: of r2, log-scores and losses (bootstrap) and coverages (Wilson's), shape (T, 2); NaN at
        steps that are not ``selected``
    :param simulation: exact_from_latent and latent_from_exact over all steps, with intervals
    :param selected: the steps that :meth:`table` shows
    :param settings: what was evaluated
    """

    steps: np.ndarray
    scores: dict[str, np.ndarray]
    intervals: dict[str, np.ndarray]
    simulation: dict[str, Estimate]
    selected: np.ndarray
    settings: dict[str, Any]

    def table(self) -> str:
        """The scores at some steps as text."""
        columns = {
            "step": ("step", "%d"),
            "R2": ("r2", "%.3f"),
            "bias/sd": ("bias", "%.2f"),
            "| variance": ("claimed_variance", "%.3g"),
            "with R": ("total_variance", "%.3g"),
            "exact": ("exact_variance", "%.3g"),
            **{
                f"{'| ' if level == REGION_LEVELS[0] else ''}{owner}{level}%": (f"{key}coverage_{level}", "%.2f")
                for owner, key in (("in ", ""), ("exact in ", "exact_"))
                for level in REGION_LEVELS
            },
            "| log-score": ("log_score", "%.2f"),
            "exact ": ("exact_log_score", "%.2f"),
            "lost": ("lost", "%.2f"),
            "by mean": ("lost_by_mean", "%.2f"),
            "by width": ("lost_by_width", "%.2f"),
            "| simulated": ("exact_from_latent", "%.3f"),
            "simulates m": ("latent_from_exact", "%.3f"),
        }
        lines = [list(columns)]
        for t in self.selected.tolist():
            line = []
            for name, pattern in columns.values():
                number = self.steps[t] if name == "step" else self.scores[name][t]
                text = pattern % number if np.isfinite(number) else "-"
                if name == "r2" and np.isfinite(self.intervals[name][t]).all():
                    text += " [{:.3f}, {:.3f}]".format(*self.intervals[name][t])
                line.append(text)
            lines.append(line)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        texts = ["  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in lines]
        level = f"{100 * self.settings['confidence_level']:g}%"
        title = f"{self.settings['n_scored']} trials, read-out of the task fitted on {self.settings['n_fitted']} others"
        below = [
            f"exact mean from m_t, by a network: {self.simulation['exact_from_latent']} of its variance",
            f"m_t from the exact mean and variances: {self.simulation['latent_from_exact']} of its variance",
            f"([...]: {level} bootstrap confidence intervals over trials)",
        ]
        return "\n".join((title, *texts, *below))

    def to_csv(self, path: str | os.PathLike) -> None:
        """Write the scores, a line for each step, with ``..._low`` and ``..._high``; what does not exist is empty.

        :param path: the file
        """
        columns = dict(self.scores)
        for name, ends in self.intervals.items():
            columns[f"{name}_low"], columns[f"{name}_high"] = ends.T
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("step", *columns))
            for t, step in enumerate(self.steps.tolist()):
                writer.writerow((step, *(f"{one[t]:.7g}" if np.isfinite(one[t]) else "" for one in columns.values())))

    def to_dict(self) -> dict[str, Any]:
        """Everything in what JSON can hold; numbers that do not exist are None."""
        return {
            "steps": self.steps.tolist(),
            "scores": {name: _json(values.tolist()) for name, values in self.scores.items()},
            "intervals": {name: _json(ends.tolist()) for name, ends in self.intervals.items()},
            "simulation": {
                name: {part: _json(value) for part, value in one._asdict().items()}
                for name, one in self.simulation.items()
            },
            "selected": self.selected.tolist(),
            "settings": self.settings,
        }


def score_belief(
    fitted: BeliefRecord,
    held_out: BeliefRecord,
    ridge: float = 1e-4,
    seed: int = 0,
    network_steps: int = 1000,
    bootstrap: Bootstrap | None = None,
    settings: dict[str, Any] | None = None,
) -> BeliefEvaluation:
    """Hold an agent's recorded belief against the exact one.

    :param fitted: the trials that read-out and networks are fitted on
    :param held_out: the trials that are scored. What the agent claims is that of ``fit_readout(fitted, ridge)``.
    :param ridge: of the read-out, see :func:`~sb3_laplace.evaluation.belief_scores.fit_readout`
    :param seed: of the networks
    :param network_steps: steps of Adam that train each network
    :param bootstrap: for the intervals, by default 1000 resamples at 95%
    :param settings: what was evaluated, kept with the result
    """
    bootstrap = Bootstrap() if bootstrap is None else bootstrap
    readout = fit_readout(fitted, ridge)
    numbers = Scores(readout, unexplained(fitted, readout), held_out).per_trial()
    n_trials, n_steps = held_out.latents.shape[:2]
    selected = _selected(n_steps)
    simulation = Simulation(fitted, held_out, bootstrap, seed, network_steps)
    return BeliefEvaluation(
        steps=np.arange(n_steps),
        scores={**summarize(numbers, n_steps), **simulation.by_step},
        intervals=intervals(numbers, selected, n_steps, bootstrap),
        simulation=simulation.total,
        selected=selected,
        settings={
            **(settings or {}),
            "n_fitted": len(fitted.latents),
            "n_scored": n_trials,
            "ridge": ridge,
            "confidence_level": bootstrap.confidence_level,
        },
    )


def _selected(n_steps: int) -> np.ndarray:
    """The first and last step, and some between, closer together early on."""
    spaced = np.expm1(np.linspace(0.0, np.log(n_steps), _N_SELECTED))
    return np.unique(spaced.round().astype(np.int64).clip(0, n_steps - 1))


def _json(value: Any) -> Any:
    if isinstance(value, list):
        return [_json(one) for one in value]
    return value if math.isfinite(value) else None
