"""What sharpness-aware means here: methods as lists of terms, and the engine that executes any of them.

This package imports torch and nothing else, and can be copied into another project as it is.
"""

from .ccsam import CCSAM
from .dropin import SharpnessAware
from .engine import sharp_backward
from .erm import ERM
from .focalsam import FocalSAM
from .imbsam import ImbSAM
from .perturb import Radial, adaptive_ball, displaced, l2_ball
from .radius import RADII, Linear, Radius, Steps
from .report import Outcome
from .sam import ASAM, SAM
from .ssesam import SSESAM
from .terms import Context, Losses, Method, Part, Term, Weighted
from .timing import Every, Window

METHODS: dict[str, type] = {
    "erm": ERM,
    "sam": SAM,
    "asam": ASAM,
    "imbsam": ImbSAM,
    "ssesam": SSESAM,
    "focalsam": FocalSAM,
    "ccsam": CCSAM,
    "window": Window,
    "every": Every,
}

__all__ = [
    "ASAM", "CCSAM", "ERM", "METHODS", "RADII", "SAM", "SSESAM", "Context", "Every", "FocalSAM", "ImbSAM", "Linear",
    "Losses", "Method", "Outcome", "Part", "Radial", "Radius", "SharpnessAware", "Steps", "Term", "Weighted",
    "Window", "adaptive_ball", "displaced", "l2_ball", "sharp_backward",
]  # fmt: skip
