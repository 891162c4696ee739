"""Trees of small real JPEG files under generated lists, as the large sets have them."""

import numpy as np
from PIL import Image

from flattail.data import PlacesLT
from flattail.data.checked import published


def photograph(path, seed, size=(40, 30), quality=85):
    """A JPEG of blurred noise, another for every seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse.save(path, quality=quality)


def scaled_places(root, share=0.01, size=(40, 30)):
    """Places-LT with its official class counts times ``share``, one image a class at the least; one test image each."""
    counts = [max(round(n * share), 1) for n in published(PlacesLT).tolist()]
    lists = {
        "train": [(f"train/scene{c}/{i:08}.jpg", c) for c, n in enumerate(counts) for i in range(n)],
        "test": [(f"val/scene{c}/Places365_val_{c:08}.jpg", c) for c in range(len(counts))],
    }
    (root / "lists").mkdir(parents=True)
    for part, lines in lists.items():
        (root / "lists" / f"Places_LT_{part}.txt").write_text("".join(f"{path} {c}\n" for path, c in lines))
        for number, (path, c) in enumerate(lines):
            photograph(root / "places365" / path, 1000 * c + number, size)
    return counts
