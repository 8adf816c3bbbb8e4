"""What every uncertainty must fulfil: checks to run on any of them, as those of :mod:`ubmd.testing.potentials`.

A check takes an :class:`~ubmd.uncertainty.potential.UncertainPotential` in float64 that knows H, C and O, with its
uncertainty fitted to :func:`training`; it raises ``AssertionError`` when it fails.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from ase import Atoms
from scipy.spatial.transform import Rotation
from torch import Tensor

from ubmd.data.batch import AtomicBatch, collate
from ubmd.models.potential import differentiate
from ubmd.testing.potentials import STENCIL, STEP, assert_close, crystal, molecule, structures
from ubmd.uncertainty.potential import UncertainPotential

TOLERANCE = 1e-5  # of a gradient by differences, relative to its largest component


def training(seed: int = 0) -> list[Atoms]:
    """Distorted molecules and crystals to fit an uncertainty to."""
    listed = [make() for make in (molecule, crystal) for _ in range(5)]
    for i, atoms in enumerate(listed):
        atoms.rattle(0.1, seed=10 * seed + i)
    return listed


def batch_of(potential: UncertainPotential, listed: Sequence[Atoms]) -> AtomicBatch:
    """Structures as the potential takes them."""
    return collate(list(listed), potential.cutoff, dtype=torch.float64)


def values(potential: UncertainPotential, listed: Sequence[Atoms]) -> tuple[Tensor, Tensor]:
    """Uncertainties of structures [n_systems] and of their atoms [n_atoms]."""
    found = potential(batch_of(potential, listed))
    return found.uncertainty, found.atomic_uncertainty


def assert_near(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """Values agree to six digits, as roots of small squares lose some."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def shapes_and_signs(potential: UncertainPotential) -> None:
    """A value for each structure and atom, finite and not negative; positive where atoms have neighbours.

    Features for the selection are as wide as said, finite, and without gradients.
    """
    listed = structures()
    for found, size in zip(values(potential, listed), (len(listed), sum(map(len, listed))), strict=True):
        assert found.shape == (size,)
        assert torch.isfinite(found).all()
        assert (found >= 0).all()
    assert (torch.cat(values(potential, [molecule(), crystal()])) > 0).all()
    features = _features(potential, listed)
    assert features.shape == (len(listed), potential.uncertainty.n_features)
    assert torch.isfinite(features).all()
    assert not features.requires_grad


def rotations_and_permutations(potential: UncertainPotential) -> None:
    """Values do not turn with a structure, nor depend on the order of its atoms."""
    turn = Rotation.from_quat(np.random.default_rng(2).normal(size=4)).as_matrix()
    for atoms in (molecule(), crystal()):
        order = np.random.default_rng(1).permutation(len(atoms))
        moved = atoms[order]
        moved.set_cell(np.asarray(atoms.cell) @ turn.T)
        moved.positions = moved.positions @ turn.T
        total, atomic = values(potential, [atoms])
        assert_near(values(potential, [moved]), (total, atomic[torch.from_numpy(order)]))


def batches(potential: UncertainPotential) -> None:
    """A structure's values and features do not depend on its company."""
    listed = structures()
    total, atomic = values(potential, listed)
    features = _features(potential, listed)
    for i, (atoms, part) in enumerate(zip(listed, atomic.split([*map(len, listed)]), strict=True)):
        assert_near((total[i : i + 1], part), values(potential, [atoms]))
        assert_close(features[i : i + 1], _features(potential, [atoms]))


def gradients_are_differences(potential: UncertainPotential) -> None:
    """Both values can be differentiated by positions: what a bias follows."""
    atoms = molecule()
    batch = batch_of(potential, [atoms])
    for which in (0, 1):
        output, leaf = potential.potential.atoms(batch)
        with torch.enable_grad():
            found = potential.uncertainty(potential.model, output, leaf, batch)[which]
            gradient = differentiate(found if which == 0 else batch.sum_atoms(found), leaf, batch)[0].detach().numpy()
        quotient = np.zeros(atoms.positions.size)
        for step, weight in STENCIL.items():
            moved = [atoms.copy() for _ in quotient]
            for i, other in enumerate(moved):
                other.positions.flat[i] += step * STEP
            value = values(potential, moved)[which].reshape(len(moved), -1).sum(1)
            quotient += weight * value.numpy() / STEP
        error = np.abs(gradient.ravel() - quotient).max() / np.abs(quotient).max()
        assert error < TOLERANCE, f"{('total', 'atomic')[which]}: {error:g}"


def conformal_factors(potential: UncertainPotential) -> None:
    """Values are proportional to their factors, and a fit sets these to 1."""
    changed, listed = copy.deepcopy(potential), [molecule(), crystal()]
    uncertainty, numbers = changed.uncertainty, batch_of(potential, listed).numbers
    total, atomic = values(changed, listed)
    factors = (1 + torch.arange(119) / 50).to(uncertainty.atomic_scale)
    uncertainty.total_scale.mul_(3)
    uncertainty.atomic_scale.mul_(factors)
    assert_near(values(changed, listed), (3 * total, factors[numbers] * atomic))
    uncertainty.fit(changed.model, [batch_of(changed, training())])
    assert (uncertainty.total_scale == 1).all()
    assert (uncertainty.atomic_scale == 1).all()


def saved_and_loaded(potential: UncertainPotential) -> None:
    """Its state alone makes one that was fitted to other structures equal."""
    other = copy.deepcopy(potential)
    other.uncertainty.fit(other.model, [batch_of(other, training(seed=1)[:7])])
    other.uncertainty.total_scale.fill_(5.0)
    other.get_submodule("uncertainty").load_state_dict(potential.get_submodule("uncertainty").state_dict())
    for found, expected in zip(*(values(p, structures()) for p in (other, potential)), strict=True):
        assert torch.equal(found, expected)


def _features(potential: UncertainPotential, listed: Sequence[Atoms]) -> Tensor:
    return potential.uncertainty.total_features(potential.model, batch_of(potential, listed))


CHECKS: tuple[Callable[[UncertainPotential], None], ...] = (
    shapes_and_signs,
    rotations_and_permutations,
    batches,
    gradients_are_differences,
    conformal_factors,
    saved_and_loaded,
)


def name(check: Callable[[UncertainPotential], None]) -> str:
    """The name of a check."""
    return check.__name__
