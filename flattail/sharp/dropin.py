"""The drop-in: what stands where `loss.backward()` stood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .engine import sharp_backward
from .perturb import norm
from .report import Outcome, Report
from .terms import Context, Losses, Method, Part, Term


class SharpnessAware:
    """Stands where `loss.backward()` stood; optimiser, scheduler, scaler, clipping and DDP stay as they are.

    Args:
        model: an `nn.Module` or a DistributedDataParallel of one, final as for an optimiser.
        method: any method of `flattail.sharp`, or your own `terms(at)`.
        counts: `[C]` training samples per class.
        few: `[C]` bool, the classes that `eta="few"` means; by default those with fewer than 20 samples.
        only: a pattern on parameter names; only those are displaced.
        buffers, dropout, climb_together: see `sharp_backward`.
        check: wait for the device in each step, and raise FloatingPointError for a non-finite loss or slope.

    Raises:
        ValueError: for counts the method cannot use, or a model that cannot be displaced (FSDP, DTensor).
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        counts: Tensor | Sequence[int] | None = None,
        *,
        few: Tensor | None = None,
        only: str | None = None,
        buffers: Literal["keep", "all"] = "keep",
        dropout: Literal["same", "fresh"] = "same",
        climb_together: bool = False,
        check: bool = False,
    ) -> None:
        if isinstance(method, (type, str)):
            raise ValueError(f"method={method!r}: an instance is needed, e.g. SAM(rho=0.05)")
        refuse_wrappers(model)
        if buffers not in ("keep", "all") or dropout not in ("same", "fresh"):
            raise ValueError(f"buffers are 'keep' or 'all', dropout 'same' or 'fresh', not {buffers!r} and {dropout!r}")
        if method.where == "head":
            need_head(model)
        self.model, self.method, self.check = model, method, check
        self.counts = None if counts is None else torch.as_tensor(counts)
        self.few = self.counts < 20 if few is None and self.counts is not None else few
        if hasattr(method, "check"):
            method.check(Context(torch.empty(0, dtype=torch.int64), counts=self.counts, few=self.few))
        self.how: dict[str, Any] = {
            "only": only or getattr(method, "only", None),
            "buffers": buffers,
            "dropout": dropout,
            "climb_together": climb_together,
        }
        self.report = Report(type(method).__name__)
        self.outcome: Outcome | None = None

    def backward(
        self,
        losses: Losses | Sequence[Losses],
        y: Tensor | Sequence[Tensor],
        progress: float | None = None,
        *,
        step: int | None = None,
        scaler: torch.amp.GradScaler | None = None,
        hard: Losses | Sequence[Losses] | None = None,
    ) -> Tensor:
        """Run every pass of this step and leave the gradient in `.grad`.

        Args:
            losses: a closure that runs the model and returns its loss per sample `[B]`; a list of them for
                the micro-batches of one step.
            y: the labels `[B]`, int64, of each closure.
            progress: the share of training done, in [0, 1); methods with a schedule read it.
            step: the number of steps taken; `Every` reads it.
            scaler: for fp16; unscale, clip, step and update as usual afterwards.
            hard: the closure under hard labels, where `losses` mixes two labels per image.

        Returns:
            The plain loss at w, a detached scalar.
        """
        several = as_list(losses)
        parts = [
            Part(f, self.terms(labels, progress=progress, step=step, hard=h))
            for f, labels, h in matched(several, as_list(y), as_list(hard) if hard else [None] * len(several))
        ]
        device = next(self.model.parameters()).device
        scale = 1.0 if scaler is None else scaler.scale(torch.ones((), device=device))
        before = [] if scaler is None else [(b, b.clone()) for b in self.model.buffers()]
        out = sharp_backward(parts, self.model, self.method.where, scale=scale, **self.how)
        if before:
            self._undo_buffers(before, out)
        if self.check and not bool(out.finite):
            raise FloatingPointError(f"the loss or a slope is not finite (loss {float(out.loss)})")
        self.outcome = out
        self.report.add(out)
        return out.loss

    def terms(self, y: Tensor, **given: Any) -> list[Term]:
        """The method's terms for labels `[B]`."""
        if y.ndim != 1 or y.is_floating_point():
            raise ValueError(f"labels are classes, [B] int64, not {list(y.shape)} {y.dtype}")
        if self.counts is not None:
            if self.counts.device != y.device:
                self.counts, self.few = self.counts.to(y.device), self.few.to(y.device)  # type: ignore[union-attr]
            if y.is_cpu and len(y) and (int(y.max()) >= len(self.counts) or int(y.min()) < 0):
                raise ValueError(
                    f"labels run from {int(y.min())} to {int(y.max())}, but `counts` has {len(self.counts)} classes"
                )
        return self.method.terms(Context(y, counts=self.counts, few=self.few, **given))

    @property
    def gaps(self) -> dict[str, Tensor]:
        """The sharpness that the last step minimised: L_k(w + e) - L_k(w) of every climbing term."""
        return {} if self.outcome is None else self.outcome.gaps

    @property
    def seen(self) -> Any:
        """What the closure returned beside its losses in the first pass; a list where there were several."""
        seen = [] if self.outcome is None else self.outcome.seen
        return seen[0] if len(seen) == 1 else seen

    def _undo_buffers(self, before: list[tuple[Tensor, Tensor]], out: Outcome) -> None:
        """A step that the scaler will skip leaves no statistics behind."""
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        finite = out.finite & torch.isfinite(norm(grads))  # type: ignore[operator]
        with torch.no_grad():
            for now, then in before:
                now.copy_(torch.where(finite, now, then))


def as_list(one_or_more: Any) -> list[Any]:
    """Micro-batches as a list, one of them too."""
    return list(one_or_more) if isinstance(one_or_more, (list, tuple)) else [one_or_more]


def matched(*lists: list[Any]) -> list[tuple[Any, ...]]:
    """Closures, labels and hard closures, a micro-batch each."""
    sizes = [len(entries) for entries in lists]
    if len(set(sizes)) > 1 or 0 in sizes:
        raise ValueError(
            f"{sizes[0]} closures came with {sizes[1]} batches of labels (and {sizes[2]} hard closures): give one of "
            "each, or a list of each with an entry per micro-batch"
        )
    return list(zip(*lists, strict=True))


def refuse_wrappers(model: nn.Module) -> None:
    """Wrappers over which norms or masses would be wrong in silence: FSDP, DTensor, a compiled DDP."""
    sharded = dist.is_available() and any(hasattr(p, "device_mesh") for p in model.parameters())
    if isinstance(getattr(model, "_orig_mod", None), DistributedDataParallel):
        raise ValueError("compile first, then wrap: DistributedDataParallel(torch.compile(model))")
    if sharded or "FullyShardedDataParallel" in {type(m).__name__ for m in model.modules()}:
        raise ValueError(
            "sharded models (FSDP, DTensor) are not supported: each process holds only a part of a weight, and a "
            "climb needs its norm; wrap the model in DistributedDataParallel instead"
        )


def need_head(model: nn.Module) -> None:
    """A head method needs to know which module is the head, and to reach it."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    if any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in (model, inner)):
        raise ValueError(
            "a method that displaces the head looks inside the model: compile `model.backbone`, not the whole model"
        )
    if not (hasattr(inner, "backbone") and hasattr(inner, "head")):
        raise ValueError(
            f"a method that displaces the head needs `model.backbone` and `model.head`, which {type(inner).__name__} "
            "lacks: Split(backbone, head) makes any pair of modules so"
        )
