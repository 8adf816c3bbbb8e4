"""What every reference must fulfil: checks to run on any of them, as those of :mod:`ubmd.testing.potentials`.

A check takes a function that makes the reference, always with the same settings, and a structure that it labels, with
forces that are not zero; it raises ``AssertionError`` when it fails. Some ten labels are computed by each of the checks
by differences, two at most by each of the others, so a small structure serves best.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
from ase import Atoms

from ubmd.reference.base import Label, Reference
from ubmd.testing.potentials import STENCIL, periodic, strained

Make = Callable[[], Reference]
STEP = 5e-3
"""Å of positions; half of it, as a pure number, of strain: long enough for energies that converge to 1e-6 eV."""
TOLERANCE = 2e-3
"""Of a derivative by differences, relative to the norm of forces or stress."""


def shapes_and_types(make: Make, atoms: Atoms) -> None:
    """A label is finite, in float64, and has a stress where the reference says so."""
    reference = make()
    reference.check()
    reference.check_atoms(atoms)
    label = reference.compute(atoms)
    assert isinstance(label, Label)
    assert isinstance(label.energy, float)
    assert np.isfinite(label.energy)
    assert label.forces.shape == (len(atoms), 3)
    assert label.forces.dtype == np.float64
    assert np.isfinite(label.forces).all()
    assert (label.stress is not None) == (reference.has_stress and periodic(atoms)), "has_stress"
    if label.stress is not None:
        assert label.stress.shape == (3, 3)
        assert np.isfinite(label.stress).all()
        np.testing.assert_allclose(label.stress, label.stress.T, atol=1e-8, err_msg="stress is not symmetric")


def forces_are_energy_differences(make: Make, atoms: Atoms) -> None:
    """Forces are minus the derivative of the energy, in eV and Å; along two random directions."""
    reference = make()
    forces = reference.compute(atoms).forces
    assert np.linalg.norm(forces) > 1e-2, "the structure is too close to rest to tell"
    for seed in range(2):
        direction = _unit(np.random.default_rng(seed).normal(size=forces.shape))
        quotient = 0.0
        for step, weight in STENCIL.items():
            moved = atoms.copy()
            moved.positions += step * STEP * direction
            quotient += weight * reference.compute(moved).energy / STEP
        _compare("force", -quotient, float((forces * direction).sum()), float(np.linalg.norm(forces)))


def stress_is_an_energy_difference(make: Make, atoms: Atoms) -> None:
    """So is the stress, by a strain of atoms and cell, per volume and positive under tension."""
    reference = make()
    stress = reference.compute(atoms).stress
    if stress is None:
        return
    for seed in range(2):
        square = np.random.default_rng(seed).normal(size=(3, 3))
        direction, size = _unit(square + square.T), STEP / 2
        steps = {step: reference.compute(strained(atoms, step * size * direction)).energy for step in STENCIL}
        quotient = sum(STENCIL[step] * energy for step, energy in steps.items()) / size / atoms.get_volume()
        _compare("stress", quotient, float((stress * direction).sum()), float(np.linalg.norm(stress)))


def structure_is_not_changed(make: Make, atoms: Atoms) -> None:
    """A structure is labelled as it is given, and left so."""
    given = atoms.copy()
    make().compute(given)
    assert given.calc is None
    assert given.info == atoms.info
    assert set(given.arrays) == set(atoms.arrays)
    for key, values in atoms.arrays.items():
        assert np.array_equal(given.arrays[key], values), key
    assert np.array_equal(given.cell.array, atoms.cell.array), "cell"
    assert np.array_equal(given.pbc, atoms.pbc), "pbc"


def labels_do_not_depend_on_history(make: Make, atoms: Atoms) -> None:
    """A label is the same from a new reference as from one that labelled another structure before."""
    used, other = make(), atoms.copy()
    other.rattle(0.02, seed=4)
    used.compute(other)
    again, expected = used.compute(atoms), make().compute(atoms)
    scale = float(np.linalg.norm(expected.forces))
    assert abs(again.energy - expected.energy) < 1e-5, "energy"
    assert np.abs(again.forces - expected.forces).max() < TOLERANCE * scale, "forces"


def fingerprints(make: Make, atoms: Atoms) -> None:
    """Equal settings have equal fingerprints, plain JSON, before and after a label; versions are text."""
    reference = make()
    before = reference.fingerprint()
    assert json.loads(json.dumps(before)) == before, "not plain JSON"
    assert make().fingerprint() == before, "differs between references of equal settings"
    reference.compute(atoms)
    assert reference.fingerprint() == before, "changed by a label"
    assert all(isinstance(text, str) for pair in reference.versions().items() for text in pair)


def _unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values)


def _compare(what: str, quotient: float, labelled: float, scale: float) -> None:
    assert abs(quotient - labelled) < TOLERANCE * scale, f"{what}: {labelled:g} labelled, {quotient:g} by differences"


CHECKS: tuple[Callable[[Make, Atoms], None], ...] = (
    shapes_and_types,
    forces_are_energy_differences,
    stress_is_an_energy_difference,
    structure_is_not_changed,
    labels_do_not_depend_on_history,
    fingerprints,
)


def name(check: Callable[[Make, Atoms], None]) -> str:
    """The name of a check."""
    return check.__name__
