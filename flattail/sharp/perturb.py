"""Moving weights: where a climb goes (balls), and the verbs `displaced`, `recorded`, `answering` that look from there.

max_{||e|| <= r} L(w + e)  ~  L(w + r g/||g||),   g = grad L(w)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Tensors = list[Tensor]
Climb = Callable[[Tensors, Tensors], list[Tensor]]  # (weights, own slope) -> displacement
Length = Callable[[Tensor, Tensor, int], Tensor]  # (||w||, ||g||, number of scalars) -> ||e||

TINY = 1e-12


def norm(tensors: Tensors) -> Tensor:
    """The L2 norm over the concatenation of all tensors: a scalar, never below their own precision."""
    return torch.nn.utils.get_total_norm(tensors)


def dot(a: Tensors, b: Tensors) -> Tensor:
    """The inner product of the concatenations: a scalar."""
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def filters_of(w: Tensor) -> int:
    """The axis along which a weight's filters lie: the first, or what its layer declares as `weight.filters`."""
    axis: int = getattr(w, "filters", 0)
    return axis


def filter_norms(t: Tensor, axis: int) -> Tensor:
    """The norm of every slice of an axis, in a shape that broadcasts against the whole."""
    norms: Tensor = t.movedim(axis, 0).flatten(1).norm(dim=1)
    return norms.view([-1 if d == axis else 1 for d in range(t.ndim)])


def orthogonal(a: Tensors, b: Tensors) -> list[Tensor]:
    """The part of a that is orthogonal to b."""
    return list(torch._foreach_sub(a, torch._foreach_mul(b, dot(a, b) / (dot(b, b) + TINY**2))))


# -- balls: how far a term climbs, along what ---------------------------------------------------


@dataclass(frozen=True)
class Radial:
    """A climb along the term's own slope: e = length(||w||, ||g||, k) g / (||g|| + 1e-12).

    Being a function of norms alone, it also works for all groups of a grouped term at once, from a vector
    of slope norms `[G]` (the Gram form of a linear head needs no gradient per class).
    """

    length: Length
    per_tensor: bool = False  # each tensor by its own norm and direction, instead of one global norm
    cap: float = float("inf")  # ||e|| is at most this multiple of ||w||

    def scales(self, weight: Tensor, slopes: Tensor, size: int) -> Tensor:
        """The factor of each slope: `[T]` or `[T, G]` for slope norms of T tensors (and G groups)."""
        total = slopes if self.per_tensor else slopes.norm(dim=0, keepdim=True).expand_as(slopes)
        length = self.length(weight, total, size)
        reach = length.norm(dim=0) if self.per_tensor else length[0]
        kept = torch.clamp(self.cap * weight / (reach + TINY), max=1.0) if self.cap < float("inf") else 1.0
        return kept * length / (total + TINY)

    def __call__(self, weights: Tensors, slope: Tensors) -> list[Tensor]:
        """The displacement, made in place of the slope: a climb costs no copy of the weights."""
        size = sum(w.numel() for w in weights)
        norms = torch.stack([g.norm() for g in slope]) if self.per_tensor else norm(slope)[None]
        scales = self.scales(norm(weights), norms, size)
        for g, s in zip(slope, scales.expand(len(slope)), strict=True) if self.per_tensor else ():
            g.mul_(s)
        if not self.per_tensor:
            torch._foreach_mul_(slope, scales[0])
        return slope

    def of_group(self, group: int) -> Radial:
        """The same climb for one group of a grouped term."""
        return Radial(lambda w, g, k: self._one(w, g, k, group), self.per_tensor, self.cap)

    def _one(self, weight: Tensor, slopes: Tensor, size: int, group: int) -> Tensor:
        lengths = [self.length(weight, g, size) for g in slopes]
        return torch.stack([at if at.ndim == 0 else at[group] for at in lengths])  # alike for all groups, or [G]


@dataclass(frozen=True)
class Blind:
    """A climb that asks for no slope: one looks from w + e at once, without a look from w."""

    move: Callable[[Tensors], Tensors]  # of the weights

    def __call__(self, weights: Tensors, slope: Tensors) -> Tensors:
        """The displacement."""
        return self.move(weights)


def of_group(climb: Any, group: int) -> Climb:
    """A climb as one group of a grouped term makes it."""
    own: Climb = climb.of_group(group) if hasattr(climb, "of_group") else climb
    return own


def l2_ball(rho: float) -> Radial:
    """The ball of SAM: ||e|| <= rho (Foret et al., ICLR 2021, eq. 2)."""
    return Radial(lambda w, g, k: torch.full_like(g, rho))


def adaptive_ball(rho: float, *, floor: float = 0.01) -> Climb:
    """The ball of ASAM, stretched by T = |w| + floor: e = rho T^2 g / ||T g|| (Kwon et al., ICML 2021, eq. 6)."""

    def climb(weights: Tensors, slope: Tensors) -> list[Tensor]:
        stretch = list(torch._foreach_abs(weights))
        torch._foreach_add_(stretch, floor)
        torch._foreach_mul_(slope, stretch)
        scale = rho / (norm(slope) + TINY)
        torch._foreach_mul_(slope, stretch)
        torch._foreach_mul_(slope, scale)
        return slope

    return climb


# -- verbs: looking from there ------------------------------------------------------------------


@contextmanager
def displaced(weights: Tensors, moves: Tensors) -> Iterator[None]:
    """The weights are at `w + move` inside, and bit for bit, in the same storage, at `w` afterwards."""
    kept = [torch.empty_like(w, requires_grad=False) for w in weights]
    with torch.no_grad():
        torch._foreach_copy_(kept, weights)
    try:
        with torch.no_grad():
            torch._foreach_add_(weights, moves)
        del moves
        torch.clear_autocast_cache()
        versions = [w._version for w in weights]
        yield
        if versions != [w._version for w in weights]:
            raise RuntimeError(
                "the weights were changed while they were displaced, which is lost (an optimiser that steps in a hook "
                "of the backward pass?): step after flat.backward()"
            )
    finally:
        with torch.no_grad():
            torch._foreach_copy_(weights, kept)
        torch.clear_autocast_cache()


@contextmanager
def kept_buffers(modules: Sequence[nn.Module], keep: bool = True) -> Iterator[None]:
    """BatchNorm statistics and counters are afterwards what they were before, bit for bit."""
    owners = {id(m): m._buffers for root in modules for m in root.modules()} if keep else {}
    kept = [(o, n, b, b.clone()) for o in owners.values() for n, b in o.items() if b is not None]
    try:
        yield
    finally:
        with torch.no_grad():
            for owner, name, buffer, value in kept:
                owner[name] = buffer.copy_(value)


@contextmanager
def recorded(module: nn.Module) -> Iterator[list[tuple[Tensor, Tensor, torch.autocast]]]:
    """Every (input, output, autocast that it ran under) of the module's calls inside, in order."""
    calls: list[tuple[Tensor, Tensor, torch.autocast]] = []

    def record(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kind = output.device.type
        cast = torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        calls.append((inputs[0], output, cast))

    handle = module.register_forward_hook(record)
    try:
        yield calls
    finally:
        handle.remove()


@contextmanager
def answering(module: nn.Module, answer: Tensor) -> Iterator[None]:
    """The module does no work inside: it answers with a stored tensor, graph and all."""
    state = module.__dict__
    kept: dict[str, Any] = {name: state[name] for name in ("forward", "_compiled_call_impl") if name in state}
    state["forward"] = lambda *_, **__: answer
    state["_compiled_call_impl"] = None
    try:
        yield
    finally:
        for name in ("forward", "_compiled_call_impl"):
            state.pop(name, None)
        state.update(kept)
