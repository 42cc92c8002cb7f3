"""Plots of traces, drawn with matplotlib's Agg and SVG canvases: pyplot's global state is never touched."""

import base64
import io
import warnings
from collections.abc import Callable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator

from sb3_laplace.evaluation.diagnostics import Diagnosis, reliability_bins
from sb3_laplace.evaluation.traces import PosteriorTrace

# Okabe and Ito's colours: told apart by colour-blind readers
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_SIZE = (5.2, 3.3)
# More points than this make a file big and no line finer
_MAX_POINTS = 500
Traces = Mapping[str, PosteriorTrace]


def new_figure(
    n_rows: int = 1, n_columns: int = 1, size: tuple[float, float] = _SIZE, layout: str | None = "constrained"
) -> tuple[Figure, list[Axes]]:
    """A figure with a grid of axes, row by row.

    :param n_rows: number of rows
    :param n_columns: number of columns
    :param size: width and height, in inches
    :param layout: matplotlib's layout engine, None for none
    """
    figure = Figure(figsize=size, layout=layout, facecolor="white")  # type: ignore[arg-type]
    axes = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(color="#dddddd", linewidth=0.6)
        one.set_axisbelow(True)
    return figure, axes


def to_image(figure: Figure, dpi: int = 100) -> np.ndarray:
    """The figure's pixels, shape (height, width, 3), uint8."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def to_data_uri(figure: Figure) -> str:
    """The figure as an SVG image in a data URI, for an HTML file that needs no other."""
    buffer = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def within_trial(means: Mapping[str, np.ndarray]) -> Figure:
    """Side by side, averages over trials by step.

    :param means: by label, each of shape (T,); a logarithmic axis where the label says KL
    """
    # No layout engine: it doubles the time, which training has to wait for
    figure, axes = new_figure(1, len(means), (4.0 * len(means), 3.0), layout=None)
    figure.subplots_adjust(left=0.06, right=0.99, bottom=0.17, top=0.9, wspace=0.2)
    for one, (label, values) in zip(axes, means.items(), strict=True):
        one.plot(np.arange(1, len(values) + 1), values, color=COLORS[0])
        one.set(xlabel="step of the trial", title=label)
        if "KL" in label:
            set_log(one)
    return figure


def set_log(axes: Axes) -> None:
    """A logarithmic y axis, unless nothing positive is drawn."""
    drawn = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]
    if any((values > 0).any() for values in drawn):
        axes.set_yscale("log")


def mean_and_spread(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean over trials by step, and the quartiles, of long trials averaged over several steps at a time.

    :param values: shape (n_trials, T), NaN after a trial's end
    :return: steps (from 1), mean, lower and upper quartile, each of shape (at most 500,); NaN where less
        than one trial in 20 is left
    """
    n_steps = values.shape[1]
    width = -(-n_steps // _MAX_POINTS)
    padded = np.pad(values, ((0, 0), (0, -n_steps % width)), constant_values=np.nan)
    with warnings.catch_warnings():
        # A step that no trial has reached has no mean
        warnings.simplefilter("ignore", RuntimeWarning)
        binned = values.copy() if width == 1 else np.nanmean(padded.reshape(len(values), -1, width), axis=2)
        binned[:, np.isfinite(binned).sum(0) < 0.05 * len(binned)] = np.nan
        mean, (low, high) = np.nanmean(binned, axis=0), np.nanquantile(binned, (0.25, 0.75), axis=0)
    return np.arange(binned.shape[1]) * width + (width + 1) / 2, mean, low, high


def _curves(
    traces: Traces,
    values_of: Callable[[PosteriorTrace], np.ndarray | None],
    label: str,
    log: bool = False,
    x_label: str = "step of the trial",
    marker: str | None = None,
) -> Figure | None:
    """One curve for each agent, with a band for the middle half of its trials; None if there is nothing to draw."""
    figure, (axes,) = new_figure()
    drawn = False
    for color, (name, trace) in zip(_colors(traces), traces.items(), strict=True):
        values = values_of(trace)
        if values is None or not np.isfinite(values).any() or (log and not np.nanmax(values) > 0):
            continue
        steps, mean, low, high = mean_and_spread(values)
        axes.plot(steps, mean, color=color, label=name, marker=marker)
        axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        drawn = True
    axes.set(xlabel=x_label, ylabel=label)
    if log:
        set_log(axes)
    else:
        _widen(axes)
    _legend(axes, traces)
    return figure if drawn else None


def _widen(axes: Axes) -> None:
    """Show what only differs by rounding as constant."""
    low, high = axes.get_ylim()
    level = max(abs(low), abs(high))
    if high - low < 1e-5 * level:
        axes.set_ylim(low - 0.05 * level, high + 0.05 * level)


def _colors(traces: Traces) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(len(traces))]


def _legend(axes: Axes, traces: Traces) -> None:
    if len(traces) > 1 and axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")


def entropy(traces: Traces) -> Figure | None:
    """H(q_t) by step."""
    return _curves(traces, lambda trace: trace.entropy, "entropy (nats)")


def kl_mean(traces: Traces) -> Figure | None:
    """Mean part of KL(q_t || q_{t-1}) by step."""
    return _curves(traces, lambda trace: trace.kl_mean, "KL, mean part (nats)", log=True)


def kl_covariance(traces: Traces) -> Figure | None:
    """Covariance part of KL(q_t || q_{t-1}) by step."""
    return _curves(traces, lambda trace: trace.kl_covariance, "KL, covariance part (nats)", log=True)


def performance(traces: Traces) -> Figure | None:
    """Regret summed from the trial's start where all agents have one, else reward by step."""
    if all(trace.regret is not None for trace in traces.values()):
        return _curves(traces, lambda trace: np.cumsum(trace.metrics["regret"], axis=1), "cumulative regret")
    return _curves(traces, lambda trace: trace.reward, "reward")


def episodes(traces: Traces) -> Figure | None:
    """Return by episode, where a trial has several."""
    if all(trace.returns_by_episode.shape[1] == 1 for trace in traces.values()):
        return None
    figure = _curves(
        traces, lambda trace: trace.returns_by_episode, "return", x_label="episode of the trial", marker="o"
    )
    if figure is not None:
        figure.axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def action_entropy(traces: Traces) -> Figure | None:
    """Entropy of the action distribution by step."""
    return _curves(traces, lambda trace: trace.action_entropy, "entropy of the actions (nats)")


def jacobian_norm(traces: Traces) -> Figure | None:
    """Norm of J_t by step."""
    return _curves(traces, lambda trace: trace.jacobian_norm, "norm of the Jacobian")


def moves(traces: Traces) -> Figure | None:
    """How far the mean moved, and how far it would if the precision were right, by step (both averages).

    In the read-out of the task where all agents that claim anything have one, else in the latent.
    """
    figure, (axes,) = new_figure()
    drawn = False
    claiming = [trace for trace in traces.values() if np.isfinite(trace.expected_move[:, 1:]).any()]
    reads_task = all(np.isfinite(trace.task_expected_move).any() for trace in claiming)
    for color, (name, trace) in zip(_colors(traces), traces.items(), strict=True):
        moved, claimed = trace.move, trace.expected_move
        if reads_task:
            kept = np.isfinite(trace.task_move).any(1)
            moved, claimed = trace.task_move[kept], trace.task_expected_move[kept]
        if not np.isfinite(moved[:, 1:]).any() or not np.isfinite(claimed[:, 1:]).any():
            continue
        for values, style, kind in ((moved, "-", "moved"), (claimed, "--", "claimed")):
            # The first step is no update: the prior's mean is no estimate
            steps, mean, _, _ = mean_and_spread(values[:, 1:])
            label = kind if len(traces) == 1 else f"{name}: {kind}"
            axes.plot(steps + 1, mean, style, color=color, label=label)
        drawn = True
    label = "squared move of the task / its variance" if reads_task else "squared move / D, in units of $q_{t-1}$"
    axes.set(xlabel="step of the trial", ylabel=label)
    set_log(axes)
    if drawn:
        axes.legend(frameon=False, fontsize="small")
    return figure if drawn else None


def ratios(diagnoses: Mapping[str, Diagnosis]) -> Figure | None:
    """How far the belief moves over how far it claims to, with confidence intervals, by part of a trial."""
    figure, (axes,) = new_figure()
    findings = {name: diagnosis.findings["overconfidence"] for name, diagnosis in diagnoses.items()}
    drawn = {name: finding for name, finding in findings.items() if finding.numbers}
    for i, (name, finding) in enumerate(findings.items()):
        if name not in drawn:
            continue
        values, low, high = np.array(list(finding.numbers.values())).T
        # Intervals may reach beyond 0, which has no place on the axis
        bars = np.stack((values - np.maximum(low, 0.1 * values), high - values))
        x = np.arange(len(values)) + 0.12 * (i - 0.5 * (len(findings) - 1))
        space = "the task's read-out" if finding.space == "task" else "the latent"
        axes.errorbar(x, values, bars, fmt="o", color=COLORS[i % len(COLORS)], capsize=3, label=f"{name}, in {space}")
        parts = [part.removeprefix("moved_to_claimed").strip("_") or "all" for part in finding.numbers]
        axes.set_xticks(np.arange(len(parts)), parts)
    axes.axhline(1.0, color="#888888", linewidth=1, linestyle=":")
    axes.set(xlabel="part of the trial", ylabel="moved / claimed", yscale="log")
    if drawn:
        axes.legend(frameon=False, fontsize="small")
    return figure if drawn else None


def calibration(traces: Traces) -> Figure | None:
    """How often the action taken was the best by how sure the policy was; or how often targets fall where."""
    figure, (axes,) = new_figure()
    drawn = False
    for color, (name, trace) in zip(_colors(traces), traces.items(), strict=True):
        if trace.regret is not None and np.isfinite(trace.confidence).any():
            _draw_reliability(axes, trace, color, name)
            drawn = True
        elif np.isfinite(trace.target_quantile).any():
            _draw_quantiles(axes, trace, color, name)
            drawn = True
    _legend(axes, traces)
    return figure if drawn else None


def _draw_reliability(axes: Axes, trace: PosteriorTrace, color: str, name: str) -> None:
    confidence, regret = trace.confidence[:, 1:].ravel(), trace.metrics["regret"][:, 1:].ravel()
    bins = reliability_bins(confidence)
    number = np.array([(bins == b).sum() for b in range(10)])
    # A bin with a handful of steps says nothing
    shown = np.flatnonzero(number >= 20)
    x = [confidence[bins == b].mean() for b in shown]
    y = [(regret[bins == b] < 1e-6).mean() for b in shown]
    axes.plot((0, 1), (0, 1), color="#888888", linewidth=1, linestyle=":")
    axes.plot(x, y, color=color, linewidth=1)
    axes.scatter(x, y, s=15 + 250 * number[shown] / number.sum(), color=color, label=name, clip_on=False, zorder=3)
    axes.set(xlabel="probability of the action taken", ylabel="how often it was the best", xlim=(0, 1), ylim=(0, 1.03))


def _draw_quantiles(axes: Axes, trace: PosteriorTrace, color: str, name: str) -> None:
    quantiles = trace.target_quantile[:, 1:]
    heights, edges = np.histogram(quantiles[np.isfinite(quantiles)], bins=20, range=(0, 1), density=True)
    axes.axhline(1.0, color="#888888", linewidth=1, linestyle=":")
    axes.stairs(heights, edges, color=color, label=name)
    axes.set(xlabel="quantile of the target among predictions", ylabel="density", xlim=(0, 1), ylim=(0, None))


def example_trials(trace: PosteriorTrace) -> Figure | None:
    """Posteriors of a few trials, projected on the two leading axes of their means.

    A line joins the means, coloured by step; ellipses are one standard deviation of the projected posterior.
    """
    examples = trace.examples
    if examples is None or trace.latent_dim < 2:
        return None
    points = examples.means[np.isfinite(examples.means).all(-1)].astype(np.float64)
    center = points.mean(0)
    basis = np.linalg.svd(points - center, full_matrices=False)[2][:2].T
    if basis.shape[1] < 2:
        return None
    n = len(examples.trials)
    n_columns = min(n, 2)
    n_rows = -(-n // n_columns)
    n_steps = examples.means.shape[1]
    projected = (examples.means - center) @ basis
    low, high = np.nanmin(projected, axis=(0, 1)), np.nanmax(projected, axis=(0, 1))
    margin = 0.08 * (high - low).max()
    # The same scale for both axes and all panels, so that sizes can be compared
    limits = np.stack((low - margin, high + margin), axis=1)
    spans = np.diff(limits, axis=1)[:, 0]
    panel_width = 5.0 / n_columns - 0.4
    figure, axes = new_figure(n_rows, n_columns, (5.2, 0.7 + n_rows * (0.55 + panel_width * spans[1] / spans[0])))
    image = None
    for i in range(n):
        inside = np.isfinite(projected[i]).all(-1)
        path = projected[i][inside]
        axes[i].plot(path[:, 0], path[:, 1], color="#bbbbbb", linewidth=0.8, zorder=1)
        image = axes[i].scatter(
            path[:, 0], path[:, 1], c=np.arange(1, len(path) + 1), s=5, vmin=1, vmax=n_steps, zorder=3
        )
        axes[i].scatter(path[:1, 0], path[:1, 1], marker="s", s=36, facecolor="none", edgecolor="black", zorder=4)
        for step, covariance in zip(examples.steps, examples.covariances[i], strict=True):
            if np.isfinite(covariance).all():
                color = tuple(image.to_rgba(step + 1))
                _draw_ellipse(axes[i], projected[i, step], basis.T @ covariance @ basis, color)
        axes[i].set_title(_title_of(trace, int(examples.trials[i])), fontsize="medium")
        axes[i].tick_params(labelsize="small")
        axes[i].set(xlim=limits[0], ylim=limits[1])
        axes[i].set_aspect("equal", adjustable="box")
        axes[i].label_outer()
    for unused in axes[n:]:
        unused.remove()
    if image is not None:
        figure.colorbar(image, ax=axes[:n], label="step of the trial", shrink=0.6, aspect=40, location="bottom")
    return figure


def _draw_ellipse(axes: Axes, center: np.ndarray, covariance: np.ndarray, color: tuple[float, ...]) -> None:
    variances, directions = np.linalg.eigh(covariance)
    width, height = 2.0 * np.sqrt(np.maximum(variances, 0.0))
    angle = np.degrees(np.arctan2(directions[1, 0], directions[0, 0]))
    axes.add_patch(Ellipse(tuple(center), width, height, angle=angle, facecolor=color, alpha=0.35, zorder=2))


def _title_of(trace: PosteriorTrace, trial: int) -> str:
    text = f"trial {trial}: return {trace.returns[trial]:.4g}"
    if trace.regret is not None:
        text += f", regret {trace.totals(trace.regret)[trial]:.3g}"
    return text
