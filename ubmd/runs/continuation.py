"""What a run's configuration may differ in when the run continues, and how configurations in run folders are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ubmd.errors import InputError
from ubmd.reference.base import NOT_OF_LABELS
from ubmd.secrecy import hidden

__all__ = [
    "MAY_DIFFER",
    "MAY_EXTEND",
    "MAY_GROW",
    "NOT_CHECKED",
    "config_digest",
    "differences",
    "flatten",
    "read_config",
    "without",
]

MAY_DIFFER = (
    *("paths", "logger", "debug", "device", "retry", "allow", "dynamics.workers", "trainer.profiler", "log_interval"),
    "size",  # what it says is where it is used
    # where things are kept that tell themselves what they are; a potential is told by its contents
    *("potential", "system.relax.folder", "data.test.path", "data.test.sample.labels"),
    "data.test.sample.structures.relax.folder",
    *NOT_OF_LABELS,
)
"""Parts of the configuration, with all that is in them, that have no say in what a run computes."""

MAY_GROW = ("learning.max_rounds", "learning.max_structures")
"""Limits that only say when to stop: they may be any number that the run has not passed yet. Those of the trainer
are none of them, because schedules of the learning rate depend on them."""

MAY_EXTEND = ("dynamics.stopping.max_steps",)
"""Limits of a run of `ubmd md` that may become larger; unlike those of :data:`MAY_GROW` they are in its checksum."""

NOT_CHECKED = (*MAY_DIFFER, *MAY_GROW)
"""Parts of the configuration that are not in its checksum in a run's folder."""

_LARGEST = 16 * 2**20
"""Bytes of a configuration, far beyond any that ubmd writes."""
_MOST_NODES = 200_000
_DEEPEST = 100


def read_config(path: Path) -> dict[str, Any]:
    """The configuration in a run's folder, as plain values; nothing in it is executed.

    Raises:
        InputError: the file is missing, damaged, or no configuration.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path} is too large for a configuration")
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except InputError:
        raise
    except Exception as error:  # PyYAML's readers of values raise anything from IndexError to OverflowError
        raise InputError(f"{path} is damaged ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is damaged (it holds no mapping)")
    _check_size(config, path)
    return config


def _check_size(config: Any, path: Path) -> None:
    """Refuses aliases of YAML that contain themselves, or one another again and again."""
    waiting, seen = [(config, 0)], 0
    while waiting:
        node, depth = waiting.pop()
        seen += 1
        if depth > _DEEPEST or seen > _MOST_NODES:
            raise InputError(f"{path} is damaged (it is nested too deeply, perhaps in itself)")
        if isinstance(node, Mapping):
            waiting += [(part, depth + 1) for pair in node.items() for part in pair]
        elif isinstance(node, list | tuple | set):
            waiting += [(part, depth + 1) for part in node]


def flatten(config: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        out |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return out


def without(flat: Mapping[str, Any], parts: tuple[str, ...] = MAY_DIFFER) -> dict[str, Any]:
    """A flat configuration without parts of it."""
    return {k: v for k, v in flat.items() if not any(f"{k}.".startswith(f"{part}.") for part in parts)}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What two configurations differ in that has a say in the result, by key: the value before, and now."""
    old, new = without(flatten(before)), without(flatten(now))
    keys = sorted(old.keys() | new.keys())
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def config_digest(config: Mapping[str, Any], *, leave_out: tuple[str, ...] = MAY_DIFFER) -> str:
    """Digest of what has a say in the result; 1 and 1.0 are the same. No secret can be guessed from it."""
    told = {key: _plain(value) for key, value in without(flatten(hidden(config)), leave_out).items()}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53 else value
