"""Digits-LT: scikit-learn's scanned digits made long-tailed; real data that need no download."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from flattail.data.halves import Tensors, statistics
from flattail.data.longtail import LongTail, assembled
from flattail.data.profile import HEAD_3_4_3, Profile, Shots, long_tail


@dataclass(frozen=True)
class DigitsLT:
    """Scanned 8x8 digits: 1,797 images, 50 per class kept apart for the test, the others long-tailed."""

    imbalance: float = 20.0  # largest class over smallest (in (0, 1): its inverse)
    profile: Profile = "exponential"  # exponential, step or pareto; digit 0 is the largest class
    shots: Shots = HEAD_3_4_3  # which classes are many, medium and few

    def load(self, root: Path) -> LongTail:
        """The digits; which images are tested on does not depend on any field. No file is read."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        shuffled = np.random.RandomState(0).permutation(len(digits.target))
        of_class = [shuffled[digits.target[shuffled] == c] for c in range(10)]
        counts = long_tail(self.profile, min(len(rows) - 50 for rows in of_class), 10, self.imbalance)
        kept = np.concatenate([rows[50 : 50 + n] for rows, n in zip(of_class, counts.tolist(), strict=True)])
        test = np.concatenate([rows[:50] for rows in of_class])
        images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))[:, None]
        y = torch.from_numpy(digits.target).long()
        stats = statistics(images[kept])
        return assembled(
            Tensors(images[kept], y[kept], *stats),
            Tensors(images[test], y[test], *stats),
            names=[str(c) for c in range(10)],
            shots=self.shots,
            title=f"digits-LT, IF {self.imbalance:g}, {self.profile}",
            kept=kept,
        )
