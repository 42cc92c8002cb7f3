"""Gaussians in precision form against torch.distributions."""

import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from sb3_laplace.posteriors.gaussian import (
    DiagonalGaussian,
    FullGaussian,
    Gaussian,
    PointMass,
    RotatedGaussian,
    safe_cholesky,
)


def random_gaussian(kind: str, batch: int, dim: int, seed: int, dtype: th.dtype = th.float64) -> Gaussian:
    generator = th.Generator().manual_seed(seed)
    mean = th.randn(batch, dim, generator=generator, dtype=dtype)
    factor = th.randn(batch, dim, dim + 2, generator=generator, dtype=dtype)
    precision = 0.3 * th.eye(dim, dtype=dtype) + factor @ factor.mT
    if kind == "full":
        return FullGaussian(mean, precision)
    if kind == "rotated":
        variance, axes = th.linalg.eigh(precision.inverse())
        return RotatedGaussian(mean, variance.log(), axes)
    return DiagonalGaussian(mean, precision.diagonal(dim1=-2, dim2=-1).contiguous())


def as_torch(gaussian: Gaussian) -> th.distributions.Distribution:
    if isinstance(gaussian, (FullGaussian, RotatedGaussian)):
        return MultivariateNormal(gaussian.mean, precision_matrix=gaussian.precision)
    return Independent(Normal(gaussian.mean, gaussian.stddev), 1)


@pytest.mark.parametrize("kind", ["full", "diagonal", "rotated"])
@given(batch=st.integers(1, 4), dim=st.integers(1, 7), seed=st.integers(0, 2**31))
def test_agrees_with_torch_distributions(kind: str, batch: int, dim: int, seed: int) -> None:
    q, p = random_gaussian(kind, batch, dim, seed), random_gaussian(kind, batch, dim, seed + 1)
    oracle_q, oracle_p = as_torch(q), as_torch(p)
    th.testing.assert_close(q.entropy(), oracle_q.entropy())
    th.testing.assert_close(q.kl(p), kl_divergence(oracle_q, oracle_p))
    th.testing.assert_close(q.log_prob(p.mean), oracle_q.log_prob(p.mean))
    th.testing.assert_close(q.variance, oracle_q.variance)
    th.testing.assert_close(q.covariance.diagonal(dim1=-2, dim2=-1), oracle_q.variance)
    th.testing.assert_close(q.stddev.square(), q.variance)


@pytest.mark.parametrize("kind", ["full", "diagonal", "rotated", "point"])
def test_any_number_of_batch_dimensions(kind: str) -> None:
    q, p = (
        PointMass(random_gaussian("diagonal", 6, 4, seed).mean)
        if kind == "point"
        else random_gaussian(kind, 6, 4, seed)
        for seed in (0, 1)
    )
    two_q, two_p = (type(one)(*(part.unflatten(0, (2, 3)) for part in one.tensors)) for one in (q, p))
    assert two_q.dim == 4
    th.testing.assert_close(two_q.entropy(), q.entropy().view(2, 3))
    th.testing.assert_close(two_q.kl(two_p), q.kl(p).view(2, 3))
    th.testing.assert_close(two_q.covariance, q.covariance.view(2, 3, 4, 4))
    noise = th.randn(5, 6, 4, dtype=th.float64)
    th.testing.assert_close(two_q.unwhiten(noise.unflatten(1, (2, 3))), q.unwhiten(noise).unflatten(1, (2, 3)))


@pytest.mark.parametrize("kind", ["full", "diagonal", "rotated"])
def test_kl_parts(kind: str) -> None:
    q, p = random_gaussian(kind, 3, 4, 0), random_gaussian(kind, 3, 4, 1)
    parts = q.kl_parts(p)
    moved = type(q)(p.mean, *q.tensors[1:])
    th.testing.assert_close(parts.covariance, moved.kl(p))
    th.testing.assert_close(parts.mean + parts.covariance, q.kl(p))
    assert (q.kl(q) == 0).all() or q.kl(q).abs().max() < 1e-12


@pytest.mark.parametrize("kind", ["full", "diagonal", "rotated"])
def test_samples_have_the_right_moments(kind: str) -> None:
    q = random_gaussian(kind, 2, 3, 5)
    draws = q.sample(200_000)
    assert draws.shape == (200_000, 2, 3)
    assert q.sample().shape == (1, 2, 3)
    # Standard errors are about 1/450 of a standard deviation
    assert ((draws.mean(0) - q.mean) / q.stddev).abs().max() < 0.012
    for entry in range(2):
        th.testing.assert_close(th.cov(draws[:, entry].T), q.covariance[entry], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", ["full", "diagonal", "rotated"])
def test_indexing_takes_a_slice_of_the_batch(kind: str) -> None:
    q = random_gaussian(kind, 5, 3, 2)
    index = th.tensor([3, 1])
    th.testing.assert_close(q[index].entropy(), q.entropy()[index])
    q = random_gaussian(kind, 5, 3, 2)
    th.testing.assert_close(q[index].variance, q.variance[index])


@pytest.mark.parametrize("kind", ["full", "diagonal", "rotated"])
def test_where_and_concatenate(kind: str) -> None:
    q, p = random_gaussian(kind, 4, 3, 2), random_gaussian(kind, 4, 3, 3)
    condition = th.tensor([True, False, False, True])
    th.testing.assert_close(
        q.where(condition, p).covariance, th.where(condition.view(4, 1, 1), q.covariance, p.covariance)
    )
    joined = Gaussian.concatenate([q, p])
    assert type(joined) is type(q)
    th.testing.assert_close(joined.entropy(), th.cat((q.entropy(), p.entropy())))


def test_point_mass_is_the_limit_of_no_variance() -> None:
    q, p = PointMass(th.zeros(2, 3)), PointMass(th.tensor([[0.0, 0, 0], [0, 0, 1]]))
    assert th.equal(q.entropy(), th.full((2,), -th.inf))
    assert th.equal(q.kl(p), th.tensor([0.0, th.inf]))
    assert th.equal(p.sample(2), p.mean.expand(2, 2, 3))
    assert th.equal(p.variance, th.zeros(2, 3))
    # Where they are does not matter, nor how many units there are
    assert th.equal(p.kl(p), th.zeros(2))
    assert th.equal(PointMass(th.ones(2, 1)).entropy(), th.full((2,), -th.inf))
    double = PointMass(th.zeros(2, 3, dtype=th.float64))
    assert double.kl(double).dtype == th.float64


def test_kl_of_different_structures_is_an_error() -> None:
    with pytest.raises(TypeError, match="FullGaussian and a DiagonalGaussian"):
        random_gaussian("full", 2, 3, 0).kl(random_gaussian("diagonal", 2, 3, 0))
    with pytest.raises(TypeError, match="PointMass and a DiagonalGaussian"):
        PointMass(th.zeros(2, 3)).kl(random_gaussian("diagonal", 2, 3, 0))


@pytest.mark.parametrize("kind", ["full", "diagonal", "rotated"])
def test_rounding_makes_no_negative_kl(kind: str) -> None:
    q = random_gaussian(kind, 500, 7, 0, th.float32)
    p = type(q)(*(part * (1 + 1e-7) for part in q.tensors))
    assert (q.kl(p) >= 0).all()


@pytest.mark.parametrize("dim", [1, 2, 31, 32, 33, 64, 65, 100, 129])
@pytest.mark.parametrize("batch", [(), (3,), (2, 5)])
def test_cholesky_by_halves_is_torchs(dim: int, batch: tuple[int, ...]) -> None:
    half = th.randn(*batch, dim, 2 * dim, dtype=th.float64, generator=th.Generator().manual_seed(dim))
    matrix = half @ half.mT + th.eye(dim, dtype=th.float64)
    th.testing.assert_close(safe_cholesky(matrix), th.linalg.cholesky(matrix))


@pytest.mark.parametrize("where", [0, 20, 60, 99])
def test_cholesky_by_halves_says_where_it_failed(where: int) -> None:
    matrix = th.eye(100).expand(2, 3, 100, 100).clone()
    matrix[1, 2, where, where] = -1.0
    with pytest.raises(ValueError, match=r"batch entry \(1, 2\) is not positive definite"):
        safe_cholesky(matrix)


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)])
def test_cholesky_survives_rounding(batch: tuple[int, ...]) -> None:
    """Rank-deficient up to rounding: positive definite on paper, not in float32."""
    direction = th.randn(*batch, 6, 2)
    matrix = 1e-3 * th.eye(6) + 1e6 * direction @ direction.mT
    factor = safe_cholesky(matrix)
    assert factor.isfinite().all()
    th.testing.assert_close(factor @ factor.mT, matrix, rtol=1e-3, atol=5.0)


def test_cholesky_leaves_good_entries_alone() -> None:
    good = th.eye(3) * 2
    bad = th.ones(3, 3)
    factor = safe_cholesky(th.stack((good, bad)))
    assert th.equal(factor[0], th.linalg.cholesky(good))


@pytest.mark.parametrize(
    ("broken", "problem"), [(float("nan"), "holds NaN or infinity"), (-1.0, "is not positive definite")]
)
def test_cholesky_says_where_it_failed(broken: float, problem: str) -> None:
    matrix = th.eye(3).repeat(4, 1, 1)
    matrix[2, 1, 1] = broken
    with pytest.raises(ValueError, match=rf"batch entry \(2,\) {problem}"):
        safe_cholesky(matrix)


def test_nan_is_told_before_what_is_not_positive_definite() -> None:
    matrix = th.eye(3).repeat(4, 1, 1)
    matrix[1, 1, 1], matrix[2, 0, 0] = -1.0, float("nan")
    with pytest.raises(ValueError, match=r"batch entry \(2,\) holds NaN or infinity"):
        safe_cholesky(matrix)
    with pytest.raises(ValueError, match=r"batch entry \(1, 0\) holds NaN or infinity"):
        safe_cholesky(matrix.unflatten(0, (2, 2)))
