"""The model as it is looked at: a plain copy in evaluation mode, its losses per sample, the parameters of interest."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flattail.sharp import Weighted
from flattail.sharp.checks import bare

Loss = Callable[[Tensor, Tensor, Tensor], Any]  # (logits [B, C], y [B], counts [C]) -> [B] | Weighted
DType = Literal["float32", "float64"]
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # not their subclasses, which may do more
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def cross_entropy(logits: Tensor, y: Tensor, counts: Tensor) -> Tensor:
    """The plain loss, `[B]`: what class-wise spectra of different methods are compared on."""
    return F.cross_entropy(logits, y, reduction="none")


@dataclass(frozen=True, eq=False)
class Subject:
    """What is analysed. Nothing of the user's model is touched: this is a copy."""

    model: nn.Module
    names: tuple[str, ...]  # of the parameters looked at
    weights: list[Tensor]  # those parameters, in the same order
    loss: Loss
    counts: Tensor  # [C] training samples per class

    @classmethod
    def of(
        cls,
        model: nn.Module,
        counts: Tensor,
        *,
        loss: Loss = cross_entropy,
        only: str | None = None,
        dtype: DType = "float32",
        device: torch.device | str | None = None,
    ) -> Subject:
        """A model ready to be looked at; `only` is a pattern on the names of the parameters that matter.

        Raises:
            ValueError: if no trainable parameter has the pattern in its name.
        """
        inner = plain_copy(model).to(DTYPES[dtype]).to(device or next(model.parameters()).device).eval()
        named = {n: p for n, p in inner.named_parameters() if p.requires_grad}
        chosen = {n: p for n, p in named.items() if only is None or re.search(only, n)}
        if not chosen:
            raise ValueError(f"no trainable parameter has {only!r} in its name; the first names are {list(named)[:3]}")
        for p in inner.parameters():
            p.requires_grad_(False)
        for p in chosen.values():
            p.requires_grad_(True)
        counts = torch.as_tensor(counts).to(next(inner.parameters()).device)
        return cls(inner, tuple(chosen), list(chosen.values()), loss, counts)

    @property
    def size(self) -> int:
        """The number of scalars looked at."""
        return sum(w.numel() for w in self.weights)

    def losses(self, x: Tensor, y: Tensor) -> Weighted:
        """The loss `[B]` of every sample and its mass `[B]`.

        Raises:
            ValueError: for a model that does not fit the data, or a loss that is not per sample.
            FloatingPointError: for a loss that is not finite.
        """
        out = self.scored(self.logits(x), y)
        if not bool(torch.isfinite(out.values).all()):
            bad = y[~torch.isfinite(out.values).to(y.device)].unique().tolist()
            raise FloatingPointError(
                f"the loss is not finite for samples of class {bad}: the model has diverged, or needs dtype=float64"
            )
        return out

    def logits(self, x: Tensor) -> Tensor:
        """The model's answers `[B, C]`."""
        like = self.weights[0]
        x = x.to(like.device, like.dtype if x.is_floating_point() else None)
        try:
            with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative everywhere
                logits = self.model(x)
        except (RuntimeError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError) or "memory" in str(error):
                raise
            raise ValueError(f"the model does not take inputs of shape {list(x.shape)}: {error}") from error
        classes = len(self.counts)
        if logits.ndim != 2 or logits.shape[1] != classes:
            raise ValueError(
                f"the model answers {list(logits.shape)} to a batch of {len(x)}, and `counts` has {classes} classes: "
                "give a model whose logits are [B, C], and one count per class"
            )
        return logits

    def scored(self, logits: Tensor, y: Tensor) -> Weighted:
        """The losses of answers, and their masses."""
        out = self.loss(logits, y.to(logits.device), self.counts)
        values, masses = out if isinstance(out, Weighted) else (out, torch.ones_like(out))
        if values.shape != y.shape:
            raise ValueError(f"a loss of shape {list(values.shape)} is not per sample: write reduction='none'")
        return Weighted(values, masses.detach())


def plain_copy(model: nn.Module) -> nn.Module:
    """The model without torch.compile and DistributedDataParallel: second derivatives go through neither."""
    inner = copy.deepcopy(bare(model))
    for module in inner.modules():
        module._compiled_call_impl = None
        if type(module) in NORMS and module.running_mean is not None:
            module.forward = partial(norm_of, module, module.forward)  # type: ignore[method-assign]
    return inner


def norm_of(module: Any, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A BatchNorm in evaluation mode as the affine map that it is: its second derivative is then cheap."""
    if module.training:
        return forward(x)
    size = (-1,) + (1,) * (x.ndim - 2)
    scale = torch.rsqrt(module.running_var + module.eps)
    scale = scale if module.weight is None else module.weight * scale
    shift = -module.running_mean * scale if module.bias is None else module.bias - module.running_mean * scale
    return torch.addcmul(shift.view(size), x, scale.view(size))


def head_of(model: nn.Module) -> str:
    """A pattern for the parameters of the head: of `model.head`, or of the last layer with weights."""
    if isinstance(getattr(model, "head", None), nn.Module) and any(True for _ in model.head.parameters()):  # type: ignore[union-attr]
        return r"^head\."
    last = list(dict(model.named_parameters()))[-1]
    return f"^{re.escape(last.rpartition('.')[0])}\\."


@contextmanager
def enough_memory(micro: int) -> Iterator[None]:
    """Says what to do where memory runs out inside."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and ("memory" not in str(error).lower() or "illegal" in str(error)):
            raise
        raise MemoryError(
            f"too little memory for micro-batches of {micro} samples: try micro={max(micro // 4, 1)}, fewer steps "
            f"(each keeps a vector of the model's size), or fewer parameters (only='head') ({error})"
        ) from error


def flat(tensors: list[Tensor]) -> Tensor:
    """Tensors as one vector `[n]`."""
    return torch.cat([t.reshape(-1) for t in tensors])


def split_like(vector: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """A vector `[n]` as tensors of the weights' shapes."""
    return [v.view_as(w) for v, w in zip(vector.split([w.numel() for w in weights]), weights, strict=True)]
