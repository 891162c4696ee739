"""`LongTail`: validation, carving, and any torch data set or arrays through `LongTail.of`."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

from flattail.data import Draw, LongTail, Tensors, Wrapped, in_order
from flattail.data.profile import Thresholds


def made(counts, seed=0, channels=3):
    """Images whose first pixel is their position, in shuffled class order."""
    y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]
    x = torch.randint(0, 256, (len(y), channels, 8, 8), dtype=torch.uint8)
    x[:, 0, 0, 0] = torch.arange(len(y)) % 256
    return x, y


def everything(half, **how):
    parts = list(half.batches(in_order(len(half), 7), **how))
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def test_what_everyone_downstream_sees():
    train, test = made([9, 4, 2]), made([3, 3, 3])
    data = LongTail.of(train, test, names=["a", "b", "c"], shots=Thresholds(5, 3), title="made")
    assert data.counts.tolist() == [9, 4, 2] and data.counts.dtype == torch.int64
    assert (data.classes, data.channels, data.train.shape, len(data.test)) == (3, 3, (3, 8, 8), 9)
    assert {k: v.tolist() for k, v in data.group().items()} == {
        "many": [True, False, False],
        "medium": [False, True, False],
        "few": [False, False, True],
    }
    assert data.fingerprint == LongTail.of(train, test).fingerprint
    assert data.fingerprint != LongTail.of(made([9, 4, 2], seed=1), test).fingerprint


@pytest.mark.parametrize(
    ("train", "test", "names", "message"),
    [
        ([4, 0, 2], [1, 1, 1], None, r"class 1 \(1\) has no training sample: add some"),
        ([4, 3], [1, 1, 1], None, r"test label 2 \(sample \d\) is outside 0…1"),
        ([4, 3, 3], [1, 1, 1], ["cat", "dog"], r"train label 2 .* number the 2 classes from 0"),
        ([4, 3], [1, 1], ["cat", "dog", "owl"], r"class 2 \(owl\) has no training sample"),
    ],
)
def test_labels_that_do_not_fit_are_refused_by_name(train, test, names, message):
    with pytest.raises(ValueError, match=message):
        LongTail.of(made(train), made(test), names=names)


def test_negative_labels_and_empty_halves_are_refused():
    x, y = made([4, 3])
    with pytest.raises(ValueError, match=r"train label -1 \(sample 2\)"):
        LongTail.of((x, torch.where(torch.arange(7) == 2, -1, y)), (x, y))
    with pytest.raises(ValueError, match="the test half is empty"):
        LongTail.of((x, y), (x[:0], y[:0]))
    with pytest.raises(ValueError, match="the train half is empty"):
        LongTail.of((x[:0], y[:0]), (x, y))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((4, 8, 8), np.int32), [0, 1, 0, 1], "images are torch.int32: store them as uint8"),
        (np.zeros((4, 8, 8), np.uint8), [0, 1, 0], "4 images but 3 labels"),
        (np.zeros((4, 8, 8), np.uint8), [0.0, 1, 0, 1], "labels are torch.float"),
        (np.zeros((4, 8, 8), np.uint8), [[0, 1]] * 4, r"shape \[4, 2\]"),
        (np.zeros((4, 8, 8, 5), np.uint8), [0, 1, 0, 1], r"images have shape \[4, 8, 8, 5\]"),
    ],
)
def test_arrays_of_a_wrong_kind_are_refused(x, y, message):
    with pytest.raises(ValueError, match=f"custom: train.*{message}"):
        LongTail.of((x, np.array(y)), made([1, 1]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(2, 30), min_size=2, max_size=6), st.floats(0.01, 0.99), st.integers(0, 2**31 - 1))
def test_carving_takes_a_share_of_each_class_and_loses_nothing(counts, share, seed):
    data = LongTail.of(made(counts), made([1] * len(counts)))
    carved = data.carve(share, seed)
    out = torch.bincount(carved.val.y, minlength=len(counts))
    assert (out + carved.counts).tolist() == counts
    assert out.min() >= 1 and carved.counts.min() >= 1
    assert ((out - data.counts * share).abs() <= 1).all()
    x = torch.cat([carved.train.x, carved.val.x])[:, :, :2, 0].flatten(1).tolist()
    assert sorted(x) == sorted(data.train.x[:, :, :2, 0].flatten(1).tolist())
    again = data.carve(share, seed)
    assert again.val.x.equal(carved.val.x) and again.fingerprint == carved.fingerprint != data.fingerprint
    assert carved.test is data.test


def test_carving_depends_on_the_seed_and_refuses_single_images():
    data = LongTail.of(made([30, 30]), made([1, 1]))
    assert not data.carve(0.5, 0).val.x.equal(data.carve(0.5, 1).val.x)
    assert data.carve(0.5, 0).fingerprint != data.carve(0.5, 1).fingerprint
    with pytest.raises(ValueError, match=r"class 1 .* one training image"):
        LongTail.of(made([30, 1]), made([1, 1])).carve(0.1, 0)
    with pytest.raises(ValueError, match=r"share=1.5"):
        data.carve(1.5, 0)


def test_layouts_of_arrays_are_recognised():
    x, y = made([4, 3])
    expected, _ = everything(LongTail.of((x, y), (x, y)).train)
    channels_last = x.permute(0, 2, 3, 1).contiguous()
    for other in (x.numpy(), channels_last.numpy(), channels_last):
        assert everything(LongTail.of((other, y.numpy()[:, None]), (x, y)).train)[0].equal(expected)
    gray = LongTail.of((x[:, 0].numpy(), y), (x[:, 0], y))
    assert gray.train.shape == (1, 8, 8)


def test_normalisation_is_that_of_the_training_images():
    x, y = made([200, 100])
    data = LongTail.of((x, y), made([50, 50]))
    reference = x.double().div(255)
    assert torch.tensor(data.train.mean).sub(reference.mean((0, 2, 3))).abs().max() < 1e-5
    assert torch.tensor(data.train.std).sub(reference.std((0, 2, 3), correction=0)).abs().max() < 1e-5
    assert data.test.mean == data.train.mean and data.test.std == data.train.std
    shown, labels = everything(data.train)
    plain = (reference - reference.mean((0, 2, 3), keepdim=True)) / reference.std((0, 2, 3), keepdim=True)
    assert shown.dtype == torch.float32 and (shown - plain).abs().max() < 1e-2
    assert labels.equal(y)
    given = LongTail.of((x, y), (x, y), mean=(0.5,) * 3, std=(0.25,) * 3)
    assert torch.allclose(everything(given.train)[0], (x / 255 - 0.5) / 0.25, atol=1e-5)


def test_float_arrays_and_feature_vectors_work():
    x, y = torch.randn(30, 5) * 3 + 1, torch.arange(30) % 3
    data = LongTail.of((x, y), (x.numpy().astype(np.float64), y))
    shown, _ = everything(data.train)
    assert shown.mean(0).abs().max() < 1e-4 and (shown.std(0, correction=0) - 1).abs().max() < 1e-4
    assert (data.channels, data.train.shape) == (5, (5,))


def test_constant_channels_do_not_divide_by_zero():
    x = torch.full((4, 1, 8, 8), 7, dtype=torch.uint8)
    shown, _ = everything(LongTail.of((x, [0, 1, 0, 1]), (x, [0, 1, 0, 1])).train)
    assert shown.isfinite().all()


class Photographs(Dataset):
    """PIL images without a list of labels."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return Image.fromarray(self.x[i].permute(1, 2, 0).numpy()), int(self.y[i])


def test_a_data_set_of_pil_images_shows_what_its_arrays_would():
    x, y = made([6, 3])
    by_arrays = LongTail.of((x, y), (x, y))
    wrapped = LongTail.of(Photographs(x, y), Photographs(x, y))
    assert isinstance(by_arrays.train, Tensors) and isinstance(wrapped.train, Wrapped)
    assert wrapped.counts.tolist() == [6, 3] and wrapped.train.shape == (3, 8, 8)
    assert wrapped.train.mean == by_arrays.train.mean
    for a, b in zip(everything(wrapped.train), everything(by_arrays.train), strict=True):
        assert a.equal(b)
    carved, reference = wrapped.carve(0.4, 3), by_arrays.carve(0.4, 3)
    assert everything(carved.train)[0].equal(everything(reference.train)[0])
    assert carved.fingerprint == reference.fingerprint


def test_float_data_sets_are_taken_as_they_are_and_labels_read_from_targets():
    x, y = torch.randn(10, 3, 8, 8), torch.arange(10) % 2
    dataset = TensorDataset(x, y)
    data = LongTail.of(Subset(dataset, [3, 1, 0, 9]), dataset)
    assert everything(data.train)[0].equal(x[[3, 1, 0, 9]])
    dataset.targets = y.tolist()
    assert LongTail.of(Subset(dataset, [3, 1, 0, 9]), dataset).train.y.tolist() == [1, 1, 0, 1]


STATED = [  # what a data set of 6 items of 3 classes calls its targets
    [0, 1, 2],
    [0, 1, 2] * 4,
    torch.eye(3)[[0, 1, 2] * 2],
    torch.eye(3, dtype=torch.int64)[[0, 1, 2] * 2],
    ["cat", "dog", "owl"] * 2,
    [0.5, 1.5, 2.5] * 2,
    [[0], [1, 2]] * 3,
    [{"boxes": []}] * 6,
    {0: "cat"},
    [True, False] * 3,
]


@pytest.mark.parametrize("stated", STATED, ids=lambda v: str(v)[:20])
def test_stated_labels_that_are_no_whole_number_per_item_are_not_gone_by(stated):
    dataset = TensorDataset(torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 2, 2, 0]))
    dataset.targets = stated
    assert LongTail.of(dataset, dataset).train.y.tolist() == [0, 1, 2, 2, 2, 0]
    assert LongTail.of(Subset(dataset, [0, 1, 4]), dataset).train.y.tolist() == [0, 1, 2]


@pytest.mark.parametrize("stated", [[2, 1, 0], np.array([[2], [1], [0]], np.uint8), torch.tensor([2, 1, 0])])
def test_stated_labels_that_fit_save_the_pass_over_the_data(stated):
    dataset = TensorDataset(torch.randn(3, 3, 8, 8), torch.zeros(3))
    dataset.labels = stated
    assert LongTail.of(dataset, dataset).train.y.tolist() == [2, 1, 0]


def test_pil_images_of_16_bits_are_those_of_8():
    class Deep(Photographs):
        def __getitem__(self, i):
            return Image.fromarray(self.x[i, 0].numpy().astype(np.uint16) * 257), int(self.y[i])

    x, y = made([6, 3], channels=1)
    deep, grey = LongTail.of(Deep(x, y), Deep(x, y)), LongTail.of((x, y), (x, y))
    assert (deep.train.mean, deep.train.std) == (grey.train.mean, grey.train.std)
    assert everything(deep.train)[0].equal(everything(grey.train)[0])


def test_samples_of_different_sizes_are_refused_by_position():
    class Ragged(Photographs):
        def __getitem__(self, i):
            return torch.zeros(3, 8, 8 + (i == 4), dtype=torch.uint8), int(self.y[i])

    x, y = made([6, 3])
    half = LongTail.of(Ragged(x, y), Photographs(x, y), mean=(0.0,) * 3, std=(1.0,) * 3).train
    with pytest.raises(ValueError, match=r"sample 4 has shape \[3, 8, 9\], others \[3, 8, 8\]"):
        list(half.batches([Draw(torch.tensor([0, 4]), torch.tensor([0, 0]))]))
