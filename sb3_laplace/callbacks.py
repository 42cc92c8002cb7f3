"""Callbacks that watch the posterior while an agent trains."""

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_laplace.gaussian import FullGaussian, Gaussian
from sb3_laplace.laplace_recurrent_ppo import LaplaceRecurrentPPO


class PosteriorCallback(BaseCallback):
    """Log the posterior's statistics at the end of every rollout, to SB3's logger.

    All are means over the steps of the rollout in the environments watched, entropies and KLs in nats:

    - ``posterior/entropy`` and ``posterior/kl``: H(q_t) and KL(q_t || q_{t-1})
    - ``posterior/entropy_first_step``, ``posterior/kl_first_step``: at the first step of a trial, where
      q_{t-1} is the prior
    - ``posterior/entropy_last_step``, ``posterior/kl_last_step``: at the last step of a trial
    - ``posterior/variance_max``, ``posterior/variance_min``: the largest and the smallest marginal variance

    A tag is left out of a rollout in which no trial starts or ends.

    :param n_watched: number of environments watched, a random choice at every rollout. None is all of them
        for a diagonal covariance and one in 16 for a full one, whose statistics take a matrix inverse for
        every step and environment.
    :param verbose: verbosity level
    :raises ValueError: if n_watched is not positive, or the model is no LaplaceRecurrentPPO
    """

    model: LaplaceRecurrentPPO

    def __init__(self, n_watched: int | None = None, verbose: int = 0) -> None:
        super().__init__(verbose)
        if n_watched is not None and n_watched < 1:
            raise ValueError(f"n_watched must be a positive integer or None, got {n_watched!r}.")
        self.n_watched = n_watched

    def _init_callback(self) -> None:
        if not isinstance(self.model, LaplaceRecurrentPPO):
            raise ValueError(f"PosteriorCallback watches a LaplaceRecurrentPPO, got a {type(self.model).__name__}.")
        # Its own generator: watching must not change what the agent does
        self._rng = np.random.default_rng(self.model.seed)

    def _on_rollout_start(self) -> None:
        self._watched: np.ndarray | None = None
        self._posteriors: list[Gaussian] = []
        self._priors: list[Gaussian] = []
        self._first: list[np.ndarray] = []
        self._last: list[np.ndarray] = []

    def _on_step(self) -> bool:
        step = self.locals["step"].posterior
        if self._watched is None:
            self._watched = self._choose(step.posterior)
        index = th.as_tensor(self._watched, device=self.model.device)
        with th.inference_mode():
            self._posteriors.append(step.posterior[index])
            self._priors.append(step.prior[index])
        self._first.append(np.asarray(self.locals["episode_starts"], dtype=bool)[self._watched])
        self._last.append(np.asarray(self.locals["dones"], dtype=bool)[self._watched])
        return True

    def _choose(self, posterior: Gaussian) -> np.ndarray:
        n_envs = self.training_env.num_envs
        n_watched = self.n_watched or (max(1, n_envs // 16) if isinstance(posterior, FullGaussian) else n_envs)
        return np.sort(self._rng.permutation(n_envs)[:n_watched])

    def _on_rollout_end(self) -> None:
        with th.inference_mode():
            posterior, prior = _concatenate(self._posteriors), _concatenate(self._priors)
            variance = posterior.variance
            values = {
                "entropy": posterior.entropy().cpu().numpy(),
                "kl": posterior.kl(prior).cpu().numpy(),
                "variance_max": variance.amax(-1).cpu().numpy(),
                "variance_min": variance.amin(-1).cpu().numpy(),
            }
        for name, value in values.items():
            self.logger.record(f"posterior/{name}", float(value.mean()))
        for when, flags in (("first", self._first), ("last", self._last)):
            chosen = np.concatenate(flags)
            if chosen.any():
                for name in ("entropy", "kl"):
                    self.logger.record(f"posterior/{name}_{when}_step", float(values[name][chosen].mean()))


def _concatenate(gaussians: list[Gaussian]) -> Gaussian:
    """One batch of all the Gaussians' batches, in order."""
    mean = th.cat([gaussian.mean for gaussian in gaussians])
    return type(gaussians[0])(mean, th.cat([gaussian.precision for gaussian in gaussians]))
