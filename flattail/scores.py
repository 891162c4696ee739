"""Scores of a classifier on a test set, from its logits and the labels alone.

All accuracies, the calibration error and the confidences are fractions between 0 and 1. What has no test
sample (a class, a group without classes) scores NaN, and means over classes run over those that have some.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BINS = 15  # of the calibration error
ROWS = 4096  # logits taken to float64 at a time


@dataclass(frozen=True, eq=False)
class Scores:
    """What a classifier scored on N test samples of C classes; tensors live on the host."""

    n: int  # test samples
    all: float  # share of all test samples that are classified rightly
    balanced: float  # mean of the per-class accuracies
    worst: float  # lowest per-class accuracy
    gmean: float  # geometric mean of the per-class accuracies; 0 if a class is never found
    ece: float  # expected calibration error: 15 equal bins of confidence, closed on the right
    nll: float  # mean negative log-likelihood, in nats
    groups: dict[str, float]  # accuracy of each group: the mean of its classes' accuracies
    sizes: dict[str, int]  # number of classes of each group
    per_class: Tensor  # accuracy of each class [C]
    confusion: Tensor  # test samples of class (row) that were called class (column) [C, C]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`: NaN is None, the confusion matrix a list of [label, answer, count].

        Only cells that are not zero are listed: of 8142 x 8142 at most N are.
        """
        cells = self.confusion.nonzero()
        counts = self.confusion[cells[:, 0], cells[:, 1]]
        return {
            "n": self.n,
            **{name: _or_none(getattr(self, name)) for name in NUMBERS},
            "groups": {name: _or_none(value) for name, value in self.groups.items()},
            "sizes": dict(self.sizes),
            "per_class": [_or_none(value) for value in self.per_class.tolist()],
            "confusion": torch.cat([cells, counts[:, None]], 1).tolist(),
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Scores":
        """The scores that `to_json` made plain."""
        classes = len(plain["per_class"])
        confusion = torch.zeros(classes, classes, dtype=torch.int64)
        for label, answer, count in plain["confusion"]:
            confusion[label, answer] = count
        return cls(
            n=plain["n"],
            **{name: _or_nan(plain[name]) for name in NUMBERS},
            groups={name: _or_nan(value) for name, value in plain["groups"].items()},
            sizes=dict(plain["sizes"]),
            per_class=torch.tensor([_or_nan(value) for value in plain["per_class"]], dtype=torch.float64),
            confusion=confusion,
        )


NUMBERS = ("all", "balanced", "worst", "gmean", "ece", "nll")  # the fields of `Scores` that are one fraction


def _or_none(value: float) -> float | None:
    return None if value != value else value


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def evaluate(logits: Tensor, y: Tensor, *, groups: Mapping[str, Tensor] | None = None) -> Scores:
    """Score logits [N, C] against labels [N]; `groups` names sets of classes, as boolean masks [C].

    Equal logits count for the lowest class. Raises ValueError for shapes that do not fit and for labels
    outside the C classes.
    """
    groups = groups or {}
    _refuse_misfits(logits, y, groups)
    classes = logits.shape[1]
    y = y.to(logits.device, torch.int64)
    answers, confidence, losses = (torch.cat(parts).cpu() for parts in zip(*_looked_at(logits, y), strict=True))
    y = y.cpu()
    confusion = torch.bincount(y * classes + answers, minlength=classes**2).view(classes, classes)
    per_class = confusion.diagonal().double() / confusion.sum(1)  # [C], 0 / 0 = NaN
    seen = per_class[~per_class.isnan()]
    right = (answers == y).double()
    masks = {name: mask.to("cpu", torch.bool) for name, mask in groups.items()}
    return Scores(
        n=len(y),
        all=right.mean().item(),
        balanced=seen.mean().item(),
        worst=seen.min().item() if len(seen) else float("nan"),
        gmean=seen.log().mean().exp().item(),
        ece=calibration_error(confidence, right),
        nll=losses.mean().item(),
        groups={name: per_class[mask].nanmean().item() for name, mask in masks.items()},
        sizes={name: int(mask.sum()) for name, mask in masks.items()},
        per_class=per_class,
        confusion=confusion,
    )


def calibration_error(confidence: Tensor, right: Tensor) -> float:
    """Expected calibration error of confidences [N] in [0, 1], given which answers were right [N].

    `sum_b |b|/N * |accuracy(b) - mean confidence(b)|` over 15 equal bins, closed on the right; Guo et al.,
    "On Calibration of Modern Neural Networks", ICML 2017.
    """
    edges = torch.arange(1, BINS, dtype=confidence.dtype) / BINS
    surplus = torch.zeros(BINS, dtype=confidence.dtype)  # of right answers over promised ones, by bin
    surplus.index_add_(0, torch.bucketize(confidence, edges), right - confidence)
    return (surplus.abs().sum() / len(confidence)).item()


def _looked_at(logits: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Answers, confidences and losses, each [rows], of one chunk of rows after another."""
    parts = []
    for z, own in zip(logits.split(ROWS), y.split(ROWS), strict=True):
        log_p = z.double().log_softmax(1)
        parts.append((z.argmax(1), log_p.amax(1).exp(), -log_p.gather(1, own[:, None])[:, 0]))
    return parts


def _refuse_misfits(logits: Tensor, y: Tensor, groups: Mapping[str, Tensor]) -> None:
    if logits.ndim != 2 or y.shape != logits.shape[:1]:
        raise ValueError(
            f"evaluate: logits {tuple(logits.shape)} and labels {tuple(y.shape)} do not fit; "
            "give logits [N, C] and one label per row [N]"
        )
    classes = logits.shape[1]
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ValueError(
            f"evaluate: labels run from {int(y.min())} to {int(y.max())}, but logits have {classes} classes; "
            "number classes from 0, and give logits of the model for these classes"
        )
    for name, mask in groups.items():
        if mask.shape != (classes,):
            raise ValueError(
                f"evaluate: group {name!r} has shape {tuple(mask.shape)}; give one true or false per class, [{classes}]"
            )
