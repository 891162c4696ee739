"""A hook of the docs site: formulas become MathML when the site is built, so no script has to draw them."""

from __future__ import annotations

import html
import re
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert

MATHML = "http://www.w3.org/1998/Math/MathML"
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([\[(])(.*?)\\[\])]</\1>', re.S)


def on_page_content(content: str, **_: Any) -> str:
    """Every formula that arithmatex has marked, as MathML."""
    return FORMULA.sub(drawn, content)


def drawn(found: re.Match[str]) -> str:
    """A formula, on a line of its own or within one."""
    tex = html.unescape(found[3]).strip()
    ElementTree.register_namespace("", MATHML)
    root = ElementTree.fromstring(
        convert(tex, display="block" if found[2] == "[" else "inline").replace(">&<", ">&amp;<")
    )
    if any((part.text or "").startswith(("&", "\\")) for part in root.iter()):
        raise ValueError(f"latex2mathml does not know all of this formula: {tex}")
    if found[2] == "[":
        limits_below(root)
    return ElementTree.tostring(root, encoding="unicode")


def limits_below(root: ElementTree.Element) -> None:
    """What a minimum or maximum is over stands below it, as TeX has it in displays."""
    for part in root.iter(f"{{{MATHML}}}msub"):
        if part[0].text in ("min", "max"):
            part.tag = f"{{{MATHML}}}munder"
