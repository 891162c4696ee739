"""CIFAR-LT: the order of the sources, torchvision's own pickles, prepared files, and a host that fails."""

import hashlib
import os
import pickle
import socket
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from flattail.data import CIFAR10LT, CIFAR100LT
from flattail.data.cifar import MIRROR, NAMES_10, NAMES_100
from flattail.data.profile import long_tail, ranks, subset

PER_CLASS = 40  # train images of a class in the made-up CIFAR
REAL = Path(os.environ.get("FLATTAIL_DATA", "nowhere"))


def needs(name):
    return pytest.mark.skipif(
        not (REAL / name).is_file(), reason=f"{name} is not here: set FLATTAIL_DATA to the folder that holds it"
    )


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A small CIFAR-10 as torchvision pickles it, in a folder of its own; torchvision is told its md5s."""
    rng, made = np.random.RandomState(0), tmp_path / "made"
    base = made / CIFAR10.base_folder
    base.mkdir(parents=True)
    labels = rng.permutation(np.repeat(np.arange(10), PER_CLASS))
    pixels = rng.randint(0, 256, (len(labels) + 20, 3072), np.uint8)

    def write(name, content):
        (base / name).write_bytes(pickle.dumps(content, protocol=2))
        return hashlib.md5((base / name).read_bytes()).hexdigest()

    parts = np.array_split(np.arange(len(labels)), 5)
    train = [
        (f"data_batch_{i}", write(f"data_batch_{i}", {"data": pixels[rows], "labels": labels[rows].tolist()}))
        for i, rows in enumerate(parts, 1)
    ]
    test = write("test_batch", {"data": pixels[-20:], "labels": list(range(10)) * 2})
    meta = write("batches.meta", {"label_names": list(NAMES_10)})
    with tarfile.open(made / CIFAR10.filename, "w:gz") as tar:
        tar.add(base, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "train_list", [list(pair) for pair in train])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", test]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta})
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5((made / CIFAR10.filename).read_bytes()).hexdigest())
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/no-one-listens-here")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv(MIRROR, raising=False)
    return made, labels, pixels.reshape(-1, 3, 32, 32)


@pytest.mark.parametrize("rule", ["cao", "cc", "first"])
def test_the_extracted_folder(tiny, rule):
    root, labels, pixels = tiny
    data = CIFAR10LT(imbalance=10, subset=rule).load(root)
    counts = long_tail("exponential", PER_CLASS, 10, 10)
    kept = subset(labels, counts, rule)
    assert data.counts.equal(counts) and data.names == NAMES_10
    assert data.train.x.numpy().tolist() == pixels[kept].tolist()
    assert data.train.y.tolist() == labels[kept].tolist()
    assert data.test.x.numpy().tolist() == pixels[-20:].tolist() and data.test.y.tolist() == list(range(10)) * 2
    assert data.title == f"CIFAR10-LT, IF 10, exponential, subset {rule}"
    assert data.train.mean == (0.4914, 0.4822, 0.4465)


def only_the_archive(made, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / CIFAR10.filename).write_bytes((made / CIFAR10.filename).read_bytes())
    return root


def test_the_archive_alone_is_verified_and_unpacked(tiny, tmp_path):
    expected = CIFAR10LT(10).load(tiny[0])
    root = only_the_archive(tiny[0], tmp_path)
    data = CIFAR10LT(10).load(root)
    assert data.train.x.equal(expected.train.x) and data.fingerprint == expected.fingerprint
    assert (root / CIFAR10.base_folder).is_dir()


def test_a_damaged_archive_or_folder_is_named(tiny, tmp_path):
    root = only_the_archive(tiny[0], tmp_path)
    archive = root / CIFAR10.filename
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{CIFAR10.filename} is damaged or cut short: .*{CIFAR10.tgz_md5}"):
        CIFAR10LT(10).load(root)
    batch = tiny[0] / CIFAR10.base_folder / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{CIFAR10.base_folder} is incomplete or damaged: remove the folder"):
        CIFAR10LT(10).load(tiny[0])


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def host(tiny, tmp_path):
    """A real server on this machine: ``good/`` holds the archive, ``wrong/`` another file of its name."""
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / CIFAR10.filename).write_bytes(b"a page that says no")
    tiny[0].rename(tmp_path / "good")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_mirror_is_asked_and_its_file_verified(host, tmp_path, monkeypatch, slash):
    monkeypatch.setenv(MIRROR, f"{host}/good{slash}")
    root = tmp_path / "new" / "root"
    assert CIFAR10LT(10).load(root).train.x.equal(CIFAR10LT(10).load(tmp_path / "good").train.x)
    assert sorted(path.name for path in root.iterdir()) == [CIFAR10.base_folder, CIFAR10.filename]
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("mirror", [None, "/absent", "/wrong", "no address"])
def test_a_host_that_fails_leaves_one_message_and_no_file(host, tmp_path, monkeypatch, mirror):
    if mirror:
        monkeypatch.setenv(MIRROR, mirror if " " in mirror else host + mirror)
    root = tmp_path / "root"
    with pytest.raises(FileNotFoundError) as caught:
        CIFAR10LT(10).load(root)
    for part in (MIRROR, str(root / CIFAR10.filename), CIFAR10.tgz_md5, "could not be downloaded"):
        assert part in str(caught.value)
    assert list(root.iterdir()) == []


def test_a_host_that_says_nothing_is_not_waited_for(host, tmp_path, monkeypatch):
    monkeypatch.setattr("flattail.data.cifar.PATIENCE", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv(MIRROR, f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(FileNotFoundError, match="timed out"):
            CIFAR10LT(10).load(tmp_path / "root")


def prepared(root, *, classes=10, imbalance=100, rule="cao", **changes):
    """A prepared file as it would be made from an official order in which the classes take turns."""
    counts = long_tail("exponential", 50000 // classes, classes, imbalance)
    order = ranks([50000 // classes] * classes, rule)
    index = np.concatenate([order[c][:n] * classes + c for c, n in enumerate(counts.tolist())])
    y = np.repeat(np.arange(classes), counts)
    x = np.broadcast_to((index % 251).astype(np.uint8)[:, None, None, None], (len(y), 32, 32, 3))
    arrays = {"train_images": x, "train_labels": y[:, None], "train_index": index}
    arrays |= {"test_images": x[:20], "test_labels": np.arange(20)[:, None] % classes}
    np.savez_compressed(root / f"cifar{classes}-lt100.npz", **(arrays | changes))
    return root, index


@pytest.mark.parametrize("rule", ["cao", "cc"])
def test_a_prepared_file_of_the_asked_subset(tmp_path, rule):
    root, index = prepared(tmp_path, rule=rule)
    data = CIFAR10LT(100, subset=rule).load(root)
    assert data.train.x[:, 1, 2, 3].tolist() == (index % 251).tolist()
    assert data.counts.tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert CIFAR10LT(0.01, subset=rule).load(root).fingerprint == data.fingerprint
    for other in {"cao", "cc", "first"} - {rule}:
        with pytest.raises(ValueError, match=f"was not made by the subset rule '{other}'"):
            CIFAR10LT(100, subset=other).load(root)


def test_a_prepared_file_that_does_not_fit_is_refused(tmp_path):
    root, index = prepared(tmp_path)
    with pytest.raises(ValueError, match=r"counts of imbalance 100, step \(5000 … 50, 25250 images\)"):
        CIFAR10LT(profile="step").load(root)
    index[[7, 8]] = index[[8, 7]]
    with pytest.raises(ValueError, match="class 0 is in another order"):
        CIFAR10LT().load(prepared(tmp_path, train_index=index)[0])
    with pytest.raises(ValueError, match=r"train_images are uint8 \[12406, 8, 8, 3\]"):
        CIFAR10LT().load(prepared(tmp_path, train_images=np.zeros((12406, 8, 8, 3), np.uint8))[0])


def test_the_folder_goes_before_the_prepared_file(tiny):
    prepared(tiny[0])
    assert CIFAR10LT(imbalance=40).load(tiny[0]).counts.max() == PER_CLASS


def test_images_are_made_smaller_by_area(tmp_path):
    rng = np.random.RandomState(0)
    x = rng.randint(0, 256, (12406, 32, 32, 3), np.uint8)
    data = CIFAR10LT(size=16).load(prepared(tmp_path, train_images=x)[0])
    blocks = x.reshape(-1, 16, 2, 16, 2, 3).mean((2, 4), dtype=np.float32).transpose(0, 3, 1, 2)
    assert data.train.shape == data.test.shape == (3, 16, 16) and data.title.endswith("16 px")
    assert (data.train.x - torch.from_numpy(blocks)).abs().max() <= 0.5


def test_names_are_in_alphabetical_order_and_complete():
    assert len(NAMES_100) == len(set(NAMES_100)) == 100 and list(NAMES_100) == sorted(NAMES_100)
    assert (CIFAR10.tgz_md5, CIFAR100.tgz_md5) == (
        "c58f30108f718f92721af3b95e74349a",
        "eb9058c3a382ffc7106e4002c42a8d85",
    )


@needs("cifar10-lt100.npz")
def test_the_real_cifar10_lt():
    data = CIFAR10LT().load(REAL)
    assert data.counts.tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert torch.bincount(data.test.y).tolist() == [1000] * 10
    assert [int(m.sum()) for m in data.group().values()] == [3, 4, 3]
    # the tail's images are photographs with about the published mean
    assert (data.test.x.float().mean((0, 2, 3)) / 255 - torch.tensor(data.test.mean)).abs().max() < 0.01
    with pytest.raises(ValueError, match="subset rule 'cc'"):
        CIFAR10LT(subset="cc").load(REAL)


@needs("cifar100-lt100.npz")
def test_the_real_cifar100_lt():
    data = CIFAR100LT().load(REAL)
    assert data.counts.equal(long_tail("exponential", 500, 100, 100))
    assert torch.bincount(data.test.y).tolist() == [100] * 100
    assert [int(m.sum()) for m in data.group().values()] == [35, 35, 30]
