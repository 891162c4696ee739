"""Passes over the data of one step: what a closure returned, which rows it ran, which noise, on which process."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map, tree_map_only

from .terms import Losses, Part, Term, Weighted


def call(losses: Losses, rows: Tensor | None, expected: int) -> tuple[Tensor, Tensor, Any]:
    """One forward pass: values `[B]`, masses `[B]` and whatever else the closure returned.

    Raises:
        ValueError: for a loss that is not per sample.
    """
    if takes_rows(losses):
        out = losses(rows=slice(None) if rows is None else rows)
    else:
        out = losses()
    seen = None
    if isinstance(out, tuple) and not isinstance(out, Weighted):
        if len(out) != 2:
            raise ValueError(f"the closure returned {len(out)} things: losses, or a pair of losses and anything else")
        out, seen = out
        seen = tree_map_only(Tensor, Tensor.detach, seen)  # a graph kept here would outlive the step
    values, masses = out if isinstance(out, Weighted) else (out, None)
    if not isinstance(values, Tensor) or values.ndim != 1:
        what = f"a loss of shape {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"the closure returned {what}, and one loss per sample, [B], is needed: "
            'F.cross_entropy(model(x), y, reduction="none")'
        )
    if len(values) != expected:
        raise ValueError(f"the closure returned {len(values)} losses for {expected} labels")
    if masses is not None and masses.shape != values.shape:
        raise ValueError(
            f"the closure returned masses of shape {list(masses.shape)} for losses of shape {list(values.shape)}: "
            "each sample needs a mass"
        )
    values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    masses = torch.ones_like(values) if masses is None else masses.to(values.dtype)
    return values, masses.detach(), seen


def under(cast: torch.autocast, losses: Losses) -> Losses:
    """The same closure, under autocast."""

    @wraps(losses, updated=())
    def inside(**rows: Any) -> Any:
        with cast:
            return losses(**rows)

    return inside


def takes_rows(losses: Losses) -> bool:
    """Whether the closure can run some rows of its batch: it has a parameter `rows`."""
    return "rows" in inspect.signature(losses).parameters


def coefficients(term: Term, masses: Tensor) -> Tensor:
    """`a_i m_i`, `[B]`: the share of each sample before the division."""
    return term.weight.to(masses.device, masses.dtype, non_blocking=True) * masses


def members(term: Term) -> Tensor:
    """Indices of the samples that are in a term."""
    return (term.weight != 0).nonzero().squeeze(1)


def unit_of(parts: Sequence[Part]) -> float:
    """A power of two near one over the number of samples.

    Sums in this unit are of the size of means, so a loss scale that suits the plain step suits them; and a power of
    two rounds nothing.
    """
    return 0.5 ** sum(len(t.weight) for p in parts for t in p.terms[:1]).bit_length()


# -- which rows ----------------------------------------------------------------------------------


@dataclass
class Look:
    """A pass over rows of one part, and what it saw from w."""

    losses: Losses
    terms: dict[str, Term]
    part: int
    rows: Tensor | None = None  # the rows of the part that it runs; None: all of them
    values: Tensor = field(init=False)  # [B] at w
    masses: Tensor = field(init=False)  # [B]

    def run(self) -> Any:
        """Look from w."""
        expected = len(next(iter(self.terms.values())).weight)
        self.values, self.masses, seen = call(self.losses, self.rows, expected)
        return seen

    def sum_of(self, name: str) -> Tensor:
        """A term's sum over these rows, not yet divided by anything."""
        return (coefficients(self.terms[name], self.masses) * self.values).sum()


def looks_of(parts: Sequence[Part], apart: bool) -> list[Look]:
    """A look per part; or a look per term, at its members only, where that is exact.

    It is exact where rows are treated `apart`, the closure can run some of them, and every sample is in one term.
    """
    looks = []
    for i, (losses, terms) in enumerate(parts):
        whole = Look(losses, {t.name: t for t in terms}, i)
        shared = torch.stack([t.weight != 0 for t in terms]).sum(0)
        if len(terms) > 1 and apart and takes_rows(losses) and bool((shared == 1).all()):
            for t in terms:
                rows = members(t)
                looks.append(Look(losses, {t.name: replace(t, weight=t.weight[rows])}, i, rows))
        else:
            looks.append(whole)
    return looks


def seen_whole(looks: Sequence[Look], seen: Sequence[Any]) -> list[Any]:
    """What the closures returned beside their losses, a part each, with the rows back in the part's order."""
    parts: dict[int, list[tuple[Look, Any]]] = {}
    for look, s in zip(looks, seen, strict=True):
        parts.setdefault(look.part, []).append((look, s))
    return [pieces[0][1] if len(pieces) == 1 else in_order(*zip(*pieces, strict=True)) for pieces in parts.values()]


def in_order(looks: Sequence[Look], seen: Sequence[Any]) -> Any:
    """Tensors with one row per sample as one, in the part's order; of anything else, what the first look saw."""
    order = torch.cat([look.rows for look in looks if look.rows is not None]).argsort()

    def join(*pieces: Any) -> Any:
        per_row = all(
            isinstance(p, Tensor) and p.ndim and len(p) == len(look.values)
            for look, p in zip(looks, pieces, strict=True)
        )
        return torch.cat(pieces)[order.to(pieces[0].device, non_blocking=True)] if per_row else pieces[0]

    return tree_map(join, *seen)


COUPLED = (nn.modules.batchnorm._NormBase, nn.RReLU)
NOISY = ("Drop", "StochasticDepth")


def treats_rows_apart(model: nn.Module) -> bool:
    """Whether some rows alone get what they get among all: no BatchNorm and no noise in training mode.

    A module of another kind that sees its whole batch, or counts its calls, says so by an attribute `coupled`.
    """
    return not any(
        m.training and (isinstance(m, COUPLED) or getattr(m, "coupled", False) or noisy(m)) for m in model.modules()
    )


def noisy(module: nn.Module) -> bool:
    """Whether a module drops at random, by its name or (attention, recurrent nets) by a share that it holds."""
    share = getattr(module, "dropout", 0.0)
    return any(n in type(module).__name__ for n in NOISY) or (isinstance(share, float) and share > 0)


# -- which noise ---------------------------------------------------------------------------------


def noise_state(device: torch.device) -> list[Tensor]:
    """The state of the generators that a forward pass on this device draws from."""
    host = [torch.get_rng_state()]
    return host if device.type == "cpu" else [*host, torch.get_device_module(device).get_rng_state(device)]


def moved(states: Sequence[Tensor] | None, device: torch.device) -> bool:
    """Whether anything was drawn since the generators were in these states; not, where nobody asked for them."""
    return states is not None and not all(map(torch.equal, states, noise_state(device)))


def set_noise(states: Sequence[Tensor], device: torch.device) -> None:
    """Put the generators into a state."""
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.get_device_module(device).set_rng_state(state, device)


@contextmanager
def noise_around(module: nn.Module, device: torch.device) -> Iterator[list[list[Tensor]]]:
    """The states of the generators before and after each of the module's calls inside, in order."""
    states: list[list[Tensor]] = []

    def note(*_: Any) -> None:
        states.append(noise_state(device))

    handles = [module.register_forward_pre_hook(note), module.register_forward_hook(note)]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def same_noise(states: Sequence[Tensor] | None, device: torch.device) -> Iterator[None]:
    """Inside, draws repeat from `states`; afterwards the generators are as they were. None: fresh draws."""
    if states is None:
        yield
        return
    now = noise_state(device)
    set_noise(states, device)
    try:
        yield
    finally:
        set_noise(now, device)


# -- which processes -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Processes:
    """The processes that share this step: one, unless the model is a DistributedDataParallel."""

    model: nn.Module

    @property
    def group(self) -> Any:
        """The process group, or None."""
        return self.model.process_group if isinstance(self.model, DistributedDataParallel) else None

    @property
    def count(self) -> int:
        """How many."""
        return dist.get_world_size(self.group) if self.group is not None else 1

    def add(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self.count > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def add_all(self, tensors: list[Tensor]) -> list[Tensor]:
        """The sums over the processes of several tensors, as one flat buffer."""
        if self.count == 1 or not tensors:
            return tensors
        flat = self.add(torch.cat([t.reshape(-1) for t in tensors]))
        pieces = flat.split([t.numel() for t in tensors])
        return [p.view_as(t) for p, t in zip(pieces, tensors, strict=True)]

    def join(self, tensor: Tensor) -> Tensor:
        """The rows of every process, one below the other; processes may hold different numbers of rows."""
        if self.count == 1:
            return tensor
        sizes = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(self.count)]
        dist.all_gather(sizes, torch.tensor([len(tensor)], device=tensor.device), group=self.group)
        padded = tensor.new_zeros(max(int(n) for n in sizes), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        rows = [torch.empty_like(padded) for _ in range(self.count)]
        dist.all_gather(rows, padded, group=self.group)
        return torch.cat([r[: int(n)] for r, n in zip(rows, sizes, strict=True)])

    def quiet(self, last: bool) -> AbstractContextManager[Any]:
        """Only the last pass of a step lets DistributedDataParallel reduce; the others stay local."""
        if isinstance(self.model, DistributedDataParallel) and not last:
            local: AbstractContextManager[None] = self.model.no_sync()
            return local
        return nullcontext()

    @contextmanager
    def still(self) -> Iterator[None]:
        """DistributedDataParallel leaves buffers alone: a backbone that only answers again still needs its own."""
        model = self.model
        if not isinstance(model, DistributedDataParallel):
            yield
            return
        syncs, model.require_forward_param_sync = model.require_forward_param_sync, False
        try:
            yield
        finally:
            model.require_forward_param_sync = syncs

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Refuses closures that go around the DistributedDataParallel wrapper: nothing would be reduced."""
        if self.group is None:
            yield
            return
        calls: list[int] = []
        handle = self.model.register_forward_pre_hook(lambda *_: calls.append(1))
        try:
            yield
        finally:
            handle.remove()
        if not calls:
            raise ValueError(
                "the closure did not call the DistributedDataParallel model itself, so its gradients would not "
                "be reduced: call the wrapped model in the closure, not `model.module`"
            )
