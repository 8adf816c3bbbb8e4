"""MIL-53(Al), a metal-organic framework that breathes: [Al(OH)(O2C-C6H4-CO2)], 76 atoms in the cell."""

from __future__ import annotations

from pathlib import Path

from ase import Atoms
from ase.spacegroup import crystal

from ubmd.data.io import read_structures
from ubmd.errors import InputError

__all__ = ["PATH_FILE", "breathing_path", "crystal_structure", "relaxed_structure"]

SITES: tuple[tuple[str, tuple[float, float, float]], ...] = (
    ("Al", (0.75, 0.25, 0.25)),  # 4c
    ("O", (0.6730, 0.3256, 0.1594)),  # 16j, carboxylate
    ("O", (0.0, 0.75, 0.8061)),  # 4e, hydroxyl
    ("C", (0.3209, 0.4646, 0.0302)),  # 16j, ring, bound to H
    ("C", (0.5, 0.4278, 0.0609)),  # 8h, ring, bound to the carboxylate
    ("C", (0.5, 0.3550, 0.1299)),  # 8h, carboxylate
    ("H", (0.1774, 0.4382, 0.0512)),  # 16j, ring
    ("H", (0.0, 0.75, 0.8732)),  # 4e, hydroxyl
)
"""Asymmetric unit of the large pore in space group Imma (no. 74), fractional coordinates, after symmetrisation of
CoRE MOF 2014 SABVUN_clean; its O-H bond of 0.86 Å, as X-rays see it, is too short."""

LENGTHS = (6.6085, 16.675, 12.813)
"""a, b, c of the large pore in Å (Loiseau et al., Chem. Eur. J. 2004, 10, 1373; CSD SABVUN). Chains of AlO4(OH)2
octahedra run along a; linkers along the diagonals of b and c, which fold like a wine rack."""

PATH_FILE = Path(__file__).with_name("mil53_gfn2.extxyz")
"""Both phases and the way between them with GFN2-xTB, by volume: ``scripts/relax_mil53.py`` makes it."""


def crystal_structure() -> Atoms:
    """The large pore from its crystal structure, 76 atoms; relax it before use."""
    atoms = crystal(
        [symbol for symbol, _ in SITES],
        basis=[site for _, site in SITES],
        spacegroup=74,
        cellpar=[*LENGTHS, 90, 90, 90],
    )
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)


def breathing_path() -> list[Atoms]:
    """Structures from the closed to the large pore by volume, all with the same order of atoms.

    The first and the last are the two minima of GFN2-xTB; those between are minima at their volume. They carry
    their labels: ``info`` holds REF_energy and REF_stress, ``arrays`` REF_forces.
    """
    return read_structures(PATH_FILE, report=False)


def relaxed_structure(phase: str) -> Atoms:
    """The ``"closed"`` or ``"large"`` pore, relaxed with GFN2-xTB, without labels.

    Raises:
        InputError: for another phase.
    """
    path = breathing_path()
    ends = {"closed": path[0], "large": path[-1]}
    if phase not in ends:
        raise InputError(f"system.structure.phase={phase} is no phase of MIL-53(Al); use closed or large")
    found = ends[phase]
    return Atoms(found.numbers, found.positions, cell=found.cell, pbc=True)
