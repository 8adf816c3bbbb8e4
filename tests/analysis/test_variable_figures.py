"""Figures of variables and cells: what is drawn where, read from the artists."""

from __future__ import annotations

import math

import numpy as np
import pytest
from ase.build import bulk
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from ubmd.analysis.axes import variable_axis
from ubmd.analysis.evaluation import Evaluation, error_metrics
from ubmd.analysis.held_out import squared_errors
from ubmd.analysis.variable_figures import (
    binned_rmse,
    cell_histograms,
    cell_parameters,
    error_by_variable,
    variable_histogram,
    variable_series,
)
from ubmd.errors import InputError
from ubmd.observables import Torsion, Volume

VOLUME = variable_axis("volume", Volume(), {"closed": {"volume": (0, 950)}, "large": {"volume": (1150, math.inf)}})
PLAIN = variable_axis("volume", Volume())
PHI = variable_axis("phi", Torsion([0, 1, 2, 3]), {"trans": {"phi": (2.5, -2.5)}, "other": {"psi": (0, 1)}})


def drawn(fig: Figure) -> Figure:
    fig.canvas.draw()
    return fig


def steps(ax) -> list[StepPatch]:
    return [p for p in ax.patches if isinstance(p, StepPatch)]


def test_histogram_shows_shares_of_explored_and_labelled_volumes() -> None:
    explored, labelled = np.linspace(700, 1500, 400), np.array([800.0, 800.0, 1400.0])
    (ax,) = drawn(variable_histogram(VOLUME, explored, labelled)).axes
    for patch, values in zip(steps(ax)[1::2], (explored, labelled), strict=True):
        share, edges, _ = patch.get_data()
        assert share.sum() == pytest.approx(1.0)
        np.testing.assert_allclose(share, np.histogram(values, edges)[0] / len(values))
    assert [t.get_text() for t in ax.texts] == ["closed", "large"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["explored (400)", "labelled (3)"]
    left, right = ax.get_xlim()
    assert left < 700 < 1500 < right


def test_histogram_of_one_volume_and_of_none() -> None:
    drawn(variable_histogram(PLAIN, [370.0, 370.0], [370.0]))
    drawn(variable_histogram(PLAIN, [], [370.0]))
    with pytest.raises(InputError, match="no values"):
        variable_histogram(PLAIN, [], [])


def test_series_lays_rounds_end_to_end() -> None:
    times = [[0.1, 0.2], [0.1, 0.2, 0.3], [0.5]]
    volumes = [[800, 810], [800, 900, 1000], [1200]]
    ax, bar = drawn(variable_series(VOLUME, times, volumes, [0, 0, 1])).axes
    first, second, third = ax.lines[:3]
    np.testing.assert_allclose(first.get_xdata(), [0.1, 0.2])
    np.testing.assert_allclose(second.get_ydata(), [800, 900, 1000])
    np.testing.assert_allclose(third.get_xdata(), [0.3 + 0.5])  # after the longest walker of round 0
    assert first.get_color() == second.get_color() != third.get_color()
    assert list(bar.get_yticks()) == [0, 1]
    assert ax.get_xlabel() == "Time, one round after the other (ps)"
    with pytest.raises(InputError, match="times 1"):
        variable_series(VOLUME, [[1]], [[800], [900]], [0, 0])
    with pytest.raises(InputError, match="no frame"):
        variable_series(VOLUME, [], [], [])


def test_cells_have_a_panel_for_each_parameter() -> None:
    rng = np.random.default_rng(0)
    cells = np.diag([6.0, 17.0, 13.0]) + rng.normal(scale=0.1, size=(50, 3, 3))
    axes = drawn(cell_histograms(cells, cells[:5])).axes
    assert [ax.get_xlabel()[0] for ax in axes] == list("abcαβγ")
    for ax, value in zip(axes, [6, 17, 13, 90, 90, 90], strict=True):
        assert ax.get_xlim()[0] < value < ax.get_xlim()[1]
        assert all(patch.get_data()[0].sum() == pytest.approx(1.0) for patch in steps(ax))


def test_errors_are_rms_in_ranges_of_volume() -> None:
    volumes = np.array([800.0, 810.0, 1400.0, 1410.0])
    errors = {"round 0": {"Force RMSE (eV/Å)": [4.0, 0.0, 9.0, 9.0]}, "round 1": {"Force RMSE (eV/Å)": [1.0] * 4}}
    (ax,) = drawn(error_by_variable(VOLUME, volumes, errors, n_bins=2)).axes
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [np.sqrt(2), 3.0])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [1.0, 1.0])
    assert ax.get_ylabel() == "Force RMSE (eV/Å)"
    with pytest.raises(InputError, match="errors holds no error"):
        error_by_variable(VOLUME, volumes, {})


def test_squared_errors_of_structures_make_up_the_rmse() -> None:
    rng = np.random.default_rng(1)
    n, n_atoms = 6, 5
    found = Evaluation(
        numbers=np.full(n * n_atoms, 13),
        n_atoms=np.full(n, n_atoms),
        energy=rng.normal(size=(2, n)),
        forces=rng.normal(size=(2, n * n_atoms, 3)),
        stress=rng.normal(size=(2, n, 3, 3)),
        uncertainty=np.ones(n),
        atomic_uncertainty=np.ones(n * n_atoms),
    )
    expected = error_metrics(found)
    keys = ("energy_rmse_mev_per_atom", "force_rmse_ev_per_ang", "stress_rmse_mpa")
    for (label, values), key in zip(squared_errors(found).items(), keys, strict=True):
        assert np.sqrt(values.mean()) == pytest.approx(expected[key]), label


def test_angles_are_shown_in_degrees_and_folded() -> None:
    assert (PHI.label, VOLUME.label) == ("φ (degrees)", "volume (Å³)")
    np.testing.assert_allclose(PHI.shown([0.5, math.pi + 0.1]), [28.64789, -174.27042])
    assert [(name, round(low), round(high)) for name, low, high in PHI.bands] == [
        ("trans", 143, 180), ("trans", -180, -143),
    ]  # fmt: skip
    (ax,) = drawn(variable_histogram(PHI, np.full(10, 0.01), [math.pi + 0.1])).axes
    assert ax.get_xlim() == (-180, 180)
    share, edges, _ = steps(ax)[3].get_data()
    assert edges[share.argmax()] == pytest.approx(-180)
    ax, _ = drawn(variable_series(PHI, [[0.1, 0.2]], [[3.1, -3.1]], [0])).axes
    assert ax.lines[0].get_linestyle() == "None"


def test_binned_rmse() -> None:
    rng = np.random.default_rng(1)
    values, errors = rng.uniform(700, 1500, 200), rng.exponential(size=200)
    edges = np.array([800.0, 1000.0, 1010.0, 1400.0, 2000.0, 3000.0])
    rmse, counts = binned_rmse(values, errors, edges)
    for k in range(5):
        inside = (values >= edges[k]) & (values < edges[k + 1])
        assert counts[k] == inside.sum()
        expected = np.sqrt(errors[inside].mean()) if inside.any() else np.nan
        np.testing.assert_allclose(rmse[k], expected)
    assert np.isnan(rmse[4])


def test_parameters_are_those_of_ase() -> None:
    crystals = [bulk("Cu", cubic=True) for _ in range(5)]
    for number, atoms in enumerate(crystals):
        atoms.set_cell(np.asarray(atoms.cell) + np.random.default_rng(number).normal(scale=0.3, size=(3, 3)))
    found = cell_parameters([np.asarray(atoms.cell) for atoms in crystals])
    np.testing.assert_allclose(found, [atoms.cell.cellpar() for atoms in crystals])
