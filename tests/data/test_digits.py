"""Digits-LT: real scans, a balanced test that nothing changes, and a tail of the asked length."""

from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from flattail.data import DATASETS, DigitsLT
from flattail.data.profile import Strict


def test_the_default_tail_and_its_groups():
    data = DigitsLT().load(Path("nowhere"))
    assert data.counts.tolist() == [124, 88, 63, 45, 32, 23, 16, 12, 8, 6]
    assert [int(m.sum()) for m in data.group().values()] == [3, 4, 3]
    assert torch.bincount(data.test.y).tolist() == [50] * 10
    assert (data.channels, data.train.shape, data.names[3]) == (1, (1, 8, 8), "3")
    assert isinstance(data, type(DATASETS["digits-lt"]().load(Path())))


def test_train_and_test_are_different_scans_with_their_own_labels():
    scans = {image.astype("uint8").tobytes(): int(c) for image, c in zip(*load_digits(return_X_y=True), strict=True)}
    data = DigitsLT(imbalance=1).load(Path())
    back = [(half.x.float() * 16 / 255).round().to(torch.uint8).flatten(1) for half in (data.train, data.test)]
    keys = [[row.numpy().tobytes() for row in rows] for rows in back]
    assert not set(keys[0]) & set(keys[1])
    for half, rows in zip((data.train, data.test), keys, strict=True):
        assert [scans[key] for key in rows] == half.y.tolist()


@pytest.mark.parametrize("imbalance", [2, 20, 100])
def test_a_longer_tail_is_a_part_of_a_shorter_one_and_the_test_stays(imbalance):
    full, tail = DigitsLT(1).load(Path()), DigitsLT(imbalance).load(Path())
    assert tail.test.x.equal(full.test.x) and tail.test.y.equal(full.test.y)
    for c, n in enumerate(tail.counts.tolist()):
        assert tail.train.x[tail.train.y == c].equal(full.train.x[full.train.y == c][:n])
    assert tail.fingerprint != full.fingerprint
    assert DigitsLT(1 / imbalance).load(Path()).fingerprint == tail.fingerprint


def test_the_shot_rule_is_a_field():
    groups = DigitsLT(shots=Strict()).load(Path()).group()
    assert [int(m.sum()) for m in groups.values()] == [1, 5, 4]
