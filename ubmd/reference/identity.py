"""What a reference is, so that labels of one are never taken for those of another.

A configured object is its configuration: the class and every argument, nested, files by what is in them rather than by
their name; and, for code that belongs to no installed distribution, that code. Where results are shared between runs,
the versions of the distributions count as well; in a run's own label store they do not, since an upgrade must not
discard labels that are paid for.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import os
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ubmd.version import __version__

__all__ = ["Code", "code_of", "described", "targets", "versions_of"]


Plain = str | int | float | bool | None | Sequence["Plain"] | Mapping[str, "Plain"]
"""A value that JSON can hold."""


@dataclass(frozen=True)
class Code:
    """Where the code of some modules comes from."""

    versions: dict[str, str]
    """Of the distributions that provide them."""
    source: str | None
    """Digest of the files of those that belong to none, and of what these import of the same kind; None without."""
    complete: bool
    """Whether all modules are covered; a notebook's are not."""


def described(node: object) -> Plain:
    """A plain configuration node, with the digest of its contents in place of each name of an existing file."""
    if isinstance(node, Mapping):
        return {str(key): described(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [described(value) for value in node]
    if isinstance(node, str | Path) and os.path.isfile(node):
        return {"sha256": _digest(Path(node))}
    return node if node is None or isinstance(node, str | int | float | bool) else str(node)


def targets(node: object) -> Iterator[str]:
    """The names of classes and functions in a plain configuration node."""
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from targets(value)


def versions_of(*distributions: str) -> dict[str, str]:
    """Installed versions; those that are not installed are left out."""
    found = {}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def code_of(modules: set[str]) -> Code:
    """Where the code of modules, which are loaded, comes from."""
    versions: dict[str, str] = {}
    sources: dict[str, str] = {}
    complete = True
    for name in sorted(modules):
        top = name.partition(".")[0]
        file = getattr(sys.modules.get(name), "__file__", None)
        if top == "ubmd":
            versions["ubmd"] = __version__
        elif top in sys.stdlib_module_names and top != "__main__":
            continue
        elif file is None:
            complete = False
        elif _is_installed(file):
            distributions = _distributions().get(top, [])
            versions |= versions_of(*distributions)
            complete &= bool(distributions)
        else:
            _add_sources(name, Path(file), sources)
    digest = hashlib.sha256("".join(sorted(sources.values())).encode()).hexdigest() if sources else None
    return Code(versions, digest, complete)


def _add_sources(name: str, file: Path, found: dict[str, str]) -> None:
    """Adds the digest of a module's file, and of the files that it imports which are not installed either."""
    if str(file) in found:
        return
    found[str(file)] = _digest(file)
    if file.suffix != ".py":
        return
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for imported in _imports(ast.parse(file.read_bytes()), package):
        try:
            spec = importlib.util.find_spec(imported)
        except Exception:  # it imports the packages around a module, which may fail in any way
            continue
        origin = spec.origin if spec is not None and spec.has_location else None
        if origin is not None and imported.partition(".")[0] != "ubmd" and not _is_installed(origin):
            _add_sources(imported, Path(origin), found)


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Names that import statements may take for modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = parts[: len(parts) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module:
                yield module
                yield from (f"{module}.{alias.name}" for alias in node.names)


@cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


@cache
def _installed_folders() -> tuple[Path, ...]:
    names = ("purelib", "platlib", "stdlib", "platstdlib")
    folders = [sysconfig.get_path(name) for name in names] + [site.getusersitepackages()]
    # of an environment over another one
    folders += [folder for folder in sys.path if Path(folder).name in ("site-packages", "dist-packages")]
    return tuple(Path(folder).resolve() for folder in folders)


def _is_installed(file: str) -> bool:
    """Whether a file belongs to Python or to a package that was installed."""
    path = Path(file).resolve()
    return any(path.is_relative_to(folder) for folder in _installed_folders())


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
