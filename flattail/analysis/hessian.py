"""Exact products with the Hessian of a weighted mean loss; "class-wise" is the weight of each sample, as in a Term.

H v = sum_i a_i m_i (d²loss_i/dw²) v / sum_i a_i m_i
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, pairwise
from typing import Any

import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from flattail.sharp import Weighted

from .subject import enough_memory, flat, split_like

BLOCKS = 64  # at most so many layers are told apart by `within`
Piece = tuple[list[Tensor | None], Tensor, Tensor]  # gradient with its graph, loss and mass; sums over a micro-batch


def layers(weights: list[Tensor], most: int) -> list[list[int]]:
    """Indices of the weights by layer: a matrix or kernel, or the vectors between two; neighbours joined if need be."""
    starts = [i for i, w in enumerate(weights) if i == 0 or w.ndim > 1 or weights[i - 1].ndim > 1]
    found = [list(range(a, b)) for a, b in zip(starts, [*starts[1:], len(weights)], strict=True)]
    cut = [len(found) * k // min(most, len(found)) for k in range(min(most, len(found)) + 1)]
    return [[i for layer in found[a:b] for i in layer] for a, b in pairwise(cut)]


class Hessian:
    """A symmetric operator `[n, n]`: `H @ v` for a vector `[n]`, or `H @ V` for several `[n, k]` in one pass.

    The gradient's graph is kept between products where all samples fit in one micro-batch; otherwise each product
    builds it again, micro-batch by micro-batch, and memory does not grow with the number of samples. The weights
    must not move while the operator is in use.

    Args:
        losses: (x, y) -> `[B]`, or `Weighted` values and masses; runs a plain, uncompiled module.
        batches: pairs (x, y), or triples with the weight `[B]` of each sample; readable again and again.
        weights: the parameters differentiated by, in order.
        weight: labels `[B]` -> the weight of each sample.
        micro: samples differentiated at once.
        model: searched for the culprit where products do not repeat.
    """

    def __init__(
        self,
        losses: Callable[[Tensor, Tensor], Any],
        batches: Iterable[Any],
        weights: list[Tensor],
        *,
        weight: Callable[[Tensor], Tensor] | None = None,
        micro: int = 64,
        model: nn.Module | None = None,
    ) -> None:
        self.losses, self.batches, self.weights = losses, batches, weights
        self.weight, self.micro, self.model = weight, micro, model
        self.size = sum(w.numel() for w in weights)
        self.shape = (self.size, self.size)
        self.dtype, self.device = weights[0].dtype, weights[0].device
        self.products = 0  # taken so far
        self.blocks = layers(weights, BLOCKS)  # indices of the weights of each layer
        self._held: Piece | None = None
        self._many = False  # whether there are several micro-batches

    def __matmul__(self, v: Tensor) -> Tensor:
        """Products with the columns of `v`, `[n]` or `[n, k]`."""
        self.products += 1 if v.ndim == 1 else v.shape[1]
        with enough_memory(self.micro):
            return self._product(v, self._pieces(), [list(range(len(self.weights)))])

    def within(self, v: Tensor) -> Tensor:
        """Products of the blocks on the diagonal, layer by layer, with `v`, `[n]` or `[n, k]`.

        A pass per layer, but only through what lies behind it: together about a quarter of as many products.
        """
        with enough_memory(self.micro):
            return self._product(v, self._pieces(), self.blocks)

    def gradient(self) -> tuple[float, Tensor]:
        """The loss and its gradient `[n]`."""
        total, loss, mass = torch.zeros(self.size, dtype=self.dtype, device=self.device), 0.0, 0.0
        for g, value, own in self._pieces():
            total += flat(
                [torch.zeros_like(w) if d is None else d.detach() for d, w in zip(g, self.weights, strict=True)]
            )
            loss, mass = loss + float(value), mass + float(own)
        if not mass:
            raise ValueError("no sample counts: the weight of every sample is zero")
        return loss / mass, total / mass

    def check(self, seed: int = 0) -> None:
        """Repeat a product on halved micro-batches, read anew.

        Raises:
            ValueError: if it is another one, saying why.
        """
        v = torch.randn(self.size, generator=torch.Generator().manual_seed(seed)).to(self.device, self.dtype)
        whole = [list(range(len(self.weights)))]
        first = self._product(v, self._pieces(), whole)
        again = self._product(v, self._built(max(min(self.micro, self._largest) // 2, 1)), whole)
        tolerance = 1e-3 if self.dtype == torch.float32 else 1e-6
        if float((first - again).norm()) > tolerance * float(first.norm() + again.norm()):
            raise ValueError(f"a repeated Hessian-vector product differs: {self._why()}")

    def to_scipy(self) -> LinearOperator:
        """The same operator for SciPy, in float64 on the host."""

        def product(v: Any) -> Any:
            return (self @ torch.as_tensor(v).reshape(-1).to(self.device, self.dtype)).double().cpu().numpy()

        return LinearOperator(self.shape, matvec=product, dtype="float64")

    def _product(self, v: Tensor, pieces: Iterator[Piece], blocks: list[list[int]]) -> Tensor:
        columns = v[:, None] if v.ndim == 1 else v
        out, total = torch.zeros_like(columns.T, memory_format=torch.contiguous_format), 0.0
        rows = [split_like(row, self.weights) for row in out]
        directions = [split_like(column.contiguous(), self.weights) for column in columns.T]
        for gradient, _, mass in pieces:
            for block in blocks:
                own = {i: g for i in block if (g := gradient[i]) is not None and g.requires_grad}
                for row, direction in zip(rows, directions, strict=True) if own else ():
                    turned = torch.autograd.grad(
                        list(own.values()),
                        [self.weights[i] for i in block],
                        [direction[i] for i in own],
                        retain_graph=True,
                        allow_unused=True,
                    )
                    for i, t in zip(block, turned, strict=True):
                        if t is not None:
                            row[i] += t
            total += float(mass)
        if not total:
            raise ValueError("no sample counts: the weight of every sample is zero")
        return (out / total).T.reshape(v.shape)

    def _pieces(self) -> Iterator[Piece]:
        """What a product is a sum over; kept where it is one."""
        if self._held is not None:
            return iter([self._held])
        built = self._built(self.micro)
        if self._many:
            return built
        first, second = next(built, None), next(built, None)
        if first is not None and second is None:
            self._held = first
        self._many = second is not None
        return chain((p for p in (first, second) if p is not None), built)

    def _built(self, micro: int) -> Iterator[Piece]:
        self._largest = 1
        for x, y, *given in self.batches:
            a = given[0] if given else torch.ones(len(y), dtype=torch.float64, device=y.device)
            a = a if self.weight is None else a * self.weight(y)
            rows = (a != 0).nonzero().squeeze(1)
            self._largest = max(self._largest, len(rows))
            for r in rows.split(micro) if len(rows) else ():
                with enough_memory(micro):
                    out = self.losses(x[r], y[r])
                    values, masses = out if isinstance(out, Weighted) else (out, torch.ones_like(out))
                    share = a[r].to(masses) * masses
                    total = (share * values).sum()
                    gradient = torch.autograd.grad(total, self.weights, create_graph=True, allow_unused=True)
                yield list(gradient), total.detach().double(), share.double().sum()

    def _why(self) -> str:
        modules = [] if self.model is None else [m for m in self.model.modules() if m.training]
        coupled = {type(m).__name__ for m in modules if isinstance(m, nn.modules.batchnorm._NormBase)}
        noisy = {type(m).__name__ for m in modules if "Drop" in type(m).__name__}
        if coupled or noisy:
            names = ", ".join(sorted(coupled | noisy))
            return f"{names} in training mode makes the loss depend on the batch or on chance: call model.eval() first"
        return (
            "the inputs differ when read again (random augmentation: use evaluation transforms), or the model draws at "
            "random or mixes the samples of a batch even in evaluation mode (dropout called with training=True?)"
        )
