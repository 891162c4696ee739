"""The lists of iNaturalist 2018 from its official JSON files, `train2018.json` and `val2018.json`."""

import json
from pathlib import Path

from flattail.data.listed import INat18

PARTS = {"train": "train2018.json", "val": "val2018.json"}


def prepare(root: Path, *, source: Path | None = None) -> dict[Path, int]:
    """Write `lists/iNaturalist18_{train,val}.txt` under ``root``; returns the number of images in each.

    The JSON files are looked for in ``source``, or in `inat18/`, `lists/` and ``root`` itself. Lists that are there
    already stay if they say the same.
    Raises FileNotFoundError for JSON files that are not there, ValueError for those that are none of iNaturalist's and
    for lists that say otherwise. Nothing has been written then.
    """
    lists = root / INat18.lists
    texts = {lists / f"iNaturalist18_{part}.txt": lines_of(json_at(name, root, source)) for part, name in PARTS.items()}
    for path, lines in texts.items():
        if path.exists() and path.read_text(encoding="utf-8").splitlines() != lines:
            raise ValueError(f"{path} is there and says otherwise than the JSON files: move it away, or leave it")
    lists.mkdir(parents=True, exist_ok=True)
    for path, lines in texts.items():
        partial = path.with_name(f".{path.name}.part")
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        partial.replace(path)
    return {path: len(lines) for path, lines in texts.items()}


def json_at(name: str, root: Path, source: Path | None) -> Path:
    """Where a JSON file is; FileNotFoundError naming every place that was looked at."""
    places = [source] if source is not None else [root / INat18.images, root / INat18.lists, root]
    for place in places:
        if (place / name).is_file():
            return place / name
    raise FileNotFoundError(
        f"{name} is in none of {', '.join(map(str, places))}: unpack it there from the archive of annotations that "
        "iNaturalist 2018 offers, or name its folder by --json"
    )


def lines_of(path: Path) -> list[str]:
    """A line "file_name category_id" for every image, in the order of the images; ValueError naming what is wrong."""
    wrong = f"{path} is not an annotation file of iNaturalist 2018"
    try:
        tree = json.loads(path.read_bytes())
        files = {image["id"]: image["file_name"] for image in tree["images"]}
        labels = {each["image_id"]: each["category_id"] for each in tree["annotations"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{wrong} ({type(error).__name__}: {error}): get it again") from error
    if len(files) < len(tree["images"]) or len(labels) < len(tree["annotations"]):
        raise ValueError(f"{wrong}: an image has two entries or two labels; get it again")
    if files.keys() != labels.keys():
        odd = next(iter(files.keys() ^ labels.keys()))
        raise ValueError(f"{wrong}: image {odd} has no entry or no label; get it again")
    if not files or not all(isinstance(c, int) and c >= 0 for c in labels.values()):
        raise ValueError(f"{wrong}: it names no image, or labels that are no whole numbers; get it again")
    return [f"{name} {labels[image]}" for image, name in files.items()]
