"""The potential of a run, by its folder."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ubmd.errors import InputError
from ubmd.runs.latest import is_latest
from ubmd.runs.store import RoundStore

__all__ = ["potential_file"]

log = logging.getLogger(__name__)


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
