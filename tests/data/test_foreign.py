"""Labels in the words of others, against conversions by hand."""

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

from ubmd.data.foreign import LabelKeys, LabelUnits
from ubmd.data.io import read_labelled, read_structures
from ubmd.errors import InputError

HARTREE, BOHR, KCAL, GPA = 27.211386, 0.52917721, 0.0433641, 0.0062415091
"""eV, Å, eV, eV/Å³; CODATA 2014, to eight digits."""
STRESS = np.array([[0.01, 0.002, -0.003], [0.002, -0.02, 0.004], [-0.003, 0.004, 0.03]])
"""eV/Å³, positive under tension."""
FORCES = np.arange(12.0).reshape(4, 3) - 5
ENERGY = -14.5


def crystal(forces: str, **info: Any) -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.info.update(info)
    atoms.arrays[forces] = FORCES.copy()
    return atoms


def written(tmp_path: Path, *frames: Atoms, name: str = "peer.extxyz") -> Path:
    ase.io.write(tmp_path / name, list(frames))
    return tmp_path / name


def check(found: Atoms, energy: float, forces: np.ndarray, stress: np.ndarray | None = None) -> None:
    assert found.info["REF_energy"] == pytest.approx(energy, rel=1e-6)
    np.testing.assert_allclose(found.arrays["REF_forces"], forces, rtol=1e-6)
    if stress is not None:
        np.testing.assert_allclose(found.info["REF_stress"], stress, rtol=1e-6)
    assert found.calc is None


VOLUME = bulk("Cu", cubic=True).get_volume()


@pytest.mark.parametrize("values", [STRESS.ravel(), STRESS[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]])
def test_virials_as_mace_has_them(tmp_path: Path, values: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = written(tmp_path, crystal("REF_forces", REF_energy=ENERGY, REF_virials=-VOLUME * values))
    (found,) = read_labelled(path, keys=LabelKeys(virial="REF_virials"))
    check(found, ENERGY, FORCES, STRESS)
    assert "1 labelled (REF_energy, REF_forces, REF_virials)" in caplog.text


def test_own_words_and_kilocalories(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    atoms = crystal("dft_force", dft_energy=ENERGY, dft_stress=-10 * STRESS.ravel(), energy_of_atoms=1.0)
    keys = LabelKeys(energy="dft_energy", forces="dft_force", stress="dft_stress")
    units = LabelUnits("kcal/mol", "kcal / (mol * Ang)", stress="kbar", stress_positive="pressure")
    (found,) = read_labelled(written(tmp_path, atoms), keys=keys, units=units)
    check(found, ENERGY * KCAL, FORCES * KCAL, STRESS * GPA)
    assert "dft_energy in kcal/mol, dft_force in kcal / (mol * Ang), dft_stress in kbar" in caplog.text


def test_results_that_ase_reads_in_atomic_units(tmp_path: Path) -> None:
    """As NequIP and others write them, with positions in Bohr."""
    atoms = bulk("Cu", cubic=True)
    atoms.set_cell(atoms.cell / BOHR, scale_atoms=True)
    stress = STRESS[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    atoms.calc = SinglePointCalculator(atoms, energy=ENERGY, forces=FORCES, stress=stress)
    units = LabelUnits("Ha", "Ha/Bohr", "Hartree/Bohr^3", length="Bohr")
    (found,) = read_labelled(written(tmp_path, atoms), units=units)
    check(found, ENERGY * HARTREE, FORCES * HARTREE / BOHR, STRESS * HARTREE / BOHR**3)
    np.testing.assert_allclose(found.cell, bulk("Cu", cubic=True).cell, rtol=1e-6)
    named = LabelKeys(energy="energy", forces="forces", stress="stress")
    (again,) = read_labelled(written(tmp_path, atoms), keys=named, units=units)
    np.testing.assert_array_equal(again.info["REF_stress"], found.info["REF_stress"])


def test_order_of_six_numbers_of_another_program(tmp_path: Path) -> None:
    six = STRESS[[0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 2, 0]]
    atoms = crystal("f", e=ENERGY, s=six)
    keys = LabelKeys("e", "f", "s")
    (found,) = read_labelled(written(tmp_path, atoms), keys=keys, units=LabelUnits(voigt="XX YY ZZ XY YZ ZX"))
    check(found, ENERGY, FORCES, STRESS)


def test_own_keys_in_other_units(tmp_path: Path) -> None:
    path = written(tmp_path, crystal("REF_forces", REF_energy=ENERGY, REF_free_energy=ENERGY))
    (found,) = read_labelled(path, units=LabelUnits("meV", "meV/Å"))
    check(found, ENERGY / 1000, FORCES / 1000)
    path = written(tmp_path, crystal("REF_forces", REF_energy=ENERGY, REF_free_energy=ENERGY + 1))
    with pytest.raises(InputError, match="REF_free_energy"):
        read_labelled(path, units=LabelUnits("meV", "meV/Å"))


def test_molecules_have_no_stress(tmp_path: Path) -> None:
    water = molecule("H2O", vacuum=3)
    water.info.update(e=-1.0, v=np.zeros(9))
    water.arrays["f"] = np.ones((3, 3))
    path = written(tmp_path, crystal("f", e=ENERGY, v=-VOLUME * STRESS.ravel()), water)
    first, second = read_labelled(path, keys=LabelKeys("e", "f", virial="v"))
    check(first, ENERGY, FORCES, STRESS)
    assert "REF_stress" not in second.info


@pytest.mark.parametrize(
    ("changes", "keys", "sentence"),
    [
        ({}, {"energy": "dft_energy"}, "no structure of .* has dft_energy, which data.keys.energy names; there are"),
        ({"second": {"e": None}}, {}, "structure 1 of .* has no e, which others have; add it"),
        ({"second": {"v": None}}, {}, "structure 1 of .* has no v, which other crystals have"),
        ({"second": {"v": np.ones(8)}}, {}, "structure 1 of .* has a v of 8 numbers"),
        ({"second": {"v": np.arange(9.0)}}, {}, "v that is not symmetric"),
        ({"second": {"e": "many"}}, {}, "structure 1 of .* has a e that is not a number"),
        ({"second": {"e": [1.0, 2.0]}}, {}, "has a e of 2 numbers"),
        ({}, {"stress": "s"}, "structure 1 of .*: s and v do not agree"),
    ],
)
def test_what_is_not_clear_is_refused(
    tmp_path: Path, changes: dict[str, dict[str, Any]], keys: dict[str, str], sentence: str
) -> None:
    right = {"e": ENERGY, "v": -VOLUME * STRESS.ravel(), "s": STRESS.ravel()}
    wrong = right | {"s": -STRESS.ravel()} | changes.get("second", {})
    frames = [crystal("f", **{k: v for k, v in info.items() if v is not None}) for info in (right, wrong)]
    names: Any = {"energy": "e", "forces": "f", "virial": "v"} | keys
    with pytest.raises(InputError, match=sentence):
        read_structures(written(tmp_path, *frames), keys=LabelKeys(**names))


def test_stress_and_virial_that_agree(tmp_path: Path) -> None:
    atoms = crystal("f", e=ENERGY, v=-VOLUME * STRESS.ravel(), s=STRESS.ravel().round(5))
    (found,) = read_labelled(written(tmp_path, atoms), keys=LabelKeys("e", "f", "s", "v"))
    check(found, ENERGY, FORCES, STRESS)


@pytest.mark.parametrize(
    ("units", "sentence"),
    [
        ({"energy": "kCal"}, "data.units.energy=kCal is no unit that is known"),
        ({"energy": "eV/Å"}, "data.units.energy=eV/Å must be an energy"),
        ({"forces": "eV"}, "data.units.forces=eV must be an energy by a length"),
        ({"stress": "eV/Å^2"}, "data.units.stress=eV/Å.2 must be a pressure"),
        ({"voigt": "xx yy zz xy xz"}, "must name the six numbers"),
    ],
)
def test_units_that_are_none(units: dict[str, str], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        LabelUnits(**units)  # pyright: ignore[reportArgumentType]


def test_no_unit_is_guessed(tmp_path: Path) -> None:
    path = written(tmp_path, crystal("REF_forces", REF_energy=ENERGY))
    with pytest.raises(InputError, match=r"energy=Hartree leaves the unit of the forces open.*e\.g\. Hartree/Ang"):
        read_labelled(path, units=LabelUnits("Hartree"))
    assert LabelUnits("Hartree", "Hartree/Ang", "eV/Ang**3").factor("stress") == pytest.approx(1)  # as it is proposed
    other = written(tmp_path, bulk("Cu"), name="peer.traj")
    with pytest.raises(InputError, match="which ASE reads in eV and Å"):
        read_structures(other, units=LabelUnits("Hartree"))


def test_unlabelled_structures_stay_so(tmp_path: Path) -> None:
    (found,) = read_structures(written(tmp_path, bulk("Cu")), keys=LabelKeys("e", "f"))
    assert "REF_energy" not in found.info
