"""Coverage against a tree that is built node by node, and against closed forms."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from ubmd.errors import InputError
from ubmd.observables.coverage import _distinct, coverage


def rewards(points: list, lower: list, upper: list, splits: int, depth: int, weight: float = 1.0) -> float:
    """Reward of all visited descendants of one box, down to ``depth`` levels, by recursion."""
    if depth == 0 or not points:
        return 0.0
    total = 0.0
    step = [(b - a) / splits for a, b in zip(lower, upper, strict=True)]
    weight /= splits ** len(lower)
    for child in itertools.product(range(splits), repeat=len(lower)):
        low = [a + i * h for a, i, h in zip(lower, child, step, strict=True)]
        high = [a + h for a, h in zip(low, step, strict=True)]
        inside = [p for p in points if all(a <= x < b for x, a, b in zip(p, low, high, strict=True))]
        if inside:
            total += weight + rewards(inside, low, high, splits, depth - 1, weight)
    return total


@pytest.mark.parametrize(("d", "splits", "levels"), [(1, 2, 6), (2, 2, 5), (2, 3, 3), (3, 2, 3), (4, 2, 2)])
@pytest.mark.parametrize("n", [1, 7, 150])
def test_agrees_with_a_tree_built_node_by_node(d: int, splits: int, levels: int, n: int):
    rng = np.random.default_rng(10 * d + n)
    lower, upper = rng.uniform(-3, -1, d), rng.uniform(1, 3, d)
    points = lower + (upper - lower) * rng.beta(0.7, 2.0, (n, d))
    expected = rewards(points.tolist(), lower.tolist(), upper.tolist(), splits, levels) / levels
    assert coverage(points, lower, upper, splits=splits, levels=levels) == pytest.approx(expected, abs=1e-12)


def test_a_grid_with_a_point_in_every_leaf_covers_everything():
    centres = (np.arange(32) + 0.5) / 32
    grid = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
    assert coverage(grid, [0, 0], [1, 1]) == 1.0
    # Without one point one leaf of 4^5 is missing, and nothing above it.
    assert coverage(grid[1:], [0, 0], [1, 1]) == pytest.approx(1 - 4.0**-5 / 5, abs=1e-15)


@pytest.mark.parametrize(("d", "splits", "levels"), [(2, 2, 5), (1, 3, 4), (5, 2, 3)])
def test_a_single_point_visits_one_cell_of_each_level(d: int, splits: int, levels: int):
    expected = np.mean([float(splits**d) ** -level for level in range(1, levels + 1)])
    point = np.full((1, d), 0.3)
    assert coverage(point, [0.0] * d, [1.0] * d, splits=splits, levels=levels) == pytest.approx(expected)
    again = np.repeat(point, 4, axis=0)
    assert coverage(again, [0.0] * d, [1.0] * d, splits=splits, levels=levels) == pytest.approx(expected)


def test_periodic_points_are_wrapped_into_the_box():
    rng = np.random.default_rng(5)
    inside = rng.uniform(-np.pi, np.pi, (200, 2))
    box = ([-np.pi] * 2, [np.pi] * 2)
    turned = inside + 2 * np.pi * rng.integers(-3, 4, (200, 2))
    assert coverage(turned, *box, periodic=True) == coverage(inside, *box)
    assert coverage(turned, *box) < coverage(inside, *box)
    one_way = inside + np.array([2 * np.pi, 0])
    assert coverage(one_way, *box, periodic=[True, False]) == coverage(inside, *box)
    assert coverage(one_way, *box, periodic=[False, True]) == 0


def test_the_upper_bound_is_the_last_cell_or_the_first_if_periodic():
    first, last, end = [[0.01]], [[0.99]], [[1.0]]
    single = coverage(first, [0], [1])
    assert coverage(end + last, [0], [1]) == single
    assert coverage(end + first, [0], [1]) > single
    assert coverage(end + first, [0], [1], periodic=True) == single
    # Just below the lower bound wraps to the end, although 1 - 1e-20 rounds to 1.
    assert coverage([[-1e-20], *last], [0], [1], periodic=True) == single


def test_points_outside_and_points_that_are_not_finite_are_ignored():
    rng = np.random.default_rng(6)
    inside = rng.uniform(0, 1, (30, 2))
    stray = [[1.0001, 0.5], [0.5, -1e-9], [np.nan, 0.5], [0.5, np.inf], [-np.inf, np.nan]]
    assert coverage([*inside, *stray], [0, 0], [1, 1]) == coverage(inside, [0, 0], [1, 1])
    assert coverage(stray, [0, 0], [1, 1]) == 0
    assert coverage(np.zeros((0, 2)), [0, 0], [1, 1]) == 0
    assert coverage([[np.nan, 0.5]], [0, 0], [1, 1], periodic=True) == 0


def test_trees_with_more_leaves_than_64_bits_are_sparse():
    rng = np.random.default_rng(8)
    points = np.concatenate([rng.uniform(0, 1, (400, 9))] * 2)
    deep = coverage(points, [0] * 9, [1] * 9, levels=9)  # 2^81 leaves
    shallow = coverage(points, [0] * 9, [1] * 9, levels=2)
    # From level 3 on, 400 points in 2^27 cells are almost surely alone.
    alone = sum(400 / 2.0 ** (9 * level) for level in range(3, 10))
    assert deep == pytest.approx((2 * shallow + alone) / 9, rel=1e-6)


@pytest.mark.parametrize("side", [4, 2**40])
def test_repeated_cells_count_once_with_keys_of_any_size(side: int):
    cells = np.array([[1, 3], [0, side - 1], [1, 3], [0, side - 1], [3, 1]])
    assert {tuple(row) for row in _distinct(cells, side).tolist()} == {(1, 3), (0, side - 1), (3, 1)}
    assert len(_distinct(cells, side)) == 3


def test_a_million_points_take_a_moment():
    points = np.random.default_rng(9).uniform(-np.pi, np.pi, (1_000_000, 2))
    start = time.perf_counter()
    assert coverage(points, [-np.pi] * 2, [np.pi] * 2, periodic=True) == 1.0
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": np.zeros(3)}, "points has shape"),
        ({"lower": [0, 0, 0]}, "lower has shape"),
        ({"upper": [1, 0]}, "upper is"),
        ({"upper": [1, np.inf]}, "upper is"),
        ({"periodic": [True]}, "periodic has shape"),
        ({"splits": 1}, "splits is 1"),
        ({"levels": 0}, "levels is 0"),
        ({"levels": 60}, "levels is 60"),
    ],
)
def test_refuses_bad_boxes_and_trees(change: dict, message: str):
    arguments = {"points": np.full((3, 2), 0.5), "lower": [0, 0], "upper": [1, 1]} | change
    with pytest.raises(InputError, match=message):
        coverage(**arguments)
