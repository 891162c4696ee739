"""Addressed random numbers against the published splitmix64, and their independence of batch and device."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from flattail.data.addressed import GOLDEN, address, mixed, seeds, uniform

MASK = 2**64 - 1


def splitmix64(state: int, n: int) -> list[int]:
    out = []
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        out.append(z ^ (z >> 31))
    return out


def test_known_values_of_splitmix64():
    state = torch.tensor([1234567]) + torch.arange(1, 6) * GOLDEN
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [v & MASK for v in mixed(state).tolist()] == published == splitmix64(1234567, 5)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(1, 7))
def test_uniform_is_the_top_24_bits(seed, n):
    expected = [v >> 40 for v in splitmix64(seed & MASK, n)]
    assert (uniform(torch.tensor([seed]), n)[0] * 2**24).tolist() == expected


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20, unique=True), st.integers(0, 2**63 - 1))
def test_a_seed_depends_on_its_own_position_only(positions, key):
    together = seeds(key, torch.tensor(positions))
    alone = torch.cat([seeds(key, torch.tensor([p])) for p in positions])
    assert together.equal(alone)
    assert len(set(together.tolist())) == len(positions)


def test_addresses_tell_parts_apart_and_fit_int64():
    keys = [address(0, 1, 2), address(0, 12), address("0", 1, 2), address(0, 2, 1), address()]
    assert len(set(keys)) == 5
    assert all(0 <= key < 2**63 for key in keys)
    assert address(0, "augment", 3) == address(0, "augment", 3)


def test_the_numbers_are_uniform_and_salts_uncorrelated():
    s = seeds(address(3), torch.arange(100_000))
    u, v = uniform(s, 2), uniform(s, 2, salt=1)
    assert u.min() >= 0 and u.max() < 1
    shares = torch.histc(u, bins=20, min=0, max=1) / u.numel()
    assert (shares - 0.05).abs().max() < 5 * (0.05 * 0.95 / u.numel()) ** 0.5
    for a, b in ((u[:, 0], u[:, 1]), (u[:, 0], v[:, 0]), (u[1:, 0], u[:-1, 0])):
        assert torch.corrcoef(torch.stack([a, b]))[0, 1].abs() < 0.02
