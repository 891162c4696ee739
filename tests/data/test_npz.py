"""MedMNIST-style files: what they hold is what is shown; what is wrong is named."""

import numpy as np
import pytest
import torch

from flattail.data import Npz
from flattail.data.profile import Thresholds


def parts(**changes):
    rng = np.random.RandomState(0)
    made = {}
    for part, counts in (("train", (9, 4, 2)), ("val", (1, 1, 1)), ("test", (3, 3, 3))):
        labels = rng.permutation(np.repeat(np.arange(3), counts))
        made[f"{part}_images"] = rng.randint(0, 256, (len(labels), 28, 28), np.uint8)
        made[f"{part}_labels"] = labels[:, None].astype(np.uint8)
    made.update(changes)
    return {key: value for key, value in made.items() if value is not None}


def saved(tmp_path, **changes):
    np.savez_compressed(tmp_path / "made.npz", **parts(**changes))
    return tmp_path


@pytest.mark.parametrize("compressed", [True, False])
def test_all_three_parts(tmp_path, compressed):
    made = parts()
    (np.savez_compressed if compressed else np.savez)(tmp_path / "made.npz", **made)
    data = Npz("made.npz", shots=Thresholds(5, 3)).load(tmp_path)
    assert data.counts.tolist() == [9, 4, 2] and data.title == "made.npz" and data.names == ("0", "1", "2")
    for part, half in (("train", data.train), ("val", data.val), ("test", data.test)):
        assert half.x[:, 0].numpy().tolist() == made[f"{part}_images"].tolist()
        assert half.y.tolist() == made[f"{part}_labels"][:, 0].tolist()
    assert abs(data.train.mean[0] - made["train_images"].mean() / 255) < 1e-5
    assert abs(data.val.std[0] - made["train_images"].std() / 255) < 1e-5
    assert Npz(str(tmp_path / "made.npz")).load(tmp_path / "elsewhere").fingerprint == data.fingerprint


def test_colour_and_no_val(tmp_path):
    images = {f"{p}_images": np.random.randint(0, 256, (n, 8, 8, 3), np.uint8) for p, n in (("train", 15), ("test", 9))}
    data = Npz("made.npz").load(saved(tmp_path, **images, val_images=None, val_labels=None))
    assert data.val is None and data.train.shape == (3, 8, 8)
    assert torch.equal(data.train.x[4], torch.from_numpy(images["train_images"][4]).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": None}, r"made.npz lacks train_labels \(it holds .*numpy.savez"),
        ({"test_images": None, "test_labels": None}, "lacks test_images, test_labels"),
        ({"val_labels": None}, "made.npz lacks val_labels"),
        ({"train_images": np.zeros((15, 8, 8), np.float32)}, "train_images are float32: store them as uint8"),
        ({"train_images": np.zeros((15, 8, 8, 8), np.uint8)}, r"made.npz: train images have shape \[15, 8, 8, 8\]"),
        ({"train_images": np.zeros((14, 28, 28), np.uint8)}, "made.npz: train: 14 images but 15 labels"),
        ({"train_labels": np.zeros((15, 14), np.uint8)}, r"made.npz: train labels are .*\[15, 14\]"),
        ({"train_labels": np.full(15, 2)}, r"made.npz: class 0 .* no training sample"),
        ({"test_labels": np.full(9, 7)}, r"made.npz: test label 7 \(sample 0\) is outside 0…2"),
        ({"test_images": np.zeros((9, 32, 32), np.uint8)}, "images differ in shape"),
        ({"train_images": np.array([None] * 15)}, "made.npz is not a readable .npz of plain arrays"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        Npz("made.npz").load(saved(tmp_path, **changes))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_named(tmp_path, share):
    file = saved(tmp_path) / "made.npz"
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(ValueError, match=r"made.npz is not a readable .npz .*download it again"):
        Npz("made.npz").load(tmp_path)


def test_damaged_contents_and_no_file(tmp_path):
    file = saved(tmp_path) / "made.npz"
    damaged = bytearray(file.read_bytes())
    damaged[2000:2100] = bytes(100)
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"made.npz is not a readable"):
        Npz("made.npz").load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"absent.npz: no such file"):
        Npz("absent.npz").load(tmp_path)
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"single.npy is not a readable"):
        Npz("single.npy").load(tmp_path)
