"""Test structures by perturbation: which, how labelled, and what is computed again."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

from ubmd.data.datamodule import GrowingDataModule
from ubmd.data.io import write_structures
from ubmd.errors import InputError
from ubmd.reference.ase_reference import ASEReference
from ubmd.reference.base import Label, UnfinishedError
from ubmd.reference.by_system import BySystem
from ubmd.reference.executors import Serial
from ubmd.reference.store import LabelStore
from ubmd.seeding import Stage, stage_rng
from ubmd.systems.sampling import cached_test_set, sample_perturbed
from ubmd.systems.several import Systems
from ubmd.systems.system import System

NODE = {"_target_": "ase.calculators.emt.EMT"}


class Counting(ASEReference):
    n = 0

    def compute(self, atoms: Atoms) -> Label:
        type(self).n += 1
        return super().compute(atoms)


class Breaking(Counting):
    """Breaks off at one of the calls, whose number is not part of its labels' name."""

    def __init__(self, at: int):
        super().__init__(NODE)
        self.at = at

    def compute(self, atoms: Atoms) -> Label:
        self.at -= 1
        if self.at == 0:
            raise UnfinishedError("the disk is full")
        return super().compute(atoms)


def path() -> list[Atoms]:
    return [bulk("Cu", cubic=True, a=a) for a in (3.5, 3.7, 3.9)]


def sample(tmp_path: Path, **options) -> partial[list[Atoms]]:
    given = {"structures": path(), "reference": Counting(NODE), "labels": str(tmp_path / "labels.db")}
    return partial(sample_perturbed, 7, **(given | {"displacement": 0.02, "strain": 0.01, "seed": 3} | options))


def test_structures_in_turn_with_the_references_labels(tmp_path: Path) -> None:
    found = sample(tmp_path)()
    assert len(found) == 7
    for k, atoms in enumerate(found):
        volume = path()[k % 3].get_volume()
        assert 0 < abs(atoms.get_volume() / volume - 1) < 0.05
        alone = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
        alone.calc = EMT()
        assert atoms.info["REF_energy"] == alone.get_potential_energy()
        np.testing.assert_array_equal(atoms.arrays["REF_forces"], alone.get_forces())
        np.testing.assert_array_equal(atoms.info["REF_stress"], alone.get_stress(voigt=False))


def test_test_structures_are_not_those_that_a_run_starts_from(tmp_path: Path) -> None:
    start = path()[0]
    system = System(start, n_initial=7, displacement=0.02, strain=0.01)
    trained = system.initial_structures(stage_rng(3, 0, Stage.PERTURB))
    tested = sample(tmp_path, structures=start)()
    distances = [np.abs(a.positions - b.positions).max() for a in trained for b in tested]
    assert min(distances) > 1e-3


def test_file_and_single_structure(tmp_path: Path) -> None:
    write_structures(tmp_path / "path.extxyz", path())
    from_list, from_file = sample(tmp_path)(), sample(tmp_path, structures=str(tmp_path / "path.extxyz"))()
    np.testing.assert_allclose([a.positions for a in from_list], [a.positions for a in from_file], atol=2e-8)
    volumes = [a.get_volume() for a in sample(tmp_path, structures=path()[2])()]
    np.testing.assert_allclose(volumes, 3.9**3, rtol=0.05)


def test_cached_with_all_that_determines_it(tmp_path: Path) -> None:
    Counting.n, file = 0, tmp_path / "test.extxyz"
    first = cached_test_set(file, sample(tmp_path))
    assert Counting.n == 7
    again = cached_test_set(file, sample(tmp_path, labels=str(tmp_path / "elsewhere.db")))
    assert Counting.n == 7
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.arrays["REF_forces"], b.arrays["REF_forces"])
        assert a.info["REF_stress"].shape == (3, 3)
    GrowingDataModule(cutoff=3.0, species=["Cu"], test=again, stress=True)
    for changed in ({"seed": 4}, {"structures": path()[:2]}, {"reference": Counting(NODE, name="other")}):
        before = Counting.n
        cached_test_set(file, sample(tmp_path, **changed))
        assert Counting.n > before
    cached_test_set(file, sample(tmp_path))  # from the store of labels
    assert Counting.n == len(LabelStore(tmp_path / "labels.db"))


def test_what_came_to_no_end_is_not_left_out(tmp_path: Path) -> None:
    whole = sample(tmp_path, labels=str(tmp_path / "whole.db"))()
    with pytest.raises(InputError, match=r"1 of 7 labels of the test set came to no end \(the disk is full\)"):
        sample(tmp_path, reference=Breaking(3), executor=Serial(retries=0))()
    before = Breaking.n
    again = sample(tmp_path, reference=Breaking(0))()
    assert Breaking.n == before + 1
    assert [a.info["REF_energy"] for a in again] == [a.info["REF_energy"] for a in whole]


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="n_structures: 0"):
        sample_perturbed(
            0, structures=path(), **{k: v for k, v in sample(tmp_path).keywords.items() if k != "structures"}
        )
    with pytest.raises(InputError, match=r"none of the 7 test structures could be labelled \(force of"):
        sample(tmp_path, max_force=1e-9)()


def several(**parts: Atoms) -> Systems:
    return Systems({"copper": bulk("Cu", cubic=True), **parts}, strain=0.02)


def test_a_set_of_each_of_several_systems(tmp_path: Path) -> None:
    """Frames say whose they are, and those of a system are the same whatever other systems there are."""
    water = molecule("H2O")
    found = cached_test_set(tmp_path / "both.extxyz", sample(tmp_path, structures=several(water=water)))
    assert [atoms.info["system"] for atoms in found] == ["copper"] * 7 + ["water"] * 7
    assert len({atoms.positions.tobytes() for atoms in found}) == 14
    for atoms in found[7:]:
        assert 0 < np.abs(atoms.positions - water.positions).max() <= 0.02
        assert not atoms.cell.any()
    alone = cached_test_set(tmp_path / "one.extxyz", sample(tmp_path, structures=several()))
    for a, b in zip(found[:7], alone, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
        assert abs(a.get_volume() / bulk("Cu", cubic=True).get_volume() - 1) > 1e-4
    Counting.n = 0
    cached_test_set(tmp_path / "both.extxyz", sample(tmp_path, structures=several(water=water)))
    assert not Counting.n
    cached_test_set(tmp_path / "both.extxyz", sample(tmp_path, structures=several(water=molecule("NH3"))))
    assert Counting.n == 7  # the others were kept


def test_of_several_systems_each_by_its_own_reference(tmp_path: Path) -> None:
    systems, emt = several(water=molecule("H2O")), ASEReference(NODE)
    other = ASEReference({"_target_": "ase.calculators.lj.LennardJones", "epsilon": 0.01})
    given = sample(tmp_path, structures=systems, reference=BySystem({"copper": emt, "water": other}))
    found = cached_test_set(tmp_path / "test.extxyz", given)
    for atoms, reference in ((found[0], emt), (found[-1], other)):
        assert atoms.info["REF_energy"] == pytest.approx(reference.compute(atoms).energy)
    lacking = sample(tmp_path, structures=systems, reference=BySystem({"copper": emt}))
    with pytest.raises(InputError, match=r"data\.test: of the system water: .*system=water"):
        cached_test_set(tmp_path / "test.extxyz", lacking)
