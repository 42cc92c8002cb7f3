"""Setting prior and observation noise of an agent so that its belief moves as much as it claims to learn."""

import math
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_laplace.algorithm.laplace_recurrent_ppo import LaplaceRecurrentPPO
from sb3_laplace.checks import check_integer
from sb3_laplace.evaluation.player import Player, player_env, seeded_trials
from sb3_laplace.posteriors import LaplacePosterior
from sb3_laplace.posthoc.calibrate import laplace_layer
from sb3_laplace.posthoc.empirical_bayes import PARTS, Recording, against_spread, fit_posterior, ratios
from sb3_laplace.readout import ReadoutMoments, TaskEncoder

#: Fewest trials, half of them to be fitted to
MIN_TRIALS = 20
# Fewest steps of a trial to have three thirds
_MIN_STEPS = 4
# Curvatures kept, in bytes: beyond it every other trial is forgotten
_MEMORY = 2**26
# But so many trials are kept, however large: half of them fit, half report
_LEAST_KEPT = 40


@dataclass
class PosteriorCalibration:
    """What :func:`calibrate_posterior` has set, and what it changed on trials that it was not fitted to.

    :param prior_mean: mean of the prior, shape (D,)
    :param prior_std: standard deviation of the prior, shape (D,)
    :param noise_std: standard deviation of the observation noise
    :param before: ratio of moved to claimed by part of a trial (all, early, middle, late) with the settings before
    :param after: the same with those set
    :param moved_to_spread: what all of a trial moves over the variance that its means end with: above 1 the mean
        wavers, and no prior and noise bring the ratio to 1
    :param claimed_to_spread: what all of a trial claims to learn over the same: far from 1 units are correlated, which
        one variance for each does not know, and the ratio is off by as much
    :param space: "task" or "latent", in whose units the ratios are
    :param n_fitted: number of trials fitted to
    :param n_reported: number of other trials, of the ratios
    """

    prior_mean: np.ndarray
    prior_std: np.ndarray
    noise_std: float
    before: dict[str, float]
    after: dict[str, float]
    moved_to_spread: float
    claimed_to_spread: float
    space: str
    n_fitted: int
    n_reported: int

    def to_dict(self) -> dict[str, Any]:
        """Everything in what JSON can hold; ratios that do not exist are None."""
        result = asdict(self)
        for name in ("prior_mean", "prior_std"):
            result[name] = result[name].tolist()
        for name in ("before", "after"):
            result[name] = {part: ratio if math.isfinite(ratio) else None for part, ratio in result[name].items()}
        return result

    def table(self) -> str:
        """The values set and the ratios as a table of text."""
        lines = [f"{f'Moved to claimed ({self.space} space)':<32}  {'BEFORE':>10}  {'AFTER':>10}"]
        lines += [f"    {name:<28}  {self.before[name]:>10.3g}  {self.after[name]:>10.3g}" for name in PARTS]
        stds = f"{self.prior_std.min():.3g} to {self.prior_std.max():.3g}"
        lines.append(f"Set: noise std {self.noise_std:.3g}, prior std {stds} by unit")
        over_spread = f"moves {self.moved_to_spread:.3g}, claims {self.claimed_to_spread:.3g}"
        lines.append(f"Over the variance that the means end with: {over_spread}")
        lines.append(f"({self.n_fitted} trials fitted, ratios of {self.n_reported} others; 1 is calibrated)")
        return "\n".join(lines)


def calibratable_layer(model: LaplaceRecurrentPPO) -> LaplacePosterior:
    """The model's latent layer, one that :func:`calibrate_posterior` can set prior and noise of.

    :param model: the model
    :raises ValueError: if it is none
    """
    layer = laplace_layer(model)
    for name in ("sum_means", "normalize"):
        if getattr(layer, name):
            raise ValueError(f"A posterior with {name}=True cannot be calibrated: its precision is no sum of evidence.")
    return layer


def calibrate_posterior(
    model: LaplaceRecurrentPPO,
    env: VecEnv | gym.Env,
    n_trials: int = 256,
    deterministic: bool = False,
    seed: int = 0,
) -> PosteriorCalibration:
    """Set prior and observation noise so that the posterior moves as much as it claims to learn.

    Held-out trials are played once with the model as it is. Half of them fit ``prior_mean``, ``prior_std`` (one for
    each latent unit) and ``noise_std``, see :func:`~sb3_laplace.posthoc.empirical_bayes.fit_posterior`; the other half
    tell how the ratio of :func:`~sb3_laplace.evaluation.overconfidence.judge_overconfidence` changed. Where the
    environment reports its task, the ratio is that of the linear read-out of the task, else that of the whole latent.
    The values are set on the model and saved with it.

    Means do not change, so an agent that acts without samples acts as before; one that samples draws from another
    width, which its heads may not read well: :func:`~sb3_laplace.calibrate_prior_std` is for what sampling costs.
    It warns where the ratio is further from 1 afterwards, as it can be of a mean that wavers or of correlated units.

    Full precision matrices take much memory: whenever those kept exceed 64 MB, every other trial is forgotten, until 40
    to 79 are left.
    The environment, VecNormalize and torch's generators are treated as by ``calibrate_prior_std``.

    :param model: an agent with a Laplace posterior
    :param env: environment of the held-out trials
    :param n_trials: number of trials
    :param deterministic: whether the agent takes the most probable action
    :param seed: seed of the trials and of the agent's draws
    :raises ValueError: if an argument is out of range, the environment does not fit the agent, the posterior is no
        Laplace posterior or none that a prior and noise can calibrate, there are too few complete trials of at least
        4 steps, the posterior is not finite, or it does not move or learn
    """
    layer = calibratable_layer(model)
    check_integer("n_trials", n_trials, minimum=MIN_TRIALS)
    env = player_env(model, env)
    trials = _record(model, layer, env, n_trials, deterministic, seed)
    halves = trials[::2], trials[1::2]
    if len(trials) < MIN_TRIALS:
        raise ValueError(
            f"Calibration takes {MIN_TRIALS} complete trials of at least {_MIN_STEPS} steps, here are {len(trials)} "
            f"(n_trials={n_trials})."
        )
    fitted, others = (_join(half) for half in halves)
    if not all(np.isfinite(part).all() for half in (fitted, others) for part in (half.means, half.curvature)):
        raise ValueError("The posterior is not finite: its means or precisions hold NaN or infinity.")
    readout = None
    tasks = [trial.tasks for trial in halves[0]]
    if all(task is not None for task in tasks):
        moments = ReadoutMoments()
        moments.add(fitted.means, TaskEncoder().encode(np.concatenate(tasks)))  # type: ignore[arg-type]
        readout = moments.solve()
    fit = fit_posterior(fitted, readout)
    prior_std = layer.prior_precision.double().rsqrt().cpu().numpy()
    before = ratios(others, prior_std, layer.noise_std, readout)
    after = ratios(others, fit.prior_std, fit.noise_std, readout)
    means, stds = fit.prior_mean.tolist(), fit.prior_std.tolist()
    layer.set_prior(means, stds)
    layer.noise_std = fit.noise_std
    model.set_posterior_settings(prior_mean=means, prior_std=stds, noise_std=fit.noise_std)
    space = "latent" if readout is None else "task"
    over_spread = against_spread(others, fit, readout)
    result = PosteriorCalibration(*fit, before, after, *over_spread, space, len(halves[0]), len(halves[1]))
    if _is_further_from_one(after["all"], before["all"]):
        warnings.warn(
            f"Calibrated, the posterior moves {after['all']:.2g} of what it claims on the trials it was not fitted to, "
            f"{before['all']:.2g} before: further from 1. Its width is fitted all the same, to a mean that moves "
            f"{over_spread[0]:.2g} and claims {over_spread[1]:.2g} of the variance that the means end with: where "
            "these are not 1, no prior and noise have both right."
        )
    return result


def _is_further_from_one(ratio: float, other: float) -> bool:
    """Whether a ratio is further from 1 than another, by a tenth at least; not where one does not exist."""
    return ratio > 0 and other > 0 and abs(math.log(ratio)) > abs(math.log(other)) + math.log(1.1)


@dataclass
class _Trial:
    """One trial of T steps: m_t (T, D), A_t (T, D) or (T, D, D), where memory starts (T,), tasks (T, ...)."""

    means: np.ndarray
    curvature: np.ndarray
    starts: np.ndarray
    tasks: np.ndarray | None


def _record(
    model: LaplaceRecurrentPPO, layer: LaplacePosterior, env: VecEnv, n_trials: int, deterministic: bool, seed: int
) -> list[_Trial]:
    """Play the trials; the complete ones that are long enough and were not forgotten."""
    prior = layer.prior(1).precision.double().cpu().numpy()
    kept: dict[int, list[tuple]] = {}
    stride, n_bytes = 1, 0
    player = Player(model, env, n_trials, partial(model.policy.act, deterministic=deterministic), asks_tasks=True)
    with seeded_trials(player, seed) as steps:
        for played in steps:
            posterior = played.step.posterior.posterior
            means = posterior.mean.double().cpu().numpy()
            added = (posterior.precision.double().cpu().numpy() - prior) * layer.noise_std**2
            for i in np.flatnonzero(played.counts):
                row = int(played.rows[i])
                if row % stride:
                    continue
                task = None if played.tasks is None else played.tasks[i]
                start = bool(played.starts[i])
                kept.setdefault(row, []).append((means[i].copy(), added[i].astype(np.float32), start, task))
                n_bytes += 4 * math.prod(added.shape[1:])
            while n_bytes > _MEMORY and added.ndim == 3 and n_trials >= 2 * stride * _LEAST_KEPT:
                stride *= 2
                kept = {row: trial for row, trial in kept.items() if row % stride == 0}
                n_bytes = sum(len(trial) for trial in kept.values()) * 4 * math.prod(added.shape[1:])
    trials = []
    for row in sorted(kept):
        if len(kept[row]) >= _MIN_STEPS:
            each_mean, each_curvature, each_start, each_task = zip(*kept[row], strict=True)
            its_tasks = None if any(task is None for task in each_task) else np.array(each_task)
            trials.append(_Trial(np.array(each_mean), np.array(each_curvature), np.array(each_start), its_tasks))
    return trials


def _join(trials: list[_Trial]) -> Recording:
    """The trials one after the other; steps at which memory starts afresh are no updates."""
    updates, parts, last, first = [], [], [], 0
    for trial in trials:
        length = len(trial.means)
        steps = np.arange(1, length)
        third = (length - 1) // 3
        part = np.where(steps <= third, 1, np.where(steps >= length - third, 3, 2))
        counts = ~trial.starts[1:]
        updates.append(first + steps[counts])
        parts.append(part[counts])
        first += length
        last.append(first - 1)
    return Recording(
        np.concatenate([trial.means for trial in trials]),
        np.concatenate([trial.curvature for trial in trials]).astype(np.float64),
        np.concatenate(updates),
        np.concatenate(parts),
        np.array(last),
    )
