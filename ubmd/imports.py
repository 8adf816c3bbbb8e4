"""What a dotted name stands for, and which options it has."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import pkgutil
import re
from difflib import get_close_matches
from typing import Any

from ubmd.errors import InputError
from ubmd.schema import shown

__all__ = ["extra_with", "first_line", "locate", "options_of"]


def locate(target: str, where: str = "_target_") -> Any:
    """Import the object with a dotted name; `where` is the configuration key that asked for it."""
    parts = target.split(".")
    if not all(parts):
        raise InputError(f"{where}={shown(target)} must be a dotted name, package.module.Name")
    for cut in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:cut])
        try:
            found: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
                continue
            raise InputError(
                f"{where}={target} needs the module {error.name}, which is not installed{extra_with(error)}"
            ) from error
        except Exception as error:  # somebody's module may fail in any way
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(f"{where}={target} cannot be imported, as {name} fails ({reason})") from error
        for index in range(cut, len(parts)):
            if not hasattr(found, parts[index]):
                names = [m.name for m in pkgutil.iter_modules(getattr(found, "__path__", []))]
                names += [n for n in dir(found) if not n.startswith("_")]
                near = get_close_matches(parts[index], names, n=1, cutoff=0.6)
                hint = f"; did you mean {'.'.join([*parts[:index], near[0]])}?" if near else ""
                owner = ".".join(parts[:index])
                raise InputError(f"{where}={target} does not exist: {owner} has no {parts[index]}{hint}")
            found = getattr(found, parts[index])
        return found
    raise InputError(f"{where}={target} does not exist: no module named {parts[0]}")


def extra_with(error: ImportError) -> str:
    """How to install what is missing, if one of ubmd's extras has it."""
    wanted = (error.name or "").split(".")[0].replace("_", "-")
    for line in importlib.metadata.requires("ubmd") or ():
        found = re.match(rf"{re.escape(wanted)}\b.*extra == ['\"]([\w-]+)['\"]", line)
        if wanted and found and found.group(1) != "dev":  # which has a little of all of them
            return f": pip install 'ubmd[{found.group(1)}]'"
    return ""


def options_of(target: Any) -> dict[str, inspect.Parameter] | None:
    """The keyword parameters of a class or function, or None if it takes any key (``**kwargs``)."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return None
    kinds = {p.kind for p in parameters.values()}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return None
    hidden = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY)
    return {name: p for name, p in parameters.items() if p.kind not in hidden}


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
