"""What the rows of the table share: a recipe with its place, the published figures, the data sets."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from flattail.data import CIFAR10LT, CIFAR100LT
from flattail.data.augment import Crop, Flip
from flattail.data.profile import Slices
from flattail.recipe import Expect, Recipe, write

SADDLE = "Rangwani et al., NeurIPS 2022"
SSE = "Lyu et al., AAAI 2025"
FOCAL = "Li et al., ICML 2025"
CC = "Zhou et al., CVPR 2023"
WEIGHED = "CC-SAM's mean is over samples here, ours: one over each class would cancel the weights of DRW."


@dataclass(frozen=True)
class Shipped:
    """A recipe, where it lies, and the line above it."""

    path: str  # below the folder of the recipes, without .yaml
    about: str  # what it is, with paper and venue
    recipe: Recipe

    def text(self) -> str:
        """The YAML file."""
        command = f"flattail train recipes/{self.path}.yaml"
        recipe = replace(self.recipe, expect=self.recipe.expect or measured(self.path))
        return f"# {self.about}\n# {command}\n{write(recipe, defaults=False)}"


# -- data: imbalance 200, 100 and 50, and steps ----------------------------------------------------------------

CROP_FLIP = (Crop(4), Flip())
CIFARS: dict[str, Any] = {
    f"{name}-lt-{factor}": data(factor)
    for name, data in (("cifar10", CIFAR10LT), ("cifar100", CIFAR100LT))
    for factor in (100, 200, 50)
}
STEPS: dict[str, Any] = {
    where.replace("-100", "-step-100"): replace(CIFARS[where], profile="step")
    for where in ("cifar10-lt-100", "cifar100-lt-100")
}
SIXTEEN: dict[str, Any] = {
    "cifar10-lt-16px": replace(CIFARS["cifar10-lt-100"], size=16, shots=Slices(3, 4, 3)),
    "cifar100-lt-16px": replace(CIFARS["cifar100-lt-100"], size=16),
}


def said(where: str) -> str:
    """A folder's data in words."""
    data = (CIFARS | STEPS | SIXTEEN)[where]
    name = "CIFAR-10-LT" if isinstance(data, CIFAR10LT) else "CIFAR-100-LT"
    small = " at 16 pixels" if where in SIXTEEN else ""
    return f"{name}{small}, {'step ' if where in STEPS else ''}imbalance {data.imbalance:g}"


def ten(where: str) -> bool:
    """Whether a folder's data have ten classes."""
    return where.startswith("cifar10-")


# -- published figures: percent over all classes ---------------------------------------------------

README = "README of Saddle-LongTail"
RESULTS = Path(__file__).parents[2] / "results"
TABLE_1 = "CC-SAM (CVPR 2023), table 1"
TABLE_3 = "CC-SAM (CVPR 2023), table 3"
SSE_README = "README of SSE-SAM, table for CIFAR-100-LT"
IN_TABLE_1 = {  # recipe: CIFAR-10-LT and CIFAR-100-LT at imbalance 200, 100 and 50
    "ce": ((65.68, 70.70, 74.81), (34.84, 38.43, 43.90)),
    "ce-mixup": ((65.84, 72.96, 79.48), (35.84, 40.01, 45.16)),
    "ldam-drw": ((73.52, 77.03, 81.03), (38.91, 42.04, 47.62)),
    "causal": ((None, 80.60, 83.60), (None, 44.15, 50.31)),
    "mixup-crt": ((73.06, 79.15, 84.21), (41.73, 45.12, 50.86)),
    "mislas": ((77.31, 82.06, 85.16), (42.33, 47.50, 52.62)),
    "vs-sam": ((None, 82.40, None), (None, 46.60, None)),
    "gcl": ((79.03, 82.68, 85.46), (44.88, 48.71, 53.55)),
    "ccsam": ((80.94, 83.92, 86.22), (45.66, 50.83, 53.91)),
}
PUBLISHED: dict[str, tuple[float, str]] = {
    f"{data}-lt-{factor}/{name}": (figure, TABLE_1)
    for name, both in IN_TABLE_1.items()
    for data, figures in zip(("cifar10", "cifar100"), both, strict=True)
    for factor, figure in zip((200, 100, 50), figures, strict=True)
    if figure is not None
} | {
    "cifar10-lt-100/ce-drw-sam": (80.6, README),
    "cifar10-lt-100/ldam-drw": (77.03, f"README of LDAM-DRW (error 22.97); {TABLE_1}"),
    "cifar10-lt-100/ldam-drw-sam": (81.9, README),
    "cifar100-lt-100/ce-drw-sam": (44.6, README),
    "cifar100-lt-100/ldam-drw": (42.04, f"README of LDAM-DRW (error 57.96); {TABLE_1}"),
    "cifar100-lt-100/ldam-drw-sam": (45.4, README),
    "cifar100-lt-100/r34-ce": (44.6, SSE_README),
    "cifar100-lt-100/r34-ce-sam": (46.2, SSE_README),
    "cifar100-lt-100/r34-ce-imbsam": (47.9, SSE_README),
    "cifar100-lt-100/r34-ce-ssesam": (49.3, SSE_README),
    "imagenet-lt-r50/ce-drw-sam": (47.1, README),
    "imagenet-lt-r50/ldam-drw-sam": (53.1, README),
    "imagenet-lt-r50/ce-ccsam": (52.4, TABLE_3),
    "imagenet-lt-rx50/ce": (44.4, TABLE_3),
    "imagenet-lt-rx50/ce-ccsam": (55.4, TABLE_3),
    "places-lt/ce": (30.2, TABLE_3),
    "places-lt/ce-ccsam": (40.6, TABLE_3),
    "inat18/ce": (61.7, TABLE_3),
    "inat18/ce-ccsam": (70.9, TABLE_3),
    "inat18/ce-drw-sam": (65.3, README),
    "inat18/ldam-drw-sam": (70.1, README),
}


def expected(path: str) -> Expect | None:
    """What is published for a recipe, if anything is."""
    return Expect(*PUBLISHED[path], status="paper-only") if path in PUBLISHED else None


def measured(path: str) -> Expect | None:
    """What we have measured of a recipe as it stands, with three seeds or more."""
    kept = sorted((RESULTS / path).glob("*/scores.json"))
    if len(kept) < 3:
        return None
    found = [100 * json.loads(file.read_text())["scores"]["balanced"] for file in kept]
    return Expect(round(mean(found), 1), f"results/README.md, mean of {len(kept)} seeds", status="measured")
