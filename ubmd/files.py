"""Writing files that are either whole or not there, and telling whether they still are what was written."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

__all__ = [
    "leftovers",
    "locked",
    "open_new",
    "remove_leftovers",
    "replaced",
    "save_tensors",
    "sha256_of",
    "write_text",
]

_LEFTOVER = re.compile(r"\..+\.[0-9a-f]+\.tmp(\..*)?")
"""Names that :func:`replaced` gives."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes that make the same file waiting, so that one of them does the work for all.

    Look for the file (again) inside the block. The lock, ``.<name>.lock`` beside ``path``, ends with the process that
    holds it, however that ends. Where a file system has no locks the block runs all the same.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.with_name(f".{path.name}.lock")
    with os.fdopen(os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, which takes its place when the block ends without an error.

    A reader, or a run that is killed half-way, thus never meets half a file. The suffix is kept, because writers
    infer the format from it. The file is there, empty, under a name that nobody could foresee.

    Raises:
        OSError: whatever the system refuses, with a path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(8)}.tmp{path.suffix}")
    try:
        os.close(open_new(temporary))
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # the rename must not reach the disk before the contents
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):
            # a write that fails names no file, and nobody knows the temporary one
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def open_new(path: Path) -> int:
    """Descriptor of a file that was not there, not even as a link."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)


def write_text(path: Path, text: str) -> None:
    """Writes a text in UTF-8, whole or not at all."""
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_tensors(path: Path, content: Any) -> None:
    """``torch.save``, whole or not at all."""
    import torch

    buffer = BytesIO()
    torch.save(content, buffer)  # on a full disk torch itself says neither that nor where
    with replaced(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def leftovers(folder: Path) -> list[Path]:
    """Temporary files in a folder and below, of processes that still write or were killed as they did."""
    return [Path(where) / name for where, _, names in os.walk(folder) for name in names if _LEFTOVER.fullmatch(name)]


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files; for a folder that nobody else writes into."""
    for path in leftovers(folder):
        path.unlink(missing_ok=True)
