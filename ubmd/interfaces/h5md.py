"""Walkers' frames as H5MD 1.1, which MDAnalysis, VMD and others read (https://www.nongnu.org/h5md/h5md.html).

One file is of one walker: MDAnalysis reads the first group of particles alone. Layout (f frames, n atoms):

    /h5md                           attribute version = [1, 1]; author, creator, modules/units
    /particles/all/box              attributes dimension = 3, boundary = "periodic" or "none" along each vector
    /particles/all/box/edges        [f, 3, 3] Angstrom, rows are the lattice vectors; not of molecules
    /particles/all/species          [n] atomic numbers
    /particles/all/mass             [n] u
    /particles/all/position         [f, n, 3] Angstrom, unwrapped
    /particles/all/velocity         [f, n, 3] Angstrom fs-1
    /particles/all/force            [f, n, 3] kJ mol-1 Angstrom-1, a unit that MDAnalysis takes; without the bias
    /particles/all/atomic_uncertainty [f, n] eV Angstrom-1
    /observables/potential_energy   [f] eV, likewise kinetic_energy, bias_energy and uncertainty, of the energy per atom
    /observables/temperature        [f] K
    /observables/tau                [f]
    /observables/stress             [f, 3, 3] eV Angstrom-3, positive under tension

with ``value``, ``step`` and ``time`` (fs) of each that has frames. What a trajectory does not hold is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ubmd.dynamics.exploration import Exploration, kinetic_of_frames
from ubmd.units import KJ_PER_MOL
from ubmd.version import __version__

__all__ = ["write_h5md"]


def write_h5md(path: Path, blocks: Iterable[Exploration], n_frames: int) -> None:
    """Writes the frames of one walker, block by block; an existing file is replaced.

    Args:
        path: the file.
        blocks: frames in order, with ``time`` where that is known; all have the same fields.
        n_frames: of all blocks together.
    """
    with h5py.File(path, "w") as file:
        done, elements = 0, {}
        for block in blocks:
            values = dict(_values(block))
            if not elements:
                elements = _begin(file, block, values, n_frames)
            here = slice(done, done + block.n_frames)
            for name in elements.keys() & values.keys():
                elements[name][here] = values[name][0]
            done += block.n_frames


def _values(block: Exploration) -> Iterator[tuple[str, tuple[NDArray[Any], str]]]:
    """What a block holds, by its place in the file, with units."""
    all_, observables = "particles/all", "observables"
    yield "step", (block.step, "")
    if block.time is not None:
        yield "time", (block.time, "fs")
    yield f"{all_}/position", (block.positions, "Angstrom")
    if block.cell.any():
        yield f"{all_}/box/edges", (block.cell, "Angstrom")
    if (found := kinetic_of_frames(block)) is not None:
        yield f"{all_}/velocity", (found.velocities, "Angstrom fs-1")
        yield f"{observables}/kinetic_energy", (found.energy, "eV")
        yield f"{observables}/temperature", (found.temperature, "K")
    if block.forces is not None:
        yield f"{all_}/force", (block.forces / KJ_PER_MOL, "kJ mol-1 Angstrom-1")
    for place, values, unit in (
        (f"{all_}/atomic_uncertainty", block.atomic_uncertainty, "eV Angstrom-1"),
        (f"{observables}/potential_energy", block.energy, "eV"),
        (f"{observables}/bias_energy", block.bias_energy, "eV"),
        (f"{observables}/uncertainty", block.uncertainty, "eV"),
        (f"{observables}/tau", block.tau, ""),
        (f"{observables}/stress", block.stress, "eV Angstrom-3"),
    ):
        if values is not None and not np.isnan(values).all():
            yield place, (values, unit)


def _begin(
    file: h5py.File, block: Exploration, values: dict[str, tuple[NDArray[Any], str]], n_frames: int
) -> dict[str, h5py.Dataset]:
    """Writes what is of no frame; returns a dataset for each of ``values``, empty yet."""
    about = file.create_group("h5md")
    about.attrs["version"] = np.array([1, 1])
    about.create_group("author").attrs["name"] = "N/A"
    creator = about.create_group("creator")
    creator.attrs["name"], creator.attrs["version"] = "ubmd", __version__
    about.create_group("modules/units").attrs["version"] = np.array([1, 0])
    particles = file.create_group("particles/all")
    particles["species"] = block.numbers.astype(np.int32)
    particles["mass"] = block.masses[0]
    particles["mass"].attrs["unit"] = "u"
    box = particles.create_group("box")
    box.attrs["dimension"] = 3
    box.attrs["boundary"] = np.array([b"periodic" if p else b"none" for p in block.pbc])
    out, clock = {}, {}
    for name, (array, unit) in values.items():
        if name in ("step", "time"):
            place = "particles/all/position"
            clock[name] = out[name] = file.require_group(place).create_dataset(name, (n_frames,), array.dtype)
        else:
            group, shape = file.require_group(name), array.shape[1:]
            chunks = (1, *shape) if shape else (min(n_frames, 1024),)
            out[name] = group.create_dataset(
                "value", (n_frames, *shape), "f8", chunks=chunks, compression="gzip", shuffle=True, fillvalue=np.nan
            )
            for key, dataset in clock.items():
                if key not in group:
                    group[key] = dataset  # a link to the one in position
        if unit:
            out[name].attrs["unit"] = unit
    return out
