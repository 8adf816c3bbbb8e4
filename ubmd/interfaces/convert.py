"""Trajectories of walkers as files that other programs read, block by block: H5MD, ASE's ``.traj``, extended XYZ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase.cell import Cell
from ase.io.trajectory import TrajectoryWriter

from ubmd.dynamics.exploration import Exploration, frames_with_results
from ubmd.dynamics.trajectory import TrajectoryPart, opened_trajectories
from ubmd.errors import InputError
from ubmd.files import replaced
from ubmd.interfaces.h5md import write_h5md

__all__ = ["FORMATS", "Written", "convert_trajectory", "turned"]

BLOCK = 200_000
"""Atoms, of all frames together, that are in memory at once."""


@dataclass(frozen=True)
class Written:
    """A file that was written."""

    path: Path
    system: str
    """"" for the only one."""
    walker: int
    n_frames: int


def convert_trajectory(
    source: Path | str,
    target: Path,
    to: str,
    *,
    walker: int | None = None,
    system: str | None = None,
    time_steps: Mapping[str, float] | None = None,
    standard_axes: bool = False,
    on_frames: Callable[[int, int], None] | None = None,
) -> list[Written]:
    """Writes the frames of each walker of a trajectory into a file of its own.

    Args:
        source: what :func:`~ubmd.dynamics.trajectory.write_trajectories` wrote.
        target: the file; where there are several, the name of the system and ``walker-0`` are put into its name.
        to: one of :data:`FORMATS`.
        walker: whose frames; None for all.
        system: whose walkers; None for all.
        time_steps: fs, by system, for trajectories that hold no time.
        standard_axes: turn each frame as :func:`turned` does.
        on_frames: called with the frames written so far, and those there are.

    Raises:
        InputError: the trajectory cannot be read, or has no such walker or system, or no frames of it.
    """
    with opened_trajectories(source) as parts:
        if system is not None and system not in parts:
            known = ", ".join(name for name in parts if name) or "one without a name"
            raise InputError(f"trajectory {source} has no system {system}; it has {known}")
        chosen = {name: part for name, part in parts.items() if system in (None, name)}
        plan = [(name, w, part) for name, part in chosen.items() for w in _walkers(part) if walker in (None, w)]
        if not plan:
            known = ", ".join(f"{w}" for part in chosen.values() for w in _walkers(part)) or "none"
            what = "a frame" if walker is None else f"a frame of walker {walker}"
            raise InputError(f"trajectory {source} has not {what} (walkers with frames: {known})")
        sizes = [int((part.walker == w).sum()) for _, w, part in plan]
        written: list[Written] = []
        for (name, w, part), n_frames in zip(plan, sizes, strict=True):
            words = [name] if name and system is None else []
            words += [f"walker-{w}"] if walker is None and len(_walkers(part)) > 1 else []
            path = target.with_stem("-".join([target.stem, *words]))
            with replaced(path) as temporary:
                blocks = _blocks(part, w, (time_steps or {}).get(name))
                FORMATS[to](temporary, map(turned, blocks) if standard_axes else blocks, n_frames)
            written.append(Written(path, name, w, n_frames))
            if on_frames is not None:
                on_frames(sum(sizes[: len(written)]), sum(sizes))
    return written


def _walkers(part: TrajectoryPart) -> list[int]:
    """Walkers that have frames."""
    return np.unique(part.walker).tolist()


def _blocks(part: TrajectoryPart, walker: int, time_step: float | None) -> Iterator[Exploration]:
    """The frames of a walker, so many at a time; what is known of walkers is that of this one alone."""
    start, stop = np.searchsorted(part.walker, [walker, walker + 1])
    size = max(1, BLOCK // part.n_atoms)
    for first in range(start, stop, size):
        block = part.frames(slice(first, min(first + size, stop))).of_walker(walker)
        if block.time is None and time_step is not None:
            block = replace(block, time=block.step * time_step)
        yield block


def turned(block: Exploration) -> Exploration:
    """The frames turned so that their first lattice vector is along x and the second in the xy plane.

    Programs that know a cell by its lengths and angles alone, MDAnalysis among them, take that for granted. A crystal
    is the same after it; frames without three lattice vectors, or with left-handed ones, which would become another
    one, stay as they are.
    """
    diagonal = block.cell.diagonal(axis1=1, axis2=2)
    if not (np.linalg.det(block.cell) > 0).all() or ((diagonal > 0).all() and not np.triu(block.cell, 1).any()):
        return block
    cells, turns = (np.array(part) for part in zip(*(Cell(cell).standard_form() for cell in block.cell), strict=True))
    changes: dict[str, Any] = {"cell": cells}
    for name in ("positions", "momenta", "forces"):
        if (values := getattr(block, name)) is not None:
            changes[name] = values @ turns.transpose(0, 2, 1)
    if block.stress is not None:
        changes["stress"] = turns @ block.stress @ turns.transpose(0, 2, 1)
    return replace(block, **changes)


def _write_traj(path: Path, blocks: Iterable[Exploration], n_frames: int) -> None:
    with TrajectoryWriter(str(path), "w") as file:
        for block in blocks:
            for atoms in frames_with_results(block):
                if "atomic_uncertainty" in atoms.arrays:  # the format keeps no arrays but ASE's own
                    atoms.info["atomic_uncertainty"] = atoms.arrays["atomic_uncertainty"]
                file.write(atoms)


def _write_extxyz(path: Path, blocks: Iterable[Exploration], n_frames: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for block in blocks:
            ase.io.write(file, frames_with_results(block), format="extxyz")


FORMATS: Mapping[str, Callable[[Path, Iterable[Exploration], int], None]] = {
    "h5md": write_h5md,
    "traj": _write_traj,
    "extxyz": _write_extxyz,
}
"""What trajectories can be converted to: functions that write the frames of one walker."""
