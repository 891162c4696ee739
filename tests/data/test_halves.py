"""The halves: same numbers for any batching, number of workers and order; nothing left behind."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from flattail.data import AUGMENTS, Draw, Files, LongTail, Tensors, Wrapped, in_order, seeds

AUGMENT = (AUGMENTS["crop"](1), AUGMENTS["flip"]())
STATS = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Noisy(Dataset):
    """Draws from all three global generators."""

    targets = (0, 1) * 12

    def __len__(self):
        return 24

    def __getitem__(self, i):
        x = torch.full((3, 8, 8), float(i))
        x[0] += torch.rand(8, 8)
        x[1] += torch.from_numpy(np.random.rand(8, 8))
        x[2] += random.random()
        return x, self.targets[i]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    top = tmp_path_factory.mktemp("photographs")
    generator = np.random.RandomState(0)
    paths = [str(top / f"{i}.jpg") for i in range(24)]
    for i, path in enumerate(paths):
        coarse = Image.fromarray(generator.randint(0, 256, (4, 5, 3), np.uint8))
        coarse.resize((40 + i, 50)).convert("L" if i % 5 == 0 else "RGB").save(path, quality=90)
    return paths


@pytest.fixture(params=["tensors", "files", "wrapped"])
def half(request, photographs):
    y = torch.arange(24) % 2
    if request.param == "tensors":
        x = torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8)
        return Tensors(x, y, *STATS)
    if request.param == "files":
        return Files(photographs, y, size=16, jitter=0.4)
    return LongTail.of(Noisy(), Noisy()).train


def shown(half, order, batch, **how):
    """Every image by its row, drawn under the same seeds whatever the order."""
    steps = [Draw(rows, seeds(9, rows)) for rows in order.split(batch)]
    out = torch.zeros(24, *half.shape)
    for (rows, _), (x, y) in zip(steps, half.batches(steps, **how), strict=True):
        assert x.dtype == torch.float32 and y.equal(half.y[rows])
        out[rows] = x
    return out


@pytest.mark.parametrize("augment", [None, (), AUGMENT])
def test_an_image_depends_on_its_row_and_seed_only(half, augment):
    expected = shown(half, torch.arange(24), 24, augment=augment)
    assert shown(half, torch.randperm(24), 5, augment=augment).equal(expected)


def test_workers_change_nothing(half):
    expected = shown(half, torch.arange(24), 8, augment=AUGMENT)
    for _ in range(2):  # the second epoch by the same workers
        assert shown(half, torch.arange(24), 8, augment=AUGMENT, workers=2).equal(expected)


def test_training_images_are_drawn_and_evaluation_images_are_not(half):
    rows = torch.arange(6)
    draws = [[Draw(rows, seeds(key, rows))] for key in (1, 2)]
    first, second = (next(half.batches(d, augment=AUGMENT))[0] for d in draws)
    assert not first.equal(second)
    if isinstance(half, Wrapped):
        return  # such a data set draws as it likes, in evaluation too
    first, second = (next(half.batches(d))[0] for d in draws)
    assert first.equal(second)


def test_two_copies_of_one_image_draw_differently(half):
    steps = [Draw(torch.zeros(16, dtype=torch.int64), seeds(4, torch.arange(16)))]
    x, _ = next(half.batches(steps, augment=AUGMENT))
    assert len({image.numpy().tobytes() for image in x}) > 5


def test_global_generators_are_left_alone(half):
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    before = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    list(half.batches(in_order(24, 5), augment=AUGMENT))
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_step_without_rows_yields_nothing_of_the_right_shape(half, workers):
    none = torch.zeros(0, dtype=torch.int64)
    steps = [Draw(none, none), Draw(torch.tensor([3]), torch.tensor([5])), Draw(none, none)]
    for augment in (None, AUGMENT):
        sizes = [(x.shape, y.shape, x.dtype, y.dtype) for x, y in half.batches(steps, augment=augment, workers=workers)]
        assert sizes == [((n, *half.shape), (n,), torch.float32, torch.int64) for n in (0, 1, 0)]


def test_an_epoch_left_halfway_does_not_leak_into_the_next(half):
    expected = shown(half, torch.arange(24), 4)
    next(half.batches(in_order(24, 4), workers=2))
    assert shown(half, torch.arange(24), 4, workers=2).equal(expected)


def test_taken_rows_are_those_of_the_whole(half):
    rows = torch.tensor([5, 2, 17])
    part = half.take(rows)
    key = seeds(9, rows)
    (x, y), (whole, _) = (
        next(h.batches([Draw(r, key)], augment=AUGMENT)) for h, r in ((part, torch.arange(3)), (half, rows))
    )
    assert x.equal(whole) and y.equal(half.y[rows]) and len(part) == 3


def test_in_order_covers_every_row_once():
    assert torch.cat([rows for rows, _ in in_order(10, 4)]).tolist() == list(range(10))
    assert [len(rows) for rows, _ in in_order(10, 4)] == [4, 4, 2]


def test_evaluation_is_resize_then_centre(photographs):
    from torchvision import transforms

    half = Files(photographs, torch.zeros(24).long(), size=28)
    published = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(28), transforms.ToTensor()])
    x, _ = next(half.batches(in_order(24, 24)))
    for i, path in enumerate(photographs):
        plain = published(Image.open(path).convert("RGB"))
        assert torch.allclose(
            x[i] * torch.tensor(half.std)[:, None, None] + torch.tensor(half.mean)[:, None, None], plain, atol=1e-5
        )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_or_unreadable_image_is_named(photographs, tmp_path, workers):
    cut, text, absent = (tmp_path / name for name in ("cut.jpg", "text.jpg", "absent.jpg"))
    cut.write_bytes(Path(photographs[1]).read_bytes()[:400])
    text.write_text("this is no image")
    for bad in (cut, text, absent):
        half = Files([photographs[0], str(bad)], torch.zeros(2).long(), size=16)
        why = "is gone; .*: restore it" if bad is absent else r"is not a readable image \(.*: restore it"
        with pytest.raises(ValueError, match=rf"^{bad} {why}") as caught:
            list(half.batches(in_order(2, 1), workers=workers))
        assert "Traceback" not in str(caught.value)


def test_images_in_memory_go_to_a_device_once(monkeypatch):
    half, moves, to = Tensors(torch.rand(24, 3, 8, 8), torch.arange(24) % 2, *STATS), [], torch.Tensor.to

    def counting(x, *args, **how):
        moves.extend([args] if len(x) == 24 and x.ndim == 4 else [])
        return to(x, *args, **how)

    monkeypatch.setattr(torch.Tensor, "to", counting)
    for _ in range(3):
        assert len(list(half.batches(in_order(24, 8), device="cpu"))) == 3
    assert len(moves) == 1
