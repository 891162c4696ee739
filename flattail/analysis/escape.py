"""Does a method leave the saddle of a class? Moments of its gradients along the eigenvector of lambda_min."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from flattail.sharp import ERM, SAM, SSESAM, ImbSAM, Method, SharpnessAware
from flattail.sharp.noise import nth_seed

from .classwise import ClassHessian, of
from .parts import Arrays, OnPart, Progress, joined, kept_nowhere, part_by_part, refuse_options, silent
from .samples import Batches, Samples, members_of
from .slopes import climbs, seen_by
from .spectrum import spectrum
from .subject import DType, Loss, Subject, cross_entropy, flat


@dataclass(frozen=True)
class Escape:
    """Moments of each method's batch gradients along every class's direction of most negative curvature.

        <g(w + e), v>  ~  <g, v> + lambda <e, v>  =  (1 + rho_eff lambda) <g, v>,   rho_eff = rho/||g||

    so that the second moment along v is multiplied by (1 + rho_eff lambda)²: for lambda < 0, more than 1 only where
    lambda < −2/rho_eff. (For a climb without normalisation, e = rho g, rho takes the place of rho_eff.) After Rangwani
    et al., NeurIPS 2022.

    Raises ValueError for a field out of its range.
    """

    classes: str = ""  # numbers (3 or #3), names and groups (few or @few) of classes with commas between; empty: all
    samples: int = 100  # per class, drawn by the seed
    batch: int = 32  # samples of a mini-batch, drawn with replacement
    batches: int = 20  # mini-batches of a class, and of all classes
    rho: tuple[float, ...] = (0.05, 0.1, 0.5)  # radii of SAM
    tail_rho: float = 0.1  # radius of ImbSAM, and of SSE-SAM's tail
    head_rho: float = 0.05  # radius of SSE-SAM's head
    eta: int | Literal["few"] = 100  # classes with fewer training samples are tail
    steps: int = 100  # Lanczos steps, at most
    tolerance: float = 1e-6  # relative error of lambda_min at which Lanczos stops
    micro: int = 64  # samples differentiated at once
    dtype: DType = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"samples": 1, "batch": 1, "batches": 2, "steps": 1, "tolerance": 0, "micro": 1}
        refuse_options(self, least=least)

    def methods(self) -> dict[str, Method]:
        """What is compared, by name."""
        sams: dict[str, Method] = {f"sam {rho:g}": SAM(rho) for rho in self.rho}
        imb, sse = ImbSAM(rho=self.tail_rho, eta=self.eta), SSESAM(self.head_rho, self.tail_rho, eta=self.eta)
        return {"plain": ERM()} | sams | {"imbsam": imb, "ssesam": sse}

    def __call__(
        self,
        model: nn.Module,
        batches: Batches | Samples,
        counts: Tensor,
        *,
        methods: Mapping[str, Method] | None = None,
        loss: Loss = cross_entropy,
        groups: Mapping[str, Tensor] | None = None,
        names: tuple[str, ...] | None = None,
        device: torch.device | str | None = None,
        done: Mapping[str, Arrays] | None = None,
        on_part: OnPart = kept_nowhere,
        progress: Progress = silent,
    ) -> Arrays:
        """Named arrays with a row per class `[T]` and a column per method `[T, M]`; see `ClassHessian` for arguments.

        `methods`: others than the usual ones, by name; the first is the plain one. For mini-batches of the class
        (`own_`) and of everybody (`mixed_`): `mean` and `second`, the moments of <g, v>; `second_error`, the standard
        error of the latter; `amplification`, its ratio to the plain method's; `predicted`, that ratio from the climbs,
        with `lambda_min` for `own_` and v'Hv of the overall loss (`curvature`) for `mixed_`; `length`, the mean ||g||.
        """
        rows = dict(methods or self.methods())
        subject = Subject.of(model, counts, loss=loss, dtype=self.dtype, device=device)
        held = of(batches, len(subject.counts), self.samples, self.seed)
        members = members_of(self.classes, held, groups or {}, names)
        look = ClassHessian(micro=self.micro)
        context = {"few": (groups or {}).get("few", subject.counts.cpu() < 20), "progress": 0.0, "step": 0}

        def own(name: str) -> Arrays:
            H = look.operator(subject, held, members[name])
            found = spectrum(
                H, steps=self.steps, draws=2, tolerance=self.tolerance, seed=self.seed,
                on_step=lambda k: progress(name, k, self.steps + 2 + self.batches),
            )  # fmt: skip
            v = found.v_min[:, None]
            said = {
                "lambda_min": found.lambda_min, "residual": found.residual_min, "converged": found.converged_min,
                "samples": int(members[name][held.y].sum()), "direction": found.v_min.cpu().numpy(),
            }  # fmt: skip
            curved = torch.tensor([found.lambda_min])
            moments = self.moments(subject, held, members[name], v, curved, rows, context)
            progress(name, 1, 1)
            return {k: np.asarray(a) for k, a in said.items()} | {f"own_{k}": a[0] for k, a in moments.items()}

        found = joined(part_by_part(list(members), own, done=done or {}, on_part=on_part))

        def everyone(name: str) -> Arrays:
            progress(name, 0, 1)
            V = torch.as_tensor(found["direction"]).T.to(subject.weights[0])
            whole = torch.ones(len(held.total), dtype=torch.bool)
            curved = (V * (look.operator(subject, held, whole) @ V)).double().sum(0).cpu()
            moments = self.moments(subject, held, whole, V, curved, rows, context)
            progress(name, 1, 1)
            return {"curvature": curved.numpy()} | {f"mixed_{k}": a for k, a in moments.items()}

        mixed = part_by_part(["mixed batches"], everyone, done=done or {}, on_part=on_part)["mixed batches"]
        return found | mixed | {"method": np.array(list(rows))}

    def moments(
        self, subject: Subject, held: Samples, member: Tensor, V: Tensor, curved: Tensor, methods: Mapping[str, Method],
        context: dict[str, Any],
    ) -> Arrays:  # fmt: skip
        """Moments `[T, M]` of <g, v> over mini-batches of some classes, along the columns of V `[n, T]`."""
        share = held.weights(member)
        generator = torch.Generator().manual_seed(self.seed)
        seen = torch.zeros(self.batches, len(methods), V.shape[1], dtype=torch.float64)
        foreseen, lengths = torch.zeros_like(seen), torch.zeros(self.batches, len(methods), dtype=torch.float64)
        for b in range(self.batches):
            rows = torch.multinomial(share, self.batch, True, generator=generator)
            some = replace(held, x=held.x[rows], y=held.y[rows], rows=held.rows[rows])
            masses = seen_by(subject, some, self.micro).masses
            given = context | {"seed": nth_seed(self.seed, b, self.batches)}
            for m, method in enumerate(methods.values()):
                g = gradient_of(subject, some, method, given)
                seen[b, m], lengths[b, m] = (g @ V).double().cpu(), float(g.norm())
                foreseen[b, m] = first_order(subject, some, method, given, masses, V, curved, self.micro)
        plain = seen[:, :1].square().mean(0)
        second = seen.square().mean(0)
        return {
            "mean": seen.mean(0).T.numpy(),
            "second": second.T.numpy(),
            "second_error": (seen.square().std(0) / self.batches**0.5).T.numpy(),
            "amplification": (second / plain).T.numpy(),
            "predicted": (foreseen.square().mean(0) / plain).T.numpy(),
            "length": lengths.mean(0).expand(V.shape[1], -1).numpy(),
        }


def gradient_of(subject: Subject, some: Samples, method: Method, context: dict[str, Any]) -> Tensor:
    """The gradient `[n]` that a step of the method would hand to the optimiser."""
    engine = SharpnessAware(subject.model, method, subject.counts.cpu(), few=context["few"])

    def losses(rows: Tensor | slice = slice(None)) -> Any:
        return subject.losses(some.x[rows], some.y[rows])

    subject.model.zero_grad()
    engine.backward(losses, some.y.cpu(), context["progress"], step=context["step"], seed=context.get("seed"))
    g = flat([torch.zeros_like(w) if w.grad is None else w.grad for w in subject.weights])
    subject.model.zero_grad()
    return g


def first_order(
    subject: Subject,
    some: Samples,
    method: Method,
    context: dict[str, Any],
    masses: Tensor,
    V: Tensor,
    curved: Tensor,
    micro: int,
) -> Tensor:
    """`[T]`, <g(w + e), v> if v were an eigenvector of every batch: sum_k s_k (<g_k, v> + lambda <e_k, v>)."""
    ones = torch.ones(len(some.y), dtype=torch.float64)
    total = torch.zeros(V.shape[1], dtype=torch.float64)
    for c in climbs(subject, some, ones, masses, method, context, micro=micro):
        along = (flat(c.slope) @ V).double().cpu()
        if c.move is not None:
            along = along + curved * (flat(c.move) @ V).double().cpu()
        total += c.share * along
    return total
