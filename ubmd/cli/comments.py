"""What the comments of a configuration file and the docstring of a class say about a key."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

import yaml

__all__ = ["Comments", "comments_of", "parameter_doc"]


@dataclass
class Comments:
    """The comments of a YAML file."""

    header: str = ""
    """The comment that the file begins with, without lines that show commands."""
    title: str = ""
    """The first sentence of it."""
    keys: dict[str, str] = field(default_factory=dict)
    """What is said beside and above every key of the file, by dotted name; empty where nothing is."""


def comments_of(text: str) -> Comments:
    """Reads the comments of a configuration file. Those above a key belong to it, but for those that begin the file."""
    lines = text.splitlines()
    head = 0
    while head < len(lines) and lines[head].startswith("#"):
        head += 1
    told = [line[1:].removeprefix(" ") for line in lines[:head] if not line.startswith("# @package")]
    parts = re.split(r"\n  .*(?:\n  .*)*", "\n".join(told))  # lines that are indented show commands
    parts = [" ".join(part.split()) for part in parts]
    title = re.split(r"(?<=[.;])\s+(?=[A-Z`])", parts[0], maxsplit=1)[0].removesuffix(":")
    found = Comments(" ".join(parts).strip(), title)
    tree = yaml.compose(text, Loader=yaml.SafeLoader)
    if isinstance(tree, yaml.MappingNode):
        for key, name, value in _pairs(tree, ""):
            above = _above(lines, name.start_mark.line, head)
            found.keys[key] = " ".join(part for part in (above, _beside(lines, name, value)) if part)
        if len(tree.value) == 1 and tree.value[0][0].start_mark.line == head:  # the header is about the only key
            only = tree.value[0][0].value
            found.keys[only] = found.keys[only] or found.header
    return found


def _pairs(node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    for name, value in node.value:
        if isinstance(name, yaml.ScalarNode):
            key = f"{prefix}{name.value}"
            yield key, name, value
            if isinstance(value, yaml.MappingNode):
                yield from _pairs(value, f"{key}.")


def _above(lines: list[str], number: int, head: int) -> str:
    """The comment lines right above a line, but not those of the header."""
    found: list[str] = []
    while number > head and lines[number - 1].lstrip().startswith("#"):
        number -= 1
        found.insert(0, lines[number].lstrip().removeprefix("#").strip())
    return " ".join(found)


def _beside(lines: list[str], name: yaml.Node, value: yaml.Node) -> str:
    """The comment at the end of a value's line; that of a block is beside its key."""
    block = isinstance(value, yaml.CollectionNode) and not value.flow_style
    mark = name.end_mark if block else value.end_mark
    rest = lines[mark.line][mark.column :] if mark.line < len(lines) else ""
    return found[1].strip() if (found := re.match(r":?\s*#(.*)", rest)) else ""


def parameter_doc(target: Any, name: str) -> str:
    """What the docstring of a class or function, or of those that the class inherits from, says about a parameter.

    Read are sections ``Args:`` and the texts below the fields of dataclasses.
    """
    for owner in getattr(target, "__mro__", (target,)):
        if owner is object:
            continue
        for text in (
            owner.__doc__,
            getattr(vars(owner).get("__init__") if isinstance(owner, type) else None, "__doc__", None),
        ):
            if found := _argument(text or "", name):
                return _plain(found)
        if isinstance(owner, type) and name in vars(owner).get("__annotations__", {}) and name in _fields(owner):
            return _plain(_fields(owner)[name])
    return ""


def _argument(text: str, name: str) -> str:
    """The entry of a parameter in a section ``Args:`` of a docstring."""
    section = re.search(r"^(?:Args|Arguments|Parameters):[ \t]*\n((?:[ \t]+.*\n?|\n)+)", inspect.cleandoc(text), re.M)
    if section is None:
        return ""
    out: list[str] = []
    for line in textwrap.dedent(section[1]).splitlines():
        entry = re.match(r"([\w*, ]+?)\s*(?:\(.*?\))?:\s*(.*)", line)
        if entry and not line.startswith(" "):
            if out:
                break
            if name in re.split(r"[\s,*]+", entry[1]):
                out.append(entry[2])
        elif out and not line.strip():
            break
        elif out:
            out.append(line.strip())
    return " ".join(out)


@cache
def _fields(owner: type) -> dict[str, str]:
    """The texts below the annotated names in the body of a class."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    except (OSError, TypeError, SyntaxError):  # it is not written in Python, or nowhere
        return {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    return {
        node.target.id: " ".join(str(text.value.value).split())
        for node, text in pairwise(body)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


def _plain(text: str) -> str:
    """A docstring's text without markup."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?([\w.]+)`", r"\1", text)
    return " ".join(re.sub(r"``(.+?)``", r"\1", text).split())
