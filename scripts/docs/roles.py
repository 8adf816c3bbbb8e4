"""Docstrings name other objects as Sphinx does, ``:class:`~ubmd.x.Y```; here these become links of mkdocs-autorefs."""

from __future__ import annotations

import re
from typing import Any

import griffe

_TABLE = re.compile(r"^=+( +=+)+\n(.*?)^=+( +=+)+$", flags=re.DOTALL | re.MULTILINE)
_ROLE = re.compile(r":(?:mod|class|func|meth|attr|data|exc|obj):`(~?)\.?([\w.]+)`")


def linked(text: str, scope: str) -> str:
    """The text with its roles as links; a name without a module is one of `scope`."""

    def link(match: re.Match[str]) -> str:
        short, name = match.groups()
        path = name if name.startswith("ubmd.") else f"{scope}.{name}"
        shown = name.rsplit(".", 1)[-1] if short else name
        return f'<autoref identifier="{path}" optional><code>{shown}</code></autoref>'

    text = re.sub(r"(?<=\S)::\n\n", ":\n\n", text)  # before a block of code
    text = _TABLE.sub(lambda table: f"```text\n{_ROLE.sub(lambda m: m[2], table[2]).rstrip()}\n```", text)
    return _ROLE.sub(link, text)


class Roles(griffe.Extension):
    """Rewrites the docstring of every object that is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = linked(obj.docstring.value, obj.module.path)
