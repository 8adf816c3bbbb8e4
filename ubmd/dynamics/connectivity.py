"""Which bonds of a molecule can be turned, and which atoms turn with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from ubmd.data.inherit import fixed_atoms
from ubmd.errors import InputError

__all__ = ["Rotation", "bonded", "rotations"]

STRETCH = 1.25
"""Atoms are bonded below this multiple of the sum of their covalent radii."""


@dataclass(frozen=True)
class Rotation:
    """A bond that can be turned."""

    axis: tuple[int, int]
    """The bond's atoms; they stay where they are."""
    moved: tuple[int, ...]
    """Atoms that turn: those beyond the second atom of the axis."""


def bonded(atoms: Atoms) -> NDArray[np.bool_]:
    """Which atoms are bonded, [n, n] symmetric, by their distance alone; periodicity is not looked at."""
    radii = covalent_radii[atoms.numbers]
    distance = np.linalg.norm(atoms.positions[:, None] - atoms.positions, axis=2)
    return (distance < STRETCH * (radii[:, None] + radii)) & ~np.eye(len(atoms), dtype=bool)


def rotations(atoms: Atoms, bonds: Sequence[Sequence[int]] | None = None) -> tuple[Rotation, ...]:
    """The bonds that can be turned: in no ring, with further atoms at both ends. The smaller end turns, or the other
    one where it has fixed atoms.

    Args:
        atoms: a molecule near its equilibrium geometry.
        bonds: the bonds wanted, pairs of atoms from 0; None takes all that can be turned.

    Raises:
        InputError: for a periodic structure, a bond that cannot be turned, or no bond at all.
    """
    if atoms.pbc.any():
        raise InputError("torsion moves need a molecule, not a periodic structure; set torsion_fraction=0")
    graph, fixed = bonded(atoms), fixed_atoms(atoms, "the starting structure")
    every = [(int(i), int(j)) for i, j in np.argwhere(np.triu(graph))]
    found = []
    for i, j in every if bonds is None else bonds:
        if not (0 <= i < len(atoms) and 0 <= j < len(atoms) and graph[i, j]):
            raise InputError(f"bonds names {[i, j]}, which are not two bonded atoms of the starting structure")
        turn = _rotation(graph, fixed, i, j)
        if turn is not None:
            found.append(turn)
        elif bonds is not None:
            raise InputError(f"bonds names {[i, j]}, which is in a ring or has nothing that can turn at one end")
    if not found:
        raise InputError("the starting structure has no bond that can be turned; set torsion_fraction=0")
    return tuple(found)


def _rotation(graph: NDArray[np.bool_], fixed: NDArray[np.bool_], i: int, j: int) -> Rotation | None:
    """The turn about a bond, or None if there is none."""
    cut = graph.copy()
    cut[i, j] = cut[j, i] = False
    part = connected_components(csr_array(cut), directed=False)[1]
    if part[i] == part[j]:
        return None
    sides = {end: np.flatnonzero((part == part[end]) & (np.arange(len(part)) != end)) for end in (i, j)}
    if not len(sides[i]) or not len(sides[j]):
        return None
    for first, second in sorted([(i, j), (j, i)], key=lambda bond: len(sides[bond[1]])):
        if not fixed[sides[second]].any():
            return Rotation((first, second), tuple(sides[second].tolist()))
    return None
