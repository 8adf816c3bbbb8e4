"""What a potential's file may name: ubmd's own parts, those of plug-ins, and what a user allows.

A package offers its models and uncertainties by an entry point of the group ``ubmd.plugins``, whose value is a package
or a class::

    [project.entry-points."ubmd.plugins"]
    my_package = "my_package.models:MyModel"

Names are compared with what is allowed before anything is imported, and only classes of ``torch.nn.Module`` are built.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Any

from torch import nn

from ubmd.errors import InputError
from ubmd.imports import locate
from ubmd.models.chgnet import CHGNet
from ubmd.models.committee import Committee
from ubmd.models.ensemble import Ensemble
from ubmd.models.gmnn import GMNN
from ubmd.models.mace import MACE
from ubmd.models.sevennet import SevenNet
from ubmd.schema import shown
from ubmd.uncertainty import (
    DistanceUncertainty,
    EnsembleUncertainty,
    FeatureUncertainty,
    FullGradients,
    LastLayer,
    SketchedGradients,
)

__all__ = ["PARTS", "PLUGINS", "allowed_names", "check_allowed", "check_parts", "find_part", "foreign_parts", "nodes"]

PLUGINS = "ubmd.plugins"
"""Group of entry points."""

_OF_UNCERTAINTY = (
    FeatureUncertainty,
    DistanceUncertainty,
    EnsembleUncertainty,
    SketchedGradients,
    LastLayer,
    FullGradients,
)
PARTS: Mapping[str, type[nn.Module]] = MappingProxyType(
    {
        f"{part.__module__}.{part.__name__}": part
        for part in (GMNN, Ensemble, Committee, SevenNet, CHGNet, MACE, *_OF_UNCERTAINTY)
    }
    | {f"ubmd.uncertainty.{part.__name__}": part for part in _OF_UNCERTAINTY}
)
"""ubmd's own parts, by the names that ``_target_`` knows them by."""

_MOST_VALUES = 1000
"""Most values in the configuration of a part: a file could hold a list that contains itself."""


def allowed_names(allow: str | Sequence[str] = ()) -> tuple[str, ...]:
    """Packages, modules and classes that a file may name besides ubmd's own parts: those given, and plug-ins.

    Raises:
        InputError: for something that is no such name.
    """
    given = [allow] if isinstance(allow, str) else list(allow)
    for name in given:
        if not isinstance(name, str) or not _is_name(name) or name.split(".")[0] == "ubmd":
            raise InputError(f"allow={shown(name)} must be the name of a package, a module or a class, e.g. my_package")
    # the value is a text: nothing is imported
    plugins = importlib.metadata.entry_points(group=PLUGINS)
    return (*given, *(plugin.value.split("[")[0].strip().replace(":", ".") for plugin in plugins))


def find_part(target: str, names: Sequence[str], what: str) -> type[nn.Module]:
    """The class with a dotted name, imported only if it is allowed.

    Args:
        target: what a file asks for.
        names: what is allowed, see :func:`allowed_names`.
        what: the file, for messages.

    Raises:
        InputError: if it is not allowed, does not exist or is no class of ``torch.nn.Module``.
    """
    check_allowed(target, names, what)
    if target in PARTS:
        return PARTS[target]
    found = locate(target, what)
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        raise InputError(f"{what} asks for {target}, which is no class of torch.nn.Module; do not trust it")
    # a module may hold the classes of others
    if target not in names and not _is_within(f"{found.__module__}.{found.__name__}", names):
        raise InputError(
            f"{what} asks for {target}, which is {found.__module__}.{found.__name__} and not allowed; do not trust it"
        )
    return found


def check_allowed(target: object, names: Sequence[str], what: str) -> None:
    """Refuses a name that is not allowed; nothing is imported.

    Raises:
        InputError: naming it.
    """
    if not isinstance(target, str) or not (target in PARTS or _is_within(target, names)):
        raise InputError(
            f"{what} asks for {shown(target)}, which is not a part of a potential; do not trust it{_remedy(target)}"
        )


def _is_name(text: str) -> bool:
    # __main__ of a package is a program, not a place of classes
    return all(part.isidentifier() and not part.startswith("__") for part in text.split("."))


def _is_within(target: str, names: Sequence[str]) -> bool:
    return _is_name(target) and any(f"{target}.".startswith(f"{name}.") for name in names)


def _remedy(target: object) -> str:
    if not isinstance(target, str) or not _is_name(target) or target.split(".")[0] == "ubmd":
        return ""
    return f", or allow its package if you do: allow={target.split('.')[0]}"


def foreign_parts(*configs: Mapping[str, Any]) -> tuple[str, ...]:
    """Names in configurations that are not ubmd's own: whoever wrote them into a configuration allows them."""
    targets = [
        node["_target_"]
        for config in configs
        for node in nodes(config)
        if isinstance(node, Mapping) and "_target_" in node
    ]
    return tuple(dict.fromkeys(target for target in targets if target not in PARTS))


def check_parts(config: Mapping[str, Any], name: str) -> None:
    """Refuses a part that could be saved, but not be read back.

    Args:
        config: its resolved configuration.
        name: its key.

    Raises:
        InputError: naming the part.
    """
    for target in foreign_parts(config):
        found = None if target.split(".")[0] == "ubmd" else locate(target, f"{name}._target_")
        if not isinstance(found, type) or not issubclass(found, nn.Module):
            raise InputError(
                f"{name} asks for {target}, which a potential's file must not name, as it is no class of "
                f"torch.nn.Module; choose among {', '.join(sorted({part.__name__ for part in PARTS.values()}))}, or "
                "such a class of your own"
            )


def nodes(config: object) -> Iterator[object]:
    """A configuration and all that is in it.

    Raises:
        InputError: for more values than a part has.
    """
    waiting = [config]
    for _ in range(_MOST_VALUES):
        if not waiting:
            return
        node = waiting.pop()
        yield node
        if isinstance(node, Mapping):
            waiting.extend(chain(node.keys(), node.values()))
        elif isinstance(node, list | tuple):
            waiting.extend(node)
    raise InputError(f"a part has more than {_MOST_VALUES} values")
