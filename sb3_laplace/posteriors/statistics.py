"""What a step did to a posterior: the numbers that traces and callbacks show."""

import torch as th

from sb3_laplace.posteriors.gaussian import Gaussian


def posterior_statistics(posterior: Gaussian, previous: Gaussian) -> dict[str, th.Tensor]:
    """Entropy, both parts of KL(q_t || q_{t-1}) and the moves of a batch of N posteriors, each of shape (N,).

    To be given in double precision (:func:`to_float64`): in single precision the covariance part of the KL, a
    difference of log-determinants, drowns in rounding where a step adds little to the precision.

    :param posterior: q_t
    :param previous: q_{t-1}
    :return: entropy, kl_mean, kl_covariance, mean_step and expected_move, as
        :class:`~sb3_laplace.PosteriorTrace` defines them; not finite where they do not exist
    """
    kl = posterior.kl_parts(previous)
    entropy = posterior.entropy()
    # Between points there is no KL
    exists = entropy.isfinite()
    return {
        "entropy": entropy,
        "kl_mean": kl.mean.where(exists, th.nan),
        "kl_covariance": kl.covariance.where(exists, th.nan),
        "mean_step": (posterior.mean - previous.mean).norm(dim=-1),
        # 1 - tr(Lambda_{t-1} Sigma_t) / D, by the KL's own trace
        "expected_move": 2.0 * (previous.entropy() - entropy - kl.covariance) / posterior.dim,
    }


def to_float64(gaussian: Gaussian) -> Gaussian:
    """The Gaussians in double precision, where the device has it."""
    if gaussian.mean.device.type == "mps":
        return gaussian
    return type(gaussian)(*(part.double() for part in gaussian.tensors))
