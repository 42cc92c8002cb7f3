"""Batches of Gaussians in precision form: the posteriors q_t = N(m_t, Lambda_t^{-1}).

One class per covariance structure behind one small interface (:class:`Gaussian`). Any number of leading
batch dimensions ``...`` is allowed; D is the number of latent units.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch as th
from typing_extensions import Self

# A Cholesky factorization in floating point can fail on a matrix that is positive definite on paper, once
# its condition number nears 1 / eps. These multiples of eps * (mean of the diagonal) are added in turn.
_JITTERS = (10.0, 100.0, 1000.0)
# LAPACK factorizes matrices up to this size well, one by one
_LAPACK_SIZE = 64


class KLParts(NamedTuple):
    """The two summands of a Kullback-Leibler divergence between Gaussians, each of shape (...,), in nats.

    :param mean: ``(m_q - m_p)^T Lambda_p (m_q - m_p) / 2``, how far the mean moved (half the squared
        Mahalanobis distance).
    :param covariance: ``(tr(Lambda_p Sigma_q) - D + logdet Lambda_q - logdet Lambda_p) / 2``, how much the
        shape changed.
    """

    mean: th.Tensor
    covariance: th.Tensor


class Gaussian(ABC):
    """A batch of Gaussians with mean (..., D), in precision form.

    :param mean: means, shape (..., D)
    :param precision: precision matrices (..., D, D), or their diagonals (..., D)
    """

    mean: th.Tensor
    precision: th.Tensor

    def __init__(self, mean: th.Tensor, precision: th.Tensor) -> None:
        self.mean = mean
        self.precision = precision

    @property
    def dim(self) -> int:
        """Number of latent units D."""
        return self.mean.shape[-1]

    @property
    def tensors(self) -> tuple[th.Tensor, ...]:
        """The constructor's arguments."""
        return (self.mean, self.precision)

    @property
    @abstractmethod
    def covariance(self) -> th.Tensor:
        """Covariance matrices, shape (..., D, D)."""

    @property
    @abstractmethod
    def variance(self) -> th.Tensor:
        """Marginal variances (the diagonal of the covariance), shape (..., D)."""

    @property
    def stddev(self) -> th.Tensor:
        """Marginal standard deviations, shape (..., D)."""
        return self.variance.sqrt()

    @abstractmethod
    def logdet_precision(self) -> th.Tensor:
        """Log-determinants of the precisions, shape (...,)."""

    @abstractmethod
    def unwhiten(self, noise: th.Tensor) -> th.Tensor:
        """Turn standard normal noise into displacements from the mean, ``L^{-T} eps`` with ``Lambda = L L^T``.

        :param noise: standard normal noise, shape (K, ..., D)
        :return: displacements distributed as N(0, Lambda^{-1}), shape (K, ..., D)
        """

    @abstractmethod
    def mahalanobis(self, displacement: th.Tensor) -> th.Tensor:
        """Squared Mahalanobis length ``d^T Lambda d``, shape (...,).

        :param displacement: shape (..., D)
        """

    @abstractmethod
    def _trace_of_product(self, other: "Gaussian") -> th.Tensor:
        """``tr(other.precision @ self.covariance)``, shape (...,)."""

    def __getitem__(self, index: th.Tensor | slice | int) -> Self:
        """The Gaussians at ``index`` of the first batch dimension."""
        return type(self)(*(part[index] for part in self.tensors))

    def where(self, condition: th.Tensor, other: Self) -> Self:
        """These Gaussians where the condition holds, the other ones elsewhere.

        :param condition: shape (...,)
        :param other: Gaussians of the same structure
        """
        pairs = zip(self.tensors, other.tensors, strict=True)
        batch = condition.dim()
        return type(self)(
            *(
                th.where(condition.view(*condition.shape, *[1] * (theirs.dim() - batch)), own, theirs)
                for own, theirs in pairs
            )
        )

    @classmethod
    def concatenate(cls, gaussians: Sequence["Gaussian"]) -> "Gaussian":
        """One batch of all the batches, along the first dimension.

        :param gaussians: batches of the same structure
        """
        return type(gaussians[0])(*(th.cat(parts) for parts in zip(*(one.tensors for one in gaussians), strict=True)))

    def entropy(self) -> th.Tensor:
        """Differential entropy ``(D (1 + log 2 pi) - logdet Lambda) / 2`` in nats, shape (...,)."""
        return 0.5 * (self.dim * (1.0 + math.log(2.0 * math.pi)) - self.logdet_precision())

    def kl_parts(self, other: "Gaussian") -> KLParts:
        """KL(self || other) in nats, its mean part and its covariance part apart.

        :param other: Gaussians of the same structure and shape
        :raises TypeError: if the other Gaussian has another covariance structure
        """
        if type(other) is not type(self):
            raise TypeError(f"KL between a {type(self).__name__} and a {type(other).__name__} is not defined here.")
        shape = self._trace_of_product(other) - self.dim + self.logdet_precision() - other.logdet_precision()
        # Never negative on paper; rounding leaves -1e-5 where a posterior no longer changes
        return KLParts(0.5 * other.mahalanobis(self.mean - other.mean), 0.5 * shape.clamp(min=0.0))

    def kl(self, other: "Gaussian") -> th.Tensor:
        """KL(self || other) in nats, shape (...,), the sum of :meth:`kl_parts`.

        :param other: Gaussians of the same structure and shape
        :raises TypeError: if the other Gaussian has another covariance structure
        """
        parts = self.kl_parts(other)
        return parts.mean + parts.covariance

    def sample(self, n_samples: int = 1) -> th.Tensor:
        """Draw from the Gaussians.

        :param n_samples: number of draws K
        :return: shape (K, ..., D)
        """
        noise = th.randn(n_samples, *self.mean.shape, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + self.unwhiten(noise)

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        """Log-density in nats, shape (...,).

        :param value: points, shape (..., D)
        """
        quadratic = self.mahalanobis(value - self.mean)
        return 0.5 * (self.logdet_precision() - self.dim * math.log(2.0 * math.pi) - quadratic)


class DiagonalGaussian(Gaussian):
    """Gaussians with diagonal precision: ``precision`` has shape (..., D)."""

    @property
    def covariance(self) -> th.Tensor:
        return th.diag_embed(self.variance)

    @property
    def variance(self) -> th.Tensor:
        return self.precision.reciprocal()

    def logdet_precision(self) -> th.Tensor:
        return self.precision.log().sum(-1)

    def unwhiten(self, noise: th.Tensor) -> th.Tensor:
        return noise * self.precision.rsqrt()

    def mahalanobis(self, displacement: th.Tensor) -> th.Tensor:
        return (displacement.square() * self.precision).sum(-1)

    def _trace_of_product(self, other: Gaussian) -> th.Tensor:
        return (other.precision / self.precision).sum(-1)


class FullGaussian(Gaussian):
    """Gaussians with full precision matrices: ``precision`` has shape (..., D, D)."""

    def __init__(self, mean: th.Tensor, precision: th.Tensor) -> None:
        super().__init__(mean, precision)
        self._cholesky: th.Tensor | None = None
        self._covariance: th.Tensor | None = None

    @property
    def cholesky(self) -> th.Tensor:
        """Lower Cholesky factors L of the precisions, ``Lambda = L L^T``, shape (..., D, D). Computed once.

        :raises ValueError: if a precision is not finite or not positive definite
        """
        if self._cholesky is None:
            self._cholesky = safe_cholesky(self.precision)
        return self._cholesky

    @property
    def covariance(self) -> th.Tensor:
        if self._covariance is None:
            self._covariance = th.cholesky_inverse(self.cholesky)
        return self._covariance

    @property
    def variance(self) -> th.Tensor:
        return self.covariance.diagonal(dim1=-2, dim2=-1)

    def logdet_precision(self) -> th.Tensor:
        return 2.0 * self.cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def unwhiten(self, noise: th.Tensor) -> th.Tensor:
        # (K, ..., D) -> (..., D, K): the draws are the columns of one triangular solve
        columns = noise.movedim(0, -1)
        return th.linalg.solve_triangular(self.cholesky.mT, columns, upper=True).movedim(-1, 0)

    def mahalanobis(self, displacement: th.Tensor) -> th.Tensor:
        product = (self.precision @ displacement.unsqueeze(-1)).squeeze(-1)
        return (product * displacement).sum(-1)

    def _trace_of_product(self, other: Gaussian) -> th.Tensor:
        # Both factors are symmetric, so the trace is the sum of the elementwise product
        return (other.precision * self.covariance).sum((-2, -1))

    def __getitem__(self, index: th.Tensor | slice | int) -> Self:
        result = super().__getitem__(index)
        if self._cholesky is not None:
            result._cholesky = self._cholesky[index]
        return result


class RotatedGaussian(Gaussian):
    """Gaussians with covariance ``Q diag(exp(s)) Q^T``, Q orthogonal: nothing needs to be factorized.

    :param mean: means, shape (..., D)
    :param log_variance: log-variances s along the axes, shape (..., D)
    :param rotation: orthogonal matrices Q, the axes in their columns, shape (..., D, D)
    """

    def __init__(self, mean: th.Tensor, log_variance: th.Tensor, rotation: th.Tensor) -> None:
        self.mean = mean
        self.log_variance = log_variance
        self.rotation = rotation

    @property
    def tensors(self) -> tuple[th.Tensor, ...]:
        return (self.mean, self.log_variance, self.rotation)

    @property
    def precision(self) -> th.Tensor:  # type: ignore[override]
        """Precision matrices, shape (..., D, D)."""
        return (self.rotation * (-self.log_variance).exp().unsqueeze(-2)) @ self.rotation.mT

    @property
    def covariance(self) -> th.Tensor:
        return (self.rotation * self.log_variance.exp().unsqueeze(-2)) @ self.rotation.mT

    @property
    def variance(self) -> th.Tensor:
        return (self.rotation.square() * self.log_variance.exp().unsqueeze(-2)).sum(-1)

    def logdet_precision(self) -> th.Tensor:
        return -self.log_variance.sum(-1)

    def unwhiten(self, noise: th.Tensor) -> th.Tensor:
        return (self.rotation @ (noise * (0.5 * self.log_variance).exp()).unsqueeze(-1)).squeeze(-1)

    def mahalanobis(self, displacement: th.Tensor) -> th.Tensor:
        along_axes = (self.rotation.mT @ displacement.unsqueeze(-1)).squeeze(-1)
        return (along_axes.square() * (-self.log_variance).exp()).sum(-1)

    def _trace_of_product(self, other: Gaussian) -> th.Tensor:
        assert isinstance(other, RotatedGaussian)
        between = other.rotation.mT @ self.rotation
        weight = (self.log_variance.unsqueeze(-2) - other.log_variance.unsqueeze(-1)).exp()
        return (between.square() * weight).sum((-2, -1))


class PointMass(Gaussian):
    """Points: the limit of no variance. Entropy is -inf, and KL is inf wherever two points differ.

    :param mean: the points, shape (..., D)
    """

    def __init__(self, mean: th.Tensor) -> None:
        self.mean = mean

    @property
    def tensors(self) -> tuple[th.Tensor, ...]:
        return (self.mean,)

    @property
    def precision(self) -> th.Tensor:  # type: ignore[override]
        """Infinite, shape (..., D)."""
        return th.full_like(self.mean, math.inf)

    @property
    def covariance(self) -> th.Tensor:
        return th.diag_embed(self.variance)

    @property
    def variance(self) -> th.Tensor:
        return th.zeros_like(self.mean)

    def logdet_precision(self) -> th.Tensor:
        return th.full_like(self.mean[..., 0], math.inf)

    def unwhiten(self, noise: th.Tensor) -> th.Tensor:
        return th.zeros_like(noise)

    def mahalanobis(self, displacement: th.Tensor) -> th.Tensor:
        moved = (displacement != 0).any(-1)
        return th.where(moved, math.inf, 0.0).to(displacement.dtype)

    def _trace_of_product(self, other: Gaussian) -> th.Tensor:
        return th.full_like(self.mean[..., 0], self.dim)

    def kl_parts(self, other: Gaussian) -> KLParts:
        if not isinstance(other, PointMass):
            return super().kl_parts(other)
        distance = 0.5 * self.mahalanobis(self.mean - other.mean)
        return KLParts(distance, th.zeros_like(distance))


def _cholesky(matrix: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """Lower Cholesky factors, and which of them failed (not 0).

    On a CPU torch hands one matrix after the other to LAPACK, which is slow beyond a size of 64. By halves,
    ``[[A, B^T], [B, C]]`` has the factor ``[[L, 0], [M, chol(C - M M^T)]]`` with ``L = chol(A)`` and ``M = B L^{-T}``,
    whose products are batched: 2 times faster at D = 128.

    :param matrix: symmetric matrices, shape (..., D, D)
    :return: factors, shape (..., D, D), and LAPACK's info, shape (...,)
    """
    dim = matrix.shape[-1]
    if dim <= _LAPACK_SIZE or matrix.device.type != "cpu":
        return th.linalg.cholesky_ex(matrix)
    head, tail = slice(0, dim // 2), slice(dim // 2, dim)
    factor = th.zeros_like(matrix, memory_format=th.contiguous_format)
    factor[..., head, head], failed = _cholesky(matrix[..., head, head])
    below = th.linalg.solve_triangular(factor[..., head, head].mT, matrix[..., tail, head], upper=True, left=False)
    factor[..., tail, head] = below
    factor[..., tail, tail], failed_below = _cholesky(matrix[..., tail, tail] - below @ below.mT)
    return factor, failed | failed_below


def safe_cholesky(matrix: th.Tensor) -> th.Tensor:
    """Lower Cholesky factors, with a relative jitter where rounding has cost positive definiteness.

    :param matrix: symmetric positive definite matrices, shape (..., D, D)
    :return: lower triangular factors, shape (..., D, D)
    :raises ValueError: naming the first batch entry that is not finite, or not positive definite by more
        than rounding
    """
    factor, info = _cholesky(matrix)
    if not info.any():
        return factor
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    scale = th.finfo(matrix.dtype).eps * diagonal.mean(-1, keepdim=True)
    for jitter in _JITTERS:
        # Only where it failed: every other entry keeps its exact factor
        extra = th.where(info.unsqueeze(-1) != 0, jitter * scale, th.zeros_like(scale))
        factor, still_failing = _cholesky(matrix + th.diag_embed(extra.expand_as(diagonal)))
        if not still_failing.any():
            return factor
    finite = matrix.isfinite().all(-1).all(-1)
    entry = tuple(th.nonzero(still_failing if finite.all() else ~finite)[0].tolist())
    problem = "is not positive definite" if finite.all() else "holds NaN or infinity"
    raise ValueError(
        f"The precision matrix of batch entry {entry} {problem}. Look for exploding weights or inputs "
        "(lower learning_rate or max_grad_norm, normalize the observations), or use covariance='diagonal'."
    )
