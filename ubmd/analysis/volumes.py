"""Cells of crystals along trajectories: volumes, the phases that they belong to, and changes between phases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ase.geometry import cell_to_cellpar
from numpy.typing import ArrayLike, NDArray

from ubmd.dynamics.exploration import Exploration

__all__ = [
    "BETWEEN",
    "Phases",
    "cell_parameters",
    "cell_volumes",
    "count_transitions",
    "phase_indices",
    "rmse_by_volume",
    "walker_transitions",
]

Phases = Mapping[str, Sequence[float]]
"""Named ranges of volume, ``[low, high)`` in Å³, as :attr:`ubmd.systems.system.System.phases` holds them."""

BETWEEN = -1
"""Index of a volume that belongs to no phase."""


def cell_volumes(cells: ArrayLike) -> NDArray[np.float64]:
    """Volumes of cells.

    Args:
        cells: [..., 3, 3] Å, rows are lattice vectors.

    Returns:
        [...] Å³.
    """
    return np.abs(np.linalg.det(np.asarray(cells, dtype=np.float64)))


def cell_parameters(cells: ArrayLike) -> NDArray[np.float64]:
    """Lengths a, b, c (Å) and angles α, β, γ (degrees) of cells [n, 3, 3], [n, 6]."""
    matrices = np.asarray(cells, dtype=np.float64)
    return np.array([cell_to_cellpar(cell) for cell in matrices], dtype=np.float64).reshape(-1, 6)


def phase_indices(volumes: ArrayLike, phases: Phases) -> NDArray[np.int64]:
    """Which phase each volume [n] (Å³) belongs to: [n] positions in ``phases``, or :data:`BETWEEN`."""
    v = np.asarray(volumes, dtype=np.float64)
    indices = np.full(v.shape, BETWEEN, dtype=np.int64)
    for index, (low, high) in enumerate(phases.values()):
        indices[(v >= low) & (v < high)] = index
    return indices


def count_transitions(indices: ArrayLike) -> int:
    """Changes of phase along one trajectory.

    A trajectory stays in its phase until it enters another one; where it is between phases does not count.
    A gap between the ranges of volume thus acts as hysteresis: jitter at a border makes no transitions.

    Args:
        indices: [n] as :func:`phase_indices` returns them, in the order of time.
    """
    entered = np.asarray(indices)
    entered = entered[entered != BETWEEN]
    return int(np.count_nonzero(np.diff(entered)))


def walker_transitions(exploration: Exploration, phases: Phases, *, scale: float = 1.0) -> int:
    """Changes of phase of all walkers together, each walker's frames being a trajectory.

    Args:
        exploration: frames of walkers, each walker's in the order of time.
        phases: ranges of volume.
        scale: factor on the volumes before they are compared with ``phases``.
    """
    indices = phase_indices(scale * cell_volumes(exploration.cell), phases)
    return sum(count_transitions(indices[exploration.walker == walker]) for walker in np.unique(exploration.walker))


def rmse_by_volume(
    volumes: ArrayLike, squared_errors: ArrayLike, edges: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Root of the mean squared error of the structures in each range of volume (Fig. 5 d, e).

    Args:
        volumes: [n] Å³.
        squared_errors: [n] mean squared error of each structure, any unit; NaN for one that has none.
        edges: [b + 1] Å³, ascending; a volume on an edge belongs to the range above.

    Returns:
        RMSE [b], NaN for a range without structures, and the number of structures [b].
    """
    bounds = np.asarray(edges, dtype=np.float64)
    place = np.digitize(np.asarray(volumes, dtype=np.float64), bounds) - 1
    errors = np.asarray(squared_errors, dtype=np.float64)
    inside = (place >= 0) & (place < len(bounds) - 1) & ~np.isnan(errors)
    counts = np.bincount(place[inside], minlength=len(bounds) - 1)
    sums = np.bincount(place[inside], weights=errors[inside], minlength=len(bounds) - 1)
    with np.errstate(invalid="ignore"):
        return np.sqrt(sums / counts), counts
