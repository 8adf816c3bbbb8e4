from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms, FixBondLength

from ubmd.data.io import write_structures
from ubmd.errors import InputError
from ubmd.observables import Distance, Torsion, Volume, values_of
from ubmd.systems.system import System


def test_species_are_those_of_the_structure() -> None:
    assert System(molecule("CH3CH2OH")).symbols == ["H", "C", "O"]
    assert System(molecule("H2O"), species=["O", "N", "H"]).symbols == ["O", "N", "H"]


def test_structure_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "start.extxyz"
    write_structures(path, [molecule("H2O"), molecule("CH4")])
    for given in (str(path), path):
        system = System(given)  # pyright: ignore[reportArgumentType]
        np.testing.assert_allclose(system.atoms.positions, molecule("H2O").positions, atol=1e-8)


@pytest.mark.parametrize(("pbc", "periodic"), [(True, True), (False, False), ((True, True, False), False)])
def test_periodic(pbc: Any, periodic: bool) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.pbc = pbc
    assert System(atoms).periodic is periodic


def test_a_crystal_has_a_volume() -> None:
    crystal = bulk("Cu", cubic=True)
    own = {"d": Distance([0, 1])}
    assert System(crystal, variables=own).variables == {"volume": Volume(n_atoms=4), **own}
    assert System(crystal, variables={"volume": Volume(width=5.0)}).variables == {"volume": Volume(width=5.0)}
    assert System(molecule("H2O"), variables=own).variables == own


def test_initial_structures_are_perturbed() -> None:
    system = System(bulk("Cu", cubic=True), n_initial=5, displacement=0.03, strain=0.01)
    copies = system.initial_structures(np.random.default_rng(1))
    assert len(copies) == 5
    for copy in copies:
        assert not np.allclose(copy.cell, system.atoms.cell)
        deform = np.linalg.solve(np.asarray(system.atoms.cell), np.asarray(copy.cell))
        shift = copy.positions @ np.linalg.inv(deform) - system.atoms.positions
        assert 0.0 < np.abs(shift).max() <= 0.03


def test_a_crystal_is_perturbed_in_each_cell_of_a_grid() -> None:
    crystal, grid = bulk("Cu", cubic=True), [-0.04, 0.0, 0.04]
    system = System(crystal, strain_grid=grid, displacement=0.0)
    found = system.initial_structures(np.random.default_rng(0))
    assert len(found) == 8
    lengths = [(1 + grid[k % 3]) * crystal.cell[0, 0] for k in range(8)]
    np.testing.assert_allclose([a.cell[0, 0] for a in found], lengths)
    np.testing.assert_allclose(found[2].get_scaled_positions(), crystal.get_scaled_positions(), atol=1e-12)
    assert System(crystal, strain_grid=np.linspace(-0.1, 0.1, 11).tolist()).n_start == 11


def nan() -> Atoms:
    atoms = molecule("H2O")
    atoms.positions[2, 0] = np.nan
    return atoms


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_initial": 1}, r"system\.n_initial=1 .*use at least 2"),
        ({"displacement": -0.1}, r"displacement=-0\.1 must be from 0 to 10"),
        ({"strain": -0.1}, r"strain=-0\.1 must be at least 0"),
        ({"species": ["H"]}, r"system\.structure contains O, which is not in system\.species=\['H'\]; add it"),
        ({"variables": {"phi": Torsion([0, 1, 2, 3])}}, r"system\.variables\.phi: a Torsion names atom 3, .* 0 to 2"),
        ({"variables": {"v": Volume()}}, r"system\.variables\.v: a Volume needs .* periodic in three"),
        ({"variables": {"a-b": Distance([0, 1])}}, r"system\.variables\.a-b must be named by letters"),
        ({"structure": nan()}, r"system\.structure has a position that is not a number at atom 2"),
        ({"structure": Atoms()}, r"system\.structure has no atoms"),
        ({"structure": None}, r"system\.structure is missing: give it as system\.structure=FILE, a molecule as"),
        (
            {"structure": bulk("Cu"), "strain_grid": [0.0, 0.7]},
            r"strain_grid=\[0\.0, 0\.7\] must be changes of lengths",
        ),
        ({"structure": bulk("Cu"), "strain_grid": []}, r"strain_grid=\[\] must be"),
        ({"structure": bulk("Cu"), "strain_grid": [0, 0.1, 0.2], "n_initial": 2}, r"n_initial=2 leaves out some"),
        ({"structure": bulk("Cu"), "strain_grid": [0.1], "initial": [bulk("Cu")] * 2}, r"initial says where to start"),
        ({"structure": "nowhere.xyz"}, r"structure file nowhere\.xyz does not exist"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        System(**({"structure": molecule("H2O")} | options))


@pytest.mark.parametrize(
    "options",
    [
        {"strain": 0.01, "structure": molecule("H2O")},
        {"strain": 0.6},
        {"displacement": float("nan")},
        {"variables": {"phi": Torsion([0, 1, 2, 9])}},
        {"species": ["Cu", "Cu"]},
        {"species": ["Cu", "Xx"]},
    ],
    ids=["strain of a molecule", "strain", "displacement", "variable", "species twice", "no species"],
)
def test_more_bad_input(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))}"):
        System(**({"structure": bulk("Cu", cubic=True)} | options))


def cubes(*volumes: float, repeat: int = 1) -> list[Atoms]:
    """Crystals of copper with the given volumes per 4 atoms."""
    return [bulk("Cu", cubic=True, a=np.cbrt(v)).repeat((repeat, 1, 1)) for v in volumes]


def test_initial_structures_from_a_file_below_a_volume(tmp_path: Path) -> None:
    path = tmp_path / "mine.extxyz"
    structures = cubes(40.0, 60.0, 44.0, 49.9)
    structures[2].info["REF_energy"], structures[2].arrays["REF_forces"] = 1.5, np.ones((4, 3))
    write_structures(path, structures)
    system = System(bulk("Cu", cubic=True), initial=str(path), max_volume=50.0)
    found = system.initial_structures(np.random.default_rng(0))
    volumes = [a.get_volume() for a in found]
    np.testing.assert_allclose(sorted(volumes), [40.0, 44.0, 49.9])
    assert system.n_start == 3
    labelled = found[int(np.argsort(volumes)[1])]
    assert labelled.info["REF_energy"] == 1.5
    np.testing.assert_array_equal(labelled.arrays["REF_forces"], 1.0)


def test_initial_structures_are_drawn_where_there_are_more() -> None:
    given = cubes(*np.linspace(40, 60, 20))
    system = System(bulk("Cu", cubic=True), initial=given, n_initial=5)
    drawn = [[a.get_volume() for a in system.initial_structures(np.random.default_rng(s))] for s in (0, 0, 1)]
    assert len(set(drawn[0])) == system.n_start == 5
    assert drawn[0] == drawn[1] != drawn[2]
    whole = System(bulk("Cu", cubic=True), initial=given, n_initial=50)
    volumes = [a.get_volume() for a in whole.initial_structures(np.random.default_rng(0))]
    assert sorted(volumes) == [a.get_volume() for a in given] != volumes
    assert System(bulk("Cu", cubic=True)).n_start == 8


def test_volumes_of_supercells_count_per_atom() -> None:
    system = System(bulk("Cu", cubic=True), initial=cubes(40.0, 60.0, 44.0, repeat=2), max_volume=50.0)
    assert system.n_start == 2
    assert values_of(system.variables, system.given)["volume"] == pytest.approx([40.0, 44.0])


def held(atoms: Atoms, *fixed: int) -> Atoms:
    atoms.set_constraint(FixAtoms(list(fixed)))
    return atoms


def test_fixed_atoms_stay_where_a_run_starts() -> None:
    system = System(held(molecule("CH3OH"), 0, 1))
    for atoms in system.initial_structures(np.random.default_rng(0)):
        np.testing.assert_array_equal(atoms.positions[:2], system.atoms.positions[:2])
        assert atoms.constraints[0].index.tolist() == [0, 1]
    given = [held(a, 0) for a in cubes(40.0, 44.0)]
    assert System(held(bulk("Cu", cubic=True), 0), initial=given).n_start == 2
    assert System(bulk("Cu", cubic=True), initial=[held(a, 0) for a in cubes(40.0, 44.0, repeat=2)]).n_start == 2


def ion(**info: int) -> Atoms:
    atoms = molecule("H2O")
    atoms.rattle(0.01, seed=len(info))
    atoms.info.update(info)
    return atoms


def test_perturbed_structures_are_of_the_same_state() -> None:
    atoms = ion(charge=1, spin=2)
    atoms.info["solvent"] = "thf"
    for found in System(atoms).initial_structures(np.random.default_rng(0), reads=("solvent",)):
        assert found.info == {"charge": 1, "spin": 2, "solvent": "thf"}


@pytest.mark.parametrize(
    ("structure", "initial", "message"),
    [
        (
            ion(charge=1),
            [ion(charge=1), ion()],
            "structure 1 of system.initial has the charge 0 and 0 unpaired electrons",
        ),
        (
            ion(),
            [ion(charge=1), ion(charge=1)],
            "charge 1 and 1 unpaired electrons, system.structure the charge 0 and 0",
        ),
        (ion(spin=3), [ion(spin=3), ion(spin=1)], "charge 0 and 0 unpaired electrons, structure 0 the charge 0 and 2"),
    ],
)
def test_a_run_is_of_one_charge_and_spin(structure: Atoms, initial: list[Atoms], message: str) -> None:
    with pytest.raises(InputError, match=message):
        System(structure, initial=initial)
    assert System(ion(charge=1), initial=[ion(charge=1, spin=2), ion(charge=1)]).n_start == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structure": Atoms("Cu2", [[0, 0, 0], [2, 0, 0]], constraint=FixBondLength(0, 1))}, "FixBondLength"),
        ({"initial": [held(a, i) for i, a in enumerate(cubes(40.0, 44.0))]}, r"structure 1 of system\.initial fixes 1"),
        (
            {"initial": [held(a, 1) for a in cubes(40.0, 44.0)]},
            r"fixes 1 atoms, others than the 0 of system\.structure",
        ),
        (
            {"initial": [*cubes(40.0), Atoms(cubes(44.0)[0], constraint=FixBondLength(0, 1))]},
            "1 of system.initial carries",
        ),
    ],
)
def test_constraints_that_a_run_cannot_keep(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        System(**({"structure": bulk("Cu", cubic=True)} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial": cubes(40.0, 60.0), "max_volume": 50.0}, r"has 1 structures of at most system\.max_volume=50"),
        ({"initial": []}, r"system\.initial has 0 structures; at least 2"),
        ({"initial": "nowhere.xyz"}, r"nowhere\.xyz does not exist"),
        ({"initial": [*cubes(40.0), bulk("Al", cubic=True)]}, r"system\.initial contains Al"),
        ({"initial": [*cubes(40.0), *cubes(40.0, repeat=2)]}, r"structure 1 of system\.initial is of other atoms"),
        ({"initial": [Atoms("Cu")] * 2}, r"structure 0 of system\.initial .* periodic along other directions"),
        ({"states": {"a": {"volume": [50, 40]}}}, r"system\.states\.a\.volume=\[50, 40\] must be two numbers"),
        ({"states": {"a": {"volume": [1]}}}, r"system\.states\.a\.volume=\[1\] must be two numbers"),
        ({"states": {"a": {"volume": [0, 50]}}, "structure": molecule("H2O")}, r"states\.a\.volume is of no variable"),
        ({"max_volume": 50.0, "structure": molecule("H2O")}, r"system\.max_volume=50\.0 needs .* periodic"),
    ],
)
def test_bad_states_and_initial_structures(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        System(**({"structure": bulk("Cu", cubic=True)} | options))
