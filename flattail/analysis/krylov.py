"""Lanczos: a symmetric operator seen from one vector, as a small tridiagonal matrix with both ends of its spectrum.

H Q = Q T + beta q e',   T S = S diag(theta):   |H y_i − theta_i y_i| = beta |S_ki|,   y_i = Q S_i
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

LEAST = 10  # steps before a run may stop: a start that hides an eigenvector needs a few to show it
SMALL = 1e-2  # an extreme eigenvalue below this share of the largest is asked for to an absolute accuracy


class Krylov:
    """One run of Lanczos with full reorthogonalisation, twice (Paige; Parlett, *The Symmetric Eigenvalue Problem*).

    It is fed with products by its owner, `absorb(H @ run.next)`, so that several runs share a pass over the data.

    Args:
        start: any vector `[n]` but zero.
        steps: the most products.
        tolerance: stop when both extremes are known to this relative error; 0 takes all steps.
    """

    def __init__(self, start: Tensor, *, steps: int, tolerance: float) -> None:
        self.most, self.tolerance = min(steps, start.numel()), tolerance
        self.vectors = torch.empty(self.most, start.numel(), dtype=start.dtype, device=start.device)
        self.vectors[0] = start / start.double().norm()
        self.alpha: list[float] = []
        self.beta: list[float] = []
        self.exhausted = False  # the whole space that the start reaches has been seen
        self.values = self.first = self.last = np.zeros(0)

    @property
    def steps(self) -> int:
        """Products absorbed."""
        return len(self.alpha)

    @property
    def basis(self) -> Tensor:
        """`[k, n]`, orthonormal."""
        return self.vectors[: self.steps]

    @property
    def matrix(self) -> np.ndarray:
        """T, `[k, k]`: the operator on the basis."""
        off = self.beta[: self.steps - 1]
        return np.diag(self.alpha) + np.diag(off, 1) + np.diag(off, -1)

    @property
    def next(self) -> Tensor:
        """The vector `[n]` whose product is wanted."""
        return self.vectors[self.steps]

    def absorb(self, product: Tensor) -> None:
        """Take in the product with `next`.

        Raises:
            FloatingPointError: if it is not finite.
        """
        k = self.steps
        self.alpha.append(float(self.vectors[k].double() @ product.double()))
        if not np.isfinite(self.alpha[-1]):
            raise FloatingPointError("a Hessian-vector product is not finite: use dtype=float64, or another model")
        basis = self.vectors[: k + 1]
        for _ in range(2):
            product = product - basis.T @ (basis @ product)
        self.beta.append(float(product.double().norm()))
        self.values, vectors = eigh_tridiagonal(np.array(self.alpha), np.array(self.beta[:-1]))
        self.first, self.last = vectors[0], vectors[-1]
        self._vectors = vectors
        scale = max(np.abs(self.values).max(), self.beta[0])
        self.exhausted = self.beta[-1] <= (1e-8 if product.dtype == torch.float64 else 1e-6) * scale
        if self.exhausted:
            self.beta[-1] = 0.0
        elif k + 1 < self.most:
            self.vectors[k + 1] = product / self.beta[-1]

    @property
    def over(self) -> bool:
        """Whether another product is not wanted."""
        enough = self.tolerance > 0 and self.steps >= min(LEAST, self.most) and all(self.converged)
        return self.exhausted or self.steps == self.most or enough

    @property
    def mass(self) -> np.ndarray:
        """`[k]` Gaussian quadrature weights of the Ritz values: the start's density of states."""
        return self.first**2

    @property
    def residuals(self) -> np.ndarray:
        """`[k]` norms of `H y − theta y`."""
        return self.beta[-1] * np.abs(self.last)

    @property
    def errors(self) -> np.ndarray:
        """`[k]` bounds on |theta − lambda|: the residual, or its square over the gap to the next Ritz value."""
        r, gaps = self.residuals, np.diff(self.values)
        if not len(gaps):
            return r
        gap = np.minimum(np.append(gaps, np.inf), np.insert(gaps, 0, np.inf))
        return np.minimum(r, r**2 / np.maximum(gap, 1e-300))

    @property
    def converged(self) -> tuple[bool, bool]:
        """Whether the smallest and the largest eigenvalue are known to the tolerance."""
        if self.exhausted or self.steps == self.vectors.shape[1]:
            return True, True
        size = np.maximum(np.abs(self.values), SMALL * np.abs(self.values).max())
        known = self.errors <= (self.tolerance or 1e-6) * size
        return bool(known[0]), bool(known[-1])

    def ritz(self, i: int) -> Tensor:
        """The unit vector `[n]` of the i-th Ritz value, in ascending order."""
        y = torch.as_tensor(self._vectors[:, i]).to(self.basis) @ self.basis
        return y / y.norm()
