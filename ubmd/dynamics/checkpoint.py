"""Saving walkers half-way, so that a run that is killed continues as if nothing had happened."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ubmd.dynamics.state import WalkerState
from ubmd.errors import InputError
from ubmd.files import save_tensors
from ubmd.torch_files import DamagedFileError, read_torch_file

__all__ = ["change_checkpoint", "fingerprint", "load_checkpoint", "save_checkpoint"]

log = logging.getLogger(__name__)

_VERSION = 1


def fingerprint(state: WalkerState, *settings: object) -> str:
    """Names a run by its start and settings, so that another run's checkpoint is not taken for its own.

    Args:
        state: the walkers as the run began.
        settings: whatever else decides the trajectory; told apart by ``repr``, which frozen dataclasses of
            numbers write in full.
    """
    digest = hashlib.sha256(repr(settings).encode())
    batch = state.batch
    for values in (
        *(batch.positions, batch.numbers, batch.cell, batch.pbc, batch.n_atoms),
        *(state.momenta, state.masses, state.temperature, state.seed, state.step, state.walker),
        *(() if state.fixed is None else (state.fixed,)),
    ):
        digest.update(f"{values.dtype}{tuple(values.shape)}".encode())
        digest.update(values.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_checkpoint(path: Path, run: str, values: dict[str, Any], *, longer: str | None = None) -> None:
    """Writes ``values`` (plain containers, numbers, strings and tensors), whole or not at all.

    Args:
        path: the file; replaced if it exists.
        run: the run's :func:`fingerprint`.
        values: what to save.
        longer: what also names runs that go on from this one with another limit on steps.
    """
    save_tensors(path, {"version": _VERSION, "run": run, "longer": longer, "values": values})


def change_checkpoint(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bool:
    """Adds ``change`` of what was saved to it, for the same run; returns whether there is a file that is whole."""
    try:
        saved = read_torch_file(path)
        if changes := change(saved["values"]):
            save_tensors(path, saved | {"values": saved["values"] | changes})
    except (FileNotFoundError, DamagedFileError, KeyError, TypeError):
        return False
    return True


def load_checkpoint(path: Path, run: str, *, longer: str | None = None) -> dict[str, Any] | None:
    """What was saved, on the CPU, or None if there is no file or a damaged one.

    Raises:
        InputError: if the file belongs to another run, also by the name ``longer``.
    """
    if not path.exists():
        return None
    try:
        saved = read_torch_file(path)
        version, owner, values = saved["version"], saved["run"], saved["values"]
    except (DamagedFileError, KeyError, TypeError):
        log.warning("%s is damaged; the walkers start afresh", path)
        return None
    same = owner == run or (longer is not None and saved.get("longer") == longer)
    if version != _VERSION or not same:
        raise InputError(
            f"checkpoint {path} belongs to another run (other start, seeds, integrator, rules, "
            "frame_interval, skin or version); delete it to start the walkers afresh"
        )
    return values
