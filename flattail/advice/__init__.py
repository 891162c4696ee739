"""For people who only have photographs: a recipe from class counts, images and machine, with its reasons."""

from .choices import Advice, Pace, compared, plain, recipe_of, settled
from .looked import Found, Machine, described, look, machine, place
from .plan import Plan, Reason, planned
from .pretrained import Pretrained, there
from .timing import pace, seconds

__all__ = [
    "Advice", "Found", "Machine", "Pace", "Plan", "Pretrained", "Reason", "compared", "described", "look", "machine",
    "pace", "place", "plain", "planned", "recipe_of", "seconds", "settled", "there",
]  # fmt: skip
