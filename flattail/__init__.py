"""flattail, flat minima for the tail: sharpness-aware training and analysis for long-tailed recognition."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

HOMES = {
    "flattail.sharp": [
        "SharpnessAware", "ERM", "SAM", "ASAM", "ImbSAM", "SSESAM", "FocalSAM", "CCSAM", "Window", "Every",
        "Steps", "Linear", "Term", "Weighted", "METHODS",
    ],
    "flattail.models": ["Split", "MODELS"],
    "flattail.data": ["LongTail", "DATASETS", "SAMPLERS"],
    "flattail.recipe": ["Recipe", "Stage", "run"],
    "flattail.train": ["fit"],
    "flattail.evaluate": ["evaluate", "Scores"],
}  # fmt: skip
NAMES = {name: home for home, names in HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import on first use: `import flattail` alone imports no torch."""
    if name in NAMES:
        return getattr(import_module(NAMES[name]), name)
    losses = import_module("flattail.losses") if not name.startswith("_") else None
    if losses is not None and name in losses.__all__:
        return getattr(losses, name)
    raise AttributeError(f"module 'flattail' has no attribute {name!r}")
