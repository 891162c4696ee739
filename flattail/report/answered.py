"""What a run said of every test image: its answer and how sure it was, from the logits that it kept."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..runs import LOGITS, Run, read_logits

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
    return _answered(run.path.resolve(), path.stat().st_mtime_ns)


@lru_cache(maxsize=512)
def _answered(folder: Path, changed: int) -> Answered:
    logits, y = read_logits(folder)
    if logits.ndim != 2 or y.shape != logits.shape[:1]:
        said = f"logits {logits.shape} and labels {y.shape}"
        raise ValueError(f"{folder / LOGITS} holds {said}: write it with `flattail evaluate`")
    step = max(1, CHUNK // max(logits.shape[1], 1))
    sure = np.empty(len(y))
    for start in range(0, len(y), step):
        z = logits[start : start + step].astype(np.float64)
        sure[start : start + step] = 1 / np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1)
    return Answered(y.astype(np.int32), logits.argmax(axis=1).astype(np.int32), sure)
