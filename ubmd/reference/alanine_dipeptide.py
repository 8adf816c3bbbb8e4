"""Alanine dipeptide, ACE-ALA-NME: names, order and geometry of its 22 atoms.

Atoms are in AMBER (tleap) order, names are those of OpenMM's ff19SB residue templates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ubmd.reference.openmm_system import RESIDUES, build_system, minimise

if TYPE_CHECKING:
    from ase import Atoms

SYMBOLS: tuple[str, ...] = tuple(name[0] for _, names in RESIDUES for name in names)
"""Chemical symbols, 22 atoms."""

PHI: tuple[int, int, int, int] = (4, 6, 8, 14)
"""Backbone dihedral φ: C(ACE), N, CA, C."""

PSI: tuple[int, int, int, int] = (6, 8, 14, 16)
"""Backbone dihedral ψ: N, CA, C, N(NME)."""

_C7EQ_DEGREES = (-85.0, 70.0)


def ideal_positions(phi: float, psi: float) -> NDArray[np.float64]:
    """Positions of the L enantiomer with ideal bonds and angles and trans amides.

    Args:
        phi: backbone dihedral φ in degrees.
        psi: backbone dihedral ψ in degrees.

    Returns:
        [22, 3] Å.
    """
    x = np.zeros((22, 3))
    x[4] = (1.522, 0.0, 0.0)  # C (ACE); CH3 is the origin
    angle = np.deg2rad(116.6)
    x[6] = x[4] + 1.335 * np.array([-np.cos(angle), np.sin(angle), 0.0])  # N
    x[5] = _outward(x, 4, 1, 6, 1.229)  # O
    x[8] = _place(x, 1, 4, 6, 1.449, 121.9, 180.0)  # CA
    x[7] = _outward(x, 6, 4, 8, 1.010)  # H
    x[14] = _place(x, 4, 6, 8, 1.522, 111.1, phi)  # C
    x[10] = _place(x, 4, 6, 8, 1.526, 109.7, phi - 120.0)  # CB: this side makes it L
    x[9] = _place(x, 4, 6, 8, 1.090, 109.5, phi + 120.0)  # HA
    x[16] = _place(x, 6, 8, 14, 1.335, 116.6, psi)  # N (NME)
    x[15] = _outward(x, 14, 8, 16, 1.229)  # O
    x[18] = _place(x, 8, 14, 16, 1.449, 121.9, 180.0)  # C (NME)
    x[17] = _outward(x, 16, 14, 18, 1.010)  # H
    for k in range(3):  # methyl hydrogens
        torsion = 60.0 + 120.0 * k
        x[(0, 2, 3)[k]] = _place(x, 6, 4, 1, 1.090, 109.5, torsion)
        x[11 + k] = _place(x, 6, 8, 10, 1.090, 109.5, torsion)
        x[19 + k] = _place(x, 14, 16, 18, 1.090, 109.5, torsion)
    return x


def initial_structure(cmap: bool = False) -> Atoms:
    """The C7eq minimum of AMBER ff19SB, deterministic, without labels.

    Args:
        cmap: with ff19SB's CMAP term, or without it as in TorchMD.

    Returns:
        22 atoms, not periodic.
    """
    from ase import Atoms

    positions, _ = minimise(build_system(cmap=cmap), ideal_positions(*_C7EQ_DEGREES))
    return Atoms(SYMBOLS, positions=positions)


def _place(
    x: NDArray[np.float64], a: int, b: int, c: int, length: float, angle: float, torsion: float
) -> NDArray[np.float64]:
    """Position d at ``length`` from c, with the angle b-c-d and the dihedral a-b-c-d in degrees."""
    theta, phi = np.deg2rad(angle), np.deg2rad(torsion)
    axis = _unit(x[c] - x[b])
    normal = _unit(np.cross(x[b] - x[a], axis))
    in_plane = np.cross(normal, axis)
    return x[c] + length * (-np.cos(theta) * axis + np.sin(theta) * (np.cos(phi) * in_plane + np.sin(phi) * normal))


def _outward(x: NDArray[np.float64], centre: int, a: int, b: int, length: float) -> NDArray[np.float64]:
    """Position at ``length`` from ``centre`` in the plane of a and b, away from both."""
    return x[centre] - length * _unit(_unit(x[a] - x[centre]) + _unit(x[b] - x[centre]))


def _unit(vector: ArrayLike) -> NDArray[np.float64]:
    v = np.asarray(vector, dtype=np.float64)
    return v / np.linalg.norm(v)
