"""A finished run for use elsewhere: weights, torch.export and ONNX, each run again and compared, and a model card."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import runs
from ..classifier import classifier
from ..data.pictures import Preparation
from .card import card
from .formats import FORMATS, Given
from .program import CONFIG, Program, config, load_export, program

__all__ = ["FORMATS", "Exported", "Program", "export", "load_export"]

CARD = "README.md"
BATCHES = (1, 7)  # how many images the formats are compared on
WITHIN = 1e-3  # of the largest logit: what a format may differ by


@dataclass(frozen=True)
class Exported:
    """What came of an export."""

    folder: Path
    differences: dict[str, float]  # of each format that was written: the largest difference of a logit from torch's
    refused: dict[str, str]  # of each that was not: why


def export(
    folder: Path, out: Path | None = None, *, formats: Iterable[str] = tuple(FORMATS), root: Path = Path("data")
) -> Exported:
    """Write a run's model to `out` (`folder/export`), in every format that can be, with `config.json` and a card.

    Each format is read again, as its users will, and compared with the run's model on images like those of the data, in
    batches of 1 and 7. The training data are not needed; see `classifier`.

    Raises ValueError for a run that is not finished, an unknown format, or if no format could be written.
    """
    formats, out = list(dict.fromkeys(formats)), Path(out or Path(folder) / "export")
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ValueError(f"--format {unknown[0]}: choose from {', '.join(FORMATS)}")
    if not formats:
        raise ValueError(f"--format: name one at least of {', '.join(FORMATS)}")
    of = classifier(folder, root)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: name a folder")
    out.mkdir(parents=True, exist_ok=True)
    runs.write_json(out / CONFIG, config(of))
    given = Given(program(of), of.images.shape)
    batches = [like(of.images, n) for n in BATCHES]
    differences, refused = dict[str, float](), dict[str, str]()
    for name in formats:
        path = out / FORMATS[name].file
        try:
            FORMATS[name].write(given, path)
            differences[name] = compared(name, given.program, path, batches)
        except (ValueError, ImportError) as error:
            refused[name] = f"{path.name} was not written: {error}"
            path.unlink(missing_ok=True)
    if not differences:
        raise ValueError("; ".join(refused.values()))
    runs.write_text(out / CARD, card(of, {name: (FORMATS[name].file, d) for name, d in differences.items()}))
    return Exported(out, differences, refused)


@torch.no_grad()
def compared(name: str, program: Program, path: Path, batches: list[Tensor]) -> float:
    """The largest difference of a logit; ValueError if it is more than arithmetic explains."""
    run, largest = FORMATS[name].read(path), 0.0
    for images in batches:
        expected, found = program(images), run(images)
        difference = (found - expected).abs().max().item()
        bound = WITHIN * max(expected.abs().max().item(), 1.0)
        if not difference <= bound:
            raise ValueError(
                f"its logits differ from torch's by {difference:.2g} in a batch of {len(images)}, more than {bound:.2g}"
            )
        largest = max(largest, difference)
    return largest


def like(images: Preparation, n: int) -> Tensor:
    """Images [n, ch, H, W] in [0, 1] with the data's mean and deviation, in patches, in steps of 1/255."""
    channels, height, width = images.shape
    noise = torch.randn(n, channels, -(-height // 4), -(-width // 4), generator=torch.Generator().manual_seed(n))
    patches = noise.repeat_interleave(4, 2).repeat_interleave(4, 3)[:, :, :height, :width]
    mean, std = (torch.tensor(each)[:, None, None] for each in (images.mean, images.std))
    return ((mean + std * patches).clamp(0, 1) * 255).round() / 255
