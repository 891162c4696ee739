"""The drop-in: what stands where `loss.backward()` stood."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial, wraps
from itertools import compress
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .checks import bare, refuse_wrappers
from .engine import placed, sharp_backward
from .perturb import norm
from .report import Outcome, Report
from .terms import Context, Losses, Memory, Method, Part, Term, drawn, pattern_of


class SharpnessAware:
    """Stands where `loss.backward()` stood; optimiser, scheduler, scaler, clipping and DDP stay as they are.

    Args:
        model: an `nn.Module` or a DistributedDataParallel of one, final as for an optimiser.
        method: any method of `flattail.sharp`, or your own `terms(at)`.
        counts: `[C]` training samples per class: whole numbers, one per class, not the labels.
        few: `[C]` bool, the classes that `eta="few"` means; by default those with fewer than 20 samples.
        only: a pattern on parameter names; only those are displaced.
        buffers: "keep" restores BatchNorm after displaced passes; "all" lets them move it, as the releases do.
        dropout: the "same" masks in all passes of a micro-batch, or "fresh" ones.
        climb_together: processes (and, for the head, micro-batches) climb by their common slope.
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
        if not hasattr(method, "terms"):
            raise ValueError(f"method={method!r} has no `terms`: a method is needed, e.g. SAM(rho=0.05)")
        if method.where != "weights":
            need_head(model)
        self.model, self.method, self.check = model, method, check
        self.counts = None if counts is None else checked_counts(counts)
        if self.counts is not None:
            refuse_other_classes(self.counts, model)
        self.few = None if self.counts is None else self.counts < 20
        if few is not None:
            self.few = torch.as_tensor(few, dtype=torch.bool)
            if self.counts is None or self.few.shape != self.counts.shape:
                raise ValueError("`few` says of each class in `counts`, [C], whether it is: give both, of one length")
        if hasattr(method, "check"):
            method.check(Context(torch.empty(0, dtype=torch.int64), counts=self.counts, few=self.few))
        self.how: dict[str, Any] = {
            "only": only or pattern_of(method, bare(model)),
            "buffers": buffers,
            "dropout": dropout,
            "climb_together": climb_together,
        }
        self.report = Report(type(method).__name__)
        self.outcome: Outcome | None = None
        self.memory: Memory | None = None  # from the first step on

    def backward(
        self,
        losses: Losses | Sequence[Losses],
        y: Tensor | Sequence[Tensor] | Sequence[int],
        progress: float | None = None,
        *,
        step: int | None = None,
        scaler: torch.amp.GradScaler | None = None,
        hard: Losses | Sequence[Losses] | None = None,
        seed: int | None = None,
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
            seed: of the step's noise, for methods that draw some; give all processes the same. By default drawn from
                torch's generator.

        Returns:
            The plain loss at w, a detached scalar; for a method that does not look from w, the loss where it looked.

        Raises:
            ValueError: for a loss instead of a closure, one that is no `[B]` or makes gradients itself, labels that do
                not fit it or `counts`, what the method needs and was not given (`counts`, `progress`, `step`,
                `hard`), a `progress` outside of [0, 1], and a closure that goes around a DistributedDataParallel.
        """
        if isinstance(losses, Tensor):
            raise ValueError(
                "backward() needs a function that computes the losses, to look from several places; this is a tensor: "
                'write backward(lambda: F.cross_entropy(model(x), y, reduction="none"), y)'
            )
        if progress is not None and not 0 <= progress <= 1:
            raise ValueError(f"progress={progress} is no share of training done: write progress=step / total")
        several, labels = as_list(losses), as_labels(y)
        if self.outcome is None:
            several = [self._watched(f) for f in several]
        draw = cache(drawn) if seed is None else partial(int, seed)
        given: dict[str, Any] = {"progress": progress, "step": step, "draw": draw}
        self._remember()
        parts = [
            Part(f, self.terms(of_part, hard=h, **given))
            for f, of_part, h in matched(several, labels, as_list(hard) if hard else [None] * len(several))
        ]
        merge: Callable[..., Any] | None = getattr(self.method, "merge", None)
        if merge is not None:
            merge = partial(merge, self._context(torch.cat(labels), memory=self.memory, **given))
        device = next(self.model.parameters()).device
        scale = 1.0 if scaler is None else scaler.scale(torch.ones((), device=device))
        before = [] if scaler is None else [(b, b.clone()) for b in self.model.buffers()]
        out = sharp_backward(parts, self.model, self.method.where, scale=scale, merge=merge, **self.how)
        if out.whole is not None:
            self.memory = kept(self.memory or {}, out.memory, out.whole)
            out.memory = {}
        if before:
            self._undo_buffers(before, out)
        if self.check and not bool(out.finite):
            raise FloatingPointError(
                f"a loss, at w or displaced, or a slope is not finite (loss at w {float(out.loss)})"
            )
        self.outcome = out
        self.report.add(out)
        return out.loss

    def terms(self, y: Tensor, **given: Any) -> list[Term]:
        """The method's terms for labels `[B]`.

        Raises ValueError for labels that are not [B] whole numbers, or on the CPU have no class in `counts`.
        """
        if y.ndim != 1 or y.is_floating_point():
            raise ValueError(
                f"labels are classes, [B] int64, not {list(y.shape)} {y.dtype}; a method that reads no class, as SAM, "
                "goes with any loss [B]: give it torch.zeros(B, dtype=torch.int64)"
            )
        if self.counts is not None:
            if self.counts.device != y.device:
                self.counts, self.few = self.counts.to(y.device), self.few.to(y.device)  # type: ignore[union-attr]
            if y.is_cpu and len(y) and (int(y.max()) >= len(self.counts) or int(y.min()) < 0):
                raise ValueError(
                    f"labels run from {int(y.min())} to {int(y.max())}, but `counts` has {len(self.counts)} classes"
                )
        if self.memory is not None:
            place = {id(p) for p in placed(self.model, self.how["only"])}
            mine = [id(p) in place for p in self._trained()]
            given["memory"] = {n: list(compress(m, mine)) if isinstance(m, list) else m for n, m in self.memory.items()}
        return self.method.terms(self._context(y, **given))

    def state_dict(self) -> dict[str, Any]:
        """What the method remembers: tensors and lists of tensors, for `torch.save`; empty for most methods."""
        return {"memory": self.memory} if self.memory is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember what a `state_dict()` holds.

        Raises:
            ValueError: for the memory of another method or model.
        """
        if others := set(state) - {"memory"}:
            raise ValueError(f"a state of SharpnessAware holds `memory` alone, and this {sorted(map(str, others))}")
        memory, begun = state.get("memory"), self._begun()
        if memory is not None and shapes(memory) != shapes(begun or {}):
            raise ValueError(
                f"the state is not that of {type(self.method).__name__} on this model: it remembers {shapes(memory)}, "
                f"and {shapes(begun or {})} is needed"
            )
        self.memory = None
        if memory is not None and begun is not None:
            self.memory = kept(begun, memory, torch.ones((), dtype=torch.bool))

    def _watched(self, losses: Losses) -> Losses:
        """The closure of a first step, that shall not make gradients by itself."""

        @wraps(losses, updated=())
        def watched(**rows: Any) -> Any:
            before = [(p.grad, None if p.grad is None else p.grad._version) for p in self.model.parameters()]
            out = losses(**rows)
            after = [(p.grad, None if p.grad is None else p.grad._version) for p in self.model.parameters()]
            if any(a is not b or v != w for (a, v), (b, w) in zip(before, after, strict=True)):
                raise ValueError(
                    "the closure changed `.grad`: it shall return the losses [B] and leave backward() and zero_grad() "
                    "to the loop around it"
                )
            return out

        return watched

    def _trained(self) -> list[Tensor]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def _begun(self) -> Memory | None:
        memory = getattr(self.method, "memory", None)
        return None if memory is None else memory(self._trained())

    def _remember(self) -> None:
        """A method's memory begins with its first step: the model is on its device by then."""
        if self.memory is None:
            self.memory = self._begun()
        trained = len(self._trained()) if self.memory else 0
        for each in (m for m in (self.memory or {}).values() if isinstance(m, list)):
            if len(each) != trained:
                raise ValueError(
                    f"{type(self.method).__name__} remembers {len(each)} parameters, and {trained} are trained now: "
                    "after freezing or unfreezing, make a new SharpnessAware"
                )

    def _context(self, y: Tensor, **given: Any) -> Context:
        return Context(y, counts=self.counts, few=self.few, **given)

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


def kept(old: Memory, new: Memory, whole: Tensor) -> Memory:
    """The new memory, on the devices of the old, where the step was whole; the old one elsewhere."""

    def choose(was: Any, now: Any) -> Any:
        if isinstance(was, list):
            return [choose(a, b) for a, b in zip(was, now, strict=True)]
        return torch.where(whole.to(was.device), now.to(was), was)

    return {n: choose(was, new[n]) for n, was in old.items()}


def shapes(memory: Memory) -> dict[str, Any]:
    """The shapes of what is remembered."""
    return {n: tuple(m.shape) if isinstance(m, Tensor) else [tuple(t.shape) for t in m] for n, m in memory.items()}


def checked_counts(counts: Any) -> Tensor:
    """Samples per class `[C]`, int64. ValueError for what are none."""
    if isinstance(counts, Mapping):
        raise ValueError("`counts` has one number per class, in the order of the labels: write a list, not a mapping")
    n = torch.as_tensor(counts)
    if n.ndim != 1 or not len(n):
        raise ValueError(f"`counts` has one number per class, [C], not the shape {list(n.shape)}")
    if n.is_floating_point() and not bool((n == n.round()).all()):
        raise ValueError(
            "`counts` are numbers of training samples per class; these are no whole numbers (frequencies?): "
            "write torch.bincount(labels, minlength=classes)"
        )
    n = n.to(torch.int64)
    if bool((n < 0).any()) or not bool((n > 0).any()):
        raise ValueError(f"`counts` are numbers of training samples per class, and some class has some; this is {n}")
    return n


def refuse_other_classes(counts: Tensor, model: nn.Module) -> None:
    """Raise ValueError where the last linear layer answers for another number of classes."""
    inner = bare(model)
    head = inner[-1] if isinstance(inner, nn.Sequential) and len(inner) else getattr(inner, "head", None)
    classes = head.out_features if isinstance(head, nn.Linear) else len(counts)
    if classes != len(counts):
        raise ValueError(
            f"`counts` has {len(counts)} entries, and the head answers for {classes} classes (labels, not counts?): "
            "write torch.bincount(labels, minlength=classes)"
        )


def as_labels(y: Any) -> list[Tensor]:
    """The labels of every micro-batch, as tensors; one batch may be an array or a list of numbers."""
    one = not isinstance(y, (list, tuple)) or (len(y) > 0 and isinstance(y[0], Integral))
    several = [torch.as_tensor(labels) for labels in ([y] if one else y)]
    return [labels if labels.is_floating_point() else labels.long() for labels in several]  # uint8 would be a mask


def as_list(one_or_more: Any) -> list[Any]:
    """Micro-batches as a list, one of them too."""
    return list(one_or_more) if isinstance(one_or_more, (list, tuple)) else [one_or_more]


def matched(*lists: list[Any]) -> list[tuple[Any, ...]]:
    """Closures, labels and hard closures, a micro-batch each."""
    sizes = [len(entries) for entries in lists]
    if len(set(sizes)) > 1 or 0 in sizes:
        hard = f" (and {sizes[2]} hard closures)" if sizes[2] != sizes[0] else ""
        raise ValueError(
            f"{sizes[0]} closures came with {sizes[1]} batches of labels{hard}: give one of each, or a list of each "
            "with an entry per micro-batch"
        )
    return list(zip(*lists, strict=True))


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
