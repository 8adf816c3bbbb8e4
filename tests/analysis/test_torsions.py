"""Torsion angles against ASE and against geometry known beforehand."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms

from ubmd.analysis.torsions import torsion_angles
from ubmd.errors import InputError


def chain(angle: float) -> np.ndarray:
    """Four atoms whose torsion is ``angle`` (rad), the far bond turned clockwise by it."""
    return np.array([[1.0, 0, 0], [0, 0, 0], [0, 0, 1.5], [np.cos(angle), np.sin(angle), 1.5]])


def test_agrees_with_ase_for_many_frames_and_torsions():
    rng = np.random.default_rng(3)
    frames = rng.normal(size=(2, 20, 9, 3))
    indices = np.array([[0, 1, 2, 3], [8, 2, 5, 1], [4, 6, 7, 0]])
    angles = torsion_angles(frames, indices)
    assert angles.shape == (2, 20, 3)
    for index in np.ndindex(2, 20):
        atoms = Atoms("H9", positions=frames[index])
        expected = np.radians([atoms.get_dihedral(*row) for row in indices.tolist()])
        difference = np.angle(np.exp(1j * (angles[index] - expected)))  # ASE counts from 0 to 2π
        np.testing.assert_allclose(difference, 0, atol=1e-9)


@pytest.mark.parametrize("angle", [-3.1, -1.4, -1e-7, 0.0, 1e-7, 0.9, np.pi - 1e-7])
def test_is_precise_also_near_cis_and_trans(angle: float):
    assert torsion_angles(chain(angle), [[0, 1, 2, 3]])[0] == pytest.approx(angle, abs=1e-12)


def test_trans_is_plus_pi_even_if_rounding_comes_from_below():
    for y in (0.0, -0.0, 1e-20, -1e-20):
        trans = np.array([[1.0, 0, 0], [0, 0, 0], [0, 0, 1.5], [-1.0, y, 1.5]])
        assert torsion_angles(trans, [[0, 1, 2, 3], [3, 2, 1, 0]]).tolist() == [np.pi, np.pi]


def test_collinear_atoms_have_no_torsion():
    straight = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [2, 1, 0]])
    assert np.isnan(torsion_angles(straight, [[0, 1, 2, 3]])).all()


@pytest.mark.parametrize(
    ("positions", "indices", "message"),
    [
        (np.zeros((4, 2)), [[0, 1, 2, 3]], "positions"),
        (np.zeros((4, 3)), [0, 1, 2, 3], "indices has shape"),
        (np.zeros((4, 3)), [[0, 1, 2, 4]], "indices holds 4"),
        (np.zeros((4, 3)), [[-1, 1, 2, 3]], "indices holds -1"),
        (np.zeros((4, 3)), [[0, 1, 2, 0]], "four different atoms"),
        (np.zeros((4, 3)), [[0.0, 1, 2, 3]], "integers"),
    ],
)
def test_refuses_what_is_no_torsion(positions: np.ndarray, indices: list, message: str):
    with pytest.raises(InputError, match=message):
        torsion_angles(positions, indices)
