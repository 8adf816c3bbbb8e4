"""What every potential must fulfil, whatever its model: checks to run on any of them.

A test module makes its potentials and runs all checks on each, with pytest for example::

    from ubmd.testing import potentials

    @pytest.mark.parametrize("check", potentials.CHECKS, ids=potentials.name)
    def test_contract(check):
        check(Potential(MyModel(potentials.SPECIES).double()))

A potential is a module in float64 with a ``cutoff`` between 3.5 and 7 Å that knows H, C and O and is called as
:class:`~ubmd.models.potential.Potential` is. A check that fails raises ``AssertionError``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import fields

import numpy as np
import torch
from ase import Atoms
from scipy.spatial.transform import Rotation
from torch import Tensor

from ubmd.data.batch import collate
from ubmd.models.potential import Potential, Prediction

SPECIES = ("H", "C", "O")
STEP = 1e-3
"""Å, of positions."""
STRAIN_STEP = 1e-4
"""Shorter, as a strain moves far pairs by several times as much, and a cutoff has no third derivative."""
STENCIL = {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}
"""Central differences of fourth order."""
FORCE_TOLERANCE = 1e-6
"""Relative to the largest component; differences of float64 energies reach about 1e-9."""


def molecule() -> Atoms:
    """Acetaldehyde, distorted: no symmetry, three species."""
    positions = [
        [0.02, 0.01, -0.03],
        [1.48, 0.10, 0.05],
        [2.15, 1.09, -0.12],
        [-0.36, 1.05, 0.11],
        [-0.41, -0.55, 0.86],
        [-0.33, -0.49, -0.94],
        [1.99, -0.87, 0.21],
    ]
    return Atoms("CCOHHHH", positions)


def crystal() -> Atoms:
    """Four atoms in a triclinic cell that is smaller than any cutoff, one of them outside the cell."""
    cell = np.array([[2.9, 0.1, -0.2], [0.8, 3.1, 0.15], [-0.5, 0.6, 3.3]])
    fractions = [[0.02, 0.03, 0.01], [0.51, 0.45, 0.55], [0.48, -0.04, 0.40], [1.10, 0.52, -1.12]]
    return Atoms("CHOC", scaled_positions=fractions, cell=cell, pbc=True)


def structures() -> list[Atoms]:
    """A molecule, a crystal, a lone atom and a bigger cell: what a mixed batch may hold."""
    supercell = crystal().repeat((2, 1, 1))
    supercell.rattle(0.05, seed=3)
    return [molecule(), crystal(), Atoms("O", [[0.3, 0.2, 0.1]]), supercell]


def periodic(atoms: Atoms) -> bool:
    """Whether a structure is periodic in three directions."""
    return bool(atoms.pbc.all())


def predict(potential: Potential, atoms: Atoms | Sequence[Atoms], *, skin: float = 0.0) -> Prediction:
    """A potential's prediction for structures, in float64."""
    listed = [atoms] if isinstance(atoms, Atoms) else list(atoms)
    return potential(collate(listed, potential.cutoff + skin, dtype=torch.float64), stress=True)


def energies(potential: Potential, listed: Sequence[Atoms]) -> np.ndarray:
    """Energies of structures, eV."""
    return predict(potential, listed).energy.numpy()


def strained(atoms: Atoms, strain: np.ndarray) -> Atoms:
    """R -> (1 + strain) r, of the atoms and of the cell."""
    out = atoms.copy()
    out.set_cell(np.asarray(atoms.cell) @ (np.eye(3) + strain).T)
    out.positions = atoms.positions @ (np.eye(3) + strain).T
    return out


def force_error(potential: Potential, atoms: Atoms) -> float:
    """Largest deviation of a force from minus the difference quotient, relative to the largest force."""
    forces = predict(potential, atoms).forces.numpy()
    quotient = np.zeros(atoms.positions.size)
    for step, weight in STENCIL.items():
        moved = []
        for index in range(quotient.size):
            copied = atoms.copy()
            copied.positions.flat[index] += step * STEP
            moved.append(copied)
        quotient += weight * energies(potential, moved) / STEP
    return float(np.abs(forces.ravel() + quotient).max() / np.abs(forces).max())


def stress_error(potential: Potential, atoms: Atoms) -> float:
    """Largest deviation of a stress from the difference quotient under strain, relative to the largest."""
    prediction = predict(potential, atoms).stress
    assert prediction is not None
    stress = prediction[0].numpy()
    quotient = np.zeros((3, 3))
    for a in range(3):
        for b in range(3):
            strain = np.zeros((3, 3))
            strain[a, b] += 0.5
            strain[b, a] += 0.5
            steps = [strained(atoms, step * STRAIN_STEP * strain) for step in STENCIL]
            quotient[a, b] = np.dot(list(STENCIL.values()), energies(potential, steps)) / STRAIN_STEP
    return float(np.abs(stress - quotient / atoms.get_volume()).max() / np.abs(stress).max())


def forces_are_energy_differences(potential: Potential) -> None:
    """Forces agree with differences of the energy to one in a million."""
    for atoms in (molecule(), crystal()):
        assert force_error(potential, atoms) < FORCE_TOLERANCE


def stress_is_an_energy_difference(potential: Potential) -> None:
    """So does the stress of a crystal."""
    assert stress_error(potential, crystal()) < FORCE_TOLERANCE


def shapes_and_types(potential: Potential) -> None:
    """A mixed batch has predictions of the right shapes, without gradients."""
    listed = structures()
    found = predict(potential, listed)
    assert found.stress is not None
    assert found.energy.shape == (len(listed),)
    assert found.forces.shape == (sum(map(len, listed)), 3)
    assert found.stress.shape == (len(listed), 3, 3)
    assert found.energy.dtype == torch.float64
    for tensor in (found.energy, found.forces, found.stress):
        assert not tensor.requires_grad
    assert torch.isfinite(found.energy).all()
    assert torch.isfinite(found.forces).all()
    asked_for_less = potential(collate(listed, potential.cutoff, dtype=torch.float64))
    assert asked_for_less.stress is None
    assert_close(asked_for_less.forces, found.forces)


def says_something(potential: Potential) -> None:
    """Without this, a potential that is zero everywhere would pass."""
    for atoms in (molecule(), crystal()):
        found = predict(potential, atoms)
        assert found.forces.abs().max() > 1e-3
        other = atoms.copy()
        other.numbers[[0, 2]] = other.numbers[[2, 0]]
        assert (predict(potential, other).energy - found.energy).abs() > 1e-6


def rotations_and_reflections(potential: Potential) -> None:
    """Energies are invariant, forces turn along, and so does the stress from both sides."""
    for seed, improper in enumerate((1.0, -1.0)):
        turn = improper * Rotation.from_quat(np.random.default_rng(seed).normal(size=4)).as_matrix()
        for atoms in (molecule(), crystal()):
            turned = atoms.copy()
            turned.set_cell(np.asarray(atoms.cell) @ turn.T)
            turned.positions = atoms.positions @ turn.T
            before, after = predict(potential, atoms), predict(potential, turned)
            rotation = torch.from_numpy(turn)
            assert_close(after.energy, before.energy)
            assert_close(after.forces, before.forces @ rotation.T)
            if periodic(atoms):
                assert before.stress is not None
                expected = rotation @ before.stress @ rotation.T
                assert_close(after.stress, expected)


def translations(potential: Potential) -> None:
    """Nothing changes, and what cannot change cannot push: total force and torque vanish."""
    for atoms in (molecule(), crystal()):
        moved = atoms.copy()
        moved.positions += [11.3, -7.1, 0.35]
        assert_same(predict(potential, moved), predict(potential, atoms), stress=periodic(atoms))
        forces = predict(potential, atoms).forces.numpy()
        assert np.abs(forces.sum(0)).max() < 1e-9 * np.abs(forces).max()
        if not periodic(atoms):
            torque = np.cross(atoms.positions, forces).sum(0)
            assert np.abs(torque).max() < 1e-8 * np.abs(forces).max()


def permutations(potential: Potential) -> None:
    """The order of the atoms does not matter; forces follow their atoms."""
    for atoms in (molecule(), crystal()):
        order = np.random.default_rng(1).permutation(len(atoms))
        before, after = predict(potential, atoms), predict(potential, atoms[order])
        assert_close(after.energy, before.energy)
        assert_close(after.forces, before.forces[torch.from_numpy(order)])
        if periodic(atoms):
            assert_close(after.stress, before.stress)


def choice_of_the_cell(potential: Potential) -> None:
    """Atoms moved by lattice vectors, and another cell of the same lattice, are the same crystal."""
    atoms = crystal()
    before = predict(potential, atoms)
    wrapped = atoms.copy()
    wrapped.wrap()
    assert np.abs(wrapped.positions - atoms.positions).max() > 1.0
    sheared = atoms.copy()
    sheared.set_cell(np.array([[1, 0, 0], [1, 1, 0], [-2, 1, 1]]) @ np.asarray(atoms.cell))
    for other in (wrapped, sheared):
        assert_same(predict(potential, other), before)


def supercells(potential: Potential) -> None:
    """Twice the cell: twice the energy, the same forces again, the same stress."""
    atoms = crystal()
    once = predict(potential, atoms)
    for repeat in ((2, 1, 1), (1, 3, 2)):
        n = int(np.prod(repeat))
        often = predict(potential, atoms.repeat(repeat))
        assert_close(often.energy, n * once.energy)
        assert_close(often.forces, once.forces.repeat(n, 1))
        assert_close(often.stress, once.stress)


def batches(potential: Potential) -> None:
    """A structure's prediction does not depend on its company, on the order, or on how it was gathered."""
    listed = structures()
    batch = collate(listed, potential.cutoff, dtype=torch.float64)
    chosen = [3, 0, 1, 1, 2]
    cases = {
        "batch": (batch, range(len(listed))),
        "reversed": (collate(listed[::-1], potential.cutoff, dtype=torch.float64), range(len(listed))[::-1]),
        "selected": (batch.select(torch.tensor(chosen)), chosen),
    }
    alone = [predict(potential, atoms) for atoms in listed]
    for name, (together, members) in cases.items():
        found = potential(together, stress=True)
        start = 0
        for place, member in enumerate(members):
            n = len(listed[member])
            piece = Prediction(
                found.energy[place : place + 1],
                found.forces[start : start + n],
                None if found.stress is None else found.stress[place : place + 1],
            )
            try:
                assert_same(piece, alone[member], stress=periodic(listed[member]))
            except AssertionError as error:
                raise AssertionError(f"structure {member} in {name}: {error}") from error
            start += n


def blown_up_neighbours(potential: Potential) -> None:
    """A structure that has become NaN does so alone."""
    healthy, ill = [molecule(), crystal()], molecule()
    batch = collate([healthy[0], ill, healthy[1]], potential.cutoff, dtype=torch.float64)
    positions = batch.positions.clone()
    positions[len(healthy[0]) : len(healthy[0]) + len(ill)] = torch.nan
    found = potential(batch.replace(positions=positions), stress=True)
    assert torch.isnan(found.energy).tolist() == [False, True, False]
    expected = predict(potential, healthy)
    assert_close(found.energy[[0, 2]], expected.energy)
    others = batch.system_idx != 1
    assert_close(found.forces[others], expected.forces)
    assert found.stress is not None
    assert expected.stress is not None
    assert_close(found.stress[2], expected.stress[1])


def smoothness_at_the_cutoff(potential: Potential) -> None:
    """An atom that leaves: what it adds to the energy goes as the square of the distance left, force as that."""
    centre = Atoms("CO", [[0.0, 0.0, 0.0], [-1.1, 0.4, 0.0]])
    alone = predict(potential, [centre, Atoms("H", [[0, 0, 0]])]).energy.sum()

    def at(depth: float) -> tuple[float, float]:
        leaving = centre + Atoms("H", [[potential.cutoff - depth, 0.0, 0.0]])
        found = predict(potential, leaving, skin=0.5)
        return float((found.energy - alone).abs()), float(found.forces[-1].abs().max())

    near, nearer = at(1e-2), at(1e-3)
    assert near[0] > 1e-9, "the atom is not seen just inside the cutoff"
    assert 80 < near[0] / nearer[0] < 120
    assert 9 < near[1] / nearer[1] < 11
    for depth in (0.0, -1e-6, -0.3):
        gone = at(depth)
        assert gone[0] < 1e-12 * max(1.0, float(alone.abs()))
        assert gone[1] < 1e-12


def neighbours_beyond_the_cutoff(potential: Potential) -> None:
    """Longer neighbour lists, and more padding, change nothing."""
    listed = structures()
    expected = predict(potential, listed)
    batch = collate(listed, potential.cutoff, dtype=torch.float64)
    own = torch.arange(len(batch.positions))[:, None]
    assert batch.shifts is not None
    padded = batch.replace(
        neighbours=torch.cat([batch.neighbours, own.expand(-1, 5)], 1),
        mask=torch.cat([batch.mask, torch.zeros_like(own, dtype=torch.bool).expand(-1, 5)], 1),
        shifts=torch.cat([batch.shifts, batch.shifts.new_zeros(len(own), 5, 3)], 1),
    )
    for found in (predict(potential, listed, skin=1.7), potential(padded, stress=True)):
        assert_close(found.energy, expected.energy)
        assert_close(found.forces, expected.forces)
        assert found.stress is not None
        assert expected.stress is not None
        assert_close(found.stress[[1, 3]], expected.stress[[1, 3]])


def batch_is_not_changed(potential: Potential) -> None:
    """A prediction leaves its batch as it was."""
    batch = collate(structures(), potential.cutoff, dtype=torch.float64)
    kept = {f.name: v.clone() for f in fields(batch) if isinstance(v := getattr(batch, f.name), Tensor)}
    potential(batch, stress=True)
    for name, value in kept.items():
        now = getattr(batch, name)
        assert torch.equal(now, value), name
        assert not now.requires_grad, name
        assert now.grad is None


def gradient_modes(potential: Potential) -> None:
    """Callers that switch gradients off still get forces, and no call leaves gradients on the parameters."""
    batch = collate([crystal()], potential.cutoff, dtype=torch.float64)
    expected = potential(batch, stress=True)
    with torch.no_grad():
        found = potential(batch, stress=True)
    assert_same(found, expected)
    assert all(p.grad is None for p in potential.parameters())


def float32(potential: Potential) -> None:
    """Single precision gives the same to about six digits."""
    single = copy.deepcopy(potential).float()
    for atoms in (molecule(), crystal()):
        batch = collate([atoms], potential.cutoff, dtype=torch.float64)
        expected = potential(batch, stress=True)
        found = single(batch.to(torch.float32), stress=True)
        assert found.energy.dtype == torch.float64
        assert found.forces.dtype == torch.float32
        scale = float(expected.forces.abs().max())
        assert (found.energy - expected.energy).abs() < 2e-5 * (expected.energy.abs() + scale)
        assert (found.forces - expected.forces).abs().max() < 5e-5 * scale
        if periodic(atoms):
            assert expected.stress is not None
            error = (found.stress - expected.stress).abs().max()
            assert error < 5e-5 * expected.stress.abs().max()


def assert_close(found: Tensor | None, expected: Tensor | None) -> None:
    """Values agree but for rounding in float64."""
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def assert_same(found: Prediction, expected: Prediction, *, stress: bool = True) -> None:
    """Energies, forces and (of crystals) stress agree."""
    assert_close(found.energy, expected.energy)
    assert_close(found.forces, expected.forces)
    if stress:
        assert_close(found.stress, expected.stress)


CHECKS: tuple[Callable[[Potential], None], ...] = (
    forces_are_energy_differences,
    stress_is_an_energy_difference,
    shapes_and_types,
    says_something,
    rotations_and_reflections,
    translations,
    permutations,
    choice_of_the_cell,
    supercells,
    batches,
    blown_up_neighbours,
    smoothness_at_the_cutoff,
    neighbours_beyond_the_cutoff,
    batch_is_not_changed,
    gradient_modes,
    float32,
)


def name(check: Callable[[Potential], None]) -> str:
    """The name of a check."""
    return check.__name__
