"""Normal modes: frequencies as ASE finds them, thermal amplitudes, what stays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.optimize import BFGS
from ase.vibrations import Vibrations

from ubmd.errors import InputError
from ubmd.systems.normal_modes import displaced, normal_modes
from ubmd.systems.system import System
from ubmd.units import KB


def forces(structures: Sequence[Atoms]) -> list[np.ndarray]:
    found = []
    for atoms in structures:
        bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, calculator=EMT())
        found.append(bare.get_forces())
    return found


@pytest.fixture(scope="module")
def water() -> Atoms:
    """In the minimum of EMT."""
    atoms = molecule("H2O")
    atoms.calc = EMT()
    BFGS(atoms, logfile=None).run(fmax=1e-5)
    atoms.calc = None
    return atoms


def test_frequencies_are_those_of_ase(water: Atoms, tmp_path: Path) -> None:
    atoms = water.copy()
    atoms.calc = EMT()
    other = Vibrations(atoms, name=str(tmp_path / "vibrations"))
    other.run()
    expected = np.real(other.get_frequencies())[6:]
    found = normal_modes(water, forces(displaced(water))).wavenumbers
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert len(found) == 3


def test_displacements_have_the_energy_of_the_temperature(water: Atoms) -> None:
    """Equipartition in the Hessian's energy, mode by mode; neither the centre of mass nor the axes move."""
    modes = normal_modes(water, forces(displaced(water)))
    rng, masses = np.random.default_rng(0), water.get_masses()[:, None]
    drawn = np.array([modes.displacement(400.0, rng) for _ in range(4_000)])
    amplitudes = np.einsum("sna,na,mna->sm", drawn, masses * np.ones((3, 3)), modes.vectors)
    np.testing.assert_allclose(modes.eigenvalues * (amplitudes**2).mean(0), KB * 400.0, rtol=0.1)
    assert np.abs((masses * drawn).sum(1)).max() < 1e-2 * np.abs(drawn).max()
    turned = np.cross(water.positions - water.get_center_of_mass(), masses * drawn).sum(1)
    assert np.abs(turned).max() < 1e-2 * np.abs(drawn).max()


def test_fixed_atoms_stay(water: Atoms) -> None:
    atoms = water.copy()
    atoms.set_constraint(FixAtoms([0]))
    assert len(displaced(atoms)) == 2 * 2 * 3
    modes = normal_modes(atoms, forces(displaced(atoms)))
    drawn = modes.displacement(300.0, np.random.default_rng(0))
    assert not drawn[0].any()
    assert drawn[1:].any()


def test_initial_structures_of_a_system(water: Atoms) -> None:
    found = System(water, normal_modes=50.0, n_initial=12).initial_structures(np.random.default_rng(0), (), forces)
    moved = np.array([atoms.positions - water.positions for atoms in found])
    assert len(found) == 12
    assert 0.01 < moved.std() < 0.2
    again = System(water, normal_modes=50.0, n_initial=12).initial_structures(np.random.default_rng(0), (), forces)
    np.testing.assert_array_equal([a.positions for a in again], [a.positions for a in found])


def test_of_each_cell_its_own() -> None:
    asked: list[int] = []

    def counted(structures: Sequence[Atoms]) -> Any:
        asked.append(len(structures))
        return forces(structures)

    cells = System(bulk("Cu"), normal_modes=300.0, n_initial=6, strain_grid=[-0.02, 0.0, 0.02], strain=0.01)
    found = cells.initial_structures(np.random.default_rng(0), (), counted)
    assert asked == [6, 6, 6]
    volumes = [atoms.get_volume() for atoms in found]
    assert volumes[0] < volumes[1] < volumes[2]
    assert len(set(volumes)) == 6


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"normal_modes": 0.0}, "system.normal_modes=0.0 must be a temperature"),
        ({"normal_modes": 1e6}, "up to 10000 K"),
        ({"normal_modes": 300.0, "initial": [molecule("H2O")] * 2}, "system.initial is given too"),
    ],
)
def test_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        System(molecule("H2O"), **options)
