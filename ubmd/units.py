"""Units: eV, Å, fs, amu and K everywhere inside; everything else is converted here, at the boundary.

Derived units: forces eV/Å, stress eV/Å³ (positive under tension, as in ASE), momenta amu Å/fs.
Values are those of :mod:`ase.units` (CODATA 2014), so that results agree with ASE to the last digit.
"""

from __future__ import annotations

from ase import units as _ase

KB: float = float(_ase.kB)
"""Boltzmann constant, eV/K."""

ASE_TIME_PER_FS: float = float(_ase.fs)
"""One femtosecond in ASE's time unit, Å sqrt(amu/eV)."""

ACCELERATION: float = ASE_TIME_PER_FS**2
"""Acceleration in Å/fs² of a mass of 1 amu under a force of 1 eV/Å."""

KCAL_PER_MOL: float = float(_ase.kcal / _ase.mol)
"""1 kcal/mol in eV."""

KJ_PER_MOL: float = float(_ase.kJ / _ase.mol)
"""1 kJ/mol in eV."""

GPA: float = float(_ase.GPa)
"""1 GPa in eV/Å³."""

MPA: float = 1e-3 * GPA
"""1 MPa in eV/Å³."""

BOHR: float = float(_ase.Bohr)
"""1 Bohr in Å."""

HARTREE: float = float(_ase.Hartree)
"""1 Hartree in eV."""
