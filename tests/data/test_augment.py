"""Every image draws its own, whatever its batch; each operation against torchvision or a loop over pixels."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import AutoAugment as Published
from torchvision.transforms import AutoAugmentPolicy, InterpolationMode
from torchvision.transforms.autoaugment import _apply_op
from torchvision.transforms.v2 import functional as T

from flattail.data.addressed import seeds, uniform
from flattail.data.augment import AUGMENTS, OPERATIONS, AutoAugment, Crop, Cutout, Flip, softened

SEEDS = seeds(7, torch.arange(64))


def images(n=64, channels=3, side=32):
    """Smooth random photographs: shapes that move visibly."""
    coarse = torch.rand(n, channels, 6, 6, generator=torch.Generator().manual_seed(n))
    return (F.interpolate(coarse, size=side, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


@pytest.mark.parametrize("name", AUGMENTS)
@pytest.mark.parametrize("channels", [1, 3])
def test_two_copies_of_one_image_draw_differently(name, channels):
    x = images(1, channels).expand(64, -1, -1, -1)
    out = AUGMENTS[name]()(x, SEEDS)
    assert out.shape == x.shape and out.dtype == torch.uint8
    assert len({image.numpy().tobytes() for image in out}) > (1 if name == "flip" else 20)


@pytest.mark.parametrize("name", AUGMENTS)
@settings(max_examples=15, deadline=None)
@given(st.permutations(range(64)), st.integers(1, 64))
def test_the_neighbours_in_the_batch_change_nothing(name, order, n):
    x, rows = images(), torch.tensor(order[:n])
    assert AUGMENTS[name]()(x, SEEDS)[rows].equal(AUGMENTS[name]()(x[rows], SEEDS[rows]))


@pytest.mark.parametrize("name", AUGMENTS)
def test_the_images_given_stay_as_they_are_and_none_is_fine(name):
    x = images()
    before = x.clone()
    AUGMENTS[name]()(x, SEEDS)
    assert x.equal(before)
    assert AUGMENTS[name]()(x[:0], SEEDS[:0]).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("pad", [1, 4])
def test_crops_are_windows_of_the_padded_image_all_equally_likely(pad):
    x = images(1).expand(4000, -1, -1, -1)
    out = Crop(pad)(x, seeds(1, torch.arange(4000)))
    padded = F.pad(x[0], [pad] * 4)
    side = 2 * pad + 1
    windows = torch.stack(
        [padded[:, i : i + 32, j : j + 32] for i in range(side) for j in range(side)]
    )  # [side², 3, 32, 32]
    match = (out.flatten(1)[:, None, ::7] == windows.flatten(1)[None, :, ::7]).all(2)
    assert match.sum(1).eq(1).all()
    assert all(out[i].equal(windows[match[i].nonzero()[0, 0]]) for i in range(50))
    drawn, fair = match.sum(0).double(), 4000 / side**2
    assert (drawn - fair).square().sum() / fair < 2 * side**2  # chi-square


def test_flips_mirror_half_of_the_images():
    x = images(1).expand(4000, -1, -1, -1)
    out = Flip()(x, seeds(2, torch.arange(4000)))
    mirrored = (out == x.flip(-1)).flatten(1).all(1)
    assert (mirrored | (out == x).flatten(1).all(1)).all()
    assert abs(mirrored.double().mean() - 0.5) < 0.04
    assert Flip(0.0)(x, seeds(2, torch.arange(4000))).equal(x)
    assert Flip(1.0)(x, seeds(2, torch.arange(4000))).equal(x.flip(-1))


@pytest.mark.parametrize("size", [16, 5, 64])
def test_cutout_against_the_loop_of_its_definition(size):
    x = images().clamp(min=1)
    out = Cutout(size)(x, SEEDS)
    for i, (u, v) in enumerate(uniform(SEEDS, 2, salt=3).tolist()):
        top, left = int(u * 32) - size // 2, int(v * 32) - size // 2
        expected = x[i].clone()
        expected[:, max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = 0
        assert out[i].equal(expected)


def test_windows_are_clipped_at_the_border_not_moved_inside():
    holes = (Cutout()(torch.ones(2000, 1, 32, 32), seeds(3, torch.arange(2000))) == 0).flatten(1).sum(1)
    assert holes.max() == 256
    assert 64 <= holes.min() < 90  # a centre in a corner leaves a quarter


SPACE = Published(AutoAugmentPolicy.CIFAR10)._augmentation_space(10, (32, 32))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SPACE)
def test_every_operation_equals_torchvision_at_every_magnitude(name, channels):
    magnitudes, signed = SPACE[name]
    m = magnitudes.flatten().float()
    m = torch.cat([m, -m]) if signed else m
    x = images(len(m), channels)
    out = OPERATIONS[name](x, m[:, None, None, None])
    reference = torch.stack(
        [_apply_op(i, name, v, InterpolationMode.NEAREST, None) for i, v in zip(x, m.tolist(), strict=True)]
    )
    assert (out != reference).double().mean() < 2e-3  # pixels halfway between two
    assert out.dtype == torch.uint8


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [32, 16])
def test_autoaugment_equals_torchvision_on_every_image_alone(channels, side):
    n = 400
    x, key = images(n, channels, side), seeds(11, torch.arange(n))
    published = Published(AutoAugmentPolicy.CIFAR10)
    space = published._augmentation_space(10, (side, side))
    expected = []
    for image, (u, p0, p1, s0, s1) in zip(x, uniform(key, 5, salt=4).tolist(), strict=True):
        for (name, p, bin_), draw, sign in zip(published.policies[int(u * 25)], (p0, p1), (s0, s1), strict=True):
            if draw <= p:
                magnitudes, signed = space[name]
                magnitude = float(magnitudes[bin_]) if bin_ is not None else 0.0
                magnitude *= -1.0 if signed and sign < 0.5 else 1.0
                image = _apply_op(image, name, magnitude, InterpolationMode.NEAREST, None)
        expected.append(image)
    off = (AutoAugment()(x, key).int() - torch.stack(expected).int()).abs()
    assert (off > 0).double().mean() < 1e-3


def test_autoaugment_wants_uint8():
    with pytest.raises(ValueError, match="uint8"):
        AutoAugment()(torch.rand(2, 3, 8, 8), SEEDS[:2])


@pytest.mark.parametrize("name", ["crop", "flip", "cutout"])
def test_floats_are_treated_like_bytes(name):
    x = images()
    assert AUGMENTS[name]()(x.float(), SEEDS).equal(AUGMENTS[name]()(x, SEEDS).float())


@pytest.mark.parametrize("shape", [(5, 3, 16, 16), (4, 1, 9, 7), (2, 3, 2, 8), (2, 3, 3, 3)])
def test_softened_images_are_torchvisions(shape):
    x = torch.randint(0, 256, shape, dtype=torch.uint8)
    assert softened(x).equal(T.adjust_sharpness(x, 0.0))
