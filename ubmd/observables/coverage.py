"""Coverage of a bounded space of collective variables: a weighted tree of recursive partitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ubmd.errors import InputError
from ubmd.observables.base import CollectiveVariable

__all__ = ["coverage", "variable_coverage"]

_LARGEST_EXACT = 2**53  # integers up to here survive the way through float64
_LARGEST_KEY = 2**62


def coverage(
    points: ArrayLike,
    lower: ArrayLike,
    upper: ArrayLike,
    *,
    splits: int = 2,
    levels: int = 5,
    periodic: bool | Sequence[bool] = False,
) -> float:
    """Share of the box's partitions that the points have visited, averaged over the levels of the tree.

    Level l cuts every dimension into splits^l equal parts and has k^l cells, k = splits^d, each of weight
    k^-l, so that a level is worth 1 in all: the result is the mean over l = 1..levels of (visited cells of l)
    / k^l. The root, which any point visits, carries no weight. Only visited cells are stored, so that
    k^levels may be large. "Everything explored so far" is the coverage of all points together: concatenate
    them.

    Args:
        points: [n, d], any unit.
        lower: [d] lower bounds of the box, same unit.
        upper: [d] upper bounds.
        splits: parts into which a level cuts each side of its parent (the paper's n).
        levels: height of the tree (the paper's L).
        periodic: for all dimensions or one by one, whether points outside the box are wrapped into it. Along
            other dimensions points outside are ignored, and the upper bound itself belongs to the last cell.
            Points that are not finite are ignored.

    Returns:
        Coverage in [0, 1]; 0 without points.

    Raises:
        InputError: shapes that do not fit, an empty box, or a tree finer than float64 resolves.
    """
    xs, low, high, wraps = _checked(points, lower, upper, periodic)
    if splits < 2:
        raise InputError(f"splits is {splits}; give 2 or more")
    if levels < 1:
        raise InputError(f"levels is {levels}; give 1 or more")
    if splits**levels > _LARGEST_EXACT:
        raise InputError(f"levels is {levels}, finer than floating-point numbers resolve; give fewer levels")
    cells = _distinct(_leaf_cells(xs, low, high, wraps, splits**levels), splits**levels)
    fractions = []
    for level in range(levels, 0, -1):
        fractions.append(len(cells) / splits ** (level * xs.shape[1]))
        cells = _distinct(cells // splits, splits ** (level - 1))  # the parents: fewer and fewer
    return float(np.mean(fractions))


def variable_coverage(
    variables: Mapping[str, CollectiveVariable], values: Mapping[str, NDArray[np.float64]]
) -> float | None:
    """Coverage of the space of those variables that have a range, by the paper's tree (n = 2, L = 5).

    Args:
        variables: by name.
        values: [n] of each of them.

    Returns:
        Coverage in [0, 1]; None if no variable has a range.
    """
    ranges = {name: variable.range for name, variable in variables.items() if variable.range is not None}
    if not ranges:
        return None
    low, high = np.array(list(ranges.values())).T
    points = np.stack([values[name] for name in ranges], axis=1)
    return coverage(points, low, high, periodic=[variables[name].wraps for name in ranges])


def _leaf_cells(
    xs: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    wraps: NDArray[np.bool_],
    side: int,
) -> NDArray[np.int64]:
    """Cell of each point inside the box at the finest level, [n_inside, d], from 0 along each side."""
    t = (xs[np.isfinite(xs).all(axis=1)] - low) / (high - low)
    t = np.where(wraps, t - np.floor(t), t)
    t = t[((t >= 0) & (t <= 1)).all(axis=1)]
    return np.minimum((t * side).astype(np.int64), side - 1)


def _distinct(cells: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    """The different rows of ``cells`` [n, d], whose entries lie in 0..side-1."""
    if side ** cells.shape[1] > _LARGEST_KEY:
        return np.unique(cells, axis=0)
    # One integer a row: much faster than comparing rows.
    shape = (side,) * cells.shape[1]
    keys = np.unique(np.ravel_multi_index(tuple(cells.T), shape))
    return np.stack(np.unravel_index(keys, shape), axis=1).astype(np.int64, copy=False)


def _checked(
    points: ArrayLike, lower: ArrayLike, upper: ArrayLike, periodic: bool | Sequence[bool]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Points [n, d], bounds [d], [d] and periodicity [d], with shapes that fit."""
    xs = np.asarray(points, dtype=np.float64)
    low, high = np.asarray(lower, dtype=np.float64), np.asarray(upper, dtype=np.float64)
    wraps = np.asarray(periodic, dtype=np.bool_)
    if xs.ndim != 2 or xs.shape[1] < 1:
        raise InputError(f"points has shape {xs.shape}; give [n, d]")
    for name, bound in (("lower", low), ("upper", high)):
        if bound.shape != xs.shape[1:]:
            raise InputError(
                f"{name} has shape {bound.shape}; give one number for each of the {xs.shape[1]} dimensions"
            )
    if wraps.shape not in ((), xs.shape[1:]):
        raise InputError(f"periodic has shape {wraps.shape}; give one value, or one for each dimension")
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise InputError(f"upper is {high.tolist()}; give finite bounds above lower, {low.tolist()}")
    return xs, low, high, np.broadcast_to(wraps, low.shape)
