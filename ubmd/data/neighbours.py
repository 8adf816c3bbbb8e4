"""Padded neighbour matrices for many structures at once, from vesin."""

from __future__ import annotations

import numpy as np
import vesin
from ase.geometry import complete_cell
from numpy.typing import NDArray
from scipy.spatial import KDTree

__all__ = ["neighbour_matrix"]

MOST_CELLS = 1.0e5
"""Cells that vesin sorts atoms into at most. If a long or flat structure would have more, it keeps their ratio, which
may leave no cell along the short side, by which it then divides: the process dies of SIGFPE."""


def neighbour_matrix(
    positions: NDArray[np.float64],
    cell: NDArray[np.float64],
    pbc: NDArray[np.bool_],
    n_atoms: NDArray[np.integer],
    cutoff: float,
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64] | None]:
    """All pairs within ``cutoff``, periodic images included (the minimum image is not assumed).

    Args:
        positions: [n_atoms, 3] Å, all structures end to end.
        cell: [n_systems, 3, 3] Å, row vectors.
        pbc: [n_systems, 3].
        n_atoms: [n_systems].
        cutoff: Å.

    Returns:
        neighbours [n_atoms, k], mask [n_atoms, k] and shifts [n_atoms, k, 3] as in
        :class:`~ubmd.data.batch.AtomicBatch`; shifts is None if nothing is periodic.
    """
    finder = vesin.NeighborList(cutoff=cutoff, full_list=True, sorted=True, n_threads=1)
    centres, others, images = [], [], []
    stop = np.cumsum(n_atoms)
    for start, end, box, periodic in zip(stop - n_atoms, stop, cell, pbc, strict=True):
        points = np.ascontiguousarray(positions[start:end], dtype=np.float64)
        if not (np.abs(points) < 1e100).all():
            continue  # a structure that has blown up has no neighbours; its owner finds the NaN
        i, j, shift = _pairs(finder, points, np.ascontiguousarray(box, dtype=np.float64), periodic, cutoff)
        centres.append(i.astype(np.int64) + start)
        others.append(j.astype(np.int64) + start)
        images.append(shift)
    total = int(n_atoms.sum())
    i = np.concatenate(centres) if centres else np.zeros(0, np.int64)
    j = np.concatenate(others) if others else np.zeros(0, np.int64)
    count = np.bincount(i, minlength=total)
    width = max(int(count.max(initial=0)), 1)
    # pairs are sorted by centre, so a pair's column is its rank within its row
    column = np.arange(len(i)) - np.repeat(np.cumsum(count) - count, count)
    neighbours = np.repeat(np.arange(total)[:, None], width, axis=1)
    mask = np.zeros((total, width), dtype=bool)
    neighbours[i, column] = j
    mask[i, column] = True
    if not pbc.any():
        return neighbours, mask, None
    shifts = np.zeros((total, width, 3))
    shifts[i, column] = np.concatenate(images) if images else np.zeros((0, 3))
    return neighbours, mask, shifts


def _pairs(
    finder: vesin.NeighborList,
    points: NDArray[np.float64],
    box: NDArray[np.float64],
    periodic: NDArray[np.bool_],
    cutoff: float,
) -> tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.integer]]:
    """Centres, neighbours and shifts of one structure's pairs, whatever its shape."""
    lengths = np.linalg.norm(np.where(periodic[:, None], box, np.ptp(points, axis=0)), axis=1)
    if np.prod(lengths / cutoff + 1.0) < MOST_CELLS:
        i, j, shift = finder.compute(points, box, periodic, "ijS")
        return i, j, shift
    return _pairs_by_tree(points, box, periodic, cutoff)


def _pairs_by_tree(
    points: NDArray[np.float64], box: NDArray[np.float64], periodic: NDArray[np.bool_], cutoff: float
) -> tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.integer]]:
    """The pairs from a k-d tree of the atoms and of their images that reach into the cell; empty space is free."""
    axes = complete_cell(np.where(periodic[:, None], box, 0.0)) if periodic.any() else np.eye(3)
    inverse = np.linalg.inv(axes)
    margin = cutoff * np.linalg.norm(inverse, axis=0) + 1e-9  # in fractions of the cell
    fractions = points @ inverse
    cells = np.where(periodic, np.floor(fractions), 0.0)
    fractions -= cells
    images, owners = np.zeros((len(points), 3)), np.arange(len(points))
    for axis in np.flatnonzero(periodic):
        reach = int(np.ceil(margin[axis]))
        steps = np.arange(-reach, reach + 1.0)
        images, owners = np.repeat(images, len(steps), axis=0), np.repeat(owners, len(steps))
        images[:, axis] = np.tile(steps, len(images) // len(steps))
        place = fractions[owners, axis] + images[:, axis]
        inside = (place >= -margin[axis]) & (place <= 1.0 + margin[axis])
        images, owners = images[inside], owners[inside]
    wrapped = points - cells @ axes
    found = KDTree(wrapped[owners] + images @ axes).query_ball_point(wrapped, cutoff, return_sorted=True)
    i = np.repeat(np.arange(len(points)), [len(row) for row in found])
    at = np.concatenate(found).astype(np.int64)
    j, shift = owners[at], images[at]
    other = (i != j) | shift.any(axis=1)
    i, j, shift = i[other], j[other], shift[other]
    return i, j, (shift - cells[j] + cells[i]).astype(np.int64)
