"""The demos' references, which note every label that they compute."""

from __future__ import annotations

import hashlib
import os

import numpy as np
from ase import Atoms

from ubmd.reference.ase_reference import ASEReference
from ubmd.reference.base import Label
from ubmd.reference.ff19sb import FF19SB

LOG = "UBMD_DRILL_LOG"
"""The environment variable that names the file of the notes."""


def name_of(atoms: Atoms) -> str:
    """What the notes call a structure."""
    digest = hashlib.sha256()
    for values, dtype in ((atoms.numbers, "<i8"), (atoms.positions, "<f8"), (atoms.cell.array, "<f8")):
        digest.update(np.ascontiguousarray(values, dtype=dtype).tobytes())
    return digest.hexdigest()[:16]


def note(what: str, atoms: Atoms) -> None:
    """Appends a line in one write, so that workers do not mix theirs and a kill leaves all of it or nothing."""
    file = os.open(os.environ[LOG], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{what} {name_of(atoms)} {os.getpid()}\n".encode())
    os.close(file)


class CountedASE(ASEReference):
    def compute(self, atoms: Atoms) -> Label:
        note("begun", atoms)
        label = super().compute(atoms)
        note("done", atoms)
        return label


class CountedFF19SB(FF19SB):
    def compute(self, atoms: Atoms) -> Label:
        note("begun", atoms)
        label = super().compute(atoms)
        note("done", atoms)
        return label
