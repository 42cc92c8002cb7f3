"""Plots of evaluations on FourierRegression, drawn as those of traces are: pyplot's state is never touched."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from sb3_laplace.evaluation.regression_evaluation import COVERAGE_LEVELS, RegressionEvaluation
from sb3_laplace.plots.traces import COLORS, new_figure, set_log

# Numbers of pairs after which functions are shown, and how many others are if there are none of these
_SHOWN = (0, 1, 5, 10, 30)
_N_COLUMNS = 5
_AGENT_COLOR, _LIMIT_COLOR, _TRUTH_COLOR = COLORS[0], COLORS[1], "#000000"
# Beside any number of agents
_LIMIT_OF_SCORES = "#000000"
_LIMIT = "Bayesian linear regression"
# Half the width of a Gaussian's central 95%, in standard deviations
_GAUSSIAN_95 = 1.96
_PANEL = (2.3, 1.75)
_TICKS = (0, 1, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
_TITLES = (
    "mean squared error",
    "negative log-likelihood (nats)",
    "entropy of the posterior (nats)",
    "KL of successive posteriors (nats)",
)


def plot_regression_functions(evaluation: RegressionEvaluation) -> Figure:
    """Plot the example functions, a row for each, and what is predicted of them, a column for each number of pairs.

    Columns are 0, 1, 5, 10 and 30 pairs, or the first five numbers if the evaluation has none of these. Shown are the
    agent's mean with its central 50% and 95%, the limit's mean and the ends of its central 95%, the true function
    and the observed pairs.

    :param evaluation: the evaluation
    """
    numbers, targets = evaluation.n_observed, evaluation.examples.targets
    columns = np.flatnonzero(np.isin(numbers, _SHOWN))
    if not columns.size:
        columns = np.arange(len(numbers))[:_N_COLUMNS]
    size = max(_PANEL[0] * len(columns) + 0.4, 8.0), _PANEL[1] * len(targets) + 0.9
    figure, axes = new_figure(len(targets), len(columns), size)
    # One scale for all, of what is known and not of what a bad agent predicts
    level = 1.2 * np.abs(targets).max()
    for position, one in enumerate(axes):
        row, column = divmod(position, len(columns))
        number = numbers[columns[column]]
        _draw_function(one, evaluation, row, int(columns[column]))
        one.set(xlim=(-1, 1), ylim=(-level, level))
        one.tick_params(labelsize="small")
        one.label_outer()
        if row == 0:
            one.set_title("1 pair" if number == 1 else f"{number} pairs", fontsize="medium")
    figure.supxlabel("x", fontsize="medium")
    figure.supylabel("y", fontsize="medium")
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize="small")
    return figure


def _draw_function(axes: Axes, evaluation: RegressionEvaluation, row: int, index: int) -> None:
    examples, x = evaluation.examples, evaluation.test_inputs
    low, lower, upper, high = examples.bands[row, index].T
    axes.fill_between(x, low, high, color=_AGENT_COLOR, alpha=0.15, linewidth=0, label="agent: 95%")
    axes.fill_between(x, lower, upper, color=_AGENT_COLOR, alpha=0.3, linewidth=0, label="50%")
    axes.plot(x, examples.mean[row, index], color=_AGENT_COLOR, linewidth=1.4, label="mean")
    mean, reach = examples.limit_mean[row, index], _GAUSSIAN_95 * examples.limit_std[row, index]
    axes.plot(x, mean, color=_LIMIT_COLOR, linewidth=1.0, label=f"{_LIMIT}: mean")
    axes.plot(x, mean - reach, color=_LIMIT_COLOR, linewidth=0.9, linestyle=":", label="95%")
    axes.plot(x, mean + reach, color=_LIMIT_COLOR, linewidth=0.9, linestyle=":")
    axes.plot(x, examples.targets[row], color=_TRUTH_COLOR, linewidth=1.0, linestyle="--", label="function")
    observed = examples.pairs[row, : evaluation.n_observed[index]].T
    axes.plot(*observed, "o", color=_TRUTH_COLOR, markersize=3, label="pairs", zorder=3)


def plot_regression_scores(evaluations: Mapping[str, RegressionEvaluation]) -> Figure:
    """Plot MSE, NLL, entropy, KL and coverage by number of pairs, with bands of two standard errors.

    :param evaluations: evaluations by the agents' names, of the same context. The limit shown is the first one's.
    """
    figure, (mse, nll, entropy, kl, *coverages, unused) = new_figure(2, 4, (12.0, 5.6))
    first = next(iter(evaluations.values()))
    # All but black, the limit's
    colors = {name: COLORS[i % (len(COLORS) - 1)] for i, name in enumerate(evaluations)}

    def draw(axes: Axes, score: str, style: str = "-") -> None:
        for name, evaluation in evaluations.items():
            _draw_score(axes, evaluation.n_observed, evaluation.agent[score], colors[name], style, name)

    def draw_limit(axes: Axes, score: str) -> None:
        _draw_score(axes, first.n_observed, first.limit[score], _LIMIT_OF_SCORES, "--", _LIMIT)

    for axes, score in ((mse, "mse"), (nll, "nll_mixture"), (entropy, "entropy"), (kl, "kl")):
        draw(axes, score)
    lowest = min(np.min(line.get_ydata()) for line in mse.lines)
    draw(nll, "nll_gaussian", ":")
    draw_limit(mse, "mse")
    draw_limit(nll, "nll_mixture")
    # The limit soon falls to nothing: with all of it in sight, the agents' differences would not be
    mse.set(yscale="log", ylim=(0.5 * lowest, None))
    set_log(kl)
    for axes, level in zip(coverages, COVERAGE_LEVELS, strict=True):
        axes.axhline(level / 100, color="#888888", linewidth=1.0)
        draw(axes, f"coverage_{level}")
        draw_limit(axes, f"coverage_{level}")
        axes.set_ylim(0, 1.03)
    titles = (*_TITLES, *(f"coverage of the central {level}%" for level in COVERAGE_LEVELS))
    for axes, title in zip((mse, nll, entropy, kl, *coverages), titles, strict=True):
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("observed pairs", fontsize="small")
        axes.tick_params(which="both", labelsize="small")
        # A logarithm that has a place for no pairs; limits first, as the margins of others would have none
        axes.set_xlim(-0.1, 1.1 * first.n_observed[-1] + 0.1)
        axes.set_xscale("function", functions=(np.log1p, np.expm1))
        axes.xaxis.set_major_locator(FixedLocator([n for n in _TICKS if n <= first.n_observed[-1]]))
    handles, labels = mse.get_legend_handles_labels()
    dotted = Line2D([], [], color="#888888", linestyle=":")
    unused.axis("off")
    unused.legend(
        [*handles, dotted],
        [*labels, "NLL of the moment-matched Gaussian"],
        loc="center left",
        frameon=False,
        fontsize="small",
    )
    return figure


def _draw_score(axes: Axes, numbers: np.ndarray, values: np.ndarray, color: str, style: str, label: str) -> None:
    """Averages over functions, and two standard errors to either side.

    :param values: shape (n_functions, len(numbers))
    """
    mean, error = values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))
    axes.plot(numbers, mean, style, color=color, linewidth=1.3, label=label)
    axes.fill_between(numbers, mean - 2 * error, mean + 2 * error, color=color, alpha=0.15, linewidth=0)
