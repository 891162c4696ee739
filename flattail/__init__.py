"""flattail, flat minima for the tail: sharpness-aware training and analysis for long-tailed recognition."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

HOMES = {
    "flattail.sharp": [
        "SharpnessAware", "ERM", "SAM", "ASAM", "ImbSAM", "SSESAM", "FocalSAM", "CCSAM", "AdversarialFeatures", "WSAM",
        "GradientNormPenalty", "GSAM", "FriendlySAM", "LookSAM", "MSAM", "SAMNorms", "LPFSGD", "ModelPerturbation",
        "PGD", "Window", "Every", "Steps", "Linear", "Term", "Weighted", "METHODS",
    ],
    "flattail.losses": ["CE", "Focal", "LabelAwareSmoothing", "LDAM", "GCL", "VS", "LA", "LADE", "IB", "LOSSES"],
    "flattail.models": ["Split", "MODELS"],
    "flattail.data": ["LongTail", "DATASETS", "SAMPLERS"],
    "flattail.recipe": ["Recipe", "read", "write"],
    "flattail.experiment": ["run"],
    "flattail.stage": ["Stage"],
    "flattail.train": ["fit"],
    "flattail.scores": ["evaluate", "Scores"],
    "flattail.export": ["load_export"],
}  # fmt: skip
NAMES = {name: home for home, names in HOMES.items() for name in names}
__all__ = list(NAMES)


def __getattr__(name: str) -> Any:
    """Import on first use: `import flattail` alone imports no torch."""
    if name not in NAMES:
        raise AttributeError(f"module 'flattail' has no attribute {name!r}")
    return getattr(import_module(NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *NAMES])
