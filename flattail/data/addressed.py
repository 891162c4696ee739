"""Random numbers that have an address: drawn from (who, where, when), never from the state of a generator.

    state = seed + i·γ,   u = mix(state)      splitmix64 (Steele, Lea, Flood, OOPSLA 2014), i = 1, 2, …

The same address gives the same number on every device, in every process, with any number of workers.
"""

from hashlib import blake2b

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # γ as a signed 64-bit number


def address(*parts: int | str) -> int:
    """One key in [0, 2⁶³) for a place in a run, e.g. ``address(seed, "augment", stage, epoch, step)``."""
    digest = blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seeds(key: int, positions: Tensor) -> Tensor:
    """The seeds [B] (int64) of the samples at ``positions`` [B] under ``key``."""
    return mixed(mixed(positions.long() * GOLDEN) + key)


def uniform(seeds: Tensor, n: int, *, salt: int = 0) -> Tensor:
    """``n`` numbers in [0, 1) for every seed: float32 [B, n], another salt, other numbers."""
    start = mixed(seeds ^ address("salt", salt)) if salt else seeds
    state = start[:, None] + torch.arange(1, n + 1, device=seeds.device) * GOLDEN
    return _shifted(mixed(state), 40).float() * 2.0**-24


def mixed(z: Tensor) -> Tensor:
    """The output function of splitmix64, on int64 tensors that wrap around."""
    z = (z ^ _shifted(z, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    z = (z ^ _shifted(z, 27)) * (0x94D049BB133111EB - 2**64)
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, by: int) -> Tensor:
    """A logical right shift: the sign is not dragged along."""
    return (z >> by) & (2 ** (64 - by) - 1)
