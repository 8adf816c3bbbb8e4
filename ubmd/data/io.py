"""Structures and labelled data sets as extended XYZ, with ``REF_energy``, ``REF_forces``, ``REF_stress``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.stress import voigt_6_to_full_3x3_stress

from ubmd.data.neighbours import neighbour_matrix
from ubmd.errors import InputError
from ubmd.files import replaced

__all__ = [
    "check_species",
    "check_structure",
    "is_labelled",
    "read_labelled",
    "read_structures",
    "write_structures",
]


def read_structures(path: str | Path, *, index: str = ":") -> list[Atoms]:
    """Reads structures in any format that ASE knows and checks each.

    Raises:
        InputError: if the file is missing, unreadable or empty, or a structure in it is unusable.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"structure file {path} does not exist; give the path of e.g. an .xyz or .extxyz file")
    try:
        frames = ase.io.read(path, index=index)
    except Exception as error:  # ASE's readers raise anything from KeyError to StopIteration
        raise InputError(f"structure file {path} cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(frames, list):
        frames = [frames]
    if not frames:
        raise InputError(f"structure file {path} holds no structure")
    for number, atoms in enumerate(frames):
        check_structure(atoms, f"structure {number} of {path}")
        atoms.calc, results = None, atoms.calc
        if results is not None:
            _adopt_labels(atoms, results.results)
        _check_labels(atoms, f"structure {number} of {path}")
    return frames


def _adopt_labels(atoms: Atoms, results: dict[str, np.ndarray]) -> None:
    """Takes labels that ASE parsed as calculator results (energy, forces, stress) as REF_ ones."""
    if "energy" in results:
        atoms.info.setdefault("REF_energy", float(results["energy"]))
    if "forces" in results and "REF_forces" not in atoms.arrays:
        atoms.arrays["REF_forces"] = np.asarray(results["forces"], dtype=float)
    if "stress" in results:
        atoms.info.setdefault("REF_stress", results["stress"])


def _check_labels(atoms: Atoms, name: str) -> None:
    """Refuses labels that are not numbers of the right shape; makes energy a float and stress a 3x3 matrix."""
    labels = {key: atoms.info[key] for key in ("REF_energy", "REF_stress") if key in atoms.info}
    if "REF_forces" in atoms.arrays:
        labels["REF_forces"] = atoms.arrays["REF_forces"]
    for key, label in labels.items():
        try:
            values = np.asarray(label, dtype=float)
        except (TypeError, ValueError):
            values = np.array([np.nan])
        if not np.isfinite(values).all():
            raise InputError(f"{name} has a {key} that is not a number; repair or remove the structure")
        if key == "REF_energy":
            if values.size != 1:
                raise InputError(f"{name} has a REF_energy of {values.size} numbers; write one, in eV")
            atoms.info[key] = float(values.reshape(()))
        elif key == "REF_forces" and values.shape != (len(atoms), 3):
            raise InputError(f"{name} has REF_forces of shape {values.shape}; write three numbers an atom, in eV/Å")
        elif key == "REF_stress":
            if values.size not in (6, 9):
                raise InputError(f"{name} has a REF_stress of {values.size} numbers; write 9 (3x3, eV/Å³) or 6 (Voigt)")
            full = voigt_6_to_full_3x3_stress(values) if values.size == 6 else values.reshape(3, 3)
            atoms.info[key] = full


def is_labelled(atoms: Atoms) -> bool:
    """Whether a structure carries an energy and forces."""
    return "REF_energy" in atoms.info and "REF_forces" in atoms.arrays


def read_labelled(path: str | Path) -> list[Atoms]:
    """Reads structures that carry labels.

    Raises:
        InputError: as :func:`read_structures`, or if a structure lacks energy or forces.
    """
    frames = read_structures(path)
    for number, atoms in enumerate(frames):
        missing = [key for key in ("REF_energy",) if key not in atoms.info]
        missing += [key for key in ("REF_forces",) if key not in atoms.arrays]
        if missing:
            raise InputError(
                f"structure {number} of {path} has no {' and no '.join(missing)}; "
                "label it first or store its energy and forces under these names"
            )
    return frames


def check_structure(atoms: Atoms, name: str) -> None:
    """Refuses a structure that no computation can be started from.

    Raises:
        InputError: for no atoms, non-finite coordinates, a periodic cell without volume, or coinciding atoms.
    """
    if len(atoms) == 0:
        raise InputError(f"{name} has no atoms")
    if not np.isfinite(atoms.positions).all():
        bad = int(np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))[0])
        raise InputError(f"{name} has a position that is not a number at atom {bad}; repair or remove it")
    if atoms.pbc.any():
        vectors = np.asarray(atoms.cell)[atoms.pbc]
        lengths = np.linalg.norm(vectors, axis=1)
        spanned = np.sqrt(max(np.linalg.det(vectors @ vectors.T), 0.0))
        if not np.isfinite(vectors).all() or spanned <= 1e-6 * max(np.prod(lengths), 1e-6):
            raise InputError(f"{name} is periodic but its cell has zero volume; give its lattice or switch pbc off")
    cell = np.asarray(atoms.cell)[None] if atoms.pbc.any() else np.zeros((1, 3, 3))
    touching = neighbour_matrix(atoms.positions, cell, atoms.pbc[None], np.array([len(atoms)]), 1e-3)[1].any(axis=1)
    if touching.any():
        raise InputError(f"{name} has two atoms in the same place (atom {int(touching.argmax())}); remove one")


def check_species(structures: Iterable[Atoms], species: Sequence[str], name: str) -> None:
    """Refuses elements that the model would not know.

    Raises:
        InputError: naming the element and the remedy.
    """
    known = set(species)
    for number, atoms in enumerate(structures):
        foreign = sorted({chemical_symbols[z] for z in atoms.numbers} - known)
        if foreign:
            raise InputError(
                f"structure {number} of {name} contains {foreign[0]}, which is not in "
                f"system.species={sorted(known)}; add it there or remove the structure"
            )


def write_structures(path: str | Path, structures: Sequence[Atoms]) -> None:
    """Writes extended XYZ atomically: either the whole file is there or the old one."""
    with replaced(Path(path)) as temporary:
        if structures:
            ase.io.write(temporary, [_flat_stress(a) for a in structures], format="extxyz")
        else:
            temporary.touch()


def _flat_stress(atoms: Atoms) -> Atoms:
    """A copy whose 3x3 stress is nine numbers, the form that other readers of extended XYZ expect."""
    if "REF_stress" not in atoms.info:
        return atoms
    copy = atoms.copy()
    copy.info["REF_stress"] = np.asarray(atoms.info["REF_stress"], dtype=float).reshape(9)
    return copy
