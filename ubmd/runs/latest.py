"""The newest run of a name, by a link; of the standard library alone, as it is used before torch may be imported."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

__all__ = ["LATEST", "is_latest", "point_back", "point_to"]

LATEST = "latest"
"""The link to the newest run, beside the folders of the runs of a name."""


def is_latest(path: Path) -> bool:
    """Whether a path is that link, and no run folder of its own."""
    return path.name == LATEST and path.is_symlink()


def point_to(folder: Path) -> str | None:
    """Has ``latest`` beside a run's folder lead there.

    It is replaced whole, and relative, so that the folder around may be moved. Where a file system has no links, or
    something else has that name, there is none.

    Returns:
        where it led before; None if there was none.
    """
    link = folder.with_name(LATEST)
    try:
        before = os.readlink(link) if is_latest(link) else None
        if folder.name == LATEST or (before is None and os.path.lexists(link)):
            return None
        _replace(link, folder.name)
        return before
    except OSError:  # nothing that a run needs
        return None


def _replace(link: Path, target: str) -> None:
    temporary = link.with_name(f".{LATEST}.{secrets.token_hex(8)}.tmp")
    os.symlink(target, temporary)
    try:
        os.replace(temporary, link)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def point_back(folder: Path, before: str | None) -> None:
    """Takes back what :func:`point_to` did for a folder that is about to be removed."""
    link = folder.with_name(LATEST)
    with suppress(OSError):
        if not is_latest(link) or os.readlink(link) != folder.name:
            return  # another run has begun since
        if before not in (None, folder.name) and link.with_name(before).exists():
            _replace(link, before)
        else:
            link.unlink()
