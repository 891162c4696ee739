"""Images of unknown classes: from data sets, folders, files and lists; brought to size; overlaps and misfits."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset
from torchvision.transforms import v2

from flattail.data import CIFAR100LT, DigitsLT, Folder, ImageNetLT, LongTail, PlacesLT, Tensors, in_order
from flattail.data.cifar import resized
from flattail.data.listed import IMAGENET, listed
from flattail.data.pictures import Preparation
from flattail.data.unknown import Fitted, brought, from_dataset, from_path, overlapping

REAL = Path(os.environ.get("FLATTAIL_DATA", "nowhere"))


def bytes_of(n, *size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *size), dtype=np.uint8)


def closed(*size, names=("ant", "bee"), dtype=None, seed=1):
    """Two classes of such images in memory."""
    x, y = bytes_of(8, *size, seed=seed), np.arange(8) % 2
    x = x if dtype is None else (x / 255).astype(dtype)
    return LongTail.of((x, y), (x, y), names=names, title="closed")


def images(half):
    """All normalised images of a half, its labels checked."""
    parts = list(half.batches(in_order(len(half), 3)))
    assert torch.cat([y for _, y in parts]).eq(-1).all() and half.y.eq(-1).all() and half.y.dtype == torch.int64
    return torch.cat([x for x, _ in parts])


def normal(x, like):
    """uint8 images [N, ch, H, W] normalised as the closed ones."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (like.test.mean, like.test.std))
    return (torch.as_tensor(x) / 255 - mean) / std


@dataclass(frozen=True)
class Mine:
    """A data set of 32 × 32 photographs as a recipe could name it."""

    side: int = 32

    def load(self, root):
        x, y = bytes_of(20, self.side, self.side, 3, seed=7), np.arange(20) % 3
        return LongTail.of((x, y), (x[:12], y[:12] % 2), names=("Bee", "cow", "dog"), title="mine")


def test_a_data_sets_test_images_are_met_at_the_closed_size_as_if_read_so(tmp_path):
    like = closed(16, 16, 3)
    found = from_dataset(Mine(), tmp_path, like)
    assert found.title == "mine, test images" and found.names == ("Bee", "cow")  # dog has no test image
    small = Tensors(resized(bytes_of(20, 32, 32, 3, seed=7)[:12], 16), torch.zeros(12), like.test.mean, like.test.std)
    assert torch.equal(images(found.half), torch.cat([x for x, _ in small.batches(in_order(12, 12))]))
    assert len(found.warnings) == 1 and found.warnings[0].startswith(
        "1 open classes have the name of a closed one (Bee)"
    )


def test_images_that_fit_stay_as_they_are(tmp_path):
    like = closed(32, 32, 3)
    found = from_dataset(Mine(), tmp_path, like)
    assert not isinstance(found.half, Fitted)
    x = bytes_of(20, 32, 32, 3, seed=7)[:12].transpose(0, 3, 1, 2)
    assert torch.allclose(images(found.half), normal(x, like), atol=1e-5)
    part = found.half.take(torch.tensor([3, 1]))
    assert torch.equal(images(part), images(found.half)[[3, 1]])


def test_grey_and_coloured_enlarged_and_shrunk(tmp_path):
    grey, colour = closed(8, 8), closed(8, 8, 3)
    x = bytes_of(5, 16, 16, 3, seed=3)
    np.savez(tmp_path / "c.npz", test_images=x)
    found = from_path(tmp_path / "c.npz", tmp_path, grey)
    means = x.reshape(5, 8, 2, 8, 2, 3).astype(np.float64).mean((2, 4))
    shade = v2.functional.rgb_to_grayscale(torch.from_numpy(x.astype(np.float32)).permute(0, 3, 1, 2))
    shade = shade.reshape(5, 1, 8, 2, 8, 2).mean((3, 5)).round()
    assert torch.allclose(images(found.half), normal(shade.to(torch.uint8), grey), atol=1e-5)
    assert found.warnings == ("the open images differ from the closed ones in colour: they may be told by that",)

    shrunk = images(from_path(tmp_path / "c.npz", tmp_path, colour).half)
    meant = torch.from_numpy(np.rint(means)).permute(0, 3, 1, 2).to(torch.uint8)
    assert torch.allclose(shrunk, normal(meant, colour), atol=1e-5)

    np.savez(tmp_path / "g.npz", images=bytes_of(4, 4, 4))
    found = from_path(tmp_path / "g.npz", tmp_path, colour)
    assert images(found.half).shape == (4, 3, 8, 8) and len(found.warnings) == 2
    assert "enlarged from 4 to 8 pixels: they may be told by their blur" in found.warnings[0]
    one = found.half.take(torch.tensor([2]))
    assert torch.equal(images(one), images(found.half)[2:3]) and one.shape == (3, 8, 8)


def test_constant_images_stay_constant():
    x = torch.full((2, 3, 12, 12), 77.0)
    for shape in ((3, 5, 5), (3, 24, 24)):
        assert torch.allclose(brought(x, shape), torch.full((2, *shape), 77.0), rtol=1e-6)
    shade = 77 * (0.2989 + 0.587 + 0.114)  # of ITU-R BT.601, as torchvision rounds them
    assert torch.allclose(brought(x, (1, 12, 12)), torch.full((2, 1, 12, 12), shade), rtol=1e-6)
    assert brought(x, (3, 12, 12)) is x


def save(path, size=(20, 16), shade=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 90, 200)).save(path)


def test_a_folder_and_a_list(tmp_path):
    for path in ("open/wolf/1.png", "open/wolf/deep/2.png", "open/Bee/3.jpg", "open/4.png", "open/.thumbs/1.png"):
        save(tmp_path / path)
    (tmp_path / "open" / "wolf" / "._1.png").write_text("of a Mac")
    like = closed(8, 8, 3)
    found = from_path(tmp_path / "open", tmp_path, like)
    assert len(found.half) == 4 and sorted(found.names) == ["Bee", "wolf"] and "(Bee)" in found.warnings[0]
    assert torch.allclose(
        images(found.half)[:1], normal(torch.tensor([90, 90, 200])[None, :, None, None], like), atol=0.02
    )
    (tmp_path / "some.txt").write_text("open/wolf/1.png -1\nopen/4.png 17\n")
    listed = from_path(tmp_path / "some.txt", tmp_path, like)
    assert images(listed.half).shape == (2, 3, 8, 8) and listed.names == ()
    (tmp_path / "some.txt").write_text("open/wolf/1.png -1\nopen/5.png -1\n")
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images are missing under .*, the first: open/5\.png"):
        from_path(tmp_path / "some.txt", tmp_path, like)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match=r"nothing holds no image .* give a folder of open-set images"):
        from_path(tmp_path / "nothing", tmp_path, like)


def photographs(top):
    """Two classes of photographs, below train/ and test/: wide ones, one that lies on its side, and one of 16 bits."""
    rng = np.random.default_rng(0)
    turned = Image.Exif()
    turned[0x0112] = 6
    for part, name in ((part, name) for part in ("train", "test") for name in ("cat", "dog")):
        (top / part / name).mkdir(parents=True)
        for i in range(3):
            x = rng.integers(0, 256, (8, 12, 3), dtype=np.uint8).repeat(5, 0).repeat(5, 1)
            Image.fromarray(x).save(top / part / name / f"{i}.jpg", exif=turned if i == 0 else Image.Exif())
        Image.fromarray(x[:, :, 0].astype(np.uint16) * 257).save(top / part / name / "deep.png")
    return top


@pytest.mark.parametrize("hold", ["memory", "disk"])
@pytest.mark.parametrize("opened", ["folder", "disk", "memory"])
def test_the_closed_images_themselves_cannot_be_told_from_the_closed_ones(tmp_path, hold, opened):
    top = photographs(tmp_path / "t")
    like = Folder(str(top), size=24, hold=hold).load(tmp_path)
    found = (
        from_path(top / "test", tmp_path, like)
        if opened == "folder"
        else from_dataset(Folder(str(top), size=32, hold=opened), tmp_path, like)
    )
    assert type(found.half) is type(like.test) and len(found.warnings) == 1
    assert torch.equal(images(found.half), torch.cat([x for x, _ in like.test.batches(in_order(len(like.test), 3))]))


@pytest.mark.parametrize("size", [(8, 8), (16, 16, 3), (8, 12, 3)])
def test_files_beside_images_in_memory_are_read_as_predict_reads_them(tmp_path, size):
    like, top = closed(*size), photographs(tmp_path / "t")
    found = from_path(top, tmp_path, like)
    how = Preparation.of(like.test)
    assert torch.equal(found.half.x, torch.stack([how.read(str(path)) for path in sorted(top.rglob("*.*"))]))
    assert images(found.half).shape[1:] == like.test.shape and found.warnings == ()
    (top / "train" / "cat" / "torn.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"1 of 17 image files cannot be read: .*\n.*torn\.jpg"):
        from_path(top, tmp_path, like)


def test_files_beside_a_data_set_with_transforms_of_its_own_come_with_a_warning(tmp_path):
    pairs = TensorDataset(torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8), torch.arange(4) % 2)
    like = LongTail.of(pairs, pairs)
    found = from_path(photographs(tmp_path / "t"), tmp_path, like)
    assert images(found.half).shape == (16, 3, 8, 8)
    assert found.warnings == (
        "the closed images have transforms of their own, the open ones none: they may be told by that",
    )


@pytest.mark.parametrize(
    ("dataset", "name", "images_at"),
    [(PlacesLT(size=8), "Places_LT_open.txt", "places365"), (ImageNetLT(size=8), "ImageNet_LT_open.txt", "imagenet")],
)
def test_the_large_sets_bring_their_open_lists(tmp_path, dataset, name, images_at):
    lines = [f"open_{i}.jpg -1" for i in range(3)]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / name).write_text("\n".join(lines))
    like = closed(8, 8, 3)
    with pytest.raises(
        FileNotFoundError, match=rf"3 of 3 images are missing under .*{images_at}, the first: open_0.jpg"
    ):
        from_dataset(dataset, tmp_path, like)
    for line in lines:
        save(tmp_path / images_at / line.split()[0])
    found = from_dataset(dataset, tmp_path, like)
    assert images(found.half).shape == (3, 3, 8, 8) and found.title == f"{type(dataset).__name__}, open list"


@pytest.mark.skipif(not (REAL / "lists").is_dir(), reason="set FLATTAIL_DATA to the folder that holds lists/")
@pytest.mark.parametrize(
    ("dataset", "name", "n"),
    [(ImageNetLT(), "ImageNet_LT_open.txt", 18000), (PlacesLT(), "Places_LT_open.txt", 6600)],
)
def test_the_real_open_lists_have_the_published_numbers(dataset, name, n):
    half = listed(dataset, REAL, name, IMAGENET)
    assert len(half) == len(set(half.paths)) == n and half.y.eq(-1).all()


@pytest.mark.skipif(
    not (REAL / "cifar100-lt100.npz").is_file(), reason="set FLATTAIL_DATA to a folder with CIFAR-100-LT"
)
def test_cifar_shrunk_beside_a_small_closed_set_is_cifar_read_small():
    like = closed(16, 16, 3)
    found, small = from_dataset(CIFAR100LT(), REAL, like), from_dataset(CIFAR100LT(size=16), REAL, like)
    rows = torch.arange(0, 10000, 50)
    assert torch.equal(images(found.half.take(rows)), images(small.half.take(rows)))


# -- misfits ----------------------------------------------------------------------------------------------------------


def test_names_that_are_the_same_but_for_their_spelling():
    assert overlapping(["sea lion", "Maple_Tree", "truck", "7"], ["maple tree", "Sea-Lion", "pickup_truck", "7"]) == [
        "sea lion",
        "Maple_Tree",
    ]


def test_many_overlaps_are_counted_and_five_are_named(tmp_path):
    names = [f"kind{c}" for c in range(8)]
    x, y = bytes_of(8, 6, 6), np.arange(8)
    like = LongTail.of((x, y), (x, y), names=names)
    for name in names[1:]:
        save(tmp_path / "o" / name.upper() / "1.png", size=(6, 6))
    said = from_path(tmp_path / "o", tmp_path, like).warnings[0]
    assert said.startswith("7 open classes have the name of a closed one (KIND1, KIND2, KIND3, KIND4, KIND5, …)")


def test_images_that_do_not_fit_are_refused(tmp_path):
    np.savez(tmp_path / "wide.npz", images=bytes_of(3, 8, 12, 3))
    with pytest.raises(ValueError, match="8×12 pixels, the closed ones 8×8, another shape: crop them"):
        from_path(tmp_path / "wide.npz", tmp_path, closed(8, 8, 3))
    np.savez(tmp_path / "float.npz", images=np.zeros((3, 8, 8, 3), np.float32))
    with pytest.raises(ValueError, match="its images are floats, the closed ones bytes: give both as bytes"):
        from_path(tmp_path / "float.npz", tmp_path, closed(8, 8, 3))
    with pytest.raises(ValueError, match="its images are bytes, the closed ones floats"):
        from_dataset(DigitsLT(), tmp_path, closed(8, 8, dtype=np.float32))
    np.savez(tmp_path / "no.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="has neither test_images nor images: save it by"):
        from_path(tmp_path / "no.npz", tmp_path, closed(8, 8))
    (tmp_path / "torn.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"torn\.npz is not a readable \.npz"):
        from_path(tmp_path / "torn.npz", tmp_path, closed(8, 8))


def test_floats_of_a_torch_data_set_meet_floats(tmp_path):
    x = torch.rand(6, 3, 8, 8)
    pairs = TensorDataset(x, torch.arange(6) % 2)
    like = LongTail.of(pairs, pairs, names=("a", "b"), mean=(0.5,) * 3, std=(0.25,) * 3)
    np.savez(tmp_path / "f.npz", images=torch.rand(4, 16, 16, 3).numpy())
    found = images(from_path(tmp_path / "f.npz", tmp_path, like).half)
    raw = torch.from_numpy(np.load(tmp_path / "f.npz")["images"]).permute(0, 3, 1, 2)
    meant = (raw.reshape(4, 3, 8, 2, 8, 2).mean((3, 5)) - 0.5) / 0.25
    assert torch.allclose(found, meant, atol=1e-5)
