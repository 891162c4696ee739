"""A hook of the docs site: what pages link to outside `docs/` (results, recipes, code) becomes pages of the site.

A link to `../results/README.md` leads to that file in a checkout, and to `repository/results.md` in the site.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
DOCS, HERE = "docs", "repository"
ALWAYS = ("results/README.md", "CHANGELOG.md")
LINK = re.compile(r"(\]\()(?!\w+:|#|/)([^)\s#]+)(#[^)\s]*)?(?=\))")
ORIGINS: dict[str, str] = {}  # where a page of the site stands in the repository, of those outside docs/
IMAGES = (".svg", ".png", ".jpg")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".sh": "sh"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """A folder in the navigation stands for the pages in it, `index.md` first."""
    config.nav = [expanded(entry) for entry in config.nav or []]
    return config


def expanded(entry: Any) -> Any:
    """An entry of the navigation without folders."""
    if not isinstance(entry, dict):
        return entry
    (title, inside), *_ = entry.items()
    if isinstance(inside, list):
        return {title: [expanded(e) for e in inside]}
    if not inside.endswith("/"):
        return entry
    pages = sorted((ROOT / DOCS / inside).glob("*.md"), key=lambda p: (p.stem != "index", p.stem))
    return {title: [f"{inside}{page.name}" for page in pages]}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Pages for everything outside that is linked, directly or from such a page."""
    waiting = list(ALWAYS)
    for file in files.documentation_pages():
        if file.abs_src_path:
            waiting += outside(f"{DOCS}/{file.src_uri}", Path(file.abs_src_path).read_text(encoding="utf-8"))
    done = set[str]()
    while waiting:
        path = waiting.pop()
        if path in done:
            continue
        done.add(path)
        if path.endswith(IMAGES):
            files.append(File.generated(config, uri(path), abs_src_path=str(ROOT / path)))
            continue
        text = shown(path)
        ORIGINS[uri(path)] = path
        files.append(File.generated(config, uri(path), content=text))
        waiting += outside(path, text) if path.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links as they are in the site."""
    at = page.file.src_uri
    origin = ORIGINS.get(at, f"{DOCS}/{at}")
    if not origin.endswith(".md"):
        return markdown  # a listing of code or of a folder

    def moved(found: re.Match[str]) -> str:
        path = inside(origin, found[2])
        if path is None or (path.startswith(f"{DOCS}/") and origin.startswith(f"{DOCS}/")):
            return found[0]
        return f"{found[1]}{os.path.relpath(uri(path), Path(at).parent)}{found[3] or ''}"

    return LINK.sub(moved, markdown)


def inside(origin: str, target: str) -> str | None:
    """The path in the repository that a link leads to, if there is such a file or folder."""
    path = os.path.normpath(Path(origin).parent / target)
    return path if not path.startswith("..") and (ROOT / path).exists() else None


def outside(origin: str, text: str) -> Iterator[str]:
    """The paths outside docs/ that a text links to."""
    for found in LINK.finditer(text):
        path = inside(origin, found[2])
        if path is not None and not path.startswith(f"{DOCS}/") and path != DOCS:
            yield path


def uri(path: str) -> str:
    """Where a path of the repository stands in the site."""
    if path.startswith(f"{DOCS}/"):
        return path.removeprefix(f"{DOCS}/")
    if path.endswith(IMAGES):
        return f"{HERE}/{path}"
    name = path.removesuffix("/README.md").removesuffix(".md")  # a README would be the index of its section
    return f"{HERE}/{name}.md"


def shown(path: str) -> str:
    """A page for a file or a folder: Markdown as it is, code as code, a folder as a list."""
    place = ROOT / path
    if path.endswith(".md"):
        return place.read_text(encoding="utf-8")
    if place.is_dir():
        return "\n".join(
            [f"# {path}", "", *(f"- `{p.name}`" for p in sorted(place.iterdir()) if p.name[0] not in "._")]
        )
    text = place.read_text(encoding="utf-8").rstrip()
    return f"# {path}\n\n~~~~{LANGUAGES.get(place.suffix, 'text')}\n{text}\n~~~~\n"
