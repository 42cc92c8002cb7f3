"""The Jacobian ``S = dh'/dh`` of a recurrent memory, as an operator that a posterior asks what it needs.

What a posterior needs of S (its projection ``W S`` on the latent, the diagonal of ``S S^T``, its norm) can be had
without knowing the cell, and often for far less than the dense S costs. There is one class for each form that S takes.

Gradients never flow through these results: a precision must not be optimised by shaping the network's curvature
(paper, section 4).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch as th

# Numbers in a block of dense Jacobians: 2 MB in float32 for a processor's cache, 256 MB of a GPU's memory
_BLOCK_SIZE = 2**19
_GPU_BLOCK_SIZE = 2**26


class JacobianOperator(ABC):
    """``S = dh'/dh`` for any batch ``...`` of inputs, H hidden units, and a latent projection W of shape (D, H)."""

    @abstractmethod
    def blocks(self, projection: th.Tensor | None, dtype: th.dtype | None = None) -> Iterator[tuple[slice, th.Tensor]]:
        """``J = W S`` for a flat batch of N inputs, block by block.

        :param projection: the latent projection W, shape (D, H); None for the identity
        :param dtype: floating point type of the products, the weights' own by default
        :return: the indices of a block of n inputs and their J, shape (n, D, H), which the caller may write over and
            the next block does
        """

    def projected_row_norms_squared(self, projection: th.Tensor, dtype: th.dtype | None = None) -> th.Tensor:
        """The diagonal of ``J J^T`` for a flat batch of N inputs, shape (N, D).

        :param projection: the latent projection W, shape (D, H)
        :param dtype: floating point type of the products for J, the weights' own by default
        """
        # In place, as the blocks are ours: the squares need no memory of their own
        return th.cat([dense.to(projection.dtype).square_().sum(-1) for _, dense in self.blocks(projection, dtype)])

    @abstractmethod
    def row_norms_squared(self) -> th.Tensor:
        """The diagonal of ``S S^T``, shape (..., H)."""

    @abstractmethod
    def projected_gram(self, projection: th.Tensor) -> th.Tensor:
        """What of ``||W S||_F^2`` depends on the weights alone, for :meth:`projected_norm_squared`.

        It is the same for every step, as long as the weights are.

        :param projection: the latent projection W, shape (D, H)
        """

    @abstractmethod
    def projected_norm_squared(self, gram: th.Tensor) -> th.Tensor:
        """``||W S||_F^2``, shape (...), without forming the product.

        :param gram: what :meth:`projected_gram` returned
        """

    @abstractmethod
    def scale(self, factor: th.Tensor) -> "JacobianOperator":
        """Each input's Jacobian times a number.

        :param factor: shape (...)
        """

    @abstractmethod
    def summed_outer_product(self) -> th.Tensor:
        """``sum_l S_nl S_nl^T`` over L inputs for each of N environments (batch (N, L)), shape (N, H, H)."""


def _block_length(n_inputs: int, n_hidden: int, device: th.device) -> int:
    """Number of inputs whose Jacobians are formed at once."""
    numbers = _BLOCK_SIZE if device.type == "cpu" else _GPU_BLOCK_SIZE
    return min(n_inputs, max(8, numbers // n_hidden**2))


class GateSumJacobian(JacobianOperator):
    """``S = sum_g diag(coefficients[g]) weights[g]`` for G gates, H hidden units and any batch ``...`` of inputs.

    :param coefficients: row factors a, shape (G, ..., H)
    :param weights: recurrent weights U, shape (G, H, H)
    """

    def __init__(self, coefficients: th.Tensor, weights: th.Tensor) -> None:
        self.coefficients = coefficients
        self.weights = weights

    def blocks(self, projection: th.Tensor | None, dtype: th.dtype | None = None) -> Iterator[tuple[slice, th.Tensor]]:
        # Blocks stay in the processor's cache: writing S for all of many inputs and reading it again costs as much as
        # the products themselves, and so does fresh memory for every block
        rows, weights = self.coefficients.permute(2, 1, 0).contiguous(), self.weights.transpose(0, 1)
        if dtype is not None:
            rows, weights = rows.to(dtype), weights.to(dtype)
        n_hidden, n_inputs, _ = rows.shape
        size = _block_length(n_inputs, n_hidden, rows.device)
        dense = rows.new_empty(n_hidden, size, n_hidden)
        if projection is not None:
            projection = projection.detach().to(rows.dtype).expand(size, -1, -1)
            projected = rows.new_empty(projection.shape)
        for begin in range(0, n_inputs, size):
            block = slice(begin, min(begin + size, n_inputs))
            n = block.stop - begin
            # One matrix product per hidden unit, (n, G) x (G, H): 30 to 60 times faster than the same sum over
            # gates written as an einsum over (n, G, H)
            jacobian = th.bmm(rows[:, block], weights, out=dense[:, :n]).transpose(0, 1)
            if projection is not None:
                jacobian = th.bmm(projection[:n], jacobian, out=projected[:n])
            yield block, jacobian

    def row_norms_squared(self) -> th.Tensor:
        """The diagonal of ``S S^T``, shape (..., H), without ever forming S: 16 H flops per input of an LSTM.

        ``(S S^T)_jj = a_j^T (U U^T)_j a_j`` with one G x G Gram matrix per hidden unit.
        """
        a, n_gates = self.coefficients, len(self.coefficients)
        unit_rows = self.weights.transpose(0, 1)
        gram = th.bmm(unit_rows, unit_rows.mT).permute(1, 2, 0).contiguous()
        total = th.zeros_like(a[0])
        for g in range(n_gates):
            # Row g of the Gram matrix times a, each pair of gates once
            product = a[g] * gram[g, g]
            for h in range(g + 1, n_gates):
                product.addcmul_(a[h], 2.0 * gram[g, h])
            total.addcmul_(product, a[g])
        return total

    def projected_gram(self, projection: th.Tensor) -> th.Tensor:
        """The matrix M with ``||W S||_F^2 = a^T M a``, shape (G H, G H), for a with its G gates one after another.

        ``M_gh = (W^T W) * (U_g U_h^T)``, elementwise. It is far cheaper to apply than J is to form.
        """
        rows, projection = self.weights.flatten(0, 1), projection.detach()
        return (rows @ rows.T) * (projection.T @ projection).repeat(len(self.weights), len(self.weights))

    def projected_norm_squared(self, gram: th.Tensor) -> th.Tensor:
        factors = self.coefficients.movedim(0, -2).flatten(-2)
        # A square, which rounding can leave below zero
        return ((factors @ gram) * factors).sum(-1).clamp(min=0.0)

    def scale(self, factor: th.Tensor) -> "GateSumJacobian":
        return GateSumJacobian(self.coefficients * factor.unsqueeze(-1), self.weights)

    def summed_outer_product(self) -> th.Tensor:
        """``sum_l S_nl S_nl^T`` over L inputs for each of N environments (batch (N, L)), shape (N, H, H).

        By ``sum_l S_l S_l^T = sum_gh (sum_l a_gl a_hl^T) * (U_g U_h^T)``, elementwise: no Jacobian is ever
        formed, and the sum over inputs is a matrix product.
        """
        a, u = self.coefficients, self.weights
        half = a.new_zeros(a.shape[1], a.shape[3], a.shape[3])
        for g in range(len(a)):
            half.addcmul_(a[g].mT @ a[g], u[g] @ u[g].T, value=0.5)
            for h in range(g + 1, len(a)):
                half.addcmul_(a[g].mT @ a[h], u[g] @ u[h].T)
        # The pair (h, g) is the transpose of (g, h)
        return half + half.mT


class DiagonalJacobian(JacobianOperator):
    """``S = diag(d)``, of a memory whose units do not see one another.

    :param diagonal: d, shape (..., H)
    """

    def __init__(self, diagonal: th.Tensor) -> None:
        self.diagonal = diagonal

    def blocks(self, projection: th.Tensor | None, dtype: th.dtype | None = None) -> Iterator[tuple[slice, th.Tensor]]:
        n_inputs, n_hidden = self.diagonal.shape
        diagonal = self.diagonal if dtype is None else self.diagonal.to(dtype)
        size = _block_length(n_inputs, n_hidden, diagonal.device)
        for begin in range(0, n_inputs, size):
            block = slice(begin, min(begin + size, n_inputs))
            if projection is None:
                yield block, diagonal[block].diag_embed()
            else:
                yield block, projection.detach().to(diagonal.dtype) * diagonal[block].unsqueeze(1)

    def projected_row_norms_squared(self, projection: th.Tensor, dtype: th.dtype | None = None) -> th.Tensor:
        # One small product, of which no other type would be worth it
        return self.diagonal.square() @ projection.detach().square().T

    def row_norms_squared(self) -> th.Tensor:
        return self.diagonal.square()

    def projected_gram(self, projection: th.Tensor) -> th.Tensor:
        """Squared norms of the columns of W, shape (H,)."""
        return projection.detach().square().sum(0)

    def projected_norm_squared(self, gram: th.Tensor) -> th.Tensor:
        return self.diagonal.square() @ gram

    def scale(self, factor: th.Tensor) -> "DiagonalJacobian":
        return DiagonalJacobian(self.diagonal * factor.unsqueeze(-1))

    def summed_outer_product(self) -> th.Tensor:
        return self.diagonal.square().sum(1).diag_embed()


class DenseJacobian(JacobianOperator):
    """S as it is, of a memory that has no closed form.

    :param matrix: S, shape (..., H, H)
    """

    def __init__(self, matrix: th.Tensor) -> None:
        self.matrix = matrix

    def blocks(self, projection: th.Tensor | None, dtype: th.dtype | None = None) -> Iterator[tuple[slice, th.Tensor]]:
        matrix = self.matrix if dtype is None else self.matrix.to(dtype)
        n_inputs, n_hidden, _ = matrix.shape
        size = _block_length(n_inputs, n_hidden, matrix.device)
        for begin in range(0, n_inputs, size):
            block = slice(begin, min(begin + size, n_inputs))
            # A copy where nothing is projected, as the caller may write over it
            yield (
                block,
                matrix[block].clone() if projection is None else projection.detach().to(matrix.dtype) @ matrix[block],
            )

    def row_norms_squared(self) -> th.Tensor:
        return self.matrix.square().sum(-1)

    def projected_gram(self, projection: th.Tensor) -> th.Tensor:
        """``W^T W``, shape (H, H)."""
        return projection.detach().T @ projection.detach()

    def projected_norm_squared(self, gram: th.Tensor) -> th.Tensor:
        return (self.matrix * (gram @ self.matrix)).sum((-2, -1)).clamp(min=0.0)

    def scale(self, factor: th.Tensor) -> "DenseJacobian":
        return DenseJacobian(self.matrix * factor.unsqueeze(-1).unsqueeze(-1))

    def summed_outer_product(self) -> th.Tensor:
        # The columns of all inputs side by side: the sum over inputs is one matrix product
        columns = self.matrix.movedim(1, 2).flatten(2)
        return columns @ columns.mT


class PullbackJacobian(JacobianOperator):
    """S of a function that multiplies rows by it: ``W S`` without S, for fewer rows than S has.

    :param pull: from the indices of n inputs of the flat batch and rows, shape (n, R, H), to rows times S
    :param factor: each input's Jacobian times this number, shape (...)
    :param n_hidden: H
    """

    def __init__(self, pull: Callable[[slice, th.Tensor], th.Tensor], factor: th.Tensor, n_hidden: int) -> None:
        self._pull = pull
        self._factor = factor
        self._n_hidden = n_hidden

    def dense(self, index: slice = slice(None), projection: th.Tensor | None = None) -> th.Tensor:
        """S, or ``W S``, of n inputs of the flat batch, shape (n, H, H) or (n, D, H).

        :param index: which ones
        :param projection: the latent projection W, shape (D, H); None for the identity
        """
        factor = self._factor.flatten()[index].view(-1, 1, 1)
        if projection is None:
            projection = th.eye(self._n_hidden, dtype=factor.dtype, device=factor.device)
        return self._pull(index, factor * projection.detach())

    def blocks(self, projection: th.Tensor | None, dtype: th.dtype | None = None) -> Iterator[tuple[slice, th.Tensor]]:
        """See :meth:`JacobianOperator.blocks`. Products are of the weights' own type, results are of ``dtype``."""
        n_inputs, device = self._factor.numel(), self._factor.device
        size = _block_length(n_inputs, self._n_hidden, device)
        for begin in range(0, n_inputs, size):
            block = slice(begin, min(begin + size, n_inputs))
            product = self.dense(block, projection)
            yield block, product if dtype is None else product.to(dtype)

    def row_norms_squared(self) -> th.Tensor:
        rows = [product.square().sum(-1) for _, product in self.blocks(None)]
        return th.cat(rows).unflatten(0, self._factor.shape)

    def projected_gram(self, projection: th.Tensor) -> th.Tensor:
        """W itself, shape (D, H)."""
        return projection.detach()

    def projected_norm_squared(self, gram: th.Tensor) -> th.Tensor:
        sums = [product.square().sum((-2, -1)) for _, product in self.blocks(gram)]
        return th.cat(sums).view(self._factor.shape)

    def scale(self, factor: th.Tensor) -> "PullbackJacobian":
        return PullbackJacobian(self._pull, self._factor * factor, self._n_hidden)

    def summed_outer_product(self) -> th.Tensor:
        # Block by block: all S of L inputs would be L times what is asked for
        n_envs, n_inputs = self._factor.shape
        envs = th.arange(n_envs, device=self._factor.device).repeat_interleave(n_inputs)
        total = self._factor.new_zeros(n_envs, self._n_hidden, self._n_hidden)
        for block, product in self.blocks(None):
            total.index_add_(0, envs[block], product @ product.mT)
        return total
