"""Figures as inline SVG whose text and axes have the colour of the page."""

from __future__ import annotations

import io
import re
from html import escape

from ..evaluation.sections import Picture

__all__ = ["to_inline_svg"]

#: What Matplotlib writes and HTML does not need: namespaces, metadata, a style for every element of
#: the page, and the text of labels as comments.
_SUPERFLUOUS = re.compile(
    r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->| xmlns(:\w+)?=\"[^\"]*\"", re.DOTALL
)
#: Black, the colour of text, axes and ticks in Matplotlib's default style.
_BLACK = re.compile(r"(?<=\")#000000(?=\")")


def to_inline_svg(picture: Picture) -> str:
    """Return a figure as an ``<svg>`` element of a page, with its description.

    The background is transparent, and black becomes ``currentColor``: one figure suits light and
    dark pages, and paper. Text is drawn as shapes, which need no font. There are no ``style``
    attributes, which a strict content security policy forbids.
    """
    import matplotlib

    buffer = io.StringIO()
    # a fixed salt: the same figure gives the same page
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": picture.name}):
        metadata = {"Date": None, "Creator": None}
        picture.figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    svg = _SUPERFLUOUS.sub("", buffer.getvalue())
    svg = re.sub(r' style="([^"]*)"', lambda match: _to_attributes(match[1]), svg)
    svg = _BLACK.sub("currentColor", svg).replace("xlink:href", "href")
    svg = re.sub(r' d="([^"]*)"', lambda match: f' d="{_shorten(match[1])}"', svg)
    # identifiers are those of the page
    svg = re.sub(r'(?<= id=")|(?<= href="#)|(?<=url\(#)', f"{picture.name}-", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    root = (
        f'<svg {box[0]} role="img" aria-label="{escape(picture.description)}" '
        f'fill="currentColor" stroke-linejoin="round">'
    )
    body = svg[svg.index(">", box.start()) + 1 :]
    return root + re.sub(r">\s+<", "><", body).strip()


def _to_attributes(style: str) -> str:
    """Return the declarations of a style as attributes of SVG."""
    pairs = (part.split(":", 1) for part in style.split(";") if ":" in part)
    return "".join(f' {name.strip()}="{value.strip()}"' for name, value in pairs)


def _shorten(path: str) -> str:
    """Return a path with two decimals, a hundredth of a point, and without line breaks."""
    return " ".join(re.sub(r"(\.\d\d)\d+", r"\1", path).split())
