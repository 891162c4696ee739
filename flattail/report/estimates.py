"""A mean ± sd over seeds, and the paired difference to a baseline with its 95 % t interval.

The sd is the sample's (n - 1); a paired difference is the mean d over n common seeds, its interval
d ± t(0.975, n - 1) sd / sqrt(n).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

ROUNDING = 1e-9  # points


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds; printed as `71.2 ± 0.4`, of one seed as `71.2`, of none as –."""

    mean: float  # NaN if no seed has a value
    sd: float  # sample standard deviation; NaN for a single value
    n: int  # seeds that have a value
    digits: int = 1  # decimals printed

    @staticmethod
    def of(values: Iterable[float | None], digits: int = 1) -> "Estimate":
        """The estimate from one value per seed; None and NaN are left out."""
        known = np.array([v for v in values if v is not None and not math.isnan(v)], dtype=float)
        mean = float(known.mean()) if len(known) else math.nan
        return Estimate(mean, float(known.std(ddof=1)) if len(known) > 1 else math.nan, len(known), digits)

    def __str__(self) -> str:
        if not self.n:
            return "–"
        sd = f" ± {self.sd:.{self.digits}f}" if self.n > 1 else ""
        return f"{self.mean:.{self.digits}f}{sd}"


@dataclass(frozen=True)
class Difference:
    """A row minus the baseline over their common seeds, in percentage points, with its 95 % t interval."""

    mean: float  # NaN without a common seed
    low: float  # NaN for fewer than two pairs
    high: float  # NaN for fewer than two pairs
    n: int  # common seeds

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero; one without width, of equal differences by chance, says nothing."""
        return self.high - self.low > ROUNDING and (self.low > 0 or self.high < 0)

    @property
    def ahead(self) -> bool:
        """Whether the row is clearly better."""
        return self.clear and self.mean > 0

    @property
    def interval(self) -> str:
        """The interval as `[-0.3, 2.1]`; – for fewer than two pairs."""
        return f"[{signed(self.low)}, {signed(self.high)}]" if self.n > 1 else "–"

    def __str__(self) -> str:
        if not self.n:
            return "–"
        return signed(self.mean) + (f" {self.interval}" if self.n > 1 else "")


def difference(pairs: Iterable[tuple[float | None, float | None]]) -> Difference:
    """Of a row's and the baseline's value in every common seed, both in points; pairs that lack one are left out."""
    from scipy import stats

    gains = np.array([a - b for a, b in pairs if a is not None and b is not None])
    n = len(gains)
    if n < 2:
        return Difference(float(gains[0]) if n else math.nan, math.nan, math.nan, n)
    half = float(stats.t.ppf(0.975, n - 1) * gains.std(ddof=1) / math.sqrt(n))
    return Difference(float(gains.mean()), float(gains.mean()) - half, float(gains.mean()) + half, n)


def signed(number: float) -> str:
    """One decimal and always a sign."""
    return f"{number:+.1f}".replace("-", "−")
