"""Plots of studies, drawn as those of traces are: pyplot's state is never touched."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sb3_laplace.evaluation.bootstrap import Estimate
from sb3_laplace.plots.traces import COLORS, new_figure

_N_COLUMNS = 2
_PANEL = (4.6, 2.9)


def plot_learning_curves(curves: Mapping[str, Mapping[str, Mapping[str, Sequence[float | None]]]]) -> Figure:
    """Plot the return of training episodes by number of steps, a panel for each environment.

    :param curves: by environment and agent, ``steps``, ``mean``, ``low`` and ``high`` of the same length; None where
        there is nothing
    """
    agents = list(dict.fromkeys(agent for panel in curves.values() for agent in panel))
    figure, axes = _grid(len(curves))
    for panel, (env_id, by_agent) in zip(axes, curves.items(), strict=False):
        for agent, curve in by_agent.items():
            color = COLORS[agents.index(agent) % len(COLORS)]
            steps, mean, low, high = (np.array(curve[name], dtype=float) for name in ("steps", "mean", "low", "high"))
            known = np.isfinite(mean)
            panel.plot(steps[known], mean[known], color=color, linewidth=1.4, label=agent)
            panel.fill_between(steps[known], low[known], high[known], color=color, alpha=0.15, linewidth=0)
        panel.set_title(env_id, fontsize="medium")
        panel.set_xlabel("steps", fontsize="small")
        panel.set_ylabel("return", fontsize="small")
        panel.tick_params(labelsize="small")
    _legend(figure, axes)
    return figure


def plot_scores(scores: Mapping[str, Mapping[str, tuple[Sequence[float], Estimate]]]) -> Figure:
    """Plot the score of every run as a dot, means and their intervals as lines, a panel for each title.

    :param scores: by title and agent, the runs' scores and their mean
    """
    n_rows = max(len(by_agent) for by_agent in scores.values())
    figure, axes = _grid(len(scores), height=0.9 + 0.3 * n_rows)
    for panel, (title, by_agent) in zip(axes, scores.items(), strict=False):
        for row, (runs, mean) in enumerate(by_agent.values()):
            _estimate(panel, row, mean)
            panel.plot(runs, np.full(len(runs), row), "o", color=COLORS[0], markersize=4, alpha=0.6)
        _rows(panel, title, list(by_agent))
    return figure


def plot_improvements(improvements: Mapping[str, Mapping[str, Estimate]]) -> Figure:
    """Plot the probability that a run is better than one of the baseline, a panel for each environment.

    :param improvements: by environment and agent
    """
    n_rows = max(len(by_agent) for by_agent in improvements.values())
    figure, axes = _grid(len(improvements), height=0.9 + 0.3 * n_rows)
    for panel, (env_id, by_agent) in zip(axes, improvements.items(), strict=False):
        panel.axvline(0.5, color="#888888", linewidth=1.0, linestyle=":")
        for row, one in enumerate(by_agent.values()):
            _estimate(panel, row, one)
        panel.set_xlim(-0.03, 1.03)
        _rows(panel, env_id, list(by_agent))
    return figure


def _grid(n_panels: int, height: float = _PANEL[1]) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each of a number of things, and those left over switched off."""
    n_columns = min(_N_COLUMNS, n_panels)
    n_rows = -(-n_panels // n_columns)
    figure, axes = new_figure(n_rows, n_columns, (_PANEL[0] * n_columns, height * n_rows + 0.4))
    for unused in axes[n_panels:]:
        unused.axis("off")
    return figure, axes


def _estimate(panel: Axes, row: int, one: Estimate) -> None:
    """A number as a line across, with its interval as one along."""
    panel.plot([one.value], [row], "|", color="#000000", markersize=12, markeredgewidth=1.6)
    if np.isfinite(one.low):
        panel.plot([one.low, one.high], [row, row], color="#000000", linewidth=1.4)


def _rows(panel: Axes, title: str, names: list[str]) -> None:
    panel.set_title(title, fontsize="medium")
    panel.set_yticks(range(len(names)), names, fontsize="small")
    panel.tick_params(labelsize="small")
    # The first one on top
    panel.set_ylim(len(names) - 0.5, -0.5)


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One for all panels, of what any of them shows."""
    found: dict[str, Artist] = {}
    for panel in axes:
        handles, labels = panel.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    n_columns = min(4, len(found))
    figure.legend(
        list(found.values()), list(found), loc="outside upper center", ncols=n_columns, frameon=False, fontsize="small"
    )
