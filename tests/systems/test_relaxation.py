"""Relaxation with a reference, against minima found in other ways; what is kept, and how it continues."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from scipy.optimize import minimize_scalar

from ubmd.data.io import read_labelled
from ubmd.errors import InputError
from ubmd.reference.ase_reference import ASEReference
from ubmd.reference.base import Label, ReferenceError
from ubmd.reference.executors import Serial
from ubmd.reference.store import LabelStore
from ubmd.systems.relaxation import ReferenceCalculator, Relaxation

NODE = {"_target_": "ase.calculators.emt.EMT"}


class Counting(ASEReference):
    """EMT that counts its labels and can break down."""

    def __init__(self, last: int | None = None):
        super().__init__(NODE)
        self.n, self.last = 0, last

    def compute(self, atoms: Atoms) -> Label:
        if self.n == self.last:
            raise KeyboardInterrupt
        self.n += 1
        return super().compute(atoms)


class Elsewhere(Serial):
    """Counts what is handed to it."""

    n = 0

    def submit(self, fn, /, *args, **kwargs):
        self.n += 1
        return super().submit(fn, *args, **kwargs)


class Failing(Counting):
    def compute(self, atoms: Atoms) -> Label:
        raise ReferenceError("no convergence")


def strained() -> Atoms:
    atoms = bulk("Cu", cubic=True)
    deformation = np.array([[1.04, 0.03, 0.0], [0.03, 0.98, 0.0], [0.0, 0.0, 1.05]])
    atoms.set_cell(np.asarray(atoms.cell) @ deformation, scale_atoms=True)
    atoms.rattle(0.03, seed=1)
    return atoms


def lattice_constant() -> float:
    """Of copper with EMT, by minimising the energy along the one parameter of the perfect crystal."""

    def energy(a: float) -> float:
        atoms = bulk("Cu", cubic=True, a=a)
        atoms.calc = EMT()
        return atoms.get_potential_energy()

    return float(minimize_scalar(energy, bounds=(3.4, 3.8), method="bounded", options={"xatol": 1e-8}).x)


def test_crystal_reaches_the_minimum_of_cell_and_atoms(tmp_path: Path) -> None:
    start = strained()
    before = start.copy()
    found = Relaxation(tmp_path, fmax=1e-4)(start, ASEReference(NODE))
    assert found.get_volume() == pytest.approx(lattice_constant() ** 3, rel=1e-5)
    distances = found.get_all_distances(mic=True)[np.triu_indices(4, 1)]
    np.testing.assert_allclose(distances, lattice_constant() / np.sqrt(2), rtol=1e-4)
    assert np.abs(found.info["REF_stress"]).max() < 1e-5
    np.testing.assert_array_equal(start.positions, before.positions)
    assert start.calc is None


def test_a_relaxed_structure_that_was_changed_is_refused(tmp_path: Path) -> None:
    relaxation, reference = Relaxation(tmp_path, fmax=0.1), Counting()
    atoms = molecule("H2O")
    found = relaxation(atoms, reference)
    file, before = relaxation.file(atoms, reference), reference.n
    assert "relaxation" not in found.info
    whole = file.read_text()
    lines = whole.splitlines(keepends=True)
    file.write_text("".join([*lines[:2], "O 0.0 0.0 0.1 0.0 0.0 0.0\n", *lines[3:]]))
    with pytest.raises(InputError, match="was cut or changed"):
        relaxation(atoms, reference)
    file.write_text(whole)
    np.testing.assert_array_equal(relaxation(atoms, reference).positions, found.positions)
    assert reference.n == before


def test_molecule_keeps_its_cell(tmp_path: Path) -> None:
    atoms = molecule("H2O")
    atoms.positions[1] += 0.2
    found = Relaxation(tmp_path, fmax=0.01)(atoms, ASEReference(NODE))
    assert np.linalg.norm(found.arrays["REF_forces"], axis=1).max() < 0.01
    assert not found.cell.any()
    assert "REF_stress" not in found.info


@pytest.mark.parametrize("periodic", [False, True])
def test_fixed_atoms_stay_and_with_them_the_cell(tmp_path: Path, periodic: bool) -> None:
    start = strained() if periodic else Atoms("Cu4", strained().positions)
    start.set_initial_charges([0.5, 0, 0, 0])
    start.set_constraint(FixAtoms([0, 2]))
    found = Relaxation(tmp_path, fmax=1e-3)(start, ASEReference(NODE))
    np.testing.assert_allclose(found.positions[[0, 2]], start.positions[[0, 2]], atol=1e-8)
    np.testing.assert_allclose(found.cell.array, start.cell.array, atol=1e-12)
    free = np.linalg.norm(found.arrays["REF_forces"], axis=1)
    assert free[[1, 3]].max() < 1e-3 < free[[0, 2]].max()
    assert np.abs(found.positions - start.positions).max() > 0.01
    assert found.constraints[0].index.tolist() == [0, 2]
    np.testing.assert_array_equal(found.get_initial_charges(), start.get_initial_charges())
    start.set_constraint()
    assert Relaxation(tmp_path).file(start, ASEReference(NODE)) != Relaxation(tmp_path).file(found, ASEReference(NODE))


def test_calculator_gives_what_the_reference_computes(tmp_path: Path) -> None:
    atoms = strained()
    reference = Counting()
    atoms.calc = ReferenceCalculator(reference, LabelStore(tmp_path / "labels.db"))
    alone = strained()
    alone.calc = EMT()
    assert atoms.get_potential_energy() == alone.get_potential_energy()
    np.testing.assert_array_equal(atoms.get_forces(), alone.get_forces())
    np.testing.assert_allclose(atoms.get_stress(), alone.get_stress(), atol=1e-15)
    assert reference.n == 1


def test_result_is_kept_and_told_apart(tmp_path: Path) -> None:
    relax, reference = Relaxation(tmp_path), Counting()
    found = relax(strained(), reference)
    n = reference.n
    again = relax(strained(), reference)
    assert reference.n == n
    np.testing.assert_array_equal(found.positions, again.positions)
    file = relax.file(strained(), reference)
    np.testing.assert_array_equal(read_labelled(file)[0].positions, found.positions)
    other = strained()
    other.positions[0, 0] += 1e-6
    files = {
        file,
        relax.file(other, reference),
        relax.file(strained(), ASEReference(NODE, name="other")),
        Relaxation(tmp_path, fmax=0.01).file(strained(), reference),
    }
    assert len(files) == 4


def test_interrupted_relaxation_pays_no_label_twice(tmp_path: Path) -> None:
    whole = Counting()
    expected = Relaxation(tmp_path / "whole", fmax=0.001)(strained(), whole)
    broken, resumed = Counting(last=5), Counting()
    with pytest.raises(KeyboardInterrupt):
        Relaxation(tmp_path / "parts", fmax=0.001)(strained(), broken)
    found = Relaxation(tmp_path / "parts", fmax=0.001)(strained(), resumed)
    assert broken.n == 5
    assert resumed.n == whole.n - 5
    np.testing.assert_array_equal(found.positions, expected.positions)


def test_every_label_is_the_executors(tmp_path: Path) -> None:
    reference, executor = Counting(), Elsewhere()
    Relaxation(tmp_path)(strained(), reference, executor=executor)
    assert executor.n == reference.n > 1


def test_crystal_needs_a_stress(tmp_path: Path) -> None:
    reference = Counting()
    reference.has_stress = False
    with pytest.raises(InputError, match=r"system\.relax: Counting computes no stress"):
        Relaxation(tmp_path)(strained(), reference)
    assert reference.n == 0
    Relaxation(tmp_path, fmax=1.0)(molecule("H2O"), reference)


def test_steps_are_told(tmp_path: Path) -> None:
    told: list[tuple[int, float]] = []
    Relaxation(tmp_path)(strained(), ASEReference(NODE), on_step=lambda n, force: told.append((n, force)))
    assert [n for n, _ in told] == list(range(len(told)))
    assert told[0][1] > 0.05 > told[-1][1]


def test_bad_ends_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"after max_steps=2 the largest force is still .* raise system\.relax"):
        Relaxation(tmp_path, max_steps=2)(strained(), ASEReference(NODE))
    with pytest.raises(InputError, match=r"system\.relax: the reference failed \(no convergence\)"):
        Relaxation(tmp_path)(strained(), Failing())
    with pytest.raises(InputError, match=r"system\.relax\.fmax=0"):
        Relaxation(tmp_path, fmax=0)
    assert not list(tmp_path.glob("*.extxyz"))
