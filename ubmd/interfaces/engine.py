"""What the interfaces to simulation engines share: units, checks and axes, in one place.

An engine has positions and a cell in units of its own and wants energy, forces and virial in them. :class:`Guest` is
what it asks: a structure that it moves, with the calculator of its potential.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from ubmd.errors import InputError
from ubmd.interfaces.ase import UBMDCalculator
from ubmd.units import BOHR, HARTREE, KCAL_PER_MOL, KJ_PER_MOL

__all__ = ["ATOMIC", "METAL", "OPENMM", "REAL", "Answer", "EngineUnits", "Guest", "standard_axes"]


@dataclass(frozen=True)
class EngineUnits:
    """Units of an engine; those of its forces and virials follow."""

    name: str
    length: float
    """Å."""
    energy: float
    """eV."""


ATOMIC = EngineUnits("Bohr and Hartree", BOHR, HARTREE)
"""Of i-PI."""
OPENMM = EngineUnits("nm and kJ/mol", 10.0, KJ_PER_MOL)
METAL = EngineUnits("metal", 1.0, 1.0)
"""Of LAMMPS."""
REAL = EngineUnits("real", 1.0, KCAL_PER_MOL)
"""Of LAMMPS."""


@dataclass(frozen=True)
class Answer:
    """What a potential says about a structure, in the units of an engine."""

    energy: float
    forces: NDArray[np.float64]
    """[n_atoms, 3]"""
    virial: NDArray[np.float64] | None
    """[3, 3] -dE/d(strain), an energy: positive where the structure pushes outwards. None unless periodic in three
    directions."""
    uncertainty: float | None
    """Of the energy per atom, eV/atom; None if it was not computed."""
    atomic_uncertainty: NDArray[np.float64] | None
    """[n_atoms] eV/Å."""


class Guest:
    """A structure in an engine.

    Args:
        atoms: gives elements, their order and the periodicity; its positions are where it starts. Left as it is.
        calculator: of the potential, biased or not. It is for this structure alone, if it is biased.
        units: of the engine.
        uncertainties: also compute those of an unbiased potential.

    Raises:
        InputError: for a structure that is periodic along some directions only, which engines treat differently.
    """

    def __init__(self, atoms: Atoms, calculator: UBMDCalculator, units: EngineUnits, *, uncertainties: bool = False):
        if atoms.pbc.any() and not atoms.pbc.all():
            raise InputError(
                f"the structure is periodic along some directions only (pbc={atoms.pbc.tolist()}), which engines treat "
                "in different ways; make it periodic in three directions, with vacuum, or in none"
            )
        self.atoms = atoms.copy()
        self.atoms.calc = calculator
        self.calculator, self.units, self.uncertainties = calculator, units, uncertainties

    def __call__(self, positions: NDArray[np.float64], cell: NDArray[np.float64] | None = None) -> Answer:
        """Energy, forces and virial at positions [n_atoms, 3] in a cell of row vectors [3, 3].

        Raises:
            InputError: for another number of atoms, and for a periodic structure without a cell.
        """
        atoms, units = self.atoms, self.units
        if np.shape(positions) != (len(atoms), 3):
            raise InputError(
                f"the engine has {len(positions)} atoms and the structure {len(atoms)}; give the structure that the "
                "engine was set up with"
            )
        crystal = bool(atoms.pbc.all())
        if crystal:
            if cell is None or not abs(np.linalg.det(cell)) > 0:
                raise InputError("the engine gives no cell with a periodic structure; set its box to the structure's")
            atoms.set_cell(np.asarray(cell) * units.length)
        atoms.set_positions(np.asarray(positions) * units.length, apply_constraint=False)
        if self.uncertainties:  # first: an unbiased calculator computes everything else with them
            self.calculator.get_property("uncertainty", atoms)
        forces = atoms.get_forces(apply_constraint=False)  # what holds atoms is the engine's
        energy = atoms.get_potential_energy()  # which comes with the forces
        virial = None
        if crystal:
            virial = -atoms.get_stress(voigt=False, apply_constraint=False) * atoms.get_volume() / units.energy
        return Answer(
            energy / units.energy,
            forces * (units.length / units.energy),
            virial,
            self.calculator.uncertainty,
            self.calculator.atomic_uncertainty,
        )


def standard_axes(atoms: Atoms) -> Atoms:
    """A copy turned so that the cell is as OpenMM, LAMMPS and i-PI want it.

    The first lattice vector is along x, the second in the xy plane, and vectors are shortened by multiples of those
    before them: the same crystal. A molecule is only copied. Momenta and vectors in ``arrays`` are not turned.

    Raises:
        InputError: for a left-handed cell, which no turn makes right-handed.
    """
    turned = atoms.copy()
    if not atoms.pbc.any():
        return turned
    if np.linalg.det(atoms.cell.array) <= 0:
        raise InputError("the cell is left-handed; reverse one of its vectors (atoms.set_cell(..., scale_atoms=False))")
    cell, turn = atoms.cell.standard_form()
    rows = np.array(cell)
    for row, before in ((1, 0), (2, 1), (2, 0)):
        rows[row] -= np.round(rows[row, before] / rows[before, before]) * rows[before]
    turned.set_cell(rows)
    turned.set_positions(atoms.positions @ turn.T, apply_constraint=False)
    return turned
