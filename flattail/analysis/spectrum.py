"""The spectrum of a symmetric operator from a few of its products: both ends, trace, density, mass below zero.

p(t) = 1/n sum_i delta(t − lambda_i)  ~  mean over probes of sum_j tau_j² delta(t − theta_j)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .hessian import Hessian
from .krylov import Krylov

ZERO = 1e-3  # Ritz values within this share of the largest count as zero: the atom at zero is smeared that far


class Operator(Protocol):
    """What a spectrum is taken of: a `Hessian`, or a symmetric tensor."""

    shape: Any
    dtype: torch.dtype
    device: torch.device

    def __matmul__(self, other: Tensor, /) -> Tensor:
        """Products with the columns of `[n, k]`."""
        ...


@dataclass(frozen=True, eq=False)
class Spectrum:
    """What is known of a spectrum; `_probes` is the spread over probes, NaN where there was one probe."""

    lambda_max: float
    lambda_min: float
    ratio: float  # |lambda_min / lambda_max|, the non-convexity of Li et al., 2018
    trace: float
    negative_mass: float  # share of eigenvalues below zero
    negative_share: float  # sum of |negative eigenvalues| over the sum of all |eigenvalues|
    lambda_max_probes: float
    lambda_min_probes: float
    trace_probes: float  # the standard error of the trace
    negative_mass_probes: float
    negative_share_probes: float
    residual_max: float  # |H v − lambda v|
    residual_min: float
    converged_max: bool
    converged_min: bool
    nodes: np.ndarray  # [P, K] quadrature of the density; NaN where a run stopped early
    masses: np.ndarray  # [P, K]
    v_min: Tensor  # [n] unit eigenvector of lambda_min
    v_max: Tensor  # [n]
    products: int  # of the whole operator; those of single layers, for the trace, are not counted

    @property
    def converged(self) -> bool:
        """Whether both ends are known to the tolerance."""
        return self.converged_max and self.converged_min


def spectrum(
    H: Operator,
    *,
    steps: int = 100,
    probes: int = 1,
    draws: int = 2,
    tolerance: float = 1e-6,
    seed: int = 0,
    on_step: Callable[[int], None] = lambda products: None,
) -> Spectrum:
    """Both ends of the spectrum, trace and density.

    One Lanczos run per probe (Rademacher) serves ends and density; all runs advance in one pass. The trace is exact on
    the space of the first run and estimated by further probes beyond it, as in Hutch++ (Meyer et al., SOSA 2021), whose
    sketch is here what Lanczos has found already; of a `Hessian` layer by layer.

    Args:
        H: anything with a shape and products.
        steps: the most products of a run.
        probes: runs, at least 1.
        draws: probes spent on the trace beyond the runs; a single one has no error bar.
        tolerance: relative error of both ends at which a run stops; 0: all steps.
        seed: of the probes.
        on_step: told the number of products taken, after each pass.
    """
    if min(probes, draws, steps) < 1:
        raise ValueError(f"a spectrum needs steps, probes and draws of 1 at least, not {steps}, {probes}, {draws}")
    n = H.shape[0]
    generator = torch.Generator().manual_seed(seed)
    runs = [Krylov(signs(n, H, generator), steps=steps, tolerance=tolerance) for _ in range(probes)]
    products = 0
    while active := [r for r in runs if not r.over]:
        wide = H @ torch.stack([r.next for r in active], 1)
        for r, column in zip(active, wide.T, strict=True):
            r.absorb(column)
        products += len(active)
        on_step(products)
    high, low = max(runs, key=lambda r: r.values[-1]), min(runs, key=lambda r: r.values[0])
    top, bottom = float(high.values[-1]), float(low.values[0])
    trace, trace_error, spent = deflated_trace(H, runs[0], draws, generator)
    on_step(products + spent)
    nodes, masses = (padded([getattr(r, name) for r in runs]) for name in ("values", "mass"))
    below, share = zip(*(negative(r.values, r.mass) for r in runs), strict=True)
    return Spectrum(
        lambda_max=top,
        lambda_min=bottom,
        ratio=abs(bottom / top) if top else math.nan,
        trace=trace,
        negative_mass=float(np.mean(below)),
        negative_share=float(np.mean(share)),
        lambda_max_probes=spread([r.values[-1] for r in runs]),
        lambda_min_probes=spread([r.values[0] for r in runs]),
        trace_probes=trace_error,
        negative_mass_probes=spread(below) / math.sqrt(probes),
        negative_share_probes=spread(share) / math.sqrt(probes),
        residual_max=float(high.residuals[-1]),
        residual_min=float(low.residuals[0]),
        converged_max=high.converged[1],
        converged_min=low.converged[0],
        nodes=nodes,
        masses=masses,
        v_min=low.ritz(0),
        v_max=high.ritz(-1),
        products=products + spent,
    )


def deflated_trace(H: Operator, run: Krylov, draws: int, generator: torch.Generator) -> tuple[float, float, int]:
    """The trace, its standard error, and the products that it took.

    tr H = tr T + E z' (I − QQ') H (I − QQ') z: exact on the run's space Q, by random signs z on its complement.
    Where H knows its layers, cross terms of different layers, which have no trace and most of the noise, are left out:
    tr H = tr T + E sum_l (z_l' H_ll z_l − (Qz)_l' T (Qz)_l).
    """
    Q, known = run.basis, float(np.sum(run.alpha))
    if len(Q) == Q.shape[1]:
        return known, 0.0, 0
    z = torch.stack([signs(Q.shape[1], H, generator) for _ in range(draws)], 1)
    if isinstance(H, Hessian) and len(H.blocks) > 1:
        each, spent = by_layer(H, run, z), 0
    else:
        for _ in range(2):
            z = z - Q.T @ (Q @ z)
        each, spent = (z.double() * (H @ z).double()).sum(0, keepdim=True), draws
    error = float((each.var(1) / draws).sum().sqrt()) if draws > 1 else math.nan  # layers are independent
    return known + float(each.sum(0).mean()), error, spent


def by_layer(H: Hessian, run: Krylov, z: Tensor) -> Tensor:
    """`[L, k]`, z_l' H_ll z_l − (Qz)_l' T (Qz)_l for the columns of z `[n, k]`."""
    turned = z.double() * H.within(z).double()
    T = torch.as_tensor(run.matrix).to(H.device)
    starts, rows = np.cumsum([0, *(w.numel() for w in H.weights)]).tolist(), []
    for block in H.blocks:
        own = slice(starts[block[0]], starts[block[-1] + 1])
        seen = (run.basis[:, own] @ z[own]).double()
        rows.append(turned[own].sum(0) - (seen * (T @ seen)).sum(0))
    return torch.stack(rows)


def density(nodes: np.ndarray, masses: np.ndarray, grid: np.ndarray, *, width: float) -> np.ndarray:
    """The density on a grid `[G]`: each node of the quadratures `[P, K]` as a Gaussian of standard deviation `width`.

    Its integral is 1. (PyHessian's "sigma" is a variance, 1e-5 max(1, lambda_max − lambda_min).)
    """
    t = np.where(np.isnan(nodes), 0.0, nodes)
    mass = np.where(np.isnan(masses), 0.0, masses) / len(nodes)
    bumps = np.exp(-0.5 * ((grid[:, None] - t.reshape(-1)) / width) ** 2) / (width * math.sqrt(2 * math.pi))
    return bumps @ mass.reshape(-1)


def negative(nodes: np.ndarray, masses: np.ndarray) -> tuple[float, float]:
    """The share of eigenvalues below zero, and of curvature: sum of |negative| over sum of |all|."""
    below = nodes < -ZERO * np.abs(nodes).max()
    bent = np.abs(nodes) * masses
    return float(masses[below].sum()), float(bent[below].sum() / max(bent.sum(), 1e-300))


def signs(n: int, like: Operator, generator: torch.Generator) -> Tensor:
    """A vector `[n]` of random signs, the same on every device."""
    return (2 * torch.randint(2, (n,), generator=generator) - 1).to(like.device, like.dtype)


def spread(values: Any) -> float:
    """The standard deviation; NaN for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def padded(rows: list[np.ndarray]) -> np.ndarray:
    """Rows of different lengths as one array, filled up with NaN."""
    out = np.full((len(rows), max(map(len, rows))), np.nan)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
