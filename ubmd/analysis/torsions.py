"""Torsion angles of many structures at once, e.g. the φ and ψ of alanine dipeptide."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ubmd.errors import InputError

__all__ = ["torsion_angles"]


def torsion_angles(positions: ArrayLike, indices: ArrayLike) -> NDArray[np.float64]:
    """Torsion angles in the IUPAC convention (0 for cis, positive for a clockwise turn of the far bond).

    Args:
        positions: [..., n_atoms, 3] Å. Used as they are, without minimum images: molecules must be whole.
        indices: [m, 4] atoms of each torsion, counted from 0.

    Returns:
        [..., m] rad in (-π, π]; nan where three consecutive atoms lie on one line.

    Raises:
        InputError: a wrong shape, or an index that is not an atom or occurs twice in a torsion.
    """
    xyz = np.asarray(positions, dtype=np.float64)
    atoms = _checked_indices(xyz, indices)
    p0, p1, p2, p3 = (xyz[..., atoms[:, k], :] for k in range(4))
    first, axis, last = p1 - p0, p2 - p1, p3 - p2
    normal_first = np.cross(first, axis)
    normal_last = np.cross(axis, last)
    # atan2 of the two projections keeps full precision near 0 and π, where arccos loses half the digits.
    sine = np.linalg.norm(axis, axis=-1) * np.sum(first * normal_last, axis=-1)
    cosine = np.sum(normal_first * normal_last, axis=-1)
    angle = np.arctan2(sine, cosine)
    angle[angle == -np.pi] = np.pi  # atan2(-0, -1): the same angle, in the half-open interval
    straight = (normal_first == 0).all(axis=-1) | (normal_last == 0).all(axis=-1)
    angle[straight] = np.nan
    return angle


def _checked_indices(xyz: NDArray[np.float64], indices: ArrayLike) -> NDArray[np.int64]:
    """``indices`` as an [m, 4] array of atoms of ``xyz`` [..., n_atoms, 3]."""
    if xyz.ndim < 2 or xyz.shape[-1] != 3:
        raise InputError(f"positions has shape {xyz.shape}; give [..., n_atoms, 3]")
    atoms = np.asarray(indices)
    if atoms.ndim != 2 or atoms.shape[1] != 4 or not np.issubdtype(atoms.dtype, np.integer):
        raise InputError(f"indices has shape {atoms.shape} and type {atoms.dtype}; give integers of shape [m, 4]")
    outside = atoms[(atoms < 0) | (atoms >= xyz.shape[-2])]
    if outside.size:
        raise InputError(f"indices holds {outside[0]}, but the atoms are 0 to {xyz.shape[-2] - 1}; count from 0")
    for row in atoms:
        if len(set(row.tolist())) < 4:
            raise InputError(f"indices holds the torsion {row.tolist()}; give four different atoms")
    return atoms.astype(np.int64)
