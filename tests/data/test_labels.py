from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from ubmd.data.io import read_labelled, read_structures
from ubmd.errors import InputError


def own(energy: float = 1.0, **info: Any) -> Atoms:
    """With labels of its own."""
    atoms = bulk("Cu", cubic=True)
    atoms.info = {"REF_energy": energy, **info}
    atoms.arrays["REF_forces"] = np.full((4, 3), 0.5)
    return atoms


def computed(atoms: Atoms | None = None, **results: Any) -> Atoms:
    """With results of a calculator."""
    atoms = bulk("Cu", cubic=True) if atoms is None else atoms
    atoms.calc = SinglePointCalculator(atoms, **({"forces": np.ones((4, 3))} | results))
    return atoms


def written(tmp_path: Path, *frames: Atoms, name: str = "data.extxyz") -> Path:
    ase.io.write(tmp_path / name, list(frames))
    return tmp_path / name


def test_own_keys_are_not_completed_by_results(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What ASE writes for a structure with REF_ keys and a calculator."""
    caplog.set_level(logging.INFO)
    path = written(tmp_path, *(computed(own(), energy=123.0, stress=np.full(6, 7.0)) for _ in range(2)))
    for atoms in read_labelled(path):
        assert atoms.info["REF_energy"] == 1.0
        assert (atoms.arrays["REF_forces"] == 0.5).all()
        assert "REF_stress" not in atoms.info
        assert atoms.calc is None
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "data.extxyz: 2 structures, 2 labelled (REF_energy, REF_forces); energy, forces, stress beside them are not "
        "used"
    )


@pytest.mark.parametrize("lacks", ["REF_energy", "REF_forces"])
def test_half_of_a_label_is_not_completed_by_results(tmp_path: Path, lacks: str) -> None:
    atoms = own()
    (atoms.info if lacks in atoms.info else atoms.arrays).pop(lacks)
    path = written(tmp_path, computed(atoms, energy=123.0))
    with pytest.raises(InputError, match=f"structure 0 of .* has no {lacks}"):
        read_labelled(path)


def test_two_sources_in_one_file_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, own(), computed(energy=2.0))
    with pytest.raises(InputError, match=r"structure 1 of .* of a calculator, but structure 0 .* has REF_ keys"):
        read_structures(path)
    path = written(tmp_path, own(), bulk("Cu", cubic=True))
    assert "REF_energy" not in read_structures(path)[1].info


@pytest.mark.parametrize("name", ["data.extxyz", "data.traj", "data.db", "data.json"])
def test_forces_belong_to_the_free_energy(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = written(tmp_path, computed(energy=2.0, free_energy=1.5), computed(energy=3.0, free_energy=3.0), name=name)
    assert [a.info["REF_energy"] for a in read_labelled(path)] == [1.5, 3.0]
    assert "2 labelled (free_energy, forces)" in caplog.text


def test_energies_of_two_kinds_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, computed(energy=2.0, free_energy=1.5), computed(energy=3.0))
    with pytest.raises(InputError, match=r"structure 1 of .* has an energy but no free_energy"):
        read_structures(path)
    path = written(tmp_path, computed(energy=2.0, free_energy=2.0), computed(energy=3.0))
    assert [a.info["REF_energy"] for a in read_labelled(path)] == [2.0, 3.0]


def test_free_energy_beside_another_energy_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, own(1.0, REF_free_energy=0.5))
    with pytest.raises(InputError, match=r"REF_energy=1.000000 and REF_free_energy=0.500000; keep the one"):
        read_structures(path)
    assert len(read_labelled(written(tmp_path, own(1.0, REF_free_energy=1.0)))) == 1


def test_energy_of_one_number_in_a_list(tmp_path: Path) -> None:
    (found,) = read_labelled(written(tmp_path, computed(energy=np.array([2.5])), name="data.traj"))
    assert found.info["REF_energy"] == 2.5


def test_names_of_other_programs_are_told(tmp_path: Path) -> None:
    atoms = molecule("H2O")
    atoms.info["dft_energy"], atoms.arrays["dft_force"] = -1.5, np.ones((3, 3))
    message = r"has no REF_energy and no REF_forces \(but dft_energy, dft_force\); label it .*data.keys.energy=NAME"
    with pytest.raises(InputError, match=message):
        read_labelled(written(tmp_path, atoms))


def test_some_with_stress(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = written(tmp_path, computed(energy=2.0, stress=np.arange(6.0)), computed(energy=3.0))
    first, second = read_labelled(path)
    np.testing.assert_array_equal(first.info["REF_stress"], [[0, 5, 4], [5, 1, 3], [4, 3, 2]])
    assert "REF_stress" not in second.info
    assert "2 labelled (energy, forces, stress in 1)" in caplog.text


def test_stress_that_is_not_symmetric(tmp_path: Path) -> None:
    path = written(tmp_path, own(REF_stress=np.arange(9.0)))
    with pytest.raises(InputError, match="REF_stress that is not symmetric"):
        read_structures(path)


def test_virials_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (found,) = read_labelled(written(tmp_path, own(REF_virial=np.arange(9.0))))
    assert "REF_stress" not in found.info
    assert "REF_virial is not read; name it, as data.keys.virial=REF_virial" in caplog.text


def test_zero_forces_of_fixed_atoms_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    atoms = own()
    atoms.set_constraint(FixAtoms([0, 1]))
    read_labelled(written(tmp_path, atoms))
    assert not caplog.records
    atoms.arrays["REF_forces"][:2] = 0
    read_labelled(written(tmp_path, atoms))
    assert "in 1 structures the forces of all fixed atoms are exactly zero" in caplog.text


def test_stress_of_six_numbers_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    read_structures(written(tmp_path, own(REF_stress=np.eye(3).ravel())))
    assert "six numbers" not in caplog.text
    read_structures(written(tmp_path, own(REF_stress=np.arange(6.0)), own()))
    assert "REF_stress of six numbers, in 1 structures, is read as xx yy zz yz xz xy" in caplog.text


def test_stress_of_zeros_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    zero, one = own(REF_stress=np.zeros(9)), own(REF_stress=np.eye(3).ravel())
    read_structures(written(tmp_path, zero, one))
    assert not caplog.records
    read_structures(written(tmp_path, zero, zero))
    assert "the stress of all 2 crystals is exactly zero" in caplog.text
