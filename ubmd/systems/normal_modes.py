"""Thermal displacements along the normal modes of a structure, in the harmonic approximation."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from numpy.typing import NDArray

from ubmd.data.inherit import descendant, fixed_atoms
from ubmd.units import KB

__all__ = ["LabelForces", "NormalModes", "displaced", "normal_modes"]

STEP = 0.01
"""Å, of the finite differences."""
LOWEST = 100.0
"""1/cm; what moves slower (translations, rotations, turns of groups) has no bounds in the harmonic approximation."""

LabelForces = Callable[[Sequence[Atoms]], list[NDArray[np.float64]]]
"""Forces [n_atoms, 3] eV/Å of structures by a reference."""


@dataclass(frozen=True)
class NormalModes:
    """The modes of a structure above ``LOWEST``."""

    eigenvalues: NDArray[np.float64]
    """[m] squared angular frequencies, eV/(Å² amu)."""
    vectors: NDArray[np.float64]
    """[m, n_atoms, 3] displacements of length one in mass-weighted coordinates, 1/sqrt(amu)."""

    @property
    def wavenumbers(self) -> NDArray[np.float64]:
        """[m] 1/cm."""
        return _wavenumbers(self.eigenvalues)

    def displacement(self, temperature: float, rng: np.random.Generator) -> NDArray[np.float64]:
        """[n_atoms, 3] Å, of classical harmonic oscillators: the amplitude of mode k has the variance k_B T / ω_k²."""
        amplitudes = rng.standard_normal(len(self.eigenvalues)) * np.sqrt(KB * temperature / self.eigenvalues)
        return np.einsum("m,mna->na", amplitudes, self.vectors)


def displaced(atoms: Atoms, reads: Collection[str] = ()) -> list[Atoms]:
    """Copies of a structure whose forces give its Hessian: each coordinate of a free atom, by a step up and down."""
    copies = []
    for atom in np.flatnonzero(~fixed_atoms(atoms, "the structure to displace")):
        for axis in range(3):
            for step in (STEP, -STEP):
                copy = descendant(atoms, reads)
                copy.positions[atom, axis] += step
                copies.append(copy)
    return copies


def normal_modes(atoms: Atoms, forces: Sequence[NDArray[np.float64]]) -> NormalModes:
    """The modes of a structure, from forces of the structures of :func:`displaced`.

    Eigenvalues of M^(-1/2) H M^(-1/2), with H the Hessian by central differences, made symmetric. Modes below
    ``LOWEST`` are left out, and so are imaginary ones: the structure is best a minimum of the reference.

    Args:
        atoms: the structure; fixed atoms stay.
        forces: [n_atoms, 3] eV/Å of each, in the same order.
    """
    free = ~fixed_atoms(atoms, "the structure to displace")
    pairs = np.array(forces)[:, free].reshape(-1, 2, 3 * free.sum())
    hessian = -(pairs[:, 0] - pairs[:, 1]) / (2 * STEP)
    per_mass = np.repeat(atoms.get_masses()[free], 3) ** -0.5
    eigenvalues, vectors = np.linalg.eigh(0.5 * (hessian + hessian.T) * np.outer(per_mass, per_mass))
    kept = _wavenumbers(eigenvalues) > LOWEST
    modes = np.zeros((kept.sum(), len(atoms), 3))
    modes[:, free] = (vectors[:, kept].T * per_mass).reshape(-1, free.sum(), 3)
    return NormalModes(eigenvalues[kept], modes)


def _wavenumbers(eigenvalues: NDArray[np.float64]) -> NDArray[np.float64]:
    """1/cm, from squared frequencies in eV/(Å² amu); negative for imaginary ones."""
    to_energy = units._hbar * 1e10 / math.sqrt(units._e * units._amu)  # eV, of one sqrt(eV/(Å² amu))
    return np.sign(eigenvalues) * np.sqrt(np.abs(eigenvalues)) * to_energy / units.invcm
