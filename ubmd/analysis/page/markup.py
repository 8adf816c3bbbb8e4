"""HTML of plain values: every text is escaped here, and what is escaped is a :class:`Markup`."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape
from io import BytesIO
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from rich.table import Table

from ubmd.analysis import style

__all__ = ["Markup", "figure_of", "html_of", "joined", "pairs", "paragraph", "png", "svg", "table", "table_of", "tag"]

_THEMED = {style.INK: "var(--ink)", style.GREY: "var(--grey)", style.BLUE: "var(--blue)", style.RED: "var(--red)"}
"""Colours of figures that differ between the light and the dark page."""

_NARROW = 720
"""Pixels of a picture of 150 dpi that can be read on a narrow page."""


class Markup(str):
    """HTML, in which nothing is to be escaped any more."""


def html_of(content: object) -> Markup:
    """Markup as it is, anything else as escaped text."""
    return content if isinstance(content, Markup) else Markup(escape(str(content)))


def joined(parts: Iterable[object], between: str = "\n") -> Markup:
    """Parts one after the other."""
    return Markup(between.join(html_of(part) for part in parts))


def tag(name: str, *content: object, **attributes: object) -> Markup:
    """An element.

    Args:
        name: of the element.
        *content: markup, and texts to be escaped.
        **attributes: texts; ``_`` in a name stands for ``-`` and one at its end for nothing; None leaves it out.
    """
    named = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    text = "".join(f' {key}="{escape(str(value))}"' for key, value in named.items())
    return Markup(f"<{name}{text}>{joined(content, '')}</{name}>")


def paragraph(*content: object) -> Markup:
    """A paragraph."""
    return tag("p", *content)


def pairs(rows: Iterable[tuple[object, object]], class_: str | None = None) -> Markup:
    """Names and values as a description list."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in rows), class_=class_)


def table(
    caption: str,
    header: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    footer: Iterable[Sequence[object]] = (),
    numeric: bool = True,
) -> Markup:
    """A table that scrolls sideways, also by keyboard, where the page is narrow; the first cell of a row is its header.

    Args:
        caption: what it shows.
        header: of the columns.
        rows: of as many cells.
        footer: rows below.
        numeric: whether cells are numbers, which stand at the right.
    """

    def line(cells: Sequence[object]) -> Markup:
        first, *others = cells
        return tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in others))

    columns = tag("tr", *(tag("th", text, scope="col") for text in header))
    parts = [tag("caption", tag("span", caption)), tag("thead", columns)]
    parts.append(tag("tbody", *map(line, rows)))
    below = [line(cells) for cells in footer]
    if below:
        parts.append(tag("tfoot", *below))
    made = tag("table", *parts, class_="numbers" if numeric else None)
    return tag("div", made, class_="scroll", tabindex="0", role="region", aria_label=caption)


def table_of(made: Table, caption: str) -> Markup:
    """A table for the terminal as one of the page."""
    columns = [[_one_line(cell) for cell in column.cells] for column in made.columns]
    footers = [str(column.footer).split("\n") for column in made.columns] if made.show_footer else []
    header = [text[:1].upper() + text[1:] for text in (_one_line(column.header) for column in made.columns)]
    return table(caption, header, zip(*columns, strict=True), footer=zip(*footers, strict=True))


def _one_line(cell: object) -> str:
    """A text that was broken to be narrow; units are not to be broken at all."""
    return re.sub(r"\s+", " ", re.sub(r"-\n", "", str(cell))).strip().replace("/", "/\N{WORD JOINER}")


def figure_of(picture: Markup, caption: object) -> Markup:
    """A picture with its caption."""
    return tag("figure", picture, tag("figcaption", caption))


def png(file: Path | bytes, alt: str) -> Markup:
    """A PNG picture, in the page itself; one that would be too small to read scrolls sideways."""
    data = file if isinstance(file, bytes) else file.read_bytes()
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    # a PNG's size is in its header; without it the page would jump while it is read
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    size = f"width:{0.72 * width:.0f}px;min-width:{0.55 * width:.0f}px"
    image = f'<img src="{source}" alt="{escape(alt)}" width="{width}" height="{height}" style="{size}">'
    return _sideways(Markup(image), "paper", alt, wide=width > _NARROW)


def svg(figure: Figure, alt: str, salt: str) -> Markup:
    """A figure as a drawing in the page, in whose colours and letters it is drawn.

    Args:
        figure: of few points.
        alt: what it shows.
        salt: that tells its parts from those of other figures of the page.
    """
    buffer = BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue().decode()
    text = re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])
    for colour, themed in _THEMED.items():
        text = re.sub(colour, themed, text, flags=re.IGNORECASE)
    width, height = figure.get_size_inches()
    size = f"max-width:{115 * width:.0f}px;min-width:{76 * width:.0f}px"
    box = f'viewBox="0 0 {72 * width:g} {72 * height:g}" class="plot" style="{size}"'
    root = f'<svg role="img" aria-label="{escape(alt)}" {box}>'
    drawing = Markup(re.sub(r"<svg\b[^>]*>", lambda _: root, text, count=1))
    return _sideways(drawing, "drawing", alt, wide=150 * width > _NARROW)


def _sideways(picture: Markup, kind: str, alt: str, *, wide: bool) -> Markup:
    """A picture that scrolls sideways where there is no room for it, also by keyboard."""
    if not wide:
        return tag("div", picture, class_=kind)
    return tag("div", picture, class_=f"{kind} wide", tabindex="0", role="region", aria_label=alt)
