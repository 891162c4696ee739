"""ERM: empirical risk minimisation, the plain step (Vapnik, NIPS 1991)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .terms import Context, Term


@dataclass(frozen=True)
class ERM:
    """The loss where it stands, as `loss.backward()` would have it (Vapnik, NIPS 1991): grad L(w)."""

    where: ClassVar[Literal["weights", "head"]] = "weights"

    def terms(self, at: Context) -> list[Term]:
        """Everybody, at w."""
        return [Term("plain", at.ones)]
