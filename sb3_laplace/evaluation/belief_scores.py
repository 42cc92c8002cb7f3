"""The read-out of the task from an agent's belief against the exact belief: what is computed, nothing is played."""

from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch as th
from torch import nn

from sb3_laplace.evaluation.bootstrap import Bootstrap, Estimate
from sb3_laplace.readout import Readout, ReadoutMoments

#: Central regions whose coverage is measured, in percent
REGION_LEVELS = (50, 90, 95)
#: The scores that say how much of the exact log-score is lost, by what
LOSSES = ("lost", "lost_by_mean", "lost_by_width", "claimed_lost", "claimed_lost_by_width")
#: Exact standard deviations are not let below this part of the prior's: beyond, both beliefs count as certain
FLOOR = 0.01
# Directions in which tasks vary less than this, relative to the widest, have no prior
_RANK = 1e-9
# Variance between trials, relative to the prior's, below which there is nothing to explain
_NOTHING = 1e-9
_HIDDEN, _BATCH, _LEARNING_RATE = 64, 512, 3e-3


@dataclass(frozen=True)
class BeliefRecord:
    """What an agent and the exact posterior believed in N trials of T steps, after the same observations.

    :param tasks: the true tasks in the exact posterior's parameterization, shape (N, P)
    :param latents: the agent's m_t, shape (N, T, D)
    :param exact_mean: shape (N, T, P)
    :param exact_covariance: shape (N, T, P, P); at the first step that of the prior
    :param claimed: ``B Sigma_t B^T``, the covariance of the task as the agent has it, shape (N, T, P, P); None for a
        point, or where there was no read-out yet
    """

    tasks: np.ndarray
    latents: np.ndarray
    exact_mean: np.ndarray
    exact_covariance: np.ndarray
    claimed: np.ndarray | None = None


def fit_readout(record: BeliefRecord, ridge: float = 1e-4) -> Readout:
    """The read-out ``E[task | m_t] = B m_t + b`` of the true task, one for all steps.

    :param record: the trials to fit it on
    :param ridge: see :meth:`~sb3_laplace.readout.ReadoutMoments.solve`
    """
    n_steps = record.latents.shape[1]
    moments = ReadoutMoments()
    moments.add(_rows(record.latents), np.repeat(record.tasks, n_steps, axis=0))
    return moments.solve(ridge)


def unexplained(record: BeliefRecord, readout: Readout) -> np.ndarray:
    """R, the second moment of ``exact mean - (B m_t + b)`` over trials and steps, shape (P, P)."""
    residuals = _rows(record.exact_mean - readout(record.latents))
    return np.asarray(residuals.T @ residuals / len(residuals))


class Axes(NamedTuple):
    """Principal axes of covariances, in the coordinates in which the prior's is the identity.

    :param variance: ascending, shape (N, T, Q)
    :param directions: as columns, shape (N, T, Q, Q)
    """

    variance: np.ndarray
    directions: np.ndarray


class Scores:
    """The scores of held-out trials, see :class:`~sb3_laplace.evaluation.belief_evaluation.BeliefEvaluation`.

    :param readout: fitted on other trials
    :param residual: R, of the same other trials
    :param record: the held-out trials
    """

    def __init__(self, readout: Readout, residual: np.ndarray, record: BeliefRecord) -> None:
        self._record, self._residual = record, residual
        self._decoded = readout(record.latents)
        prior = record.exact_covariance[:, 0].mean(0)
        variance, axes = np.linalg.eigh(prior)
        kept = variance > _RANK * variance[-1]
        self._prior_trace = float(np.trace(prior))
        # Coordinates in which the prior's covariance is the identity; they leave out what no task does
        self._whitening = axes[:, kept] / np.sqrt(variance[kept])

    def per_trial(self) -> dict[str, np.ndarray]:
        """What averages over trials make the scores, each of shape (N, T)."""
        record, decoded = self._record, self._decoded
        exact, exact_axes = record.exact_mean, self._axes(record.exact_covariance)
        exact_variance = np.trace(record.exact_covariance, axis1=-2, axis2=-1)
        missed = np.square(decoded - exact).sum(-1)
        spread = np.square(exact - exact.mean(0)).sum(-1)
        # Where all exact means are the same there is nothing to explain
        spread[:, spread.mean(0) < _NOTHING * self._prior_trace] = np.nan
        numbers = {
            "missed": missed,
            "spread": spread,
            "bias_squared": missed / np.maximum(exact_variance, FLOOR**2 * self._prior_trace),
            "exact_variance": exact_variance,
            "lost_by_mean": self._lost(decoded - exact, exact_axes, exact_axes),
            **{f"exact_{name}": values for name, values in self._regions(exact, exact_axes).items()},
        }
        if record.claimed is not None:
            total = record.claimed + self._residual
            total_axes = self._axes(total)
            for prefix, axes in (("", total_axes), ("claimed_", self._axes(record.claimed))):
                numbers[f"{prefix}lost"] = self._lost(decoded - exact, axes, exact_axes)
                numbers[f"{prefix}lost_by_width"] = self._lost(np.zeros_like(exact), axes, exact_axes)
            numbers["claimed_variance"] = np.trace(record.claimed, axis1=-2, axis2=-1)
            numbers["total_variance"] = np.trace(total, axis1=-2, axis2=-1)
            numbers.update(self._regions(decoded, total_axes))
        return numbers

    def _regions(self, mean: np.ndarray, axes: Axes) -> dict[str, np.ndarray]:
        """Coverage and log-score of Gaussians for the true task, each of shape (N, T).

        :param mean: shape (N, T, P)
        :param axes: of their covariances
        """
        displaced = (self._record.tasks[:, None] - mean) @ self._whitening
        variance, directions = axes
        along = np.einsum("ntij,nti->ntj", directions, displaced)
        rank = variance.shape[-1]
        # Of a Gaussian that is certain of some directions only the others count, unless it is certain of all
        uncertain = (variance > FLOOR**2).sum(-1)
        uncertain = np.where(uncertain == 0, rank, uncertain)
        variance = np.maximum(variance, FLOOR**2)
        distance = (np.square(along) / variance).sum(-1)
        probability = th.special.gammainc(th.from_numpy(uncertain / 2.0), th.from_numpy(distance / 2.0)).numpy()
        log_score = -0.5 * (distance + np.log(variance).sum(-1) + rank * np.log(2.0 * np.pi))
        covered = {f"coverage_{level}": (probability <= level / 100).astype(np.float64) for level in REGION_LEVELS}
        return {**covered, "log_score": log_score}

    def _lost(self, displacement: np.ndarray, axes: Axes, exact: Axes) -> np.ndarray:
        """What Gaussians lose of the exact one's log-score, in expectation over the exact posterior, shape (N, T).

        This is the KL divergence of the Gaussian with the exact mean and covariance from the other, whatever the exact
        posterior's shape: a Gaussian's log-density is quadratic, so its expectation is that of the first two moments.

        :param displacement: the other's mean less the exact one, shape (N, T, P)
        :param axes: of the other's covariance
        :param exact: of the exact one
        """
        exact_variance, variance = np.maximum(exact.variance, FLOOR**2), np.maximum(axes.variance, FLOOR**2)
        # The exact variance along each of the other's axes
        overlap = np.square(axes.directions.swapaxes(-1, -2) @ exact.directions)
        expected = (overlap @ exact_variance[..., None])[..., 0]
        along = np.einsum("ntij,nti->ntj", axes.directions, displacement @ self._whitening)
        ratio = (expected + np.square(along)) / variance
        return np.asarray(0.5 * (ratio - 1.0 + np.log(variance) - np.log(exact_variance)).sum(-1))

    def _axes(self, covariance: np.ndarray) -> Axes:
        """The principal axes of covariances (N, T, P, P)."""
        return Axes(*np.linalg.eigh(self._whitening.T @ covariance @ self._whitening))


def summarize(numbers: dict[str, np.ndarray], n_steps: int) -> dict[str, np.ndarray]:
    """The scores by step, each of shape (T,), NaN where they do not exist.

    :param numbers: :meth:`Scores.per_trial`
    :param n_steps: T
    """
    nothing = np.full(n_steps, np.nan)
    means = {name: values.mean(0) for name, values in numbers.items()}
    regions = ("log_score", *(f"coverage_{level}" for level in REGION_LEVELS))
    return {
        "r2": 1.0 - means["missed"] / means["spread"],
        "bias": np.sqrt(means["bias_squared"]),
        "claimed_variance": means.get("claimed_variance", nothing),
        "total_variance": means.get("total_variance", nothing),
        "exact_variance": means["exact_variance"],
        **{name: means.get(name, nothing) for name in regions},
        **{f"exact_{name}": means[f"exact_{name}"] for name in regions},
        **{name: means.get(name, nothing) for name in LOSSES},
    }


def intervals(
    numbers: dict[str, np.ndarray], selected: np.ndarray, n_steps: int, bootstrap: Bootstrap
) -> dict[str, np.ndarray]:
    """Intervals over trials of R^2, coverages, log-scores and what is lost of them, each of shape (T, 2).

    Those of coverage are Wilson's for a proportion (a bootstrap knows no spread where nearly all are alike), the others
    bootstrapped.

    :param numbers: :meth:`Scores.per_trial`
    :param selected: the steps (indices) that have intervals; NaN at the others
    :param n_steps: T
    :param bootstrap: how they are resampled
    """
    found = {}
    for name in ("r2", *(key for key in numbers if "coverage" in key or "log_score" in key or key in LOSSES)):
        ends = np.full((n_steps, 2), np.nan)
        for t in selected.tolist():
            if name == "r2":
                ratio = bootstrap.ratio(numbers["missed"][:, t], numbers["spread"][:, t])
                # A ratio of squares, but its studentized interval may reach below 0
                ends[t] = 1.0 - ratio.high, 1.0 - np.maximum(ratio.low, 0.0)
            else:
                values = numbers[name][:, t]
                ends[t] = _wilson(values, bootstrap) if "coverage" in name else bootstrap.ratio(values)[1:]
        found[name] = ends
    return found


def _wilson(covered: np.ndarray, bootstrap: Bootstrap) -> tuple[float, float]:
    """Wilson's interval of a proportion, at the bootstrap's level.

    :param covered: 0 or 1 for each trial, shape (N,)
    """
    z = NormalDist().inv_cdf(0.5 + bootstrap.confidence_level / 2.0)
    n, proportion = len(covered), float(covered.mean())
    center = proportion + z**2 / (2 * n)
    reach = z * np.sqrt(proportion * (1.0 - proportion) / n + z**2 / (4 * n**2))
    scale = 1.0 + z**2 / n
    return max(0.0, (center - reach) / scale), min(1.0, (center + reach) / scale)


class Simulation:
    """State-machine simulation: how well a small network maps one belief to the other (Mikulik et al., 2020).

    Both networks have one hidden layer and are trained on other trials than those that they are scored on. What is
    explained is the variance between trials at a step, so that knowing the step alone explains nothing.

    :param fitted: the trials to train on
    :param record: the held-out trials
    :param bootstrap: for the intervals of the totals
    :param seed: of the networks
    :param n_steps: steps of Adam that train each
    """

    def __init__(
        self, fitted: BeliefRecord, record: BeliefRecord, bootstrap: Bootstrap, seed: int, n_steps: int
    ) -> None:
        #: Explained variance by step, each of shape (T,), NaN where there is none
        self.by_step: dict[str, np.ndarray] = {}
        #: Explained variance over all steps
        self.total: dict[str, Estimate] = {}
        beliefs, held_out = (
            np.concatenate([one.exact_mean, one.exact_covariance.diagonal(axis1=-2, axis2=-1)], axis=-1)
            for one in (fitted, record)
        )
        for name, inputs, targets, tested, truth in (
            ("exact_from_latent", fitted.latents, fitted.exact_mean, record.latents, record.exact_mean),
            ("latent_from_exact", beliefs, fitted.latents, held_out, record.latents),
        ):
            predict = _Network(_rows(inputs), _rows(targets), seed, n_steps)
            missed = np.square(predict(_rows(tested)).reshape(truth.shape) - truth).sum(-1)
            spread = np.square(truth - truth.mean(0)).sum(-1)
            # Not of the spread, which is rounding where nothing varies at any step
            exists = spread.mean(0) > _NOTHING * np.square(truth).sum(-1).mean()
            with np.errstate(divide="ignore", invalid="ignore"):
                self.by_step[name] = np.where(exists, 1.0 - missed.mean(0) / spread.mean(0), np.nan)
            if not exists.any():
                self.total[name] = Estimate(np.nan, np.nan, np.nan)
                continue
            ratio = bootstrap.ratio(missed[:, exists].sum(1), spread[:, exists].sum(1))
            self.total[name] = Estimate(1.0 - ratio.value, 1.0 - ratio.high, 1.0 - max(ratio.low, 0.0))


class _Network:
    """A multilayer perceptron fitted by a few hundred steps of Adam; calling it predicts.

    :param inputs: shape (n, a)
    :param targets: shape (n, b)
    :param seed: of weights and minibatches; torch's own random numbers are left as they were
    :param n_steps: steps of Adam
    """

    def __init__(self, inputs: np.ndarray, targets: np.ndarray, seed: int, n_steps: int) -> None:
        self._shift, self._scale = inputs.mean(0), np.maximum(inputs.std(0), 1e-6)
        self._out_shift = targets.mean(0)
        # One scale for all columns: what varies little counts little, as it does in the explained variance
        self._out_scale = max(float(np.sqrt(targets.var(0).mean())), 1e-12)
        y = th.as_tensor((targets - self._out_shift) / self._out_scale, dtype=th.float32)
        with th.random.fork_rng(devices=[]), th.inference_mode(False), th.enable_grad():
            th.manual_seed(seed)
            self._network = nn.Sequential(
                nn.Linear(inputs.shape[1], _HIDDEN), nn.Tanh(), nn.Linear(_HIDDEN, targets.shape[1])
            )
            optimizer = th.optim.Adam(self._network.parameters(), lr=_LEARNING_RATE)
            schedule = th.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
            x = self._inputs(inputs)
            for _ in range(n_steps):
                batch = th.randint(len(x), (min(_BATCH, len(x)),))
                loss = (self._network(x[batch]) - y[batch]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()

    def _inputs(self, inputs: np.ndarray) -> th.Tensor:
        return th.as_tensor((inputs - self._shift) / self._scale, dtype=th.float32)

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        with th.no_grad():
            return self._network(self._inputs(inputs)).double().numpy() * self._out_scale + self._out_shift


def _rows(array: np.ndarray) -> np.ndarray:
    """Trials and steps in one dimension, double precision."""
    return array.reshape(-1, array.shape[-1]).astype(np.float64)
