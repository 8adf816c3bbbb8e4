"""Volumes, phases and changes between them on series whose answer is known; errors by volume by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk

from ubmd.analysis.volumes import (
    BETWEEN,
    cell_parameters,
    cell_volumes,
    count_transitions,
    phase_indices,
    rmse_by_volume,
    walker_transitions,
)
from ubmd.dynamics.exploration import Exploration

PHASES = {"closed": (0, 950), "large": (1150, float("inf"))}


def exploration(volumes: list[list[float]]) -> Exploration:
    """Walkers in cubic cells with the given volumes."""
    flat = np.concatenate([np.asarray(v, float) for v in volumes])
    walker = np.repeat(np.arange(len(volumes)), [len(v) for v in volumes])
    n = len(flat)
    return Exploration(
        numbers=np.array([13]),
        pbc=np.ones(3, bool),
        walker=walker,
        step=np.concatenate([np.arange(1, len(v) + 1) for v in volumes]),
        positions=np.zeros((n, 1, 3)),
        cell=np.cbrt(flat)[:, None, None] * np.eye(3),
        energy=np.zeros(n),
        uncertainty=np.zeros(n),
        atomic_uncertainty=np.zeros((n, 1)),
        tau=np.zeros(n),
        walkers=np.arange(len(volumes)),
        reasons=np.ones(len(volumes), np.int8),
        steps=np.array([len(v) for v in volumes]),
        temperature=np.full(len(volumes), 300.0),
        max_uncertainty=np.zeros(len(volumes)),
    )


def test_volumes_and_parameters_are_those_of_ase() -> None:
    rng = np.random.default_rng(0)
    crystals = [bulk("Cu", cubic=True) for _ in range(5)]
    for atoms in crystals:
        atoms.set_cell(np.asarray(atoms.cell) + rng.normal(scale=0.3, size=(3, 3)))
    cells = [np.asarray(atoms.cell) for atoms in crystals]
    np.testing.assert_allclose(cell_volumes(cells), [atoms.get_volume() for atoms in crystals])
    np.testing.assert_allclose(cell_parameters(cells), [atoms.cell.cellpar() for atoms in crystals])
    left_handed = np.diag([1.0, 2.0, -3.0])
    assert cell_volumes(left_handed) == pytest.approx(6.0)


def test_phases_hold_their_lower_bound_only() -> None:
    assert phase_indices([0, 949.9, 950, 1149.9, 1150, 9999], PHASES).tolist() == [0, 0, BETWEEN, BETWEEN, 1, 1]


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
    assert count_transitions(phase_indices(volumes, PHASES)) == transitions


def test_without_a_gap_every_crossing_counts() -> None:
    touching = {"closed": (0, 1040), "large": (1040, float("inf"))}
    assert count_transitions(phase_indices([1030, 1050, 1030, 1050], touching)) == 3


def test_transitions_of_walkers_are_counted_one_by_one() -> None:
    """The end of one walker and the start of the next are no change of phase."""
    found = exploration([[800, 1200], [800, 900], [1200, 1000, 800, 1200]])
    assert walker_transitions(found, PHASES) == 1 + 0 + 2
    assert walker_transitions(exploration([[4 * 800, 4 * 1200]]), PHASES) == 0
    assert walker_transitions(exploration([[4 * 800, 4 * 1200]]), PHASES, scale=0.25) == 1


def test_rmse_by_volume() -> None:
    rng = np.random.default_rng(1)
    volumes, errors = rng.uniform(700, 1500, 200), rng.exponential(size=200)
    edges = np.array([800.0, 1000.0, 1010.0, 1400.0, 2000.0, 3000.0])
    rmse, counts = rmse_by_volume(volumes, errors, edges)
    for k in range(5):
        inside = (volumes >= edges[k]) & (volumes < edges[k + 1])
        assert counts[k] == inside.sum()
        expected = np.sqrt(errors[inside].mean()) if inside.any() else np.nan
        np.testing.assert_allclose(rmse[k], expected)
    assert np.isnan(rmse[4])
