"""What is watched of structures and trajectories: collective variables, states, coverage, correlation times."""

from __future__ import annotations

from ubmd.observables.base import CollectiveVariable, Structures, values_of
from ubmd.observables.cell import CellLength, Volume
from ubmd.observables.internal import Angle, Coordination, Distance, Torsion

__all__ = [
    "Angle",
    "CellLength",
    "CollectiveVariable",
    "Coordination",
    "Distance",
    "Structures",
    "Torsion",
    "Volume",
    "values_of",
]
