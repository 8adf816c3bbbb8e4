"""Runs by their folders: the newest one of a name, and the potential of one."""

from __future__ import annotations

import logging
import os
import secrets
from contextlib import suppress
from pathlib import Path

from ubmd.errors import InputError
from ubmd.runs.store import RoundStore

__all__ = ["LATEST", "is_latest", "point_back", "point_to", "potential_file"]

log = logging.getLogger(__name__)

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


def potential_file(path: str | Path) -> Path:
    """The file of a potential: itself, or that of a run's folder.

    A run of ``ubmd learn`` has that of its last finished round, which is told; one of ``ubmd train`` and a round's
    folder have one each.

    Raises:
        InputError: the folder has none, or its last round is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    if is_latest(path):  # which may lead elsewhere later
        path = path.parent / os.readlink(path)
    store = RoundStore(path)
    n_rounds = len(store.records())
    if n_rounds:
        model = store.round(n_rounds - 1).model
        if not model.is_file():
            raise InputError(f"{model} is missing; restore it, or give the model.ckpt of another round")
        log.info("%s: the potential of round %d, %s", path, n_rounds - 1, model.relative_to(path))
        return model
    if (path / "model.ckpt").is_file() and ((path / "metrics.json").is_file() or (path / "round.json").is_file()):
        return path / "model.ckpt"
    if is_latest(path / "latest"):
        raise InputError(f"{path} is no run but a folder of runs; give one of them, e.g. {path / 'latest'}")
    begun = "has no finished round yet" if (path / "rounds").is_dir() else "holds no round of `ubmd learn`"
    raise InputError(f"{path} {begun}, and no finished model.ckpt; give the folder of a run, or a potential's file")
