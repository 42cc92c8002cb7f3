"""The prior and the observation noise that make a recorded belief a martingale of the right size."""

from typing import NamedTuple

import numpy as np

from sb3_laplace.readout import Readout

#: The parts of a trial, as :mod:`sb3_laplace.evaluation.findings` has them, and the steps between
PARTS = ("all", "early", "middle", "late")
# Natural logarithms of the noise variances tried relative to the average curvature's unit, and rounds of refinement
_RANGE = 9.0
_N_SCAN, _N_REFINE = 37, 9
_ITERATIONS = 30
# Of a unit whose curvature says nothing the prior is no wider than this many times its means' variance
_LEAST_INFORMATION = 1e-4


class Recording(NamedTuple):
    """The steps of several trials one after the other, S in all, and U updates among them.

    :param means: m_t, shape (S, D), float64
    :param curvature: A_t, the sum of J J^T so far, shape (S, D) or (S, D, D)
    :param updates: the steps whose step before is of the same trial and memory, shape (U,)
    :param part: of the trial that each update is in, an index of PARTS (1 to 3), shape (U,)
    :param last: the last step of each trial, shape (n,)
    """

    means: np.ndarray
    curvature: np.ndarray
    updates: np.ndarray
    part: np.ndarray
    last: np.ndarray


class Fit(NamedTuple):
    """What :func:`fit_posterior` finds.

    :param prior_mean: shape (D,)
    :param prior_std: shape (D,)
    :param noise_std: standard deviation of the observation noise
    """

    prior_mean: np.ndarray
    prior_std: np.ndarray
    noise_std: float


def ratios(recording: Recording, prior_std: np.ndarray, noise_std: float, readout: Readout | None) -> dict[str, float]:
    """How much the mean moves over what the precision claims, sum d_t / sum e_t, by part of a trial.

    :param recording: the trials
    :param prior_std: shape (D,)
    :param noise_std: standard deviation of the observation noise
    :param readout: of the task, in whose units the moves are; None for those of the belief itself (whitened)
    """
    precision = _precision(recording.curvature, prior_std**2, noise_std)
    before, after = recording.updates - 1, recording.updates
    moves = recording.means[after] - recording.means[before]
    is_full = precision.ndim == 3
    covariance = np.linalg.inv(precision) if is_full else 1.0 / precision
    if readout is not None:
        moved = np.square(moves @ readout.weights).sum(-1)
        variance = readout.variance(covariance)
        claimed = variance[before] - variance[after]
    elif is_full:
        moved = np.einsum("ui,uij,uj->u", moves, precision[before], moves)
        claimed = moves.shape[1] - np.einsum("uij,uij->u", precision[before], covariance[after])
    else:
        moved = (np.square(moves) * precision[before]).sum(-1)
        claimed = (1.0 - precision[before] * covariance[after]).sum(-1)
    result = {}
    for i, name in enumerate(PARTS):
        chosen = recording.part == i if i else np.ones(len(moved), dtype=bool)
        total = claimed[chosen].sum()
        result[name] = float(moved[chosen].sum() / total) if total > 0 else float("nan")
    return result


def against_spread(recording: Recording, fit: Fit, readout: Readout | None) -> tuple[float, float]:
    """What all of a trial moves, and claims to learn, over the variance that the means end with.

    The first step is included. Of a correct belief both are 1. The first does not depend on prior and noise: it is
    above 1 where the mean wavers, being no martingale. The second tells how well the law of total variance, fitted unit
    by unit, holds in the units of the ratios: it is not 1 where units are correlated, which a prior with one variance
    for each unit does not know.

    :param recording: the trials
    :param fit: prior and noise
    :param readout: of the task; None for the belief itself, each unit relative to the variance that its means end with
    """
    final = recording.means[recording.last]
    weights = np.diag(1.0 / np.sqrt(np.maximum(final.var(0), 1e-12))) if readout is None else readout.weights
    values = recording.means @ weights
    first = np.append(0, recording.last[:-1] + 1)
    spread = values[recording.last].var(0).sum()
    moves = np.square(values[recording.updates] - values[recording.updates - 1]).sum() / len(recording.last)
    precision = _precision(recording.curvature[recording.last], fit.prior_std**2, fit.noise_std)
    covariance = np.linalg.inv(precision) if precision.ndim == 3 else 1.0 / precision
    gram = Readout(weights, np.zeros(weights.shape[1]))
    claimed = gram.variance(fit.prior_std**2) - gram.variance(covariance).mean()
    return float((values[first].var(0).sum() + moves) / spread), float(claimed / spread)


def fit_posterior(recording: Recording, readout: Readout | None = None) -> Fit:
    """Fit prior and noise: the prior by empirical Bayes, the noise so that the ratios of the thirds are near 1.

    With noise s the prior is ``mu_0 = E[m_T]`` and ``v_0 = Var(m_T) + E[diag Sigma_T(v_0, s)]`` (the law of total
    variance), and s has the least sum of squared logarithms of the thirds' :func:`ratios`.

    :param recording: the trials
    :param readout: of the task, in whose units the ratios are
    :raises ValueError: if the belief does not move, or no noise gives ratios that exist
    """
    final = recording.means[recording.last]
    spread = final.var(0, ddof=1)
    if not spread.mean() > 0:
        raise ValueError("The posterior's mean is the same at the end of all trials: there is nothing to calibrate.")
    spread = np.maximum(spread, 1e-6 * spread.mean())
    curvature = recording.curvature[recording.last]
    diagonal = np.diagonal(curvature, axis1=1, axis2=2) if curvature.ndim == 3 else curvature
    information = float((diagonal.mean(0) * spread).mean())
    if not information > 0:
        raise ValueError("The precision does not grow: the posterior claims to learn nothing.")

    def loss(log_variance: float) -> float:
        noise_std = float(np.exp(0.5 * log_variance))
        prior_std = np.sqrt(_prior_variance(spread, curvature, noise_std))
        found = ratios(recording, prior_std, noise_std, readout)
        thirds = np.array([found[name] for name in PARTS[1:]])
        return float(np.square(np.log(thirds)).sum()) if (thirds > 0).all() else np.inf

    centre, width, n = np.log(information), _RANGE, _N_SCAN
    for _ in range(3):
        points = np.linspace(centre - width, centre + width, n)
        losses = np.array([loss(point) for point in points])
        if not np.isfinite(losses).any():
            raise ValueError("The precision does not grow in every third of a trial: no noise can be fitted.")
        centre, width, n = float(points[losses.argmin()]), 2.0 * width / (n - 1), _N_REFINE
    noise_std = float(np.exp(0.5 * centre))
    return Fit(final.mean(0), np.sqrt(_prior_variance(spread, curvature, noise_std)), noise_std)


def _precision(curvature: np.ndarray, prior_variance: np.ndarray, noise_std: float) -> np.ndarray:
    prior = 1.0 / prior_variance
    return (np.diag(prior) if curvature.ndim == 3 else prior) + curvature / noise_std**2


def _prior_variance(spread: np.ndarray, curvature: np.ndarray, noise_std: float) -> np.ndarray:
    """The fixed point v_0, shape (D,), found with each unit's information taken to be the same in all trials."""
    variance = 2.0 * spread
    for _ in range(_ITERATIONS):
        precision = _precision(curvature, variance, noise_std)
        is_full = precision.ndim == 3
        covariance = np.diagonal(np.linalg.inv(precision), axis1=1, axis2=2) if is_full else 1.0 / precision
        information = np.maximum(1.0 / covariance.mean(0) - 1.0 / variance, _LEAST_INFORMATION / spread)
        # The fixed point v = spread + 1 / (1 / v + information)
        updated = 0.5 * (spread + np.sqrt(spread**2 + 4.0 * spread / information))
        done = np.allclose(updated, variance, rtol=1e-6, atol=0.0)
        variance = updated
        if done:
            break
    return variance
