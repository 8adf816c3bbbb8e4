"""Padded neighbour matrices for many structures at once, from vesin."""

from __future__ import annotations

import numpy as np
import vesin
from numpy.typing import NDArray

__all__ = ["neighbour_matrix"]


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
        if not np.isfinite(points).all():
            continue  # a structure that has blown up has no neighbours; its owner finds the NaN
        i, j, shift = finder.compute(points, np.ascontiguousarray(box, dtype=np.float64), periodic, "ijS")
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
