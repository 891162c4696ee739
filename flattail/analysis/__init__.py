"""What the loss looks like around a trained model, overall and class by class: the same weights and verbs as training.

Every analysis is a frozen value of options, called with (model, batches, counts); it returns named arrays.
"""

from .classwise import ClassHessian, class_hessian
from .escape import Escape
from .hessian import Hessian
from .krylov import Krylov
from .landscape import Landscape, filter_normalised, line, plane
from .parts import joined
from .radius import ClassRadius
from .samples import Samples, members_of
from .sharpness import Sharpness, gap
from .spectrum import Spectrum, density, spectrum
from .subject import Subject, cross_entropy

ANALYSES: dict[str, type] = {
    "hessian": ClassHessian,
    "landscape": Landscape,
    "sharpness": Sharpness,
    "radius": ClassRadius,
    "escape": Escape,
}

__all__ = [
    "ANALYSES", "ClassHessian", "ClassRadius", "Escape", "Hessian", "Krylov", "Landscape", "Samples", "Sharpness",
    "Spectrum", "Subject", "class_hessian", "cross_entropy", "density", "filter_normalised", "gap", "joined", "line",
    "members_of", "plane", "spectrum",
]  # fmt: skip
