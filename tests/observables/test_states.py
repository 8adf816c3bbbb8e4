"""States, and changes between them, on series whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ubmd.errors import InputError
from ubmd.observables import Distance, Torsion, Volume
from ubmd.observables.states import BETWEEN, check_states, count_transitions, state_indices

VARIABLES = {"volume": Volume(), "phi": Torsion([0, 1, 2, 3]), "d": Distance([0, 1])}
PHASES = {"closed": {"volume": (0, 950)}, "large": {"volume": (1150, math.inf)}}


def indices(volumes: list[float], states: dict = PHASES) -> list[int]:
    return state_indices({"volume": np.array(volumes, dtype=float)}, states, VARIABLES).tolist()


def test_states_hold_their_lower_bound_only() -> None:
    assert indices([0, 949.9, 950, 1149.9, 1150, 9999]) == [0, 0, BETWEEN, BETWEEN, 1, 1]


def test_a_state_of_two_variables_and_through_the_end_of_a_period() -> None:
    states = {"trans": {"phi": (2.5, -2.5)}, "short": {"phi": (-1, 1), "d": (0, 1.5)}}
    check_states(states, VARIABLES)
    values = {"phi": np.array([3.0, -3.0, 2.4, 0.0, 0.0]), "d": np.array([1.0, 1.0, 1.0, 1.0, 2.0])}
    assert state_indices(values, states, VARIABLES).tolist() == [0, 0, BETWEEN, 1, BETWEEN]


@pytest.mark.parametrize(
    ("volumes", "transitions"),
    [
        ([800, 900, 940, 960, 940, 960, 940], 0),  # jitter at the border of the closed pore
        ([800, 1000, 1140, 1000, 800], 0),  # on its way and back
        ([800, 1000, 1200], 1),
        ([800, 1200, 1140, 1160, 1100, 1300], 1),  # jitter at the border of the large pore
        ([800, 1200, 1000, 800, 1000, 1200, 1400], 3),
        ([1000, 1100, 800], 0),  # where it began is unknown
        ([1050], 0),
        ([], 0),
    ],
)
def test_transitions_have_hysteresis(volumes: list[float], transitions: int) -> None:
    assert count_transitions(indices(volumes)) == transitions


def test_without_a_gap_every_crossing_counts() -> None:
    touching = {"closed": {"volume": (0, 1040)}, "large": {"volume": (1040, math.inf)}}
    check_states(touching, VARIABLES)
    assert count_transitions(indices([1030, 1050, 1030, 1050], touching)) == 3


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ({"a": {}}, r"system\.states\.a is empty"),
        ({"a": {"area": [0, 1]}}, r"system\.states\.a\.area is of no variable of the system \(.*volume, phi, d\)"),
        ({"a": {"volume": [50, 40]}}, r"system\.states\.a\.volume=\[50, 40\] must be two numbers"),
        ({"a": {"phi": [1]}}, r"system\.states\.a\.phi=\[1\] must be two numbers"),
        ({"a": {"volume": [40, 60]}, "b": {"volume": [0, 50]}}, r"system\.states\.b=.* overlaps a"),
        ({"a": {"phi": [2.5, -2.5]}, "b": {"phi": [-3, 0]}}, "overlaps a"),
        ({"a": {"phi": [0, 1]}, "b": {"volume": [0, 50]}}, "overlaps a"),
    ],
)
def test_states_that_are_none(states: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_states(states, VARIABLES)
