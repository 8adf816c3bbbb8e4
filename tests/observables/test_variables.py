"""Collective variables against ASE and by finite differences, of molecules and crystals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from ubmd.data.batch import collate
from ubmd.errors import InputError
from ubmd.observables import (
    Angle,
    CellLength,
    CollectiveVariable,
    Coordination,
    Distance,
    Structures,
    Torsion,
    Volume,
    values_of,
)
from ubmd.observables.base import derivatives


def crystals(n: int, size: int = 9) -> list[Atoms]:
    """Random atoms in skewed cells that are hardly larger than a bond; atoms lie in other images too."""
    rng = np.random.default_rng(n)
    cell = np.array([[4.0, 0.3, 0.0], [1.9, 4.2, 0.1], [-0.4, 0.8, 5.0]])
    return [
        Atoms(
            f"H{size}", rng.normal(scale=6.0, size=(size, 3)), cell=cell + rng.normal(scale=0.2, size=(3, 3)), pbc=True
        )
        for _ in range(n)
    ]


def molecules(n: int, size: int = 9) -> list[Atoms]:
    rng = np.random.default_rng(n)
    return [Atoms(f"H{size}", rng.normal(scale=2.0, size=(size, 3))) for _ in range(n)]


@pytest.mark.parametrize("structures", [molecules(300), crystals(20)], ids=["molecules", "crystals"])
def test_distances_angles_and_torsions_are_those_of_ase(structures: list[Atoms]) -> None:
    atoms = [8, 2, 5, 1]
    found = values_of({"d": Distance(atoms[:2]), "a": Angle(atoms[:3]), "t": Torsion(atoms)}, structures)
    mic = bool(structures[0].pbc.any())
    np.testing.assert_allclose(found["d"], [a.get_distance(*atoms[:2], mic=mic) for a in structures], atol=1e-9)
    angles = np.radians([a.get_angle(*atoms[:3], mic=mic) for a in structures])
    np.testing.assert_allclose(found["a"], angles, atol=1e-6)
    torsions = np.radians([a.get_dihedral(*atoms, mic=mic) for a in structures])
    difference = np.angle(np.exp(1j * (found["t"] - torsions)))  # ASE counts from 0 to 2π
    np.testing.assert_allclose(difference, 0, atol=1e-6)
    assert -math.pi <= found["t"].min() < -2 < 2 < found["t"].max() <= math.pi


@pytest.mark.parametrize("structures", [molecules(5), crystals(5)], ids=["molecules", "crystals"])
def test_coordination_counts_pairs_smoothly(structures: list[Atoms]) -> None:
    centres, others = [0, 3], [1, 2, 3, 8]
    found = values_of({"n": Coordination(centres, others, distance=2.5)}, structures)["n"]
    for value, atoms in zip(found, structures, strict=True):
        r = atoms.get_all_distances(mic=bool(atoms.pbc.any()))
        count = sum((1 - (r[i, j] / 2.5) ** 6) / (1 - (r[i, j] / 2.5) ** 12) for i in centres for j in others if i != j)
        assert value == pytest.approx(count / 2)


def test_cells_are_those_of_ase() -> None:
    structures = crystals(6)
    variables = {"v": Volume(), "b": CellLength(1), "per": Volume(n_atoms=3)}
    found = values_of(variables, [*structures, structures[0].repeat((2, 1, 1))])
    volumes = np.array([a.get_volume() for a in structures])
    np.testing.assert_allclose(found["v"], [*volumes, 2 * volumes[0]])
    np.testing.assert_allclose(found["per"], [*volumes / 3, volumes[0] / 3])
    np.testing.assert_allclose(found["b"][:6], [a.cell.lengths()[1] for a in structures])
    left_handed = Atoms("H", cell=np.diag([1.0, 2.0, -3.0]), pbc=True)
    assert values_of({"v": Volume()}, [left_handed])["v"] == pytest.approx([6.0])


@pytest.mark.parametrize(
    "variable",
    [
        Distance([0, 4]),
        Angle([3, 1, 7]),
        Torsion([2, 0, 5, 6]),
        Coordination([0, 1], [2, 3, 4, 5, 6], distance=2.0),
        Volume(n_atoms=3),
        CellLength(2),
    ],
    ids=lambda v: type(v).__name__,
)
def test_derivatives_by_positions_and_strain_by_finite_differences(variable: CollectiveVariable) -> None:
    batch = collate(crystals(3), 3.0, dtype=torch.float64)
    values, leaves = derivatives(batch, [variable])
    gradient, strain = torch.autograd.grad(values.sum(), leaves, materialize_grads=True)

    def moved(shift: torch.Tensor, deform: torch.Tensor) -> torch.Tensor:
        new = batch.replace(positions=(batch.positions + shift) @ deform, cell=batch.cell @ deform)
        return variable(Structures.of_batch(new))

    step, eye = 1e-5, torch.eye(3).double()
    for axis in range(3):
        for atom in range(9):
            shift = torch.zeros(3, 9, 3).double()
            shift[:, atom, axis] = step
            shift = shift.view(-1, 3)
            expected = (moved(shift, eye) - moved(-shift, eye)) / (2 * step)
            np.testing.assert_allclose(gradient.view(3, 9, 3)[:, atom, axis], expected, atol=1e-6)
        for other in range(3):
            eps = torch.zeros(3, 3).double()
            eps[axis, other] = step
            zero = torch.zeros_like(batch.positions)
            expected = (moved(zero, eye + eps.T) - moved(zero, eye - eps.T)) / (2 * step)
            np.testing.assert_allclose(strain[:, axis, other], expected, atol=1e-5, rtol=1e-6)


def test_values_do_not_depend_on_the_number_of_structures_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    structures = [*molecules(7), *molecules(3, size=11)]
    variables = {"t": Torsion([0, 1, 2, 3]), "d": Distance([0, 8])}
    whole = values_of(variables, structures)
    monkeypatch.setattr("ubmd.observables.base._CHUNK", 2)
    for name, values in values_of(variables, structures).items():
        np.testing.assert_array_equal(values, whole[name])
        assert len(values) == 10
    assert values_of(variables, [])["t"].shape == (0,)


def test_ranges() -> None:
    assert Torsion([0, 1, 2, 3]).range == (-math.pi, math.pi)
    assert Torsion([0, 1, 2, 3]).wraps
    half = Torsion([0, 1, 2, 3], bounds=(0, 1))
    assert (half.range, half.wraps) == ((0, 1), False)
    assert Distance([0, 1]).range is None
    assert not Distance([0, 1], bounds=(0.5, 2)).wraps


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Torsion([0, 1, 1, 2]), r"atoms=\[0, 1, 1, 2\] must be four different atoms, counted from 0"),
        (lambda: Angle([0, 1]), "three different atoms"),
        (lambda: Distance([-1, 1]), "two different atoms"),
        (lambda: Distance([0, 1], width=0.0), r"width=0\.0 must be a positive number"),
        (lambda: Distance([0, 1], bounds=(2, 1)), r"bounds=\[2, 1\] must be two numbers"),
        (lambda: Volume(width=math.inf), "width=inf"),
        (lambda: CellLength(3), "axis=3 must be 0, 1 or 2"),
        (lambda: Coordination([0], [0], distance=1.0), r"neighbours=\[0\] must be other atoms"),
        (lambda: Coordination([0], [1], distance=0.0), r"distance=0\.0"),
        (lambda: Coordination([], [1], distance=1.0), r"atoms=\[\] must be different atoms"),
        (lambda: values_of({"d": Distance([0, 3])}, [molecule("H2O")]), "names atom 3, but the atoms are 0 to 2"),
        (lambda: values_of({"n": Coordination([0], [5], distance=1.0)}, [molecule("H2O")]), "names atom 5"),
        (lambda: values_of({"v": Volume()}, [Atoms("H", cell=[1, 1, 1], pbc=(1, 1, 0))]), "three directions"),
        (lambda: values_of({"v": Volume()}, [bulk("Cu"), molecule("H2O")]), "three directions"),
    ],
)
def test_what_is_no_variable(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
