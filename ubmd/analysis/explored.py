"""What walkers and labels came to know of the space of collective variables, as numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from ubmd.dynamics.exploration import Exploration
from ubmd.observables.base import CollectiveVariable, Structures, values_of
from ubmd.observables.columns import RangeColumns
from ubmd.observables.coverage import variable_coverage
from ubmd.observables.states import States, count_transitions, state_indices

__all__ = ["Values", "drawn_alone", "explored_metrics", "frame_values", "plane_of", "walker_transitions"]

Values = Mapping[str, NDArray[np.float64]]
"""Of each variable, by its name, [n]."""


def frame_values(variables: Mapping[str, CollectiveVariable], exploration: Exploration) -> Values:
    """The variables of the frames, [f] each."""
    e = exploration
    return values_of(variables, Structures.of_arrays(e.positions, e.numbers, e.cell, e.pbc))


def explored_metrics(
    variables: Mapping[str, CollectiveVariable],
    states: States,
    explored: Sequence[Exploration],
    structures: Sequence[Atoms],
) -> dict[str, float]:
    """Columns of ``metrics.csv`` that tell what was explored; labelled structures count as explored.

    Args:
        variables: of the system.
        states: of the system.
        explored: of all rounds so far.
        structures: all labelled ones.

    Returns:
        ``coverage``, if a variable has a range; the lowest and the highest value of each variable without a period, as
        :class:`~ubmd.observables.columns.RangeColumns` names them; ``phase_transitions`` if there are states.
    """
    if not variables:
        return {}
    frames = [frame_values(variables, e) for e in explored]
    labelled = values_of(variables, structures)
    together = {name: np.concatenate([*(f[name] for f in frames), labelled[name]]) for name in variables}
    out: dict[str, float] = {}
    covered = variable_coverage(variables, together)
    if covered is not None:
        out["coverage"] = covered
    for name, variable in variables.items():
        if variable.period is None:
            columns = RangeColumns(name, variable.unit)
            out |= {columns.low: float(together[name].min()), columns.high: float(together[name].max())}
    if states:
        indices = (state_indices(f, states, variables) for f in frames)
        out["phase_transitions"] = sum(map(walker_transitions, explored, indices))
    return out


def walker_transitions(exploration: Exploration, indices: NDArray[np.int64]) -> int:
    """Changes of state of all walkers together, each walker's frames being a trajectory of its own.

    Args:
        exploration: frames of walkers, each walker's in the order of time.
        indices: [f] the state of each frame.
    """
    return sum(count_transitions(indices[exploration.walker == walker]) for walker in np.unique(exploration.walker))


def plane_of(variables: Mapping[str, CollectiveVariable]) -> tuple[str, ...]:
    """The two variables whose plane is drawn: the first two that have a range; none where there is but one."""
    spanning = [name for name, variable in variables.items() if variable.range is not None]
    return tuple(spanning[:2]) if len(spanning) > 1 else ()


def drawn_alone(variables: Mapping[str, CollectiveVariable]) -> Iterable[str]:
    """The variables that are drawn one by one: all that are not in the plane."""
    plane = plane_of(variables)
    return [name for name in variables if name not in plane]
