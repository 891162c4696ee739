"""Is the method doing anything? What a SharpnessAware saw so far, kept on the device until someone asks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

SMALLEST, LARGEST = 1e-4, 0.5  # ||e||/||w|| below is a vacuous perturbation, above it no neighbourhood


def doubt(name: str, radius: float) -> str:
    """What is wrong with a term's mean radius, relative to the norm of what moves; "" where nothing is."""
    moves = f"'{name}' moves by {radius:.2g} of the norm of what it displaces"
    if 0 < radius < SMALLEST:
        return f"perturbation vacuous: {moves}"
    return f"{moves}: no neighbourhood" if radius > LARGEST else ""


@dataclass
class Outcome:
    """What a step knows of itself, left on the device: nothing here waits for it."""

    loss: Tensor  # the plain objective at w, over all parts and processes
    values: dict[str, Tensor] = field(default_factory=dict)  # each term's part of the objective, where it looks from
    gaps: dict[str, Tensor] = field(default_factory=dict)  # L_k(w + e) - L_k(w), of climbing terms
    radii: dict[str, Tensor] = field(default_factory=dict)  # ||e_k|| / ||w||; [G] for a grouped term
    cosines: dict[str, Tensor] = field(default_factory=dict)  # "head ~ tail": between gradients at w
    finite: Tensor | None = None  # whether the loss, every slope and every displaced loss was
    memory: dict[str, Any] = field(default_factory=dict)  # what a method that merges remembers of this step
    whole: Tensor | None = None  # whether every gradient of a step that was merged is finite
    seen: list[Any] = field(default_factory=list)  # what the closures returned beside their losses, a part each
    forwards: int = 0
    backwards: int = 0


@dataclass(frozen=True)
class TermReport:
    """A term over all steps so far."""

    radius: float  # mean ||e||/||w|| where it climbed
    radii: list[float]  # the same per group of a grouped term, NaN for a group that never was in a batch; else [radius]
    gap: float  # mean L(w + e) - L(w) where it climbed; NaN for a term that never did, or that nobody looks at from w
    active: float  # share of steps in which it moved


class Report:
    """Sums over steps, of radius, gap and activity by term and of cosines; printed, it says what they mean."""

    def __init__(self, method: str = "") -> None:
        self.method = method
        self.steps = 0
        self._lost: Tensor | int = 0  # steps that were not finite
        self._sums: dict[str, list[Tensor]] = {}  # term -> radius [G], seen [G], gap, its steps, active
        self._cosines: dict[str, tuple[Tensor, int]] = {}
        self._passes = (0.0, 0.0)  # forward and backward, of a whole batch

    def add(self, out: Outcome) -> None:
        """Take in a step, without waiting for the device."""
        self.steps += 1
        parts, (forwards, backwards) = max(len(out.seen), 1), self._passes
        self._passes = forwards + out.forwards / parts, backwards + out.backwards / parts
        if out.finite is not None:
            self._lost = self._lost + (~out.finite).long()
        for name, radius in out.radii.items():
            radius = radius.reshape(-1)
            there = torch.isfinite(radius)
            zero = radius.new_zeros(())
            moved = torch.where(there, radius, zero)
            active, gap = (moved > 0).any(), out.gaps.get(name, zero * torch.nan)
            measured = active & torch.isfinite(gap)
            new = [
                moved,
                there.to(radius.dtype),
                torch.where(measured, gap, 0),
                measured.to(radius.dtype),
                active.to(radius.dtype),
            ]
            old = self._sums.get(name)
            self._sums[name] = new if old is None else [a.to(b.device) + b for a, b in zip(old, new, strict=True)]
        for pair, cosine in out.cosines.items():
            total, n = self._cosines.get(pair, (0.0, 0))
            self._cosines[pair] = (total + cosine, n + 1)

    @property
    def terms(self) -> dict[str, TermReport]:
        """Every term that ever climbed."""
        rows = {}
        for name, (radius, seen, gap, measured, active) in self._sums.items():
            radii = (radius / seen).tolist()
            moved = float(radius.sum() / seen.sum().clamp(min=1))
            rows[name] = TermReport(moved, radii, float(gap / measured), float(active) / self.steps)
        return rows

    @property
    def cosines(self) -> dict[str, float]:
        """The mean cosine between the gradients of two terms at w."""
        return {pair: float(total) / n for pair, (total, n) in self._cosines.items()}

    @property
    def passes(self) -> dict[str, float]:
        """Forward and backward passes a step, on average; in micro-batches one counts once, as does one of rows."""
        return {
            name: round(total / max(self.steps, 1), 4)
            for name, total in zip(("forwards", "backwards"), self._passes, strict=True)
        }

    @property
    def warnings(self) -> list[str]:
        """What a user should look into."""
        rows = self.terms
        said = []
        lost = int(self._lost)
        if lost:
            what = "a loss, at w or displaced, or a slope was NaN or infinite"
            said.append(f"{lost} of {self.steps} steps were not finite: {what}")
        if self.steps > lost and not any(r.active > 0 for r in rows.values()) and self.method != "ERM":
            said.append(f"{self.method} never moved the weights in {self.steps} steps: it trained as plain ERM")
        return said + [remark for name, row in rows.items() if (remark := doubt(name, row.radius))]

    def row(self) -> dict[str, Any]:
        """The report as plain values, for a log."""
        rows: dict[str, Any] = {}
        for n, r in self.terms.items():
            rows[n] = {"gap": None if math.isnan(r.gap) else r.gap, "radius": r.radius, "active": r.active}
            rows[n] |= {"radii": r.radii} if len(r.radii) > 1 else {}
            rows[n] |= {"remark": remark} if (remark := doubt(n, r.radius)) else {}
        return rows

    def __str__(self) -> str:
        lines = [f"{self.method}, {self.steps} steps"]
        lines += [
            f"  {n}: |e|/|w| {r.radius:.2e}, gap {'–' if math.isnan(r.gap) else f'{r.gap:+.4g}'}, "
            f"active in {100 * r.active:.0f} % of steps"
            for n, r in self.terms.items()
        ]
        lines += [f"  cosine {pair}: {c:+.3f}" for pair, c in self.cosines.items()]
        return "\n".join(lines + [f"  warning: {w}" for w in self.warnings])
