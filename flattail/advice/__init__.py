"""For people who only have photographs: a recipe from class counts, images and machine, with its reasons."""

from .choices import Advice, Pace, Plan, Reason, plain, planned, settled
from .looked import Found, Machine, described, look, machine, place
from .pretrained import Pretrained, there
from .timing import pace, seconds

__all__ = [
    "Advice", "Found", "Machine", "Pace", "Plan", "Pretrained", "Reason", "described", "look", "machine", "pace",
    "place", "plain", "planned", "seconds", "settled", "there",
]  # fmt: skip
