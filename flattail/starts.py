"""Starts: what becomes of the classifier when a stage begins.

A start has two halves. `shape` gives the new head's structure, and needs nothing but the head before: so a saved model
is rebuilt by the shapes of all its stages. `fill` gives it values, from the head before, the features of the training
images and those of the validation part, and tells what it found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .models.heads import HEADS, Aligned, Cosine, Scaled, Shifted, innermost, like, sizes
from .scores import evaluate

TAUS = tuple(t / 10 for t in range(21))  # what a sweep tries: 0 to 2 in steps of 0.1 (Kang et al.)


class Given(NamedTuple):
    """What a start may look at, on the host."""

    before: nn.Module  # the head before, in evaluation mode
    counts: Tensor  # [C] training images per class
    names: Sequence[str]  # [C] of the classes
    train: Callable[[], tuple[Tensor, Tensor]]  # features [N, d] and labels [N] of the training part, not augmented
    val: Callable[[], tuple[Tensor, Tensor]] | None  # of the validation part; None: there is none


class Softmax(NamedTuple):
    """What the softmax of a classifier's logits is a probability of."""

    scale: float  # what logits are multiplied by before it: 1, but for losses on cosines
    log_prior: Tensor | None  # [C] of the class shares that it is calibrated for; None: it is no probability


class Start(Protocol):
    """What a start is in a recipe."""

    @property
    def sweeps(self) -> bool:
        """Whether it chooses something on the validation part."""
        ...

    def kind(self, head: str) -> str:
        """What the logits are, `linear` or `cosine`, from what they were before: losses ask for one or the other."""
        ...

    def shape(self, head: nn.Module, classes: int) -> nn.Module:
        """A head of the new structure, from the one before; the same object where nothing changes.

        Raises ValueError for a head that it cannot begin from.
        """
        ...

    def fill(self, head: nn.Module, given: Given) -> dict[str, float]:
        """Give the new head, on the host, its values; returns what was found."""
        ...

    def after(self, before: Softmax, log_data: Tensor, found: Mapping[str, float]) -> Softmax:
        """What the softmax is once this is done and nothing trained; `log_data` [C] are the data's log shares."""
        ...


@dataclass(frozen=True)
class Keep:
    """The classifier as it is."""

    sweeps = False

    def kind(self, head: str) -> str:
        """The same."""
        return head

    def shape(self, head: nn.Module, classes: int) -> nn.Module:
        """The same."""
        return head

    def fill(self, head: nn.Module, given: Given) -> dict[str, float]:
        """Nothing to do."""
        return {}

    def after(self, before: Softmax, log_data: Tensor, found: Mapping[str, float]) -> Softmax:
        """The same, log shares [C] and all."""
        return before


@dataclass(frozen=True)
class NewHead:
    """A classifier that begins anew, as in cRT (Kang et al., ICLR 2020); its weights are drawn from the seed."""

    head: Literal["same", "linear", "cosine"] = "same"  # the kind of the new one

    sweeps = False

    def kind(self, head: str) -> str:
        """As asked for."""
        return head if self.head == "same" else self.head

    def shape(self, head: nn.Module, classes: int) -> nn.Module:
        """A new linear or cosine head, with torch's own initial values."""
        return like(head, classes) if self.head == "same" else HEADS[self.head](sizes(head)[0], classes)

    def fill(self, head: nn.Module, given: Given) -> dict[str, float]:
        """Its values were drawn when it was made."""
        return {}

    def after(self, before: Softmax, log_data: Tensor, found: Mapping[str, float]) -> Softmax:
        """One without log shares [C]: nothing is learnt yet."""
        return Softmax(1.0, None)


@dataclass(frozen=True)
class Scales:
    """The classifier with a scale per class on its logits, at 1 to begin with: LWS (Kang et al., ICLR 2020).

    What is trained is the stage's to say: LWS trains `head.scales` alone, the second stage of MiSLAS (Zhong et al.,
    CVPR 2021) the whole head, with the classifier, `head.inner`, at a lower rate.
    """

    sweeps = False

    def kind(self, head: str) -> str:
        """Linear, since scaled cosines are none."""
        return "linear"

    def shape(self, head: nn.Module, classes: int) -> nn.Module:
        """The head before, within scales."""
        return Scaled(deepcopy(head))

    def fill(self, head: nn.Module, given: Given) -> dict[str, float]:
        """The classifier keeps its values."""
        return taken_over(head, given.before)

    def after(self, before: Softmax, log_data: Tensor, found: Mapping[str, float]) -> Softmax:
        """The same, log shares [C] and all: scales begin at 1."""
        return before


@dataclass(frozen=True)
class DisAlign:
    """The classifier with scale and margin per class, behind a confidence (Zhang et al., CVPR 2021).

    Logits g (s o + b) + (1 - g) o with the confidence g = sigmoid(v'z + c). The paper trains all but the classifier,
    `head.inner`, which a stage says with `train`, by cross-entropy with class weights n^-rho.
    """

    sweeps = False

    def kind(self, head: str) -> str:
        """Linear, since scaled cosines are none."""
        return "linear"

    def shape(self, head: nn.Module, classes: int) -> nn.Module:
        """The head before, within scale, margin and confidence."""
        return Aligned(deepcopy(head))

    def fill(self, head: nn.Module, given: Given) -> dict[str, float]:
        """The classifier keeps its values."""
        return taken_over(head, given.before)

    def after(self, before: Softmax, log_data: Tensor, found: Mapping[str, float]) -> Softmax:
        """The same, log shares [C] and all: scales begin at 1, margins at 0."""
        return before


@dataclass(frozen=True)
class TauNorm:
    """Weights divided by a power of their length, w / ||w||^tau, and no bias (Kang et al., ICLR 2020).

    Raises ValueError for a field out of its range.
    """

    tau: float | None = None  # the power; none: the best of 0, 0.1 ... 2 on the validation part

    def __post_init__(self) -> None:
        if self.tau is not None and not self.tau >= 0:
            raise ValueError(f"tau: must be 0 or more, and is {self.tau}")

    @property
    def sweeps(self) -> bool:
        """If no power is given."""
        return self.tau is None

    def kind(self, head: str) -> str:
        """Linear."""
        return "linear"

    def shape(self, head: nn.Module, classes: int) -> nn.Module:
        """A linear head without bias."""
        linear(head, "tau-norm")
        return nn.Linear(sizes(head)[0], classes, bias=False)

    def fill(self, head: nn.Module, given: Given) -> dict[str, float]:
        """The weights of the head before, normalised."""
        weight, _ = linear(given.before, "tau-norm")  # [C, d]
        norms = weight.norm(dim=1, keepdim=True)

        def at(tau: float) -> Tensor:
            return weight / norms**tau

        tau, found = chosen(self.tau, given, lambda z, tau: z @ at(tau).T)
        copy_into(head, weight=at(tau))
        return found

    def after(self, before: Softmax, log_data: Tensor, found: Mapping[str, float]) -> Softmax:
        """One without log shares [C]: lengths are not what they were trained to be."""
        return Softmax(1.0, None)


@dataclass(frozen=True)
class ClassMeans:
    """The means of each class's features for a classifier: the nearest class mean (Kang et al., ICLR 2020).

    Features are those of the training images without augmentation. A stage with epochs trains it further.
    """

    by: Literal["cosine", "euclidean"] = "cosine"  # nearest by angle, or by distance: a linear head of 2 z.m - |m|^2

    sweeps = False

    def kind(self, head: str) -> str:
        """By the measure; a cosine head keeps its scale."""
        if self.by == "euclidean":
            return "linear"
        return head.split()[-1] if head.endswith("cosine") else "cosine"

    def shape(self, head: nn.Module, classes: int) -> nn.Module:
        """A cosine head, or a linear one, whose softmax is that of minus the squared distances."""
        if self.by == "cosine" and isinstance(innermost(head), Cosine):
            return like(head, classes)
        return HEADS["cosine" if self.by == "cosine" else "linear"](sizes(head)[0], classes)

    def fill(self, head: nn.Module, given: Given) -> dict[str, float]:
        """The means."""
        m = class_means(*given.train(), given.names)  # [C, d]
        if self.by == "cosine":
            copy_into(head, weight=m.T)
        else:
            copy_into(head, weight=2 * m, bias=-m.square().sum(1))
        return {}

    def after(self, before: Softmax, log_data: Tensor, found: Mapping[str, float]) -> Softmax:
        """One without log shares [C]: distances were not trained to be any; cosines keep their scale."""
        return Softmax(before.scale if self.by == "cosine" else 1.0, None)


@dataclass(frozen=True)
class LogitAdjust:
    """Logits minus tau log(n_c / N), of a classifier that is trained: post-hoc adjustment (Menon et al., ICLR 2021).

    Raises ValueError for a field out of its range.
    """

    tau: float | None = 1.0  # strength; none: the best of 0, 0.1 ... 2 on the validation part
    scale: float | None = None  # what the loss multiplied cosines by, e.g. 30 for LDAM: a bare cosine head needs it

    def __post_init__(self) -> None:
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f"scale: what a loss multiplies cosines by, e.g. 30, and not {self.scale}")

    @property
    def sweeps(self) -> bool:
        """If no strength is given."""
        return self.tau is None

    def kind(self, head: str) -> str:
        """Linear, since shifted cosines are none."""
        return "linear"

    def shape(self, head: nn.Module, classes: int) -> nn.Module:
        """The head before with a shift; for a linear head the shift is its bias."""
        return nn.Linear(*sizes(head)) if type(head) is nn.Linear else Shifted(deepcopy(head))

    @torch.no_grad()
    def fill(self, head: nn.Module, given: Given) -> dict[str, float]:
        """The head before, and the shift."""
        n = given.counts.clamp(min=1)
        log_prior = (n / n.sum()).log() / (self.scale or 1.0)  # [C], as cosines are
        tau, found = chosen(self.tau, given, lambda z, tau: given.before(z) - tau * log_prior)
        if isinstance(head, Shifted):
            taken_over(head, given.before)
            copy_into(head, shifts=-tau * log_prior)
        else:
            weight, bias = linear(given.before, "logit-adjust")
            copy_into(head, weight=weight, bias=bias - tau * log_prior)
        return found

    def after(self, before: Softmax, log_data: Tensor, found: Mapping[str, float]) -> Softmax:
        """One whose log shares [C] are less by tau times those of the data; without any where no tau is known."""
        tau = found.get("tau") if self.tau is None else self.tau
        if before.log_prior is None or tau is None:
            return before._replace(log_prior=None)
        shift = tau * before.scale / (self.scale or 1.0) * log_data
        return before._replace(log_prior=(before.log_prior - shift).log_softmax(0))


STARTS: dict[str, type] = {
    "keep": Keep,
    "new-head": NewHead,
    "scales": Scales,
    "tau-norm": TauNorm,
    "class-means": ClassMeans,
    "disalign": DisAlign,
    "logit-adjust": LogitAdjust,
}


def shaped(model: nn.Module, starts: Sequence[Start], classes: int) -> nn.Module:
    """The model with its head in the structure that starts one after the other leave it in; its values are none.

    Raises ValueError for a start that needs a head where the model has none.
    """
    for start in starts:
        before = head_of(model, start)
        if (head := start.shape(before, classes)) is not before:
            model.head = head.to(next(model.parameters()))
    return model


def begun(model: nn.Module, start: Start, given: Callable[[nn.Module], Given], classes: int) -> dict[str, float] | None:
    """The model with the head that a start makes of its own, and what was found; None where the head is kept."""
    before = head_of(model, start)
    refuse_bare(start, before)
    head = start.shape(before, classes)
    if head is before:
        return None
    like = next(before.parameters())
    found = start.fill(head.to("cpu", like.dtype), given(deepcopy(before).cpu().eval()))
    model.head = head.to(like)
    return found


def refuse_bare(start: Start, head: nn.Module) -> None:
    """Raise ValueError for log shares that would be taken from bare cosines: they are many times as large."""
    core = innermost(head)
    if isinstance(start, LogitAdjust) and start.scale is None and isinstance(core, Cosine) and core.scale == 1.0:
        raise ValueError(
            "start: logit-adjust shifts logits by log shares, and this head answers cosines, which the loss "
            "multiplies: write what it multiplies them by, e.g. `scale: 30` after LDAM"
        )


def head_of(model: nn.Module, start: Start) -> nn.Module:
    """The classifier that a start begins from."""
    head = getattr(model, "head", None)
    if isinstance(head, nn.Module) and hasattr(model, "backbone"):
        return head
    if start == Keep():
        return nn.Identity()
    raise ValueError(
        f"start: {type(start).__name__} needs `model.backbone` and `model.head`, which {type(model).__name__} lacks: "
        "Split(backbone, head) makes any pair of modules so"
    )


@torch.no_grad()
def chosen(
    tau: float | None, given: Given, logits: Callable[[Tensor, float], Tensor]
) -> tuple[float, dict[str, float]]:
    """A tau, and what is told of it: the one given, or the first of those best on the validation part.

    Best is the highest mean of the classes' accuracies. Raises ValueError where there is no validation part: what is
    chosen on test images cannot be tested on them.
    """
    if tau is not None:
        return tau, {"tau": tau}
    if given.val is None:
        raise ValueError(NO_VALIDATION)
    z, y = given.val()
    scored = [evaluate(logits(z, t), y).balanced for t in TAUS]
    best = scored.index(max(scored))
    return TAUS[best], {"tau": TAUS[best], "validation accuracy": scored[best]}


NO_VALIDATION = (
    "start: tau is chosen on a validation part, never on test images, and there is none: write `tau`, or keep a share "
    "of the training images apart, e.g. `protocol: {validation: 0.1}`"
)


def class_means(z: Tensor, y: Tensor, names: Sequence[str]) -> Tensor:
    """Means [C, d] of features [N, d] by labels [N]. ValueError naming classes without any."""
    sizes = torch.bincount(y, minlength=len(names))
    if (sizes == 0).any():
        empty = [str(name) for name, n in zip(names, sizes.tolist(), strict=True) if n == 0]
        raise ValueError(f"start: no training image of {', '.join(empty)}, so no mean of its features: leave it out")
    sums = z.new_zeros(len(names), z.shape[1], dtype=torch.float64).index_add_(0, y, z.double())
    return (sums / sizes[:, None]).to(z.dtype)


def linear(head: nn.Module, start: str) -> tuple[Tensor, Tensor]:
    """Weights [C, d] and biases [C] (0 where it has none) of a linear head, scales and shifts multiplied in."""
    if isinstance(head, Scaled):
        weight, bias = linear(head.inner, start)
        return head.scales.detach()[:, None] * weight, head.scales.detach() * bias
    if isinstance(head, Shifted):
        weight, bias = linear(head.inner, start)
        return weight, bias + head.shifts.detach()
    if not isinstance(head, nn.Linear):
        raise ValueError(f"start: {start} needs a linear head, and this is a {type(head).__name__}")
    weight = head.weight.detach()
    return weight, weight.new_zeros(len(weight)) if head.bias is None else head.bias.detach()


def taken_over(head: nn.Module, before: nn.Module) -> dict[str, float]:
    """The head within has the values of the head before."""
    head.get_submodule("inner").load_state_dict(before.state_dict())
    return {}


@torch.no_grad()
def copy_into(head: nn.Module, **values: Tensor) -> None:
    """Give parameters of a head their values."""
    for name, value in values.items():
        head.get_parameter(name).copy_(value)
