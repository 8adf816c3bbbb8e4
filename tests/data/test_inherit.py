from __future__ import annotations

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111
from ase.constraints import FixAtoms, FixBondLength, FixCartesian, FixScaled, Hookean

from ubmd.data.inherit import Inherited, descendant, fixed_atoms
from ubmd.data.io import read_structures
from ubmd.data.perturb import perturb
from ubmd.errors import InputError


def water() -> Atoms:
    """With everything that a structure may carry."""
    atoms = Atoms("OH2", positions=[[0, 0, 0.12], [0.76, 0, -0.47], [-0.76, 0, -0.47]], cell=[5, 6, 7], pbc=[1, 1, 0])
    atoms.set_initial_charges([1.0, 0.0, 0.5])
    atoms.set_initial_magnetic_moments([1.0, 0.1, 0.0])
    atoms.set_masses([15.999, 2.014, 1.008])
    atoms.set_tags([0, 1, 2])
    atoms.set_momenta(np.ones((3, 3)))
    atoms.set_constraint(FixAtoms([0]))
    atoms.info.update(charge=1, spin=2, REF_energy=-1.0, note="old", solvent="thf")
    atoms.set_array("REF_forces", np.zeros((3, 3)))
    atoms.set_array("site", np.array([3, 1, 2]))
    return atoms


def assert_inherits(found: Atoms, *, reads: bool = False) -> None:
    for name in ("initial_charges", "initial_magmoms", "masses", "tags", "numbers"):
        np.testing.assert_array_equal(found.arrays[name], water().arrays[name], err_msg=name)
    assert {key: found.info.get(key) for key in ("charge", "spin")} == {"charge": 1, "spin": 2}
    assert fixed_atoms(found, "it").tolist() == [True, False, False]
    assert found.info.get("solvent") == ("thf" if reads else None)
    assert ("site" in found.arrays) == reads
    assert not {"REF_energy", "note"} & found.info.keys()
    assert not {"REF_forces", "momenta"} & found.arrays.keys()


def test_what_does_not_depend_on_the_positions_is_handed_on() -> None:
    assert_inherits(descendant(water()))
    found = descendant(water(), reads=("solvent", "site", "charge", "absent"))
    assert_inherits(found, reads=True)
    np.testing.assert_array_equal(found.positions, water().positions)
    np.testing.assert_array_equal(found.cell.array, water().cell.array)
    assert found.pbc.tolist() == [True, True, False]


def test_a_record_comes_back() -> None:
    before = Inherited.of(water(), reads=("site", "solvent"))
    after = Inherited.from_record(before.record(), 3)
    bare = Atoms(water().numbers, water().positions)
    assert_inherits(after.onto(bare), reads=True)
    assert after.arrays["masses"].dtype == np.float64
    assert after.arrays["tags"].dtype.kind == "i"
    odd = Inherited({"masses": np.array([0.1 + 0.2, 1 / 3])}, {"charge": np.float64(0.1)}, np.zeros(2, dtype=bool))
    again = Inherited.from_record(odd.record(), 2)
    np.testing.assert_array_equal(again.arrays["masses"], odd.arrays["masses"])
    assert again.info == {"charge": 0.1}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"arrays": {"a": [1]}, "info": {}, "fixed": []}', '{"arrays": {}, "info": {}, "fixed": [7]}'],
)
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        Inherited.from_record(text, 3)


def test_perturbed_copies_inherit_and_keep_fixed_atoms() -> None:
    before = water()
    first, second = perturb(before, 2, displacement=0.1, rng=np.random.default_rng(0), reads=("solvent", "site"))
    for found in (first, second):
        assert_inherits(found, reads=True)
        np.testing.assert_array_equal(found.positions[0], before.positions[0])
        assert (found.positions[1:] != before.positions[1:]).all()
    before.pbc = True
    with pytest.raises(InputError, match="fixed atoms"):
        perturb(before, 1, displacement=0.1, strain=0.02, rng=np.random.default_rng(0))


def test_free_atoms_are_shifted_as_if_none_were_fixed() -> None:
    fixed, free = water(), water()
    free.set_constraint()
    a, b = (perturb(x, 1, displacement=0.1, rng=np.random.default_rng(0))[0] for x in (fixed, free))
    np.testing.assert_array_equal(a.positions[1:], b.positions[1:])


@pytest.mark.parametrize("name", ["start.extxyz", "start.traj", "POSCAR", "start.json"])
def test_fixed_atoms_are_read_from_files(tmp_path: Path, name: str) -> None:
    slab = fcc111("Cu", (1, 1, 3), vacuum=5, periodic=True)
    slab.set_constraint(FixAtoms(mask=slab.get_tags() == 3))
    expected = (slab.get_tags() == 3).tolist()
    ase.io.write(tmp_path / name, slab)
    assert fixed_atoms(read_structures(tmp_path / name)[0], "it").tolist() == expected


def test_whole_atoms_may_be_fixed_in_other_ways() -> None:
    atoms = water()
    atoms.set_constraint([FixCartesian(1), FixScaled(2), FixCartesian(0, mask=(False, False, False)), FixAtoms([])])
    assert fixed_atoms(atoms, "it").tolist() == [False, True, True]
    atoms.set_constraint([FixAtoms([0]), FixCartesian(0, mask=(False, False, False))])
    assert fixed_atoms(atoms, "it").tolist() == [True, False, False]


@pytest.mark.parametrize(
    "constraint",
    [
        FixCartesian(0, mask=(True, False, False)),
        FixBondLength(0, 1),
        Hookean(0, 1, rt=2.0, k=5.0),
        FixScaled(1, (1, 0, 1)),
    ],
)
def test_other_constraints_are_refused_by_name(constraint: object) -> None:
    atoms = water()
    atoms.set_constraint(constraint)
    with pytest.raises(InputError, match=rf"^system\.structure carries the constraint {type(constraint).__name__}"):
        fixed_atoms(atoms, "system.structure")
    with pytest.raises(InputError, match=type(constraint).__name__):
        descendant(atoms)


def test_a_record_of_something_that_json_has_not_is_refused() -> None:
    part = Inherited({}, {"charge": object()}, np.zeros(1, dtype=bool))
    with pytest.raises(InputError, match="charge"):
        part.record()
    assert json.loads(Inherited({}, {}, np.zeros(1, dtype=bool)).record())["fixed"] == []
