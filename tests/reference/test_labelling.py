"""Labelling: order, limits, failures, and what a second run pays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixBondLength

from ubmd.errors import InputError
from ubmd.reference.base import Label, Reference, ReferenceError, UnfinishedError, checked_label
from ubmd.reference.labelling import label_structures
from ubmd.reference.store import LabelStore


class Spring(Reference):
    """Two atoms on a spring of length 1 Å; those closer than 0.1 Å fail."""

    def __init__(self, stiffness: float = 10.0) -> None:
        self.stiffness = stiffness
        self.calls = 0

    def fingerprint(self):
        return {"class": "Spring", "stiffness": self.stiffness}

    def compute(self, atoms: Atoms) -> Label:
        self.calls += 1
        distance = atoms.get_distance(0, 1)
        if distance < 0.1:
            raise ReferenceError(f"{distance:.2f} Å is too close")
        pull = self.stiffness * (distance - 1)
        direction = (atoms.positions[1] - atoms.positions[0]) / distance
        stress = np.diag([1.0, 2.0, 3.0]) if atoms.pbc.all() else None
        return Label(0.5 * pull * (distance - 1), np.array([pull * direction, -pull * direction]), stress)


def pairs(*distances: float) -> list[Atoms]:
    structures = []
    for index, distance in enumerate(distances):
        atoms = Atoms("H2", positions=[[0, 0, 0], [0, 0, distance]])
        atoms.info["walker"] = index
        structures.append(atoms)
    return structures


@pytest.fixture
def store(tmp_path) -> LabelStore:
    return LabelStore(tmp_path / "labels.db")


def test_sorts_structures_and_keeps_their_order(store):
    structures = pairs(1.2, 3.5, 0.05, 0.9, 0.01, 4.0, 1.1)
    progress = []
    report = label_structures(structures, Spring(), store, on_label=lambda *a: progress.append(a))
    assert [a.info["walker"] for a in report.labelled] == [0, 3, 6]
    assert [(a.info["walker"], reason) for a, reason in report.rejected] == [
        (1, "force of 25.0 eV/Å exceeds the limit of 20 eV/Å"),
        (5, "force of 30.0 eV/Å exceeds the limit of 20 eV/Å"),
    ]
    assert [(a.info["walker"], reason) for a, reason in report.failed] == [
        (2, "0.05 Å is too close"),
        (4, "0.01 Å is too close"),
    ]
    assert report.n_computed == len(store) == 7
    assert progress == [(k, 7) for k in range(1, 8)]


def test_labels_are_attached_to_copies(store):
    (atoms,) = structures = pairs(1.5)
    atoms.calc = SinglePointCalculator(atoms, energy=99.0)
    atoms.info |= {"REF_energy": 99.0, "REF_stress": np.eye(3), "kept": "yes"}
    (labelled,) = label_structures(structures, Spring(), store).labelled
    assert labelled is not atoms
    assert labelled.calc is None
    assert labelled.info == {"walker": 0, "kept": "yes", "REF_energy": 1.25}
    assert type(labelled.info["REF_energy"]) is float
    np.testing.assert_array_equal(labelled.arrays["REF_forces"], [[0, 0, 5.0], [0, 0, -5.0]])
    assert atoms.info["REF_energy"] == 99.0
    assert "REF_forces" not in atoms.arrays

    atoms.cell, atoms.pbc = np.eye(3) * 9, True
    (labelled,) = label_structures(structures, Spring(), store).labelled
    np.testing.assert_array_equal(labelled.info["REF_stress"], np.diag([1.0, 2.0, 3.0]))


def test_nothing_is_computed_twice(store):
    structures = pairs(1.2, 3.5, 0.05, 1.2)
    first = label_structures(structures, Spring(), store)
    assert first.n_computed == 3  # the last repeats the first
    again = Spring()
    second = label_structures(structures, again, LabelStore(store.path))
    assert (again.calls, second.n_computed) == (0, 0)
    for old, new in zip(first.labelled, second.labelled, strict=True):
        assert old.info == new.info
        np.testing.assert_array_equal(old.arrays["REF_forces"], new.arrays["REF_forces"])
    assert [r for _, r in first.rejected + first.failed] == [r for _, r in second.rejected + second.failed]

    other_settings = Spring(stiffness=1.0)
    assert label_structures(structures, other_settings, store).n_computed == other_settings.calls == 3


def test_an_interrupted_run_resumes(store):
    structures = pairs(1.1, 1.2, 1.3, 1.4)

    class Interrupted(Spring):
        def compute(self, atoms):
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().compute(atoms)

    with pytest.raises(KeyboardInterrupt):
        label_structures(structures, Interrupted(), store)
    assert len(store) == 2
    report = label_structures(structures, Spring(), store)
    assert report.n_computed == 2
    assert [a.info["walker"] for a in report.labelled] == [0, 1, 2, 3]


def test_the_limit_is_not_part_of_the_label(store):
    structures = pairs(3.0, 3.0 + 1e-9)
    assert len(label_structures(structures, Spring(), store).rejected) == 1  # 20 eV/Å itself is allowed
    assert len(label_structures(structures, Spring(), store, max_force=5.0).rejected) == 2
    unlimited = label_structures(structures, Spring(), store, max_force=None)
    assert len(unlimited.labelled) == 2
    assert unlimited.n_computed == 0


def test_fixed_atoms_may_have_any_force(store):
    structures = pairs(3.1, 3.1, 3.1)
    structures[0].set_constraint(FixAtoms([0, 1]))
    structures[1].set_constraint(FixAtoms([0]))  # the other one is free and has as large a force
    structures[2].set_constraint(FixBondLength(0, 1))  # fixes no atom
    report = label_structures(structures, Spring(), store)
    assert len(report.labelled) == 1
    assert len(report.rejected) == 2


@pytest.mark.parametrize("max_force", [0.0, -1.0, float("nan")])
def test_a_limit_must_be_positive(store, max_force):
    with pytest.raises(InputError, match="max_force"):
        label_structures(pairs(1.0), Spring(), store, max_force=max_force)


def test_other_errors_of_a_reference_are_not_hidden(store):
    class Broken(Spring):
        def compute(self, atoms):
            raise InputError("atoms: wrong kind")

    with pytest.raises(InputError):
        label_structures(pairs(1.0), Broken(), store)
    assert len(store) == 0


def test_no_structures(store):
    report = label_structures([], Spring(), store)
    assert (report.labelled, report.rejected, report.failed, report.n_computed) == ([], [], [], 0)


@pytest.mark.parametrize("stress", [[0.0, 1, 2, 3, 4, 5], [[0.0, 5, 4], [5, 1, 3], [4, 3, 2]]])
@pytest.mark.parametrize(
    "form",
    [
        np.asarray,
        np.float32,
        lambda value: np.asarray(value)[None],
        lambda value: np.asarray(value)[None, None],
        lambda value: np.asarray(value).tolist(),
        lambda value: torch.tensor(value, dtype=torch.float64, requires_grad=True),
        lambda value: torch.tensor(value, dtype=torch.bfloat16)[None],
    ],
)
def test_labels_in_any_form_that_is_clear(form, stress):
    label = checked_label(form(2.0), form([[1.0, 2, 3], [4, 5, 6]]), form(stress), 2)
    assert (type(label.energy), label.energy) == (float, 2.0)
    np.testing.assert_array_equal(label.forces, [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(label.stress, [[0, 5, 4], [5, 1, 3], [4, 3, 2]])
    assert label.forces.dtype == label.stress.dtype == np.float64
    assert label.forces.flags.owndata or label.forces.base.flags.owndata


@pytest.mark.parametrize(
    ("energy", "forces", "stress", "message"),
    [
        (np.nan, np.zeros((2, 3)), None, "non-finite energy"),
        (0.0, np.full((2, 3), np.inf), None, "non-finite forces"),
        (0.0, np.zeros((2, 3)), np.full((3, 3), np.nan), "non-finite stress"),
        (0.0, np.zeros((3, 3)), None, "forces of shape"),
        (0.0, np.zeros((1, 6)), None, "forces of shape"),
        (0.0, np.zeros((3, 2)), None, "forces of shape"),
        (0.0, [[1.0, 2.0, 3.0], [1.0]], None, "rows of different lengths as forces"),
        ("not converged", np.zeros((2, 3)), None, "'not converged' as energy"),
        (None, np.zeros((2, 3)), None, "None as energy"),
        (0.0, None, None, "None as forces"),
        ([0.0, 1.0], np.zeros((2, 3)), None, "energy of 2 numbers"),
        ([], np.zeros((2, 3)), None, "energy of 0 numbers"),
        (1j, np.zeros((2, 3)), None, "complex numbers as energy"),
        (torch.tensor(1j), np.zeros((2, 3)), None, "complex numbers as energy"),
        (True, np.zeros((2, 3)), None, "True as energy"),
        (0.0, np.ma.masked_equal(np.zeros((2, 3)), 0.0), None, "masked"),
        (0.0, np.zeros((2, 3)), np.zeros(5), "stress of shape"),
        (0.0, np.zeros((2, 3)), np.zeros((2, 3, 3)), "stress of shape"),
    ],
)
def test_checked_label_refuses(energy, forces, stress, message):
    with pytest.raises(UnfinishedError, match=message):
        checked_label(energy, forces, stress, 2)
