"""Named states of a system, such as the phases of a crystal, and the changes between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ubmd.errors import InputError
from ubmd.observables.base import CollectiveVariable

__all__ = ["BETWEEN", "States", "check_states", "count_transitions", "ranges_of", "state_indices"]

States = Mapping[str, Mapping[str, Sequence[float]]]
"""By name, the ranges ``[low, high)`` of the variables that make a state: ``{closed: {volume: [0, 950]}}``.

In a periodic variable ``low`` may lie above ``high``: the range then goes through the end of the period.
"""

BETWEEN = -1
"""Index of a structure that is in no state."""


def check_states(states: States, variables: Mapping[str, CollectiveVariable]) -> None:
    """Refuses states of unknown variables, ranges that are none, and states that overlap.

    Raises:
        InputError: naming the state.
    """
    for name, ranges in states.items():
        if not ranges:
            raise InputError(f"system.states.{name} is empty; give the range of a variable, e.g. {{volume: [0, 950]}}")
        for variable, bounds in ranges.items():
            where = f"system.states.{name}.{variable}"
            if variable not in variables:
                known = ", ".join(variables) or "none"
                raise InputError(f"{where} is of no variable of the system (system.variables: {known})")
            wraps = variables[variable].period is not None
            if len(bounds) != 2 or not (bounds[0] < bounds[1] or (wraps and bounds[0] != bounds[1])):
                raise InputError(
                    f"{where}={list(bounds)} must be two numbers, the lower one first, e.g. [0, 950] or [1150, .inf]"
                )
    for one, other in combinations(states, 2):
        shared = states[one].keys() & states[other].keys()
        if all(_overlap(states[one][v], states[other][v], variables[v].period) for v in shared):
            raise InputError(f"system.states.{other}={ranges_of(states, other)} overlaps {one}; separate the two")


def ranges_of(states: States, name: str) -> dict[str, list[float]]:
    """The ranges of a state as plain values."""
    return {variable: list(bounds) for variable, bounds in states[name].items()}


def state_indices(
    values: Mapping[str, NDArray[np.float64]], states: States, variables: Mapping[str, CollectiveVariable]
) -> NDArray[np.int64]:
    """Which state each structure is in: [n] positions in ``states``, or :data:`BETWEEN`.

    Args:
        values: [n] of each variable.
        states: that exclude each other.
        variables: of the system.
    """
    indices = np.full(len(next(iter(values.values()))), BETWEEN, dtype=np.int64)
    for index, ranges in enumerate(states.values()):
        inside = [_inside(values[v], bounds, variables[v].period) for v, bounds in ranges.items()]
        indices[np.logical_and.reduce(inside)] = index
    return indices


def count_transitions(indices: ArrayLike) -> int:
    """Changes of state along one trajectory.

    A trajectory stays in its state until it enters another one; where it is between states does not count.
    A gap between two states thus acts as hysteresis: jitter at a border makes no transitions.

    Args:
        indices: [n] as :func:`state_indices` returns them, in the order of time.
    """
    entered = np.asarray(indices)
    entered = entered[entered != BETWEEN]
    return int(np.count_nonzero(np.diff(entered)))


def _inside(values: ArrayLike, bounds: Sequence[float], period: float | None) -> NDArray[np.bool_]:
    """Which values lie in the range [low, high)."""
    x, (low, high) = np.asarray(values, dtype=np.float64), bounds
    if period is None:
        return (x >= low) & (x < high)
    return np.mod(x - low, period) < (high - low if low < high else high - low + period)


def _overlap(one: Sequence[float], other: Sequence[float], period: float | None) -> bool:
    """Whether two ranges share a value: then one of them holds the lower end of the other."""
    return bool(_inside(one[0], other, period) or _inside(other[0], one, period))
