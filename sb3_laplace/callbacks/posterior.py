"""Callbacks that watch the posterior while an agent trains."""

import warnings
from collections import deque
from types import ModuleType

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Image, TensorBoardOutputFormat

from sb3_laplace.algorithm.laplace_recurrent_ppo import LaplaceRecurrentPPO
from sb3_laplace.checks import check_integer
from sb3_laplace.evaluation.constancy import constancy
from sb3_laplace.evaluation.findings import MIN_TRIALS
from sb3_laplace.posteriors import LaplacePosterior, PosteriorStep
from sb3_laplace.posteriors.gaussian import Gaussian
from sb3_laplace.posteriors.statistics import posterior_statistics, to_float64
from sb3_laplace.vec_env.infos import ignored_steps

# Numbers in the precisions that are kept before their statistics are computed, in one batch
_BATCH_SIZE = 2_000_000
# Of environments with a full covariance, one in this many is watched
_ONE_IN = 64
# Longest trial whose curves are drawn, in steps, and how many posteriors of a batch go into a histogram
_MAX_CURVE = 1000
_N_HISTOGRAM = 64
# Formats that cannot show pictures
_TEXT_FORMATS = ("stdout", "log", "json", "csv")
_CURVES = {"entropy": "entropy (nats)", "kl_mean": "KL, mean part", "kl_covariance": "KL, covariance part"}
# Charts of TensorBoard's custom scalars: it takes tags as regular expressions
_LAYOUT = {
    "posterior": {
        "entropy": ["entropy", "entropy_first_step", "entropy_last_step"],
        "KL between successive posteriors": ["kl", "kl_mean", "kl_covariance"],
        "KL, first and last step of a trial": ["kl_first_step", "kl_last_step"],
        "marginal variance": ["variance_max", "variance_min"],
        "moved to claimed, whole latent": ["moved_to_claimed_latent"],
    }
}


class PosteriorCallback(BaseCallback):
    """Log the posterior's statistics at the end of every rollout, to SB3's logger.

    All are means over the steps of the rollout in the environments watched, entropies and KLs in nats. (Steps that an
    environment spends on its reset, with ``NEXT_STEP`` autoreset, are no steps of a trial and do not count.)

    - ``posterior/entropy``, ``posterior/kl``: H(q_t) and KL(q_t || q_{t-1}), the latter also split into
      ``posterior/kl_mean`` and ``posterior/kl_covariance``
    - ``posterior/entropy_first_step``, ``posterior/kl_first_step``: at the first step of a trial, where
      q_{t-1} is the prior
    - ``posterior/entropy_last_step``, ``posterior/kl_last_step``: at the last step of a trial
    - ``posterior/variance_max``, ``posterior/variance_min``: the largest and the smallest marginal variance
    - ``posterior/mean_step``: Euclidean length of the mean's step
    - ``posterior/moved_to_claimed_latent``: how far the mean moved over how far it should, but at the first steps, in
      the whole latent: 1 for a correct posterior if that holds nothing but the task, and no verdict on others
      (see :func:`~sb3_laplace.evaluation.overconfidence.judge_overconfidence`)

    At the end of training there is a warning if a Laplace posterior is nearly constant: if its precision grew by less
    than 1% within the last 30 trials or more (:func:`~sb3_laplace.evaluation.constancy.constancy`).

    Within an event callback of SB3's (``EveryNTimesteps``) each event is a rollout of its one step.

    A tag is left out of a rollout in which no trial starts or ends, and where it does not exist (a point has
    no entropy). With TensorBoard there are also a layout of custom scalars that groups these, and every
    ``figure_freq`` rollouts a histogram of the marginal variances, ``posterior/variance``, and curves of
    the entropy and both parts of the KL over the step within a trial, ``posterior/within_trial``
    (this one needs matplotlib).

    :param n_watched: number of environments watched, a random choice at every rollout. None is all of them
        for a diagonal covariance. The statistics of a full one take a matrix inverse for every step and environment, so
        one environment in 64 is watched. Of fewer than 64 environments one is watched, and only in every
        (64 // n_envs)-th rollout.
    :param figure_freq: number of rollouts between two histograms and plots; 0 for none
    :param verbose: verbosity level
    :raises ValueError: if an argument is out of range, or the model is no LaplaceRecurrentPPO
    """

    model: LaplaceRecurrentPPO

    #: Where several processes train one agent, what is logged is of rank 0's environments
    rank_zero_only = True

    def __init__(self, n_watched: int | None = None, figure_freq: int = 50, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.n_watched = None if n_watched is None else check_integer("n_watched", n_watched, minimum=1)
        self.figure_freq = check_integer("figure_freq", figure_freq, minimum=0)

    def _init_callback(self) -> None:
        if not isinstance(self.model, LaplaceRecurrentPPO):
            raise ValueError(f"PosteriorCallback watches a LaplaceRecurrentPPO, got a {type(self.model).__name__}.")
        # Its own generator: watching must not change what the agent does
        self._rng = np.random.default_rng(self.model.seed)
        n_envs = self.training_env.num_envs
        prior = self.model.policy.latent_layer.prior(1)
        is_full = any(part.dim() > prior.mean.dim() for part in prior.tensors)
        self._n_chosen = self.n_watched or (max(1, n_envs // _ONE_IN) if is_full else n_envs)
        self._watch_freq = max(1, _ONE_IN // n_envs) if is_full and self.n_watched is None else 1
        # Step of its trial that each environment is at, -1 where the trial's start was not seen
        self._trial_step = np.full(n_envs, -1)
        self._n_rollouts, self._next_plots = 0, self.figure_freq
        self._in_rollout = False
        self._clear_curves()

    def _on_training_start(self) -> None:
        layer = self.model.policy.latent_layer
        self._should_grow = isinstance(layer, LaplacePosterior) and not layer.normalize
        # Of the last rollouts: entropies at the first and the last steps of trials
        self._ends: deque[tuple[np.ndarray, np.ndarray]] = deque()
        outputs = [output for output in self.logger.output_formats if isinstance(output, TensorBoardOutputFormat)]
        self._has_plots = bool(outputs) and self.figure_freq > 0
        for output in outputs:
            output.writer.add_custom_scalars(
                {
                    group: {
                        title: ["Multiline", [f"^{group}/{tag}$" for tag in tags]] for title, tags in charts.items()
                    }
                    for group, charts in _LAYOUT.items()
                }
            )
        self._plots = _import_plots() if self._has_plots else None

    def _on_rollout_start(self) -> None:
        self._in_rollout = True
        self._is_watched = self._n_rollouts % self._watch_freq == 0
        self._n_rollouts += 1
        self._plots_are_due = self._has_plots and self._is_watched and self._n_rollouts >= self._next_plots
        n_envs = self.training_env.num_envs
        self._watched = np.sort(self._rng.permutation(n_envs)[: self._n_chosen])
        self._posteriors: list[Gaussian] = []
        self._previous: list[Gaussian] = []
        self._statistics: list[dict[str, np.ndarray]] = []
        self._flags: list[tuple[np.ndarray, ...]] = []
        self._variances: list[np.ndarray] = []

    def _on_step(self) -> bool:
        starts = np.asarray(self.locals["episode_starts"], dtype=bool)
        if not self._in_rollout:
            # Within an EventCallback, which tells of nothing but the steps of its events: a rollout of one step
            self._on_rollout_start()
            self._is_watched = True
            self._trial_step = np.where(starts, 0, -1)
            self._watch(starts)
            self._on_rollout_end()
            return True
        self._trial_step = np.where(starts, 0, self._trial_step + (self._trial_step >= 0))
        if self._is_watched:
            self._watch(starts)
        return True

    def _watch(self, starts: np.ndarray) -> None:
        """Keep the posteriors of the step.

        :param starts: where trials started with it, shape (n_envs,)
        """
        dones = np.asarray(self.locals["dones"], dtype=bool)
        chosen = self._watched[~ignored_steps(self.training_env)[self._watched]]
        if not chosen.size:
            return
        self._flags.append((starts[chosen], dones[chosen], self._trial_step[chosen]))
        step: PosteriorStep = self.locals["step"].posterior
        posterior, previous = step.posterior, step.previous
        if len(chosen) < len(starts):
            index = th.as_tensor(chosen, device=self.model.device)
            with th.inference_mode():
                posterior, previous = posterior[index], previous[index]
        self._posteriors.append(posterior)
        self._previous.append(previous)
        if len(self._posteriors) * sum(part.numel() for part in posterior.tensors) >= _BATCH_SIZE:
            self._compute()

    def _compute(self) -> None:
        """Statistics of the posteriors kept so far."""
        if not self._posteriors:
            return
        with th.inference_mode():
            posterior, previous = (
                to_float64(Gaussian.concatenate(parts)) for parts in (self._posteriors, self._previous)
            )
            values = posterior_statistics(posterior, previous)
            variance = posterior.variance
            values["variance_max"], values["variance_min"] = variance.amax(-1), variance.amin(-1)
            self._statistics.append({name: value.cpu().numpy() for name, value in values.items()})
            if self._plots_are_due:
                chosen = th.as_tensor(self._rng.integers(len(variance), size=_N_HISTOGRAM), device=variance.device)
                self._variances.append(variance[chosen].flatten().cpu().numpy())
        self._posteriors, self._previous = [], []

    def _on_rollout_end(self) -> None:
        self._in_rollout = False
        if not self._is_watched:
            return
        self._compute()
        if not self._statistics:
            return
        values = {name: np.concatenate([batch[name] for batch in self._statistics]) for name in self._statistics[0]}
        values["kl"] = values["kl_mean"] + values["kl_covariance"]
        first, last, trial_step = (np.concatenate(flags) for flags in zip(*self._flags, strict=True))
        for name in ("entropy", "kl", "kl_mean", "kl_covariance", "variance_max", "variance_min", "mean_step"):
            self._record(name, values[name])
        for when, chosen in (("first", first), ("last", last)):
            for name in ("entropy", "kl"):
                self._record(f"{name}_{when}_step", values[name][chosen])
        self._keep_ends(values["entropy"][first], values["entropy"][last])
        claimed = values["expected_move"][~first].sum()
        if claimed > 0:
            dim = self.model.policy.latent_layer.latent_dim
            self._record("moved_to_claimed_latent", 2.0 * values["kl_mean"][~first].sum() / dim / claimed)
        if self._has_plots:
            self._add_to_curves(trial_step, values)
        if self._plots_are_due:
            self._next_plots = self._n_rollouts + self.figure_freq
            self._record_plots()

    def _keep_ends(self, first: np.ndarray, last: np.ndarray) -> None:
        """Keep entropies of the last rollouts, as few as hold enough trials."""
        self._ends.append((first, last))
        while all(sum(len(ends[i]) for ends in list(self._ends)[1:]) >= MIN_TRIALS for i in range(2)):
            self._ends.popleft()

    def _on_training_end(self) -> None:
        if not self._should_grow or not self._ends:
            return
        first, last = (np.concatenate(parts) for parts in zip(*self._ends, strict=True))
        if min(len(first), len(last)) < MIN_TRIALS:
            return
        note = constancy(float(first.mean() - last.mean()), self.model.policy.latent_layer.latent_dim)
        if note is not None:
            warnings.warn(note)

    def _record(self, name: str, value: np.ndarray | float) -> None:
        """Log the mean of some numbers, if there are any and they exist."""
        if np.size(value) and np.isfinite(mean := np.mean(value)):
            self.logger.record(f"posterior/{name}", float(mean))

    # -- curves over the step within a trial ------------------------------------------------------------

    def _clear_curves(self) -> None:
        self._sums = dict.fromkeys(_CURVES, np.zeros(_MAX_CURVE))
        self._counts = np.zeros(_MAX_CURVE)

    def _add_to_curves(self, trial_step: np.ndarray, values: dict[str, np.ndarray]) -> None:
        known = (trial_step >= 0) & (trial_step < _MAX_CURVE)
        steps = trial_step[known]
        self._counts = self._counts + np.bincount(steps, minlength=_MAX_CURVE)
        for name, total in self._sums.items():
            self._sums[name] = total + np.bincount(steps, values[name][known], minlength=_MAX_CURVE)

    def _record_plots(self) -> None:
        self.logger.record("posterior/variance", np.concatenate(self._variances), exclude=_TEXT_FORMATS)
        if self._plots is not None and self._counts[1:].any():
            drawn = slice(0, int(np.flatnonzero(self._counts)[-1]) + 1)
            with np.errstate(invalid="ignore"):
                means = {_CURVES[name]: (total / self._counts)[drawn] for name, total in self._sums.items()}
            means = {label: mean for label, mean in means.items() if np.isfinite(mean).any()}
            if means:
                image = self._plots.to_image(self._plots.within_trial(means))
                self.logger.record("posterior/within_trial", Image(image, "HWC"), exclude=_TEXT_FORMATS)
        self._clear_curves()


def _import_plots() -> ModuleType | None:
    """The module that draws, None (with a warning) without matplotlib."""
    try:
        from sb3_laplace.plots import traces as plots
    except ImportError:
        warnings.warn(
            "matplotlib is not installed: PosteriorCallback logs no plots. Install it "
            "(pip install 'sb3-laplace[plots]') or pass figure_freq=0."
        )
        return None
    return plots
