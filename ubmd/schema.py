"""Which values a key takes: what annotations say, compared with plain values of a configuration.

A class or function that ``_target_`` names is its own schema. Here are the few keys that no class describes.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["KEYS", "OPTIONAL", "Node", "described", "hints_of", "mismatch", "shown"]


class Node:
    """A part that a class or function makes: a mapping with ``_target_``."""


_Parts = Mapping[str, Node] | None

KEYS: Mapping[str, Any] = {
    "name": str | int,
    "seed": int,
    "threads": int | Literal["auto"],
    "retry": bool,
    "dtype": Literal["float32", "float64"],
    "device": str,
    "potential": str,
    "allow": str | Sequence[str],
    "members": Sequence[str],
    "structures": str,
    "labelled": str | None,
    "shift": bool,
    "address": str,
    "to": Literal["metatomic", "h5md", "traj", "extxyz"],
    "trajectory": str,
    "walker": Literal["all"] | int,
    "system_name": str | None,
    "axes": Literal["standard", "given"],
    "file": str,
    "wait": float,
    "log_interval": int,
    "uncertainties": bool,
    "species": Literal["auto"] | Sequence[str],
    "alpha": float,
    "variables": Mapping[str, Node],
    "batch_size": int,
    "checkpoint_epochs": int,
    "learning": Mapping,
    "learning.max_structures": int,
    "learning.max_rounds": int | None,
    "learning.batch_size": int,
    "learning.warm_start": float | None,
    "learning.checkpoint_epochs": int,
    "labelling": Mapping,
    "labelling.max_force": float | None,
    "paths": Mapping,
    "paths.root": str,
    "paths.run_name": str,
    "paths.run": str,
    "paths.cache": str,
    "system": Node,
    "reference": Node,
    "executor": Node,
    "size": Mapping,
    "model": Node,
    "training": Node,
    "optimizer": Node,
    "scheduler": Node,
    "trainer": Node,
    "data": Node | Mapping,
    "uncertainty": Node,
    "calibration": Mapping,
    "calibration.atomic": Node,
    "calibration.total": Node,
    "calibration.evidence": Node,
    "bias": Node,
    "dynamics": Node,
    "selection": Node,
    "callbacks": _Parts,
    "logger": _Parts,
}
"""What the keys that no class describes may be, in whichever command has them; defaults are in ``conf``."""

MAY_BE_INFINITE = "may be infinite"
"""Marks a parameter, ``Annotated[float, MAY_BE_INFINITE]``, to which infinity is a value like others."""

OPTIONAL = ("callbacks", "logger")
"""Keys that may be deleted."""


def hints_of(target: Any) -> dict[str, Any]:
    """The annotations of a class's or function's parameters, as far as they can be looked up."""
    is_class = isinstance(target, type)
    function = target.__init__ if is_class and not dataclasses.is_dataclass(target) else target
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, AttributeError, TypeError):  # a name that is only there for type checkers
        pass
    names = getattr(inspect.unwrap(function), "__globals__", {})
    found: dict[str, Any] = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        try:
            found |= get_type_hints(SimpleNamespace(__annotations__={name: annotation}), globalns=names)
        except (NameError, AttributeError, TypeError):
            continue
    return found


def mismatch(value: Any, hint: Any, where: str, *, ours: bool = True) -> str | None:
    """What is wrong with a plain value, as a sentence; None if nothing is, or if the annotation does not tell.

    Args:
        value: of numbers, texts, None, lists and mappings.
        hint: an annotation.
        where: the key.
        ours: whether the annotation is this package's; those of others are often narrower than what they take, and
            a class of theirs may stand for anything.
    """
    if isinstance(value, float) and math.isnan(value):
        return f"{where}=nan is no number; leave it out or give one"
    if _fits(value, hint, ours):
        return None
    if isinstance(value, float) and math.isinf(value) and _fits(1.0, hint, ours):
        return f"{where}={shown(value)} must be finite; give a number"
    if value in (".inf", "-.inf") and _fits(1.0, hint, ours):
        return f"{where}={value} must be a number; on the command line infinity is {value.replace('.', '')}"
    # the first item that is wrong is clearer than a whole list or mapping
    if isinstance(value, list | Mapping) and not _is_node(value):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        inner = _item_hint(hint, isinstance(value, Mapping))
        for name, item in items if inner is not None else ():
            found = mismatch(item, inner, f"{where}.{name}" if isinstance(value, Mapping) else f"{where}[{name}]")
            if found:
                return found
    return f"{where}={shown(value)} must be {described(hint)}"


def shown(value: Any, width: int = 60) -> str:
    """A value as one writes it in an override, in a line of at most ``width`` characters."""
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    text = " ".join(text.replace("Infinity", "inf").replace("NaN", "nan").split())
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _is_node(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _is_list(hint: Any) -> bool:
    origin = get_origin(hint) or hint
    if not isinstance(origin, type) or origin.__module__ not in ("builtins", "collections.abc"):
        return False  # a class of somebody that can be iterated over
    return issubclass(origin, Iterable) and not issubclass(origin, str | bytes | Mapping)


def _is_mapping(hint: Any) -> bool:
    origin = get_origin(hint) or hint
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _item_hint(hint: Any, mapping: bool) -> Any:
    """The annotation of the items of the one kind of list, or mapping, among the options; None without one."""
    found = [option for option in _options(hint) if (_is_mapping if mapping else _is_list)(option)]
    arguments = get_args(found[0]) if len(found) == 1 else ()
    if mapping:
        return arguments[1] if len(arguments) == 2 else None
    return arguments[0] if arguments and arguments[1:] in ((), (...,)) else None


def _fits(value: Any, hint: Any, ours: bool, *, inside: bool = False) -> bool:
    """Whether a value can be what an annotation says; True where that says nothing that can be checked."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, option, ours, inside=inside) for option in arguments)
    if origin is Annotated:
        return _fits(value, arguments[0], ours, inside=inside or MAY_BE_INFINITE in arguments[1:])
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if hint in (None, NoneType):
        return value is None
    if hint is Node:
        return _is_node(value)
    if hint in (bool, int, float, str, Path):
        return _fits_plain(value, hint, ours, inside)
    if _is_node(value):  # what it makes is not known before it is made
        return not _is_mapping(hint)
    if _is_mapping(hint):
        return isinstance(value, Mapping) and (
            len(arguments) != 2 or all(_fits(item, arguments[1], ours, inside=True) for item in value.values())
        )
    if _is_list(hint):
        return isinstance(value, list) and _fits_items(value, origin or hint, arguments, ours)
    # a class, or whatever can be called: only a part that is made can be one
    return not ours or hint in (Any, object) or not (isinstance(hint, type) or origin is Callable)


def _fits_plain(value: Any, hint: type, ours: bool, inside: bool) -> bool:
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        # an end of a range may be infinite
        return number and not math.isnan(value) and (inside or not ours or math.isfinite(value))
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is bool:
        return isinstance(value, bool)
    return isinstance(value, str) or (not ours and isinstance(value, int | float))


def _fits_items(value: list[Any], kind: Any, arguments: tuple[Any, ...], ours: bool) -> bool:
    if kind is tuple and arguments and arguments[-1] is not ...:
        pairs = zip(value, arguments, strict=False)
        return len(value) == len(arguments) and all(_fits(item, hint, ours, inside=True) for item, hint in pairs)
    return not arguments or all(_fits(item, arguments[0], ours, inside=True) for item in value)


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}


def described(hint: Any) -> str:
    """What an annotation asks for, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        words = list(dict.fromkeys(described(option) for option in arguments))
        return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
    if origin is Annotated:
        return described(arguments[0])
    if origin is Literal:
        return " or ".join(shown(option) for option in arguments)
    if hint in (None, NoneType):
        return "null"
    if isinstance(hint, type) and hint in _NAMES:
        return _NAMES[hint]
    if _is_mapping(hint):
        inner = f" of {_plural(arguments[1])}" if len(arguments) == 2 else ""
        return f"a mapping{inner}, written {{name: value}}"
    if _is_list(hint):
        if origin is tuple and arguments and arguments[-1] is not ...:
            return f"a list of {len(arguments)} {_plural(arguments[0])}"
        return f"a list{f' of {_plural(arguments[0])}' if arguments else ''}, written [a, b]"
    name = "" if hint is Node or not isinstance(hint, type) else f" ({hint.__name__})"
    return f"a part of its own{name}, with a _target_"


def _plural(hint: Any) -> str:
    names = {bool: "true or false", int: "whole numbers", float: "numbers", str: "texts"}
    if isinstance(hint, type) and hint in names:
        return names[hint]
    return "lists" if _is_list(hint) else "parts"
