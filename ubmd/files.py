"""Writing files that are either whole or not there."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["locked", "replaced"]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes that make the same file waiting, so that one of them does the work for all.

    Look for the file (again) inside the block. The lock, ``.<name>.lock`` beside ``path``, ends with the process that
    holds it, however that ends. Where a file system has no locks the block runs all the same.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, which takes its place when the block ends without an error.

    A reader, or a run that is killed half-way, thus never meets half a file. The suffix is kept, because writers
    infer the format from it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # the rename must not reach the disk before the contents
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
