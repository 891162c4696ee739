"""Streaming: what a plain loader gives, byte for byte; jitter on the device; images that cannot be read."""

from pathlib import Path

import pytest
import torch
from torchvision.datasets.folder import pil_loader
from torchvision.transforms import v2
from trees import photograph

from flattail.data import Files, in_order
from flattail.data.halves import Draw
from flattail.data.jitter import drawn, jittered
from flattail.data.loading import MOST_WORKERS, workers_here
from flattail.data.reading import Paths, drawn_from
from flattail.data.streamed import may_skip, told, unread
from flattail.data.unknown import from_path

Y = torch.tensor([0, 0, 0, 1, 1, 2])


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"ü {i}.jpg" for i in range(6)]
    for i, path in enumerate(paths):
        photograph(path, i, (60, 44))
    return [str(path) for path in paths]


def draws(*rows, seed=100):
    """One step for each list of rows, a seed of its own for every place."""
    return [Draw(torch.tensor(r), torch.arange(len(r)) + seed * (k + 1)) for k, r in enumerate(rows)]


def test_paths_in_one_piece_are_those_that_were_given(files):
    odd = [*files, "", "a\udce9.jpg"]
    packed = Paths(odd)
    assert [packed[i] for i in range(len(odd))] == odd


@pytest.mark.parametrize("workers", [0, 2])
def test_training_images_are_those_of_the_plain_pipeline(files, workers):
    half = Files(files, Y, size=24, jitter=0.4)
    plain = v2.Compose([v2.RandomResizedCrop(24), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4)])
    (step,) = draws([5, 0, 3, 3])
    x, y = next(half.batches([step], augment=(), workers=workers))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (half.mean, half.std))
    for row, seed, image in zip(step.rows.tolist(), step.seeds.tolist(), x, strict=True):
        with drawn_from(seed):
            wanted = v2.functional.pil_to_tensor(plain(pil_loader(files[row])))
        assert ((image * std + mean) * 255).round().to(torch.uint8).equal(wanted)
    assert y.tolist() == [2, 0, 1, 1]
    assert x.is_contiguous(memory_format=torch.channels_last), "nothing was turned round in memory"


def test_a_sample_leaves_torchs_generator_as_it_was(files):
    half = Files(files, Y, size=24, jitter=0.4)
    before = torch.get_rng_state()
    list(half.batches(draws([0, 1]), augment=()))
    assert torch.get_rng_state().equal(before)


def test_jitter_of_a_batch_is_pillows_byte_for_byte():
    torch.manual_seed(0)
    x = torch.randint(0, 256, (96, 3, 9, 11), dtype=torch.uint8)
    x[0], x[1] = 0, 255
    jitter = v2.ColorJitter(0.9, 0.9, 0.9)
    seeds = range(96)
    numbers, wanted = [], []
    for image, seed in zip(x, seeds, strict=True):
        with drawn_from(seed):
            numbers.append(drawn(jitter))
        with drawn_from(seed):
            wanted.append(v2.functional.pil_to_tensor(jitter(v2.functional.to_pil_image(image))))
    given = x.clone()
    assert jittered(x, torch.stack(numbers)).equal(torch.stack(wanted))
    assert x.equal(given) and len({tuple(n[:4].tolist()) for n in numbers}) == 24, "every order occurs"


def test_what_is_drawn_for_the_device_is_what_is_drawn_here(files):
    """A loader for a GPU leaves jitter out and sends its numbers along; done afterwards, it is the same image."""
    half = Files(files, Y, size=24, jitter=0.4)
    here, there = half._reader(False, "cpu"), half._reader(False, "cuda")
    for row in range(6):
        late = there(row, 7 + row)
        assert jittered(late.x[None], late.drawn[None])[0].equal(here(row, 7 + row).x)
    assert half._reader(True, "cuda").draw is None and Files(files, Y)._reader(False, "cuda").draw is None


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_training_image_is_replaced_within_its_class_and_written_down(files, tmp_path, workers):
    Path(files[1]).write_bytes(b"\xff\xd8 cut")
    Path(files[3]).unlink()
    half = Files(files, Y, size=24, jitter=0.4, broken="skip")
    assert may_skip(half) and not may_skip(Files(files, Y))
    steps = draws([0, 1, 2], [3, 4, 5])
    got = [(x.clone(), y) for x, y in half.batches(steps, augment=(), workers=workers)]
    assert [y.tolist() for _, y in got] == [[0, 0, 0], [1, 1, 2]], "sizes and classes are those that were drawn"
    whole = Files([files[0], files[2], files[2], files[4], files[4], files[5]], Y, size=24, jitter=0.4)
    for (x, _), (wanted, _) in zip(got, whole.batches(steps, augment=()), strict=True):
        assert x.equal(wanted), "the next of the class stands in, with the seed of the place"
    assert list(unread(half)) == [files[1], files[3]] and unread(half)[files[3]] == "it is gone"
    said = told(unread(half), "and others stood in")
    assert (
        said.startswith("2 images could not be read, and others stood in: ") and files[1] in said and files[3] in said
    )
    assert half.take(torch.arange(2)).unread == {} and half.take(torch.arange(2)).broken == "skip"


def test_the_last_of_a_class_is_followed_by_its_first_and_a_class_without_any_stops(files):
    Path(files[2]).unlink()
    half = Files(files, Y, size=24, broken="skip")
    x, _ = next(half.batches(draws([2]), augment=()))
    wanted, _ = next(Files(files, Y, size=24).batches(draws([0]), augment=()))
    assert x.equal(wanted)
    for path in (files[3], files[4]):
        Path(path).write_text("no image")
    with pytest.raises(ValueError, match=r"no image of the class can be read, 2 were tried: .* is not a read"):
        list(half.batches(draws([5], [4]), augment=()))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_left_out_where_it_would_be_judged(files, workers):
    for row in (1, 4, 5):
        Path(files[row]).write_text("no image")
    half = Files(files, Y, size=24, broken="skip")
    got = list(half.batches(in_order(6, 2), workers=workers))
    assert [y.tolist() for _, y in got] == [[0], [0, 1], []]
    assert got[2][0].shape == (0, 3, 24, 24) and set(unread(half)) == {files[1], files[4], files[5]}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augment", [None, ()])
def test_a_file_that_vanishes_between_epochs_is_named(files, workers, augment):
    half = Files(files, Y, size=24)
    for _ in half.batches(draws([0, 1], [4]), augment=augment, workers=workers):
        pass
    Path(files[4]).unlink()
    with pytest.raises(ValueError, match=rf"^{files[4]} is gone; it was there when the data were loaded: restore it"):
        list(half.batches(draws([0, 1], [4]), augment=augment, workers=workers))


def test_whatever_a_decoder_raises_names_the_file(files):
    def fails(path):
        raise RuntimeError("of a decoder")

    half = Files(files, Y, size=24)
    half.loader = fails
    with pytest.raises(ValueError, match=r"0.jpg is not a readable image \(RuntimeError: of a decoder\)"):
        list(half.batches(draws([0])))


def test_open_images_that_cannot_be_read_stop_whatever_the_closed_ones_do(files, tmp_path):
    from flattail.data.longtail import assembled
    from flattail.data.profile import STRICT

    half = Files(files, Y, size=24, broken="skip")
    like = assembled(half, half, names=["a", "b", "c"], shots=STRICT, title="t")
    opened = tmp_path / "open" / "x"
    photograph(opened / "1.jpg", 1)
    (opened / "2.jpg").write_text("no image")
    there = from_path(tmp_path / "open", tmp_path, like)
    with pytest.raises(ValueError, match=r"2.jpg is not a readable image"):
        list(there.half.batches(in_order(2, 2)))


def test_workers_are_the_cores_shared_among_processes(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)), raising=False)
    assert workers_here() == 16 and workers_here(jobs=3) == 5
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert workers_here() == 2 and workers_here(jobs=4) == 1
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(512)), raising=False)
    assert workers_here() == MOST_WORKERS
