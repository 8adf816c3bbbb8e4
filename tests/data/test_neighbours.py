from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from ubmd.data.neighbours import neighbour_matrix

TRICLINIC = np.array([[3.1, 0.0, 0.0], [1.2, 2.9, 0.0], [-0.8, 0.9, 3.3]])
# turned, and left-handed
GENERAL = np.array([[0.5, 3.0, -0.4], [2.8, -0.7, 0.6], [0.9, 0.8, 3.1]])
Pair = tuple[int, int, int, int, int]


def brute_force(
    positions: NDArray[np.float64], cell: NDArray[np.float64], pbc: tuple[bool, ...], cutoff: float, reach: int
) -> set[Pair]:
    """(i, j, translation of j) of all pairs, by trying every image."""
    out = set()
    for shift in product(*(range(-reach, reach + 1) if periodic else (0,) for periodic in pbc)):
        vectors = positions[None] + np.array(shift) @ cell - positions[:, None]
        for i, j in zip(*np.nonzero(np.linalg.norm(vectors, axis=-1) <= cutoff), strict=True):
            if i != j or any(shift):
                out.add((int(i), int(j), *shift))
    return out


def found_pairs(
    positions: NDArray[np.float64], cell: NDArray[np.float64], pbc: tuple[bool, ...], cutoff: float
) -> Counter[Pair]:
    n = len(positions)
    neighbours, mask, shifts = neighbour_matrix(positions, cell[None], np.array([pbc]), np.array([n]), cutoff)
    out: Counter[Pair] = Counter()
    for i, column in zip(*np.nonzero(mask), strict=True):
        shift = (0, 0, 0) if shifts is None else tuple(int(s) for s in shifts[i, column])
        out[int(i), int(neighbours[i, column]), shift[0], shift[1], shift[2]] += 1
    return out


@pytest.mark.parametrize("pbc", list(product([False, True], repeat=3)), ids=str)
@pytest.mark.parametrize("cell", [TRICLINIC, GENERAL], ids=["triclinic", "general"])
@pytest.mark.parametrize("spread", [0.5, 4.0], ids=["inside", "far outside"])
def test_equals_brute_force(pbc: tuple[bool, ...], cell: NDArray[np.float64], spread: float) -> None:
    """Cells smaller than the cutoff, atoms anywhere, one to three periodic directions."""
    rng = np.random.default_rng(sum(pbc))
    positions = rng.uniform(-spread, spread, size=(6, 3)) @ cell
    if not any(pbc):
        cell = np.zeros((3, 3))
    found = found_pairs(positions, cell, pbc, 4.5)
    assert set(found) == brute_force(positions, cell, pbc, 4.5, reach=14)
    assert set(found.values()) <= {1}


@pytest.mark.parametrize("pbc", [(True, False, False), (False, True, True), (True, True, False)], ids=str)
def test_directions_without_a_lattice_vector(pbc: tuple[bool, ...]) -> None:
    """A slab or a wire needs no vectors along the directions in which it ends."""
    cell = np.where(np.array(pbc)[:, None], TRICLINIC, 0.0)
    positions = np.random.default_rng(5).uniform(-3, 3, size=(7, 3))
    found = found_pairs(positions, cell, pbc, 4.0)
    assert set(found) == brute_force(positions, cell, pbc, 4.0, reach=8)
    assert len(found) > 20


def test_an_atom_sees_its_own_images() -> None:
    """A simple cubic lattice: 6 first, 12 second neighbours."""
    one = np.zeros((1, 3))
    assert len(found_pairs(one, 2.0 * np.eye(3), (True,) * 3, 2.1)) == 6
    assert len(found_pairs(one, 2.0 * np.eye(3), (True,) * 3, 2.9)) == 18


def test_structures_do_not_meet() -> None:
    """Structures in one call get the same neighbours as alone, with their own numbering."""
    rng = np.random.default_rng(2)
    sizes = np.array([4, 1, 6])
    positions = rng.uniform(0, 3, size=(11, 3))
    cell = np.array([TRICLINIC, np.zeros((3, 3)), GENERAL])
    pbc = np.array([[True] * 3, [False] * 3, [True, False, True]])
    neighbours, mask, shifts = neighbour_matrix(positions, cell, pbc, sizes, 3.5)
    assert shifts is not None
    start = 0
    for box, periodic, n in zip(cell, pbc, sizes, strict=True):
        rows = slice(start, start + n)
        expected = brute_force(positions[rows], box, tuple(periodic), 3.5, reach=6)
        together = {
            (int(i), int(neighbours[start + i, k]) - start, *(int(s) for s in shifts[start + i, k]))
            for i, k in zip(*np.nonzero(mask[rows]), strict=True)
        }
        assert together == expected
        start += n


def test_padding_points_at_the_atom_itself() -> None:
    positions = np.array([[0.0, 0, 0], [1.0, 0, 0], [1.0, 1.0, 0], [9.0, 9.0, 9.0]])
    neighbours, mask, shifts = neighbour_matrix(
        positions, np.zeros((1, 3, 3)), np.zeros((1, 3), bool), np.array([4]), 1.2
    )
    assert shifts is None
    assert mask.sum(1).tolist() == [1, 2, 1, 0]
    assert neighbours.shape == (4, 2)
    assert (neighbours[~mask] == np.nonzero(~mask)[0]).all()


def test_a_matrix_is_never_empty() -> None:
    neighbours, mask, _ = neighbour_matrix(
        np.zeros((1, 3)), np.zeros((1, 3, 3)), np.zeros((1, 3), bool), np.array([1]), 5.0
    )
    assert neighbours.tolist() == [[0]]
    assert not mask.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_structures_that_have_blown_up_are_left_out(bad: float) -> None:
    positions = np.array([[0.0, 0, 0], [1.0, 0, 0], [bad, 0, 0], [1.0, 0, 0]])
    neighbours, mask, _ = neighbour_matrix(
        positions, np.zeros((2, 3, 3)), np.zeros((2, 3), bool), np.array([2, 2]), 3.0
    )
    assert mask.sum(1).tolist() == [1, 1, 0, 0]
    assert neighbours[:2, 0].tolist() == [1, 0]


SHAPES = {
    "atom that flew off": (np.zeros((3, 3)), (False, False, False), [1e9, -3e12, 5.0]),
    "wide sheet": (np.diag([2000.0, 2000.0, 0.0]), (True, True, False), [1000.0, 500.0, 1.0]),
    "wide sheet of a crystal": (np.diag([5000.0, 3.0, 5000.0]), (True, True, True), [1000.0, 1.0, 500.0]),
    "long wire": (np.diag([0.0, 1e6, 0.0]), (False, True, False), [1.0, 2e5, 1.0]),
    "atom far from a sheet": (np.array([[4.0, 0, 0], [1.0, 4.0, 0], [0, 0, 0]]), (True, True, False), [0, 0, 1e7]),
    "atom far from a wire": (np.array([[0, 0, 0], [0, 0, 0], [0, 3.0, 3.0]]), (False, False, True), [1e7, 0, 0]),
}


@pytest.mark.parametrize("cutoff", [1e-3, 4.5])
@pytest.mark.parametrize(("cell", "pbc", "far"), [*SHAPES.values()], ids=[*SHAPES])
def test_extreme_shapes(cell: NDArray[np.float64], pbc: tuple[bool, ...], far: list[float], cutoff: float) -> None:
    """Long or flat ones, which vesin alone divides by zero for."""
    positions = np.array([[0.0, 0.0, 0.0], [0.1, -0.2, 1.0], [0.5, 1.0, 0.5], far])
    expected = brute_force(positions, cell, pbc, cutoff, reach=3)
    found = found_pairs(positions, cell, pbc, cutoff)
    assert set(found) == expected
    assert set(found.values()) <= {1}
