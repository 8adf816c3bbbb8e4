"""Files of structures that are made once and read by many runs: what was cut or changed in between is noticed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from ubmd.data.inherit import Inherited
from ubmd.data.io import read_structures, write_structures
from ubmd.errors import InputError

__all__ = ["read_sealed", "write_sealed"]

_SEAL = "sha256"


def write_sealed(path: Path, structures: Sequence[Atoms], key: str, record: Mapping[str, Any]) -> None:
    """Writes structures, and in ``info[key]`` of the first a record with the checksum of all of them.

    Args:
        path: extended XYZ. It appears all at once, or not at all.
        structures: at least one.
        key: name of the entry.
        record: plain JSON types.
    """
    first, *rest = structures
    first = first.copy()
    first.info[key] = {**record, _SEAL: _checksum(structures)}
    write_structures(path, [first, *rest])


def read_sealed(path: Path, key: str) -> tuple[list[Atoms], dict[str, Any]]:
    """The structures of a file of :func:`write_sealed` and its record; one of an earlier version has no checksum.

    Raises:
        InputError: if the file is none of these, or has other structures than it was written with.
    """
    try:
        structures = read_structures(path, report=False)
    except InputError as error:
        raise InputError(f"path: {path} was not written here, or was damaged since ({error}); {_REMEDY}") from error
    record = structures[0].info.pop(key, None)
    if not isinstance(record, dict):
        raise InputError(f"path: {path} was not written here, or its first structure is lost; {_REMEDY}")
    seal = record.pop(_SEAL, None)
    if seal is not None and seal != _checksum(structures):
        raise InputError(f"path: {path} was cut or changed since it was written; {_REMEDY}")
    return structures, record


_REMEDY = "restore it, or move it away to have it made anew"


def _checksum(structures: Sequence[Atoms]) -> str:
    """Of all that computations see of structures, and of their labels."""
    digest = hashlib.sha256()
    for atoms in structures:
        for values in (
            *(atoms.numbers, atoms.positions, np.asarray(atoms.cell), atoms.pbc),
            *(atoms.arrays.get("REF_forces", []), atoms.info.get("REF_energy", []), atoms.info.get("REF_stress", [])),
        ):
            digest.update(np.ascontiguousarray(values, dtype=float).tobytes() + b"\0")
        digest.update(Inherited.of(atoms).record().encode())
    return digest.hexdigest()
