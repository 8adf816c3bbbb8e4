"""Random perturbation of structures (Eqs. 32-34)."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from ubmd.data.inherit import descendant, fixed_atoms
from ubmd.errors import InputError

__all__ = ["check_displacement", "perturb", "random_strain", "stretch"]

LARGEST_DISPLACEMENT = 10.0
"""Å; shifts of more leave nothing of a structure."""


def check_displacement(displacement: float) -> None:
    """Raises InputError for an amplitude of shifts, Å, that is negative or leaves nothing of a structure."""
    if not 0 <= displacement <= LARGEST_DISPLACEMENT:
        raise InputError(f"displacement={displacement} must be from 0 to {LARGEST_DISPLACEMENT:g} Å")


def random_strain(rng: np.random.Generator, amplitude: float) -> NDArray[np.float64]:
    """Symmetric strain (A + A^T) / 2 with the entries of A uniform in ±``amplitude``, [3, 3]."""
    a = rng.uniform(-amplitude, amplitude, size=(3, 3))
    return 0.5 * (a + a.T)


def stretch(strain: NDArray[np.float64]) -> NDArray[np.float64]:
    """Deformation (I + 2 strain)^(1/2) of Eqs. 33 and 34, [3, 3], symmetric.

    Raises:
        ValueError: if the strain is so compressive that I + 2 strain is not positive definite.
    """
    values, vectors = np.linalg.eigh(np.eye(3) + 2 * strain)
    if values.min() <= 0:
        raise ValueError(f"strain collapses the cell: I + 2 strain has the eigenvalue {values.min():.3g}")
    return (vectors * np.sqrt(values)) @ vectors.T


def perturb(
    atoms: Atoms,
    n: int,
    *,
    displacement: float,
    strain: float = 0.0,
    rng: np.random.Generator,
    reads: Collection[str] = (),
) -> list[Atoms]:
    """``n`` copies with every coordinate shifted and, if periodic, the cell strained (Eqs. 32-34).

    Args:
        atoms: the structure to perturb. Its fixed atoms stay; what else is copied says
            :func:`~ubmd.data.inherit.descendant`, labels are not.
        n: number of copies.
        displacement: half-width of the uniform distribution of each coordinate's shift, Å.
        strain: half-width of the uniform distribution behind the strain (dimensionless); 0 keeps the cell.
        rng: the random stream.
        reads: names of what a reference reads of a structure besides the usual.

    Raises:
        InputError: if a strain is asked for a structure that is not fully periodic, or that has fixed atoms.
    """
    if strain and not atoms.pbc.all():
        raise InputError(
            f"system.strain={strain} needs a structure that is periodic in three directions; use system.strain=0"
        )
    moving = ~fixed_atoms(atoms, "the structure to perturb")[:, None]
    if strain and not moving.all():
        raise InputError(f"strain={strain} would move the structure's fixed atoms; use strain=0, or free them")
    out = []
    for _ in range(n):
        copy = descendant(atoms, reads)
        copy.positions += moving * rng.uniform(-displacement, displacement, size=(len(atoms), 3))
        if strain:
            deform = stretch(random_strain(rng, strain))
            copy.set_cell(np.asarray(copy.cell) @ deform)
            copy.positions = copy.positions @ deform  # deform is symmetric
        out.append(copy)
    return out
