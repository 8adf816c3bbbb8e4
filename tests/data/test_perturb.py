from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from ubmd.data.perturb import perturb, random_strain, stretch
from ubmd.errors import InputError


def crystal() -> Atoms:
    atoms = bulk("Cu").repeat((2, 2, 1))
    atoms.set_cell(np.asarray(atoms.cell) + np.array([[0, 0.3, 0], [0, 0, 0.2], [0.1, 0, 0]]), scale_atoms=True)
    return atoms


def test_shifts_are_uniform() -> None:
    """Eq. 32: independent components within the bounds, filling them evenly."""
    from scipy.stats import kstest

    atoms = molecule("CH3CH2OH")
    copies = perturb(atoms, 200, displacement=0.08, rng=np.random.default_rng(0))
    shifts = np.array([copy.positions - atoms.positions for copy in copies])
    assert shifts.shape == (200, 9, 3)
    assert np.abs(shifts).max() <= 0.08
    assert kstest(shifts.ravel(), "uniform", args=(-0.08, 0.16)).pvalue > 1e-3
    correlation = np.corrcoef(shifts.reshape(200, -1), rowvar=False) - np.eye(27)
    assert np.abs(correlation).max() < 0.4


def test_strain_is_symmetric_and_bounded() -> None:
    """epsilon = (A + A^T) / 2: uniform on the diagonal, a mean of two off it."""
    rng = np.random.default_rng(1)
    strains = np.array([random_strain(rng, 0.02) for _ in range(4000)])
    np.testing.assert_array_equal(strains, strains.transpose(0, 2, 1))
    assert np.abs(strains).max() <= 0.02
    variance = 0.02**2 / 3
    assert strains[:, 0, 0].var() == pytest.approx(variance, rel=0.1)
    assert strains[:, 0, 1].var() == pytest.approx(variance / 2, rel=0.1)
    assert np.abs(strains.mean(0)).max() < 1e-3


@pytest.mark.parametrize("size", [0.0, 0.02, 0.3])
def test_stretch_is_the_square_root(size: float) -> None:
    """Eqs. 33, 34: D^2 = I + 2 epsilon, D symmetric and positive definite."""
    strain = random_strain(np.random.default_rng(2), size)
    deform = stretch(strain)
    np.testing.assert_allclose(deform @ deform, np.eye(3) + 2 * strain, atol=1e-14)
    np.testing.assert_allclose(deform, deform.T, atol=1e-14)
    assert np.linalg.eigvalsh(deform).min() > 0


def test_strain_moves_cell_and_atoms_alike() -> None:
    """Fractional coordinates stay, and the metric of the cell is B (I + 2 epsilon) B^T."""
    atoms = crystal()
    (copy,) = perturb(atoms, 1, displacement=0.0, strain=0.05, rng=np.random.default_rng(3))
    before, after = np.asarray(atoms.cell), np.asarray(copy.cell)
    np.testing.assert_allclose(
        copy.positions @ np.linalg.inv(after), atoms.positions @ np.linalg.inv(before), atol=1e-12
    )
    deform = np.linalg.inv(before) @ after
    np.testing.assert_allclose(deform, deform.T, atol=1e-12)
    strain = (deform @ deform - np.eye(3)) / 2
    assert 1e-3 < np.abs(strain).max() <= 0.05
    np.testing.assert_allclose(after @ after.T, before @ (np.eye(3) + 2 * strain) @ before.T, atol=1e-10)


def test_atoms_are_shifted_before_the_strain() -> None:
    atoms = crystal()
    (copy,) = perturb(atoms, 1, displacement=0.1, strain=0.05, rng=np.random.default_rng(4))
    deform = np.linalg.inv(np.asarray(atoms.cell)) @ np.asarray(copy.cell)
    shifts = copy.positions @ np.linalg.inv(deform) - atoms.positions
    assert 0.05 < np.abs(shifts).max() <= 0.1


def test_the_cell_stays_without_strain() -> None:
    atoms = crystal()
    (copy,) = perturb(atoms, 1, displacement=0.1, rng=np.random.default_rng(5))
    np.testing.assert_array_equal(copy.cell, atoms.cell)
    assert copy.pbc.all()


def test_original_is_left_alone_and_labels_stay_behind() -> None:
    atoms = crystal()
    atoms.info["REF_energy"] = 1.0
    atoms.arrays["REF_forces"] = np.ones((len(atoms), 3))
    kept = atoms.copy()
    first, second = perturb(atoms, 2, displacement=0.1, strain=0.05, rng=np.random.default_rng(6))
    assert atoms == kept
    assert atoms.info == kept.info
    assert not first.info
    assert "REF_forces" not in first.arrays
    assert not np.allclose(first.positions, second.positions)
    assert not np.allclose(first.cell, second.cell)
    np.testing.assert_array_equal(first.numbers, atoms.numbers)


def test_depends_on_the_stream_alone() -> None:
    def draw(seed: int) -> np.ndarray:
        copies = perturb(crystal(), 3, displacement=0.1, strain=0.02, rng=np.random.default_rng(seed))
        return np.array([copy.positions for copy in copies])

    np.testing.assert_array_equal(draw(7), draw(7))
    assert not np.allclose(draw(7), draw(8))


def test_no_copies() -> None:
    assert perturb(crystal(), 0, displacement=0.1, rng=np.random.default_rng(0)) == []


@pytest.mark.parametrize("pbc", [False, (True, True, False)])
def test_strain_needs_three_periodic_directions(pbc: object) -> None:
    atoms = crystal()
    atoms.pbc = pbc
    with pytest.raises(InputError, match=r"system\.strain=0\.01 needs .* use system\.strain=0"):
        perturb(atoms, 1, displacement=0.1, strain=0.01, rng=np.random.default_rng(0))


def test_collapse() -> None:
    with pytest.raises(ValueError, match="collapses the cell"):
        stretch(np.diag([-0.6, 0.0, 0.0]))
