"""Show an agent's belief about a bandit's arms sharpen over a trial, beside the exact belief, as an animated GIF.

python examples/belief_animation.py [--model runs/bandit_demo/model.zip] [--out belief.gif]

Without ``--model`` an agent is trained as in bandit_demo.py, for two to three minutes on a core. It is calibrated, and
its belief read out of its latent, on other trials than the one that is shown.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from bandit_demo import ENV_ID, train
from matplotlib.axes import Axes
from PIL import Image

from sb3_laplace import GymnasiumVecEnv, LaplaceRecurrentPPO, calibrate_posterior, make_vec_env
from sb3_laplace.plots.traces import COLORS, new_figure, to_image
from sb3_laplace.readout import ReadoutMoments
from sb3_laplace_envs import DirichletBanditVectorEnv
from sb3_laplace_envs.oracles import DirichletIndexPolicy

AGENT, EXACT, TRUTH = COLORS[0], "#555555", COLORS[1]
#: Trials that the read-out is fitted on, and that the agent is calibrated on
N_FITTED, FITTED_SEED, CALIBRATION_SEED = 512, 50_000, 70_000
#: Milliseconds that a frame is shown, the first and the last one longer
DURATION, FIRST, LAST = 220, 1200, 3000


class Played(NamedTuple):
    """What was played and believed in N trials of T steps; the belief of step t is the one that it acts on.

    :param tasks: the arms' probabilities, shape (N, P)
    :param actions: shape (T, N)
    :param means: means of the agent's latent, shape (T, N, D)
    :param covariances: of the first trial, shape (T, D, D)
    :param exact_means: of the exact belief about the arms, shape (T, N, P)
    :param exact_covariances: shape (T, N, P, P)
    """

    tasks: np.ndarray
    actions: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    exact_means: np.ndarray
    exact_covariances: np.ndarray


def play(model: LaplaceRecurrentPPO, n_trials: int, seed: int) -> Played:
    """Let the agent play, acting on the mean, and an oracle watch."""
    bandits = DirichletBanditVectorEnv(num_envs=n_trials)
    env, oracle = GymnasiumVecEnv(bandits), DirichletIndexPolicy(bandits)
    env.seed(seed)
    obs, state, start = env.reset(), None, np.ones(n_trials, dtype=bool)
    tasks = bandits.task.copy()
    steps = []
    for _ in range(bandits.trial_length):
        oracle.observe(obs)
        actions, state = model.predict(obs, state, start, deterministic=True)
        posterior = model.policy.posterior(state)
        steps.append((actions, posterior.mean.numpy(), posterior[:1].covariance[0].numpy(), *oracle.posterior()))
        obs, _, start, _ = env.step(actions)
    return Played(tasks, *(np.stack(part) for part in zip(*steps, strict=True)))


class Shown(NamedTuple):
    """One trial in the units of the arms: means and standard deviations, each of shape (T, P)."""

    task: np.ndarray
    actions: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    exact_mean: np.ndarray
    exact_std: np.ndarray


def read_out(model: LaplaceRecurrentPPO, seed: int) -> Shown:
    """Play the trial that is shown, and read the agent's belief with what other trials say.

    As `evaluate_belief` does: ``N(B m_t + b, B Sigma_t B^T + R)``, where R is what B m + b misses of the exact mean.
    """
    fitted = play(model, N_FITTED, FITTED_SEED)
    moments = ReadoutMoments()
    moments.add(fitted.means.reshape(-1, fitted.means.shape[-1]), np.tile(fitted.tasks, (len(fitted.means), 1)))
    readout = moments.solve()
    missed = np.square(fitted.exact_means - readout(fitted.means)).mean((0, 1))
    shown = play(model, 1, seed)
    claimed = np.einsum("dp,tde,ep->tp", readout.weights, shown.covariances, readout.weights)
    exact_variance = np.diagonal(shown.exact_covariances[:, 0], axis1=-2, axis2=-1)
    return Shown(
        shown.tasks[0],
        shown.actions[:, 0],
        readout(shown.means[:, 0]),
        np.sqrt(claimed + missed),
        shown.exact_means[:, 0],
        np.sqrt(exact_variance),
    )


def draw_arms(axes: Axes, shown: Shown, step: int) -> None:
    """What is believed of each arm, and the arm that is pulled next."""
    arms = np.arange(1, len(shown.task) + 1)
    axes.axvspan(shown.actions[step] + 0.6, shown.actions[step] + 1.4, color="#e6e6e6", linewidth=0)
    axes.hlines(shown.task, arms - 0.38, arms + 0.38, color=TRUTH, linewidth=2.2, label="true probability")
    for offset, mean, std, color, label in (
        (-0.14, shown.mean, shown.std, AGENT, "agent's belief"),
        (0.14, shown.exact_mean, shown.exact_std, EXACT, "exact belief"),
    ):
        axes.errorbar(
            arms + offset, mean[step], std[step], fmt="o", color=color, markersize=5, linewidth=2.4, label=label
        )
    axes.set(xlim=(0.5, len(arms) + 0.5), ylim=(-0.12, 1.12), xticks=arms, yticks=(0, 0.25, 0.5, 0.75, 1))
    axes.set_xlabel("arm (grey: pulled next)")
    axes.set_ylabel("probability of a reward")
    axes.legend(loc="lower left", bbox_to_anchor=(1.09, 0.7), fontsize="small", frameon=False)


def draw_width(axes: Axes, shown: Shown, step: int) -> None:
    """How unsure both beliefs are, so far."""
    pulls = np.arange(step + 1)
    for std, color in ((shown.std, AGENT), (shown.exact_std, EXACT)):
        total = np.sqrt(np.square(std).sum(1))
        axes.plot(pulls, total[: step + 1], color=color, linewidth=1.8)
        axes.plot(step, total[step], "o", color=color, markersize=4)
    largest = max(np.sqrt(np.square(std).sum(1)).max() for std in (shown.std, shown.exact_std))
    axes.set(xlim=(0, len(shown.actions)), ylim=(0, 1.08 * largest), xlabel="pulls")
    axes.set_title("width, all arms", fontsize="medium")


def draw_frame(shown: Shown, step: int) -> Image.Image:
    """The beliefs after ``step`` pulls."""
    figure, (arms, width) = new_figure(1, 2, (6.4, 3.2), layout=None)
    # Where constrained_layout would put them differs from frame to frame
    arms.set_position((0.11, 0.16, 0.56, 0.73))
    width.set_position((0.76, 0.16, 0.22, 0.42))
    draw_arms(arms, shown, step)
    draw_width(width, shown, step)
    arms.set_title(f"after {step} pull{'' if step == 1 else 's'}")
    return Image.fromarray(to_image(figure))


def write_gif(frames: list[Image.Image], path: Path, n_colors: int = 32) -> None:
    """All frames in the colours of the last, which has everything; what does not change is not written again."""
    palette = frames[-1].quantize(n_colors, dither=Image.Dither.NONE)
    first, *rest = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [FIRST, *[DURATION] * (len(frames) - 2), LAST]
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)


def main(arguments: list[str] | None = None) -> None:
    """Train or load, calibrate, play and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="an agent trained on DirichletBandit; without it one is trained")
    parser.add_argument("--timesteps", type=int, default=1_000_000, help="of training")
    parser.add_argument("--seed", type=int, default=0, help="of training")
    parser.add_argument("--trial", type=int, default=24, help="seed of the trial that is shown")
    parser.add_argument("--no-calibration", action="store_true", help="show the belief as it was trained")
    parser.add_argument("--out", type=Path, default=Path("belief.gif"))
    args = parser.parse_args(arguments)

    if args.model is None:
        model = train(args.timesteps, args.seed, args.out.parent / "belief_animation")
    else:
        model = LaplaceRecurrentPPO.load(args.model, device="cpu")
    if not args.no_calibration:
        env = make_vec_env(ENV_ID, n_envs=N_FITTED, seed=CALIBRATION_SEED)
        print(calibrate_posterior(model, env, n_trials=N_FITTED).table())
    shown = read_out(model, args.trial)
    frames = [draw_frame(shown, step) for step in range(len(shown.actions))]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_gif(frames, args.out)
    print(f"{args.out}: {len(frames)} frames, {args.out.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
