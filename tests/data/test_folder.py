"""Class-per-folder trees: two folders or one split; names, order, and messages."""

import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import in_latin
from torchvision.transforms import v2

from flattail.data import Draw, Folder, Tensors, in_order
from flattail.data.augment import Crop, Flip
from flattail.data.folder import refuse_parts
from flattail.data.folder_images import Held, Photographs, upright
from flattail.data.reading import in_bytes, printable


def grow(top, counts, shade=0):
    """Folders with so many images each, every image of one shade of its own."""
    for c, (name, n) in enumerate(counts.items()):
        (top / name).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (20, 24), (shade + 10 * c, i, 100)).save(top / name / f"{i}.png")
    return top


def test_train_and_test_folders(tmp_path):
    grow(tmp_path / "pets" / "train", {"dog": 5, "cat": 3, "owl": 2})
    grow(tmp_path / "pets" / "test", {"owl": 2, "dog": 1})
    (tmp_path / "pets" / "train" / "dog" / "notes.txt").write_text("no image")
    data = Folder("pets", size=16).load(tmp_path)
    assert data.names == ("cat", "dog", "owl") and data.counts.tolist() == [3, 5, 2]
    assert data.test.y.tolist() == [1, 2, 2] and data.title == "pets"
    assert [Path(p).parent.name for p in data.test.paths] == ["dog", "owl", "owl"]
    x, y = next(data.train.batches(in_order(10, 10)))
    assert x.shape == (10, 3, 16, 16) and y.equal(data.train.y)
    red = (x[:, 0, 8, 8] * data.train.std[0] + data.train.mean[0]) * 255
    assert red.round().tolist() == [10] * 3 + [0] * 5 + [20] * 2


@pytest.mark.parametrize("share", [0.01, 0.3, 0.99])
def test_one_tree_is_split_within_every_class(tmp_path, share):
    grow(tmp_path, {"a": 10, "b": 2, "c": 5})
    data = Folder(str(tmp_path), test=share).load(Path("unused"))
    tested = torch.bincount(data.test.y, minlength=3)
    assert (data.counts + tested).tolist() == [10, 2, 5]
    assert tested.min() >= 1 and data.counts.min() >= 1
    assert tested.tolist() == [min(max(round(share * n), 1), n - 1) for n in (10, 2, 5)]
    assert not set(data.train.paths) & set(data.test.paths)
    again = Folder(str(tmp_path), test=share).load(Path("unused"))
    assert again.test.paths == data.test.paths and again.fingerprint == data.fingerprint


def test_messages(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pets/train: no such folder: .*set test to a share"):
        Folder("pets").load(tmp_path)
    grow(tmp_path / "pets" / "train", {"dog": 2, "cat": 3})
    with pytest.raises(FileNotFoundError, match="pets/test: no such folder"):
        Folder("pets").load(tmp_path)
    grow(tmp_path / "pets" / "test", {"dog": 1, "cow": 1})
    with pytest.raises(ValueError, match="cow not among the 2 classes"):
        Folder("pets").load(tmp_path)
    (tmp_path / "pets" / "train" / "bat").mkdir()
    with pytest.raises(ValueError, match=r"train/bat holds no image"):
        Folder("pets").load(tmp_path)
    with pytest.raises(ValueError, match=r"dog/0.png|has no folders"):
        Folder("pets/train/dog", test=0.2).load(tmp_path)
    with pytest.raises(ValueError, match=r"test=1.5: give a share"):
        Folder("pets/test", test=1.5).load(tmp_path)
    with pytest.raises(ValueError, match=r"pets/test/cow, .*pets/test/dog hold one image, which cannot be both"):
        Folder("pets/test", test=0.5).load(tmp_path)


@pytest.mark.parametrize("other", ["test", "val"])
def test_a_share_of_a_tree_of_halves_is_refused(tmp_path, other):
    grow(tmp_path / "train", {"dog": 3, "cat": 3})
    grow(tmp_path / other, {"dog": 2, "cat": 2})
    with pytest.raises(ValueError, match=rf"holds train/, {other}/ with folders in them.*write `test: {other}`"):
        Folder(str(tmp_path), test=0.2).load(Path())
    assert Folder(str(tmp_path), test=other).load(Path()).names == ("cat", "dog")


@pytest.mark.parametrize(
    ("train", "test"), [("Train", "Test"), ("TRAINING", "Testing"), ("train", "eval"), ("training", "Dev")]
)
def test_halves_are_known_in_any_case(tmp_path, train, test):
    grow(tmp_path / train, {"dog": 3, "cat": 3})
    grow(tmp_path / test, {"dog": 2, "cat": 2})
    with pytest.raises(ValueError, match=rf"holds {train}/, {test}/ with folders in them.*`test: {test}`"):
        Folder(str(tmp_path), test=0.2).load(Path())
    for name in (test, test.lower()):
        data = Folder(str(tmp_path), test=name).load(Path())
        assert data.names == ("cat", "dog") and (len(data.train), len(data.test)) == (6, 4)


def test_a_folder_of_the_very_name_comes_before_one_in_another_case(tmp_path):
    for part, n in (("train", 5), ("test", 2), ("Test", 3)):
        grow(tmp_path / part, {"dog": n, "cat": n})
    assert [len(Folder(str(tmp_path), test=name).load(Path()).test) for name in ("test", "Test")] == [4, 6]


def test_folders_that_hold_the_same_folders_are_parts_and_no_classes(tmp_path):
    for part in ("2023", "2024"):
        grow(tmp_path / part, {"dog": 3, "cat": 3})
    (tmp_path / "2024" / "notes").mkdir()
    said = (
        r"2023, 2024 hold folders of the same names, cat, dog, .* call them train/ and test/, or give the path of one"
    )
    with pytest.raises(ValueError, match=said):
        refuse_parts(tmp_path)
    assert Folder(str(tmp_path), test=0.2).load(Path()).names == ("2023", "2024")  # a recipe has said what it is
    grow(tmp_path / "2024", {"owl": 1})
    refuse_parts(tmp_path)


def test_classes_of_the_same_one_folder_or_with_images_beside_their_folders_are_classes(tmp_path):
    for name in ("dog", "cat"):
        grow(tmp_path / "one" / name, {"images": 3})
        grow(tmp_path / "beside" / name, {"left": 3, "right": 3})
        Image.new("RGB", (9, 9)).save(tmp_path / "beside" / name / "0.png")
    for tree in ("one", "beside"):
        refuse_parts(tmp_path / tree)
        assert Folder(str(tmp_path / tree), test=0.2).load(Path()).names == ("cat", "dog")


def test_classes_called_train_and_test_are_classes(tmp_path):
    grow(tmp_path, {"train": 3, "test": 3, "bus": 2})
    assert Folder(str(tmp_path), test=0.2).load(Path()).names == ("bus", "test", "train")


def test_a_class_without_test_images_is_said_at_load(tmp_path):
    grow(tmp_path / "train", {"dog": 3, "cat": 3, "owl": 2})
    grow(tmp_path / "test", {"cat": 2, "owl": 1})
    with pytest.warns(UserWarning, match=r"no test image of 1 of 3 classes \(dog\): their accuracy is unknown"):
        Folder(str(tmp_path), size=16).load(Path())


def test_all_small_and_all_empty_classes_are_named(tmp_path):
    grow(tmp_path, {"a": 3, "b": 1, "c": 1})
    with pytest.raises(ValueError, match=r"/b, .*/c hold one image"):
        Folder(str(tmp_path), test=0.2).load(Path())
    grow(tmp_path, {f"z{i}": 0 for i in range(7)})
    with pytest.raises(ValueError, match=r"/z0, .*/z4 and 2 more hold no image .*remove the folders"):
        Folder(str(tmp_path), test=0.2).load(Path())


def test_what_systems_leave_behind_is_no_class_and_no_image(tmp_path):
    grow(tmp_path, {"a": 3, "b": 2, ".ipynb_checkpoints": 1, "__MACOSX": 1})
    (tmp_path / "a" / "._0.png").write_bytes(b"a resource fork")
    grow(tmp_path / "a", {".thumbnails": 2, "__MACOSX": 1, "deep/@eaDir": 1, "scan.png": 0})
    data = Folder(str(tmp_path), test=0.4).load(Path())
    assert data.names == ("a", "b") and len(data.train) + len(data.test) == 5
    inside = Folder(str(grow(tmp_path / ".cache", {"a": 2, "b": 2})), test=0.5).load(Path())
    assert len(inside.train) == 2, "what is asked for is not hidden"


def test_a_share_leaves_the_rare_classes_images_to_be_judged_by(tmp_path):
    grow(tmp_path, {"a": 60, "b": 30, "c": 12, "d": 2})
    counted = [Folder(str(tmp_path), test=0.1, least=least).load(Path()).counts.tolist() for least in (1, 10)]
    assert counted == [[54, 27, 11, 1], [50, 20, 8, 1]]


def modes(top):
    """A red square in every mode that image files come in, and one that lies on its side."""
    red = Image.new("RGB", (20, 24), (200, 30, 40))
    top.mkdir(parents=True)
    for mode in ("RGB", "RGBA", "P", "CMYK"):
        red.convert(mode).save(top / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}")
    palette = red.convert("P")
    palette.info["transparency"] = bytes([128, 255])
    palette.save(top / "clear.png", transparency=bytes([128, 255]))
    for mode in ("L", "LA", "1"):
        red.convert(mode).save(top / f"{mode}.png")
    Image.fromarray(torch.full((24, 20), 70 * 256 + 9, dtype=torch.uint16).numpy()).save(top / "sixteen.png")
    return top


def test_every_mode_comes_out_as_rgb(tmp_path, recwarn):
    modes(tmp_path / "a")
    seen = {path.stem: upright(str(path)) for path in (tmp_path / "a").iterdir()}
    assert {(image.mode, image.size) for image in seen.values()} == {("RGB", (20, 24))}
    middle = {name: image.getpixel((10, 12)) for name, image in seen.items()}
    for name in ("RGB", "RGBA", "P", "clear"):
        assert middle[name] == pytest.approx((200, 30, 40), abs=30), name
    assert middle["sixteen"] == (70, 70, 70) and len(set(middle["L"])) == 1
    assert not recwarn.list


def big_endian(path, x):
    """A TIFF of whole numbers [H, W] of two bytes, the larger first, as microscopes write it."""
    height, width = x.shape
    tags = [(256, width), (257, height), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    rows = [struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in tags]
    rows.append(struct.pack(">HHII", 279, 4, 1, 2 * x.size))
    top = b"MM\0*" + struct.pack(">I", 8 + 2 * x.size) + x.astype(">u2").tobytes()
    path.write_bytes(top + struct.pack(">H", len(rows)) + b"".join(rows) + bytes(4))


RAMP = np.arange(256).reshape(8, 32)  # every shade once
DEEP = {  # how an image of more than 8 bits is written: its mode, and the shades that come out
    "sixteen.png": ("I;16", RAMP * 257),
    "sixteen.pgm": ("I", RAMP * 257),
    "big.tif": ("I;16B", RAMP * 257),
    "whole.tif": ("I", (RAMP * 257).astype(np.int32)),
    "signed.tif": ("I", (RAMP * 1000 - 90000).astype(np.int32)),
    "share.tif": ("F", (RAMP / 255).astype(np.float32)),
    "metres.tif": ("F", (RAMP * 8.0 - 100).astype(np.float32)),
}


@pytest.mark.parametrize("name", DEEP)
def test_images_of_more_than_8_bits_keep_their_shades(tmp_path, name):
    mode, x = DEEP[name]
    if mode == "I;16B":
        big_endian(tmp_path / name, x)
    else:
        Image.fromarray(x if mode == "F" or x.dtype == np.int32 else x.astype(np.uint16)).save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.mode == mode
    assert (np.asarray(upright(str(tmp_path / name))) == RAMP[:, :, None]).all()


def test_the_range_of_deep_images_is_that_of_their_kind_unless_they_leave_it():
    def shades(*values, kind):
        return np.asarray(in_bytes(Image.fromarray(np.array([values], dtype=kind))))[0].tolist()

    assert shades(0, 255, 256, 511, 65535, kind=np.uint16) == [0, 0, 1, 1, 255]
    assert shades(0, 25600, kind=np.int32) == [0, 100], "no image is stretched that lies in the range"
    assert shades(0, 1, 255, kind=np.int32) == [0, 1, 255], "and whole numbers that are bytes stay so"
    assert shades(0, 65536, kind=np.int32) == [0, 255] and shades(70000, 70000, kind=np.int32) == [0, 0]
    assert shades(0, 0.5, kind=np.float32) == [0, 128] and shades(0, 0.5, 2, kind=np.float32) == [0, 64, 255]
    assert shades(np.nan, 0, 4, np.inf, kind=np.float32) == [0, 0, 255, 255]
    assert shades(np.nan, np.nan, kind=np.float32) == [0, 0]
    eight = Image.new("RGB", (2, 2))
    assert in_bytes(eight) is eight


def test_names_that_are_no_utf8_are_spelled_out(tmp_path):
    grow(tmp_path / "t", {"a": 3, "b": 3})
    latin = in_latin(tmp_path / "t" / "b")
    os.rename(latin + b"/0.png", latin + b"/\xe9.png")  # noqa: PTH104
    folder = Folder(str(tmp_path / "t"), test=0.4, size=16)
    data = folder.load(Path())
    assert data.names == ("a", "caf\\xe9") and printable("ä") == "ä"
    assert data.fingerprint == replace(folder, hold="memory").load(Path()).fingerprint
    assert sum(len(x) for half in (data.train, data.test) for x, _ in half.batches(in_order(len(half), 9))) == 6
    Path(os.fsdecode(latin + b"/\xe9.png")).write_text("no image")
    for changes in ({"broken": "skip"}, {"hold": "memory"}):
        try:
            data = replace(folder, **changes).load(Path())
            for half in (data.train, data.test):
                list(half.batches(in_order(len(half), 9)))
            (named,) = data.train.unread | data.test.unread
        except ValueError as error:
            named = str(error)
        assert "caf\\xe9/\\xe9.png" in named


def test_a_photograph_taken_sideways_stands_upright(tmp_path):
    lying = Image.new("RGB", (40, 24), (0, 0, 0))
    lying.paste((250, 250, 250), (0, 0, 20, 24))  # the left half is bright
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by a quarter to see it upright
    lying.save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = upright(str(tmp_path / "a.jpg"))
    assert image.size == (24, 40)
    assert min(image.getpixel((12, 5))) > 200 and max(image.getpixel((12, 35))) < 50


def test_large_jpegs_are_decoded_at_a_part_of_their_size(tmp_path):
    Image.new("RGB", (4400, 2200), (9, 99, 199)).save(tmp_path / "a.jpg")
    assert upright(str(tmp_path / "a.jpg")).size == (2200, 1100)


def mixed(top):
    """Two classes of images of many sizes and modes."""
    modes(top / "a b")
    (top / "ü").mkdir()
    for i, size in enumerate([(9, 30), (64, 16), (200, 200), (7, 7)]):
        Image.new("RGB", size, (60 * i, 90, 200)).save(top / "ü" / f"{i} ä.png")
    return Folder(str(top), test=0.25, size=16, hold="memory")


def test_images_held_in_memory_are_those_read_from_disk(tmp_path):
    folder = mixed(tmp_path / "t")
    data = folder.load(Path())
    assert isinstance(data.train, Held) and data.train.x.dtype == torch.uint8
    assert data.fingerprint == replace(folder, hold="disk").load(Path()).fingerprint
    x, y = next(data.train.batches(in_order(len(data.train), 99)))
    assert x.shape == (len(data.train), 3, 16, 16) and y.equal(data.train.y)
    like = Tensors(data.train.x, data.train.y, data.train.mean, data.train.std)
    steps = [Draw(torch.tensor([3, 0, 3]), torch.tensor([7, 8, 9]))]
    for augment in (None, (Crop(2), Flip())):
        ours, theirs = (next(half.batches(steps, augment=augment)) for half in (data.train, like))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    part = data.train.take(torch.tensor([2, 4]))
    assert part.x.equal(data.train.x[[2, 4]]) and part.paths == [data.train.paths[i] for i in (2, 4)]
    larger = replace(data.train, size=20, _there={})
    assert larger.x.shape == (len(data.train), 3, 20, 20), "read anew for another size"


def test_streamed_photographs_are_upright_too(tmp_path):
    folder = mixed(tmp_path / "t")
    half = replace(folder, hold="disk").load(Path()).test
    assert isinstance(half, Photographs) and not isinstance(half, Held)
    x, _ = next(half.batches(in_order(len(half), 99)))
    by_hand = half.eval_transform()(upright(half.paths[0]))
    byte = ((x[0] * torch.tensor(half.std)[:, None, None] + torch.tensor(half.mean)[:, None, None]) * 255).round()
    assert byte.to(torch.uint8).equal(v2.functional.pil_to_tensor(by_hand))


def test_unreadable_images_are_counted_and_named(tmp_path):
    folder = mixed(tmp_path / "t")
    for i in range(24):
        (tmp_path / "t" / "ü" / f"bad {i:02}.jpg").write_bytes(b"\xff\xd8 cut short")
    bad = sum("bad" in path for path in folder.files(Path())[0][0])
    with pytest.raises(ValueError, match=rf"^{bad} of \d+ image files cannot be read: restore them") as said:
        folder.load(Path())
    assert said.value.args[0].count("UnidentifiedImageError") == 10 and f"and {bad - 10} more" in said.value.args[0]
