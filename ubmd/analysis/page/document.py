"""The page as one file: nothing of it is loaded from elsewhere, and nothing but its own code runs in it."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from ubmd.analysis.page.markup import Markup, joined, tag
from ubmd.analysis.page.run import RunPage
from ubmd.analysis.page.sections import SECTIONS, summary
from ubmd.errors import InputError
from ubmd.files import write_text

__all__ = ["page_of", "write_page"]

log = logging.getLogger(__name__)


def write_page(path: Path, allow: Sequence[str] = ()) -> Path:
    """Writes ``report.html`` into a run's folder, whatever has become of the run.

    Args:
        path: of the folder.
        allow: what potentials may name, see :func:`~ubmd.uncertainty.checkpoint.load_potential`.

    Returns:
        the file.

    Raises:
        InputError: it is no folder of ``ubmd learn``, or its ``config.yaml`` or ``metrics.csv`` is damaged.
        OSError: if the file cannot be written.
    """
    file = path / "report.html"
    write_text(file, page_of(RunPage.read(path, allow)))
    return file


def page_of(run: RunPage) -> str:
    """The page of a run. A section that cannot be made says why."""
    style, script = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.css", "viewer.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # data that found a way into the page after all could load nothing and run nothing
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    names = {title: re.sub(r"\W+", "-", title.lower()) for title in SECTIONS}
    links = [tag("li", tag("a", title, href=f"#{name}")) for title, name in names.items()]
    sections = [
        tag("section", tag("h2", title, id=f"{name}-h"), _content(run, title), id=name, aria_labelledby=f"{name}-h")
        for title, name in names.items()
    ]
    body = [
        tag("a", "Skip to the report", class_="skip", href="#report"),
        tag("header", tag("p", "ubmd learn", class_="kind"), tag("h1", run.title)),
        tag("nav", tag("ul", *links), aria_label="Sections"),
        tag("main", summary(run), *sections, id="report"),
        Markup(f"<script>{script}</script>"),
    ]
    head = [
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<meta name="color-scheme" content="light dark">'),
        Markup('<link rel="icon" href="data:,">'),
        tag("title", f"{run.title} – ubmd"),
        Markup(f"<style>\n{style}</style>"),
    ]
    return f'<!doctype html>\n<html lang="en">\n{tag("head", joined(head))}\n{tag("body", joined(body))}\n</html>\n'


def _content(run: RunPage, title: str) -> Markup:
    parts: list[Markup] = []
    try:
        parts.extend(SECTIONS[title](run))
    except InputError as error:
        parts.append(tag("p", f"This is missing: {error}.", class_="missing"))
    except Exception as error:  # one section that cannot be made must not take the others along
        log.warning("%s: %s of its report cannot be made: %r", run.path, title.lower(), error)
        parts.append(tag("p", f"This could not be made: {error!r}.", class_="missing"))
    return joined(parts)
