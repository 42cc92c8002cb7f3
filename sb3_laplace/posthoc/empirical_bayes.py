"""The prior and the observation noise that make a recorded belief a martingale of the right size."""

from typing import NamedTuple

import numpy as np

from sb3_laplace.readout import Readout, ReadoutMoments

#: The parts of a trial, as :mod:`sb3_laplace.evaluation.findings` has them, and the steps between
PARTS = ("all", "early", "middle", "late")
# Natural logarithms of the noise variances tried relative to the average curvature's unit, and rounds of refinement
_RANGE = 9.0
_N_SCAN, _N_REFINE = 37, 9
_ITERATIONS = 30
# Logarithm of a factor that changes nothing
_CLOSE = 1e-3
# Of a unit whose curvature says nothing the prior is no wider than this many times its means' variance
_LEAST_INFORMATION = 1e-4


class Recording(NamedTuple):
    """The steps of several trials one after the other, S in all, and U updates among them.

    :param means: m_t, shape (S, D), float64
    :param curvature: A_t, the sum of J J^T so far, shape (S, D) or (S, D, D)
    :param updates: the steps whose step before is of the same trial and memory, shape (U,)
    :param part: of the trial that each update is in, an index of PARTS (1 to 3), shape (U,)
    :param last: the last step of each trial, shape (n,)
    :param moments: of means and tasks; None where the environment reports none
    """

    means: np.ndarray
    curvature: np.ndarray
    updates: np.ndarray
    part: np.ndarray
    last: np.ndarray
    moments: ReadoutMoments | None = None


class Fit(NamedTuple):
    """What :func:`fit_posterior` finds.

    :param prior_mean: shape (D,)
    :param prior_std: shape (D,)
    :param noise_std: standard deviation of the observation noise
    """

    prior_mean: np.ndarray
    prior_std: np.ndarray
    noise_std: float


class Updates:
    """Sums over the updates of a recording, from which its ratios follow.

    :param recording: the trials
    :param prior_std: shape (D,)
    :param noise_std: standard deviation of the observation noise
    """

    def __init__(self, recording: Recording, prior_std: np.ndarray, noise_std: float) -> None:
        precision = _precision(recording.curvature, prior_std**2, noise_std)
        covariance = _covariance(precision)
        before, after = recording.updates - 1, recording.updates
        moves = recording.means[after] - recording.means[before]
        is_full = precision.ndim == 3
        self._recording = recording
        if recording.moments is None:
            # Whitened by the precision before
            if is_full:
                moved = np.einsum("ui,uij,uj->u", moves, precision[before], moves)
                claimed = moves.shape[1] - np.einsum("uij,uij->u", precision[before], covariance[after])
            else:
                moved = (np.square(moves) * precision[before]).sum(-1)
                claimed = (1.0 - precision[before] * covariance[after]).sum(-1)
            self._moved, self._claimed = _by_part(moved, recording), _by_part(claimed, recording)
            return
        self._mean_covariance = covariance.mean(0)
        self._moves = np.stack([rows.T @ rows for rows in _parts(moves, recording)])
        self._claimed = _by_part(covariance[before] - covariance[after], recording)

    def readout(self, factor: float = 1.0) -> Readout | None:
        """The read-out of the task from these posteriors, None if there are no tasks.

        :param factor: multiplies prior and noise variance, hence all covariances
        """
        if self._recording.moments is None:
            return None
        return self._recording.moments.solve(factor * self._mean_covariance)

    def ratios(self, factor: float = 1.0, readout: Readout | None = None) -> dict[str, float]:
        """How much the mean moves over what the precision claims, sum d_t / sum e_t, by part of a trial.

        In the read-out of the task, or, without tasks, in the latent itself, whitened. NaN where nothing is claimed.

        :param factor: multiplies prior and noise variance, hence all covariances
        :param readout: fitted on other trials; None for that of these
        """
        readout = readout or self.readout(factor)
        if readout is None:
            moved, claimed = self._moved, self._claimed
        else:
            moved, claimed = readout.variance(self._moves), readout.variance(self._claimed)
        positive = np.where(claimed > 0.0, claimed, np.nan)
        return dict(zip(PARTS, (moved / (factor * positive)).tolist(), strict=True))


def fit_posterior(recording: Recording) -> Fit:
    """Fit prior and noise: the units' own by empirical Bayes, and two numbers by the ratios of the thirds of a trial.

    With noise s the prior is ``mu_0 = E[m_T]`` and ``v_0 = Var(m_T) + E[diag Sigma_T(v_0, s)]`` (the law of total
    variance). The units of a latent are no independent estimates of the task; to a prior that takes them for such the
    task seems nearer than it is, or farther. So a common factor of v_0 and s^2, which widens all posteriors alike,
    brings the geometric mean of the thirds' ratios to 1, and s makes them differ least.

    :param recording: the trials
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

    def fit(log_variance: float) -> tuple[float, float]:
        """How much the thirds differ, and the factor."""
        noise_std = float(np.exp(0.5 * log_variance))
        updates = Updates(recording, np.sqrt(_prior_variance(spread, curvature, noise_std)), noise_std)
        factor = 1.0
        for _ in range(_ITERATIONS):
            found = updates.ratios(factor)
            thirds = np.array([found[name] for name in PARTS[1:]])
            if not (thirds > 0).all():
                return np.inf, factor
            # The ratios are about as one over the factor: read-outs change little
            change = float(np.log(thirds).mean())
            factor *= float(np.exp(change))
            if abs(change) < _CLOSE:
                break
        return float(np.log(thirds).var()), factor

    centre, width, n = np.log(information), _RANGE, _N_SCAN
    for _ in range(3):
        points = np.linspace(centre - width, centre + width, n)
        fits = [fit(point) for point in points]
        losses = np.array([loss for loss, _ in fits])
        if not np.isfinite(losses).any():
            raise ValueError("The precision does not grow in every third of a trial: no noise can be fitted.")
        best = int(losses.argmin())
        centre, width, n = float(points[best]), 2.0 * width / (n - 1), _N_REFINE
    scale, noise_std = float(np.sqrt(fits[best][1])), float(np.exp(0.5 * centre))
    return Fit(final.mean(0), scale * np.sqrt(_prior_variance(spread, curvature, noise_std)), scale * noise_std)


def _parts(values: np.ndarray, recording: Recording) -> list[np.ndarray]:
    """The values of all updates, and of those of each third of a trial."""
    return [values, *(values[recording.part == i] for i in range(1, len(PARTS)))]


def _by_part(values: np.ndarray, recording: Recording) -> np.ndarray:
    return np.stack([part.sum(0) for part in _parts(values, recording)])


def _precision(curvature: np.ndarray, prior_variance: np.ndarray, noise_std: float) -> np.ndarray:
    prior = 1.0 / prior_variance
    return (np.diag(prior) if curvature.ndim == 3 else prior) + curvature / noise_std**2


def _covariance(precision: np.ndarray) -> np.ndarray:
    return np.linalg.inv(precision) if precision.ndim == 3 else 1.0 / precision


def _prior_variance(spread: np.ndarray, curvature: np.ndarray, noise_std: float) -> np.ndarray:
    """The fixed point v_0, shape (D,), found with each unit's information taken to be the same in all trials."""
    variance = 2.0 * spread
    for _ in range(_ITERATIONS):
        precision = _precision(curvature, variance, noise_std)
        covariance = _covariance(precision)
        covariance = np.diagonal(covariance, axis1=1, axis2=2) if covariance.ndim == 3 else covariance
        information = np.maximum(1.0 / covariance.mean(0) - 1.0 / variance, _LEAST_INFORMATION / spread)
        # The fixed point v = spread + 1 / (1 / v + information)
        updated = 0.5 * (spread + np.sqrt(spread**2 + 4.0 * spread / information))
        done = np.allclose(updated, variance, rtol=1e-6, atol=0.0)
        variance = updated
        if done:
            break
    return variance
