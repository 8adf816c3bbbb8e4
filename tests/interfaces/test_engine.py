from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from ase.geometry import get_distances
from scipy.spatial.transform import Rotation

from tests.interfaces.test_ase import crystals, molecules, save
from ubmd.errors import InputError
from ubmd.interfaces.ase import UBMDCalculator
from ubmd.interfaces.engine import ATOMIC, METAL, OPENMM, REAL, EngineUnits, Guest, standard_axes
from ubmd.uncertainty.checkpoint import load_potential
from ubmd.uncertainty.potential import UncertainPotential


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> UncertainPotential:
    return load_potential(save(tmp_path_factory.mktemp("potential") / "model.ckpt", torch.float64))


@pytest.mark.parametrize(
    ("engine", "length", "energy"),
    [
        (ATOMIC, 0.529177210544, 27.211386245981),  # CODATA 2022
        (OPENMM, 10.0, 1 / 96.48533212331),
        (REAL, 1.0, 1 / 23.060547830619),
        (METAL, 1.0, 1.0),
    ],
    ids=lambda value: value.name if isinstance(value, EngineUnits) else "",
)
def test_units(trained: UncertainPotential, engine: EngineUnits, length: float, energy: float) -> None:
    """Against numbers from elsewhere, and forces against differences of energies in the engine's own units."""
    atoms = crystals(1, 0)[0]
    guest = Guest(atoms, UBMDCalculator(trained), engine)
    positions, cell = atoms.positions / length, np.asarray(atoms.cell) / length
    answer = guest(positions, cell)
    atoms.calc = UBMDCalculator(trained)
    np.testing.assert_allclose(answer.energy * energy, atoms.get_potential_energy(), rtol=1e-7)
    step = np.zeros((3, 3))
    step[1, 2] = 1e-4 / length
    slope = (guest(positions + step, cell).energy - guest(positions - step, cell).energy) / (2 * step[1, 2])
    np.testing.assert_allclose(answer.forces[1, 2], -slope, rtol=1e-5)
    strain = np.diag([0.0, 0.0, 1e-5])
    ends = [guest(positions + s * positions @ strain, cell + s * cell @ strain).energy for s in (1, -1)]
    assert answer.virial is not None
    np.testing.assert_allclose(answer.virial[2, 2], -(ends[0] - ends[1]) / 2e-5, rtol=1e-5)
    assert answer.uncertainty is None


def test_uncertainties_and_fixed_atoms(trained: UncertainPotential) -> None:
    """What holds atoms is the engine's: it hears the forces on fixed ones too."""
    atoms = molecules(1, 0)[0]
    calc = UBMDCalculator(trained)
    forces = calc.get_forces(atoms)
    atoms.set_constraint(FixAtoms([0]))
    answer = Guest(atoms, UBMDCalculator(trained), METAL, uncertainties=True)(atoms.positions + 0.0)
    np.testing.assert_array_equal(answer.forces, forces)
    assert answer.virial is None
    assert answer.uncertainty == calc.get_property("uncertainty", atoms)


def test_what_is_refused(trained: UncertainPotential) -> None:
    crystal, calc = crystals(1, 0)[0], UBMDCalculator(trained)
    guest = Guest(crystal, calc, METAL)
    with pytest.raises(InputError, match="the engine has 2 atoms and the structure 3"):
        guest(crystal.positions[:2], np.asarray(crystal.cell))
    with pytest.raises(InputError, match="gives no cell"):
        guest(crystal.positions, np.zeros((3, 3)))
    crystal.pbc = [True, True, False]
    with pytest.raises(InputError, match="periodic along some directions only"):
        Guest(crystal, calc, METAL)


def test_standard_axes(trained: UncertainPotential) -> None:
    """The same crystal: distances, energy and pressure; forces and stress turned with it."""
    atoms = Atoms(
        "COH",
        scaled_positions=[[0.0, 0.1, 0.2], [0.45, 0.55, 0.4], [0.1, 0.5, 0.8]],
        cell=[[0.3, 3.1, 0.2], [0.1, 2.9, 3.0], [3.3, -2.8, 0.4]],
        pbc=True,
    )
    turned = standard_axes(atoms)
    rows = np.asarray(turned.cell)
    np.testing.assert_allclose(rows[np.triu_indices(3, 1)], 0.0, atol=1e-12)
    assert (np.diag(rows) > 0).all()
    assert (np.abs(rows[[1, 2, 2], [0, 0, 1]]) <= 0.5 * rows[[0, 0, 1], [0, 0, 1]] + 1e-12).all()
    np.testing.assert_allclose(turned.get_volume(), atoms.get_volume())
    for one in (atoms, turned):
        one.calc = UBMDCalculator(trained)
    apart = [get_distances(a.positions, cell=a.cell, pbc=True)[1] for a in (atoms, turned)]
    np.testing.assert_allclose(*apart, atol=1e-12)
    np.testing.assert_allclose(turned.get_potential_energy(), atoms.get_potential_energy(), rtol=1e-12)
    rotation, apart = Rotation.align_vectors(turned.get_forces(), atoms.get_forces())
    assert apart < 1e-7
    turn = rotation.as_matrix()
    stress = turn @ atoms.get_stress(voigt=False) @ turn.T
    np.testing.assert_allclose(turned.get_stress(voigt=False), stress, atol=1e-10)
    with pytest.raises(InputError, match="left-handed"):
        standard_axes(Atoms("C", cell=np.diag([3.0, 3.0, -3.0]), pbc=True))


def test_a_molecule_has_no_axes() -> None:
    atoms = molecules(1, 0)[0]
    assert standard_axes(atoms) == atoms
