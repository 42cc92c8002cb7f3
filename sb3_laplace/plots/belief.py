"""Plots of an agent's belief beside the exact one, drawn as those of traces are: pyplot's state is never touched."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sb3_laplace.evaluation.belief_evaluation import BeliefEvaluation
from sb3_laplace.evaluation.belief_scores import REGION_LEVELS
from sb3_laplace.plots.traces import COLORS, new_figure, set_log

_EXACT = "#000000"


def plot_belief(evaluations: Mapping[str, BeliefEvaluation]) -> Figure:
    """Plot R^2, variances and coverage by step, with the confidence intervals of some steps.

    Variances are those of the task: of the agent's posterior with what the read-out cannot explain (solid), without
    (dotted), and the exact one (black, dashed; the first evaluation's, as the agents' actions differ). In the
    panels of coverage the dashed lines are the exact belief's.

    :param evaluations: evaluations by the agents' names, of the same task
    """
    figure, (r2, width, *coverages, unused) = new_figure(2, 3, (10.5, 5.6))
    unused.axis("off")
    first = next(iter(evaluations.values()))
    # All but black, the exact belief's
    colors = {name: COLORS[i % (len(COLORS) - 1)] for i, name in enumerate(evaluations)}
    for name, evaluation in evaluations.items():
        color = colors[name]
        _draw(r2, evaluation, "r2", color, label=name)
        _draw(width, evaluation, "total_variance", color)
        _draw(width, evaluation, "claimed_variance", color, ":")
        for axes, level in zip(coverages, REGION_LEVELS, strict=True):
            _draw(axes, evaluation, f"coverage_{level}", color)
    _draw(width, first, "exact_variance", _EXACT, "--")
    for axes, level in zip(coverages, REGION_LEVELS, strict=True):
        axes.axhline(level / 100, color="#888888", linewidth=1.0)
        _draw(axes, first, f"exact_coverage_{level}", _EXACT, "--", label="exact belief")
        axes.set_ylim(0, 1.03)
    set_log(width)
    r2.set_ylim(min(0.0, float(np.nanmin(r2.get_ylim()[0]))), 1.03)
    titles = (
        "R² of the read-out for the exact mean",
        "variance of the task",
        *(f"coverage of {level}% regions" for level in REGION_LEVELS),
    )
    for axes, title in zip((r2, width, *coverages), titles, strict=True):
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("steps taken", fontsize="small")
        axes.tick_params(which="both", labelsize="small")
        axes.set_xlim(0, max(1, int(first.steps[-1])))
    parts = [axes.get_legend_handles_labels() for axes in (r2, coverages[0])]
    handles, labels = ([*one, *other] for one, other in zip(*parts, strict=True))
    handles.append(Line2D([], [], color="#888888", linestyle=":"))
    labels.append("variance without R")
    unused.legend(handles, labels, loc="center left", frameon=False, fontsize="small")
    return figure


def _draw(
    axes: Axes, evaluation: BeliefEvaluation, score: str, color: str, style: str = "-", label: str | None = None
) -> None:
    """A score by step, and its intervals where it has some."""
    values = evaluation.scores[score]
    axes.plot(evaluation.steps, values, style, color=color, linewidth=1.3, label=label)
    ends = evaluation.intervals.get(score)
    if ends is not None:
        known = np.isfinite(ends).all(axis=1)
        axes.vlines(evaluation.steps[known], *ends[known].T, color=color, linewidth=0.8, alpha=0.6)
