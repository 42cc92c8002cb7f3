"""Draws the pictures of docs/bayes.md: ``python docs/figures/make_figures.py``, some seconds.

A hidden number and its noisy observations, of which all that is drawn is known in closed form, and one bandit with its
exact belief. The same bytes come out each time, with the same version of matplotlib.
"""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sb3_laplace.plots.traces import COLORS, new_figure
from sb3_laplace_envs import DirichletBanditVectorEnv
from sb3_laplace_envs.oracles import DirichletIndexPolicy, DirichletThompsonSampling

HERE = Path(__file__).parent
BLUE, ORANGE, GREEN, GREY = COLORS[0], COLORS[1], COLORS[2], "#777777"
#: Standard deviations of the prior of the hidden number, and of the noise of what is observed of it
PRIOR_STD, NOISE_STD = 2.0, 1.0
HIDDEN = 1.3
SETTINGS: Any = {
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "sb3-laplace",
}


def density(x: NDArray[np.float64], mean: float, std: float) -> NDArray[np.float64]:
    """Density of a Gaussian."""
    return np.exp(-(((x - mean) / std) ** 2) / 2) / (std * np.sqrt(2 * np.pi))


def entropy(std: Any) -> Any:
    """Entropy of a Gaussian of one number, in nats."""
    return 0.5 + np.log(std * np.sqrt(2 * np.pi))


def precision_after(n: Any) -> Any:
    """The posterior's precision after n observations."""
    return PRIOR_STD**-2 + n * NOISE_STD**-2


def observed(n: int, seed: int = 0) -> NDArray[np.float64]:
    """Observations of the hidden number."""
    return HIDDEN + NOISE_STD * np.random.default_rng(seed).standard_normal(n)


def without_y(axes: Axes) -> None:
    """Densities need no numbers."""
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylim(bottom=0)


def draw_precision() -> Figure:
    """The posterior narrows; precisions add up."""
    figure, (left, right) = new_figure(1, 2, (6.6, 2.3))
    x = np.linspace(-4.5, 4.5, 600)
    observations = observed(16)
    for n, color in ((0, GREY), (1, COLORS[5]), (4, BLUE), (16, "#00395a")):
        precision = precision_after(n)
        mean = observations[:n].sum() / NOISE_STD**2 / precision
        label = "prior" if n == 0 else f"posterior after {n}"
        left.plot(x, density(x, mean, precision**-0.5), color=color, label=label)
    left.axvline(HIDDEN, color=ORANGE, linestyle="--", linewidth=1.2, label="the hidden number")
    left.set(title="what is believed of a hidden number", xlabel="its value")
    without_y(left)
    left.legend(loc="upper left", handlelength=1.2, borderaxespad=0.1)
    steps = np.arange(17)
    right.step(steps, precision_after(steps), where="post", color=BLUE)
    right.annotate("the prior's precision\n1 / 2² = 0.25", (0.5, 0.25), (6.5, 1.2), arrowprops={"arrowstyle": "-"})
    right.annotate("each observation\nadds 1 / 1² = 1", (8, 8.25), (0.6, 11.5), arrowprops={"arrowstyle": "-"})
    right.set(title="its precision, 1 / variance", xlabel="observations", xlim=(0, 16), ylim=(0, None))
    return figure


def draw_entropy() -> Figure:
    """A width has an entropy."""
    figure, (left, right) = new_figure(1, 2, (6.6, 2.1))
    x = np.linspace(-5, 5, 600)
    for std, color in ((2.0, GREY), (1.0, BLUE), (0.5, ORANGE)):
        left.plot(x, density(x, 0.0, std), color=color, label=f"std {std:g}: {entropy(std):.2f} nats")
    left.set(title="narrower, lower entropy", xlabel="the number, less its mean")
    without_y(left)
    left.legend(loc="upper left", handlelength=1.2, borderaxespad=0.1)
    steps = np.arange(17)
    right.plot(steps, entropy(precision_after(steps) ** -0.5), color=BLUE, marker=".")
    right.axhline(0, color=GREY, linewidth=0.8)
    right.set(title="entropy of the posterior, in nats", xlabel="observations", xlim=(0, 16.3))
    return figure


def kl_parts(before: tuple[float, float], after: tuple[float, float]) -> tuple[float, float]:
    """The mean's and the covariance's part of KL(after || before), of Gaussians given by mean and std, in nats."""
    (old_mean, old_std), (mean, std) = before, after
    ratio = (std / old_std) ** 2
    return ((mean - old_mean) / old_std) ** 2 / 2, (ratio - 1 - np.log(ratio)) / 2


def draw_kl() -> Figure:
    """What changes a belief: its mean, its width, or both."""
    figure, panels = new_figure(1, 3, (6.6, 1.9))
    x = np.linspace(-3.6, 3.6, 600)
    before = (0.0, 1.0)
    for axes, title, after in zip(
        panels,
        ("surer, the same opinion", "another opinion, as sure", "both"),
        ((0.0, 0.6), (1.2, 1.0), (1.2, 0.6)),
        strict=True,
    ):
        of_mean, of_width = kl_parts(before, after)
        axes.plot(x, density(x, *before), color=GREY, label="before")
        axes.plot(x, density(x, *after), color=BLUE, label="after")
        axes.set(title=title, xlabel=f"KL {of_mean:.2f} + {of_width:.2f} = {of_mean + of_width:.2f} nats", xticks=[])
        without_y(axes)
        axes.set_ylim(top=0.78)
    panels[0].legend(loc="upper left", handlelength=1.2, borderaxespad=0.1)
    return figure


def draw_samples() -> Figure:
    """The exact belief about a bandit's arms, and draws of it."""
    shown, n_draws = (0, 5, 15, 45), 24
    env = DirichletBanditVectorEnv(num_envs=1)
    player, watcher = DirichletIndexPolicy(env), DirichletThompsonSampling(DirichletBanditVectorEnv(num_envs=n_draws))
    observations, _ = env.reset(seed=37)
    task = env.task[0].copy()
    figure, panels = new_figure(1, len(shown), (6.6, 2.2))
    arms = np.arange(1, env.n_arms + 1)
    jitter = np.linspace(-0.28, 0.28, n_draws)[:, np.newaxis]
    for pulls in range(max(shown) + 1):
        player.observe(observations)
        watcher.observe(np.repeat(observations, n_draws, axis=0))
        if pulls in shown:
            axes = panels[shown.index(pulls)]
            belief = player.posterior()
            stds = np.sqrt(np.diagonal(belief.covariance[0]))
            axes.plot(arms + jitter, watcher.sample(), ".", color=COLORS[5], markersize=3)
            axes.errorbar(arms, belief.mean[0], stds, fmt="o", color=BLUE, markersize=4, linewidth=1.4)
            axes.hlines(task, arms - 0.4, arms + 0.4, color=ORANGE, linewidth=1.4)
            title = "before the first pull" if pulls == 0 else f"after {pulls} pulls"
            axes.set(title=title, xlabel="arm", xticks=arms, ylim=(-0.03, 1.03), xlim=(0.4, env.n_arms + 0.6))
            if pulls:
                axes.tick_params(labelleft=False)
        observations, *_ = env.step(player.act())
    panels[0].set_ylabel("probability of a reward")
    return figure


def moved_and_claimed(true_noise: float, n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How far the mean of one who believes in NOISE_STD moves, squared and expected, and what its variances claim.

    The mean is ``a_t`` times the sum of the t observations, each of which is the hidden number and noise.
    """
    steps = np.arange(n + 1)
    variances = 1 / precision_after(steps)
    weights = variances / NOISE_STD**2
    old, new, t = weights[:-1], weights[1:], steps[1:]
    of_hidden = (new * t - old * (t - 1)) ** 2 * PRIOR_STD**2
    of_noise = (new**2 + (new - old) ** 2 * (t - 1)) * true_noise**2
    return of_hidden + of_noise, -np.diff(variances)


def draw_moved() -> Figure:
    """Means of many trials, and what they move beside what is claimed."""
    n, n_paths = 20, 14
    figure, panels = new_figure(1, 4, (7.2, 2.2))
    generator = np.random.default_rng(0)
    hidden = PRIOR_STD * generator.standard_normal((n_paths, 1))
    seen = hidden + NOISE_STD * generator.standard_normal((n_paths, n))
    means = seen.cumsum(1) / NOISE_STD**2 / precision_after(np.arange(1, n + 1))
    steps = np.arange(n + 1)
    panels[0].plot(steps, np.hstack((np.zeros((n_paths, 1)), means)).T, color=BLUE, linewidth=0.8, alpha=0.8)
    panels[0].set(title="means of 14 trials", xlabel="observations")
    believers = ("right", 1.0), ("overconfident", 2.0), ("underconfident", 0.5)
    for axes, (name, true_noise) in zip(panels[1:], believers, strict=True):
        moved, claimed = moved_and_claimed(true_noise, n)
        # From the second observation on, as `diagnose` counts
        axes.plot(steps[1:], np.cumsum([0, *moved[1:]]), color=BLUE, label="moved")
        axes.plot(steps[1:], np.cumsum([0, *claimed[1:]]), color=ORANGE, linestyle="--", label="claimed")
        axes.set(title=f"{name}: {moved[1:].sum() / claimed[1:].sum():.2f}", xlabel="observations", ylim=(0, 3.1))
    panels[1].legend(loc="upper left", handlelength=1.6, borderaxespad=0.1)
    return figure


FIGURES = {
    "bayes-precision": draw_precision,
    "bayes-entropy": draw_entropy,
    "bayes-kl": draw_kl,
    "bayes-samples": draw_samples,
    "bayes-moved": draw_moved,
}


def main() -> None:
    """Draw them all."""
    for name, draw in FIGURES.items():
        with matplotlib.rc_context(SETTINGS):
            draw().savefig(HERE / f"{name}.svg", metadata={"Date": None})
        print(f"docs/figures/{name}.svg")


if __name__ == "__main__":
    main()
