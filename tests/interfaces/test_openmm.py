from __future__ import annotations

from typing import Any

import numpy as np
import openmm
import pytest
import torch
from ase import Atoms
from openmm import unit

from tests.interfaces.test_ase import crystals, molecules, save
from ubmd.errors import InputError
from ubmd.interfaces.ase import UBMDCalculator
from ubmd.interfaces.engine import standard_axes
from ubmd.interfaces.openmm import python_force
from ubmd.uncertainty.checkpoint import load_potential
from ubmd.uncertainty.potential import UncertainPotential
from ubmd.units import KJ_PER_MOL

FORCE = unit.kilojoule_per_mole / unit.nanometer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> UncertainPotential:
    return load_potential(save(tmp_path_factory.mktemp("potential") / "model.ckpt", torch.float64))


def context(atoms: Atoms, calculator: UBMDCalculator, dt: float = 0.25) -> openmm.Context:
    """NVE of a structure on OpenMM's most exact platform."""
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    if atoms.pbc.all():
        system.setDefaultPeriodicBoxVectors(*(np.asarray(atoms.cell) * unit.angstrom))
    system.addForce(python_force(atoms, calculator))
    integrator = openmm.VerletIntegrator(dt * unit.femtosecond)
    made = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    made.setPositions(atoms.positions * unit.angstrom)
    return made


def state(made: openmm.Context) -> tuple[float, np.ndarray, Any]:
    """Energy in eV and forces in eV/Å."""
    found = made.getState(getEnergy=True, getForces=True, getPositions=True)
    energy = found.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) * KJ_PER_MOL
    return energy, found.getForces(asNumpy=True).value_in_unit(FORCE) * KJ_PER_MOL / 10, found


@pytest.mark.parametrize("atoms", [molecules(1, 0)[0], standard_axes(crystals(1, 0)[0])], ids=["molecule", "crystal"])
def test_energy_and_forces(trained: UncertainPotential, atoms: Atoms) -> None:
    atoms = atoms.copy()
    energy, forces, _ = state(context(atoms, UBMDCalculator(trained)))
    atoms.calc = UBMDCalculator(trained)
    np.testing.assert_allclose(energy, atoms.get_potential_energy(), rtol=1e-12)
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-10)


def test_energy_is_conserved(trained: UncertainPotential) -> None:
    made = context(standard_axes(crystals(1, 1)[0]), UBMDCalculator(trained))
    made.setVelocitiesToTemperature(200, 1)
    potential, total = [], []
    for _ in range(40):
        made.getIntegrator().step(1)
        found = made.getState(getEnergy=True)
        potential.append(found.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))
        total.append(potential[-1] + found.getKineticEnergy().value_in_unit(unit.kilojoule_per_mole))
    assert np.ptp(potential) > 1.0
    assert np.ptp(total) < 1e-2 * np.ptp(potential)


def test_biased_dynamics_is_that_of_the_calculator(trained: UncertainPotential) -> None:
    """The windows see every step once, so that the forces are those of the calculator along the same trajectory."""
    bias = {"tau": 0.5, "window": 4}
    atoms = molecules(1, 3)[0]
    made = context(atoms, UBMDCalculator(trained, **bias))  # type: ignore[arg-type]
    made.setVelocitiesToTemperature(200, 1)
    calc, plain = UBMDCalculator(trained, **bias), UBMDCalculator(trained)  # type: ignore[arg-type]
    apart = []
    for _ in range(10):
        _, forces, found = state(made)
        atoms.positions = found.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
        np.testing.assert_allclose(forces, calc.get_forces(atoms), atol=1e-8)
        apart.append(np.abs(forces - plain.get_forces(atoms)).max())
        made.getIntegrator().step(1)
    assert max(apart[:3]) < 1e-8
    assert min(apart[4:]) > 1e-3


def test_part_of_a_system(trained: UncertainPotential) -> None:
    atoms = molecules(1, 0)[0]
    system = openmm.System()
    for _ in range(7):
        system.addParticle(12.0)
    system.addForce(python_force(atoms, UBMDCalculator(trained), particles=[1, 2, 3, 5, 6]))
    made = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    positions = np.full((7, 3), 9.0)
    positions[[1, 2, 3, 5, 6]] = atoms.positions
    made.setPositions(positions * unit.angstrom)
    _, forces, _ = state(made)
    atoms.calc = UBMDCalculator(trained)
    np.testing.assert_allclose(forces[[1, 2, 3, 5, 6]], atoms.get_forces(), atol=1e-10)
    np.testing.assert_array_equal(forces[[0, 4]], 0.0)


def test_other_particles_are_refused(trained: UncertainPotential) -> None:
    atoms, calc = molecules(1, 0)[0], UBMDCalculator(trained)
    with pytest.raises(InputError, match="particles has 2 indices for a structure of 5 atoms"):
        python_force(atoms, calc, particles=[0, 1])
    made = context(atoms, calc)
    made.getSystem().addParticle(1.0)
    made.reinitialize()
    made.setPositions(np.zeros((6, 3)) * unit.angstrom)
    with pytest.raises(Exception, match="the engine has 6 atoms and the structure 5"):
        state(made)
