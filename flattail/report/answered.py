"""What a run said of every test image: its answer and how sure it was, from the logits that it kept."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..runs import LOGITS, Run

CHUNK = 2**22  # logits taken to float64 at a time


@dataclass(frozen=True, eq=False)
class Answered:
    """N test images, in the order of the test set."""

    y: np.ndarray  # labels [N]
    answer: np.ndarray  # the class of the largest logit [N]; the lowest of equals
    confidence: np.ndarray  # its softmax probability [N]

    @property
    def right(self) -> np.ndarray:
        """Which images are classified rightly, [N] bool."""
        return self.answer == self.y


def answered(run: Run) -> Answered | None:
    """The answers of a finished run; None if it kept no logits.

    Raises ValueError naming the file if they are damaged.
    """
    path = run.path / LOGITS
    if not run.finished or not path.exists():
        return None
    return _answered(path.resolve(), path.stat().st_mtime_ns, _Kept(run))


class _Kept:
    """A run that is not part of a cache's key."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kept)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=512)
def _answered(path: Path, changed: int, kept: _Kept) -> Answered:
    logits, y = kept.run.logits()
    if logits.ndim != 2 or y.shape != logits.shape[:1]:
        raise ValueError(f"{path} holds logits {logits.shape} and labels {y.shape}: write it with `flattail evaluate`")
    step = max(1, CHUNK // max(logits.shape[1], 1))
    sure = np.empty(len(y))
    for start in range(0, len(y), step):
        z = logits[start : start + step].astype(np.float64)
        sure[start : start + step] = 1 / np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1)
    return Answered(y.astype(np.int32), logits.argmax(axis=1).astype(np.int32), sure)
