"""What was explored, of walkers whose places are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from ase import Atoms

from ubmd.analysis.explored import drawn_alone, explored_metrics, frame_values, plane_of, walker_transitions
from ubmd.dynamics.exploration import Exploration
from ubmd.observables import Distance, Torsion, Volume
from ubmd.observables.states import state_indices

VARIABLES = {"volume": Volume(n_atoms=1)}
PHASES = {"closed": {"volume": (0, 950)}, "large": {"volume": (1150, math.inf)}}


def exploration(volumes: list[list[float]], positions: np.ndarray | None = None, numbers: int = 1) -> Exploration:
    """Walkers in cubic cells with the given volumes."""
    flat = np.concatenate([np.asarray(v, float) for v in volumes])
    walker = np.repeat(np.arange(len(volumes)), [len(v) for v in volumes])
    n = len(flat)
    return Exploration(
        numbers=np.full(numbers, 13),
        pbc=np.ones(3, bool),
        walker=walker,
        step=np.concatenate([np.arange(1, len(v) + 1) for v in volumes]),
        positions=np.zeros((n, numbers, 3)) if positions is None else positions,
        cell=np.cbrt(flat)[:, None, None] * np.eye(3),
        energy=np.zeros(n),
        uncertainty=np.zeros(n),
        atomic_uncertainty=np.zeros((n, numbers)),
        tau=np.zeros(n),
        walkers=np.arange(len(volumes)),
        reasons=np.ones(len(volumes), np.int8),
        steps=np.array([len(v) for v in volumes]),
        temperature=np.full(len(volumes), 300.0),
        max_uncertainty=np.zeros(len(volumes)),
    )


def test_transitions_of_walkers_are_counted_one_by_one() -> None:
    """The end of one walker and the start of the next are no change of state; supercells count per atom."""

    def transitions(found: Exploration) -> int:
        return walker_transitions(found, state_indices(frame_values(VARIABLES, found), PHASES, VARIABLES))

    assert transitions(exploration([[800, 1200], [800, 900], [1200, 1000, 800, 1200]])) == 1 + 0 + 2
    assert transitions(exploration([[4 * 800, 4 * 1200]])) == 0
    assert transitions(exploration([[4 * 800, 4 * 1200]], numbers=4)) == 1


def test_metrics_are_of_all_rounds_and_labels() -> None:
    positions = np.zeros((4, 2, 3))
    positions[:, 1, 0] = [1.05, 1.1, 1.6, 9.2]  # the last is 0.8 Å away from the next image
    found = exploration([[1000, 1000], [1000, 1000]], positions, numbers=2)
    crystal = Atoms("Al2", [[0, 0, 0], [0, 0, 1.9]], cell=[11, 10, 10], pbc=True)
    variables = {"volume": Volume(), "d": Distance([0, 1], bounds=(1.0, 2.0))}
    states = {"short": {"d": (0, 1.2)}, "long": {"d": (1.5, 2)}}
    metrics = explored_metrics(variables, states, [found, found], [crystal])
    assert list(metrics) == [
        *("coverage", "volume_min_ang3", "volume_max_ang3", "d_min_ang", "d_max_ang", "phase_transitions")
    ]
    assert metrics["volume_min_ang3"] == pytest.approx(1000)
    assert metrics["volume_max_ang3"] == pytest.approx(1100)
    assert (metrics["d_min_ang"], metrics["d_max_ang"]) == pytest.approx((0.8, 1.9))
    assert metrics["phase_transitions"] == 2 * (0 + 1)
    # of 2, 4, 8, 16 and 32 cells of [1, 2]: 1.05, 1.1, 1.6 and 1.9 are in different ones from some level on
    assert metrics["coverage"] == pytest.approx(np.mean([2 / 2, 3 / 4, 3 / 8, 4 / 16, 4 / 32]))
    assert explored_metrics({}, {}, [found], [crystal]) == {}


def test_what_is_drawn_together() -> None:
    phi, psi, d = Torsion([0, 1, 2, 3]), Torsion([1, 2, 3, 4]), Distance([0, 1])
    variables = {"d": d, "phi": phi, "psi": psi}
    assert plane_of(variables) == ("phi", "psi")
    assert list(drawn_alone(variables)) == ["d"]
    assert plane_of({"d": d, "phi": phi}) == ()
    assert list(drawn_alone({"d": d, "phi": phi})) == ["d", "phi"]
