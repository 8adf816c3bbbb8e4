"""Records: JSON files that know their own checksum and those of the files that they vouch for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ubmd.errors import InputError
from ubmd.files import sha256_of, write_text

__all__ = ["checksums", "faults", "is_sealed", "read_record", "write_record"]


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a record, whole or not at all; ``sha256`` is added to it."""
    write_text(path, json.dumps({**content, "sha256": _digest(content)}, indent=2) + "\n")


def read_record(path: Path, *, sealed: bool = False) -> dict[str, Any] | None:
    """A record without its own checksum; None if there is none.

    Args:
        path: the file.
        sealed: whether one without checksums, of an old version, counts as damaged.

    Raises:
        InputError: the file is not what was written.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged (it is no record)")
    if (sealed or is_sealed(content)) and content.get("sha256") != _digest(content):
        raise InputError(f"{path} is damaged (it is not what its checksum says)")
    return {key: value for key, value in content.items() if key != "sha256"}


def is_sealed(content: Mapping[str, Any]) -> bool:
    """Whether a record has checksums; those of old versions have none."""
    return bool(content.keys() & {"files", "sha256"})


def checksums(*paths: Path) -> dict[str, str]:
    """Checksums of those of the files that are there, by name."""
    return {path.name: sha256_of(path) for path in paths if path.is_file()}


def faults(folder: Path, files: object) -> dict[str, str]:
    """What is wrong with the files in a folder that a record vouches for, by name: ``missing`` or ``changed``."""
    out = {}
    for name, digest in (files if isinstance(files, dict) else {}).items():
        file = folder / name
        if not file.is_file():
            out[name] = "missing"
        elif sha256_of(file) != digest:
            out[name] = "changed"
    return out


def _digest(content: Mapping[str, Any]) -> str:
    told = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
