"""Figures: what is drawn where, read from the artists; and that nothing global is touched."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ubmd.analysis.axes import variable_axis
from ubmd.analysis.curves import learning_curves
from ubmd.analysis.figures import (
    calibration_scatter,
    explored_plane,
    save_figure,
)
from ubmd.errors import InputError
from ubmd.observables import Angle, Distance, Torsion

ROUNDS = [
    {"round": r, "n_train": 7 + 7 * r, "n_valid": 1 + r, "energy_rmse_mev_per_atom": 60 / (r + 1),
     "force_rmse_ev_per_ang": 0.5 / (r + 1), "stress_rmse_mpa": None, "coverage": 0.2 * r}
    for r in range(5)
]  # fmt: skip


def drawn(fig: Figure) -> Figure:
    """The figure after it has been laid out: errors of drawing show up here."""
    fig.canvas.draw()
    return fig


def test_learning_curves_show_each_metric_against_all_labelled_structures():
    fig = drawn(learning_curves(ROUNDS))
    assert [ax.get_ylabel() for ax in fig.axes] == [
        "Energy RMSE (meV/atom)", "Force RMSE (eV/Å)", "Coverage of CV space",
    ]  # fmt: skip
    assert [ax.get_yscale() for ax in fig.axes] == ["log", "log", "linear"]
    for ax, name in zip(fig.axes, ("energy_rmse_mev_per_atom", "force_rmse_ev_per_ang", "coverage"), strict=True):
        x, y = ax.lines[0].get_data()
        assert list(x) == [8, 16, 24, 32, 40]
        np.testing.assert_array_equal(y, [row[name] for row in ROUNDS])


def test_learning_curves_leave_out_what_rounds_lack():
    rows = [
        dict(ROUNDS[0]),
        dict(ROUNDS[1], force_rmse_ev_per_ang=None),
        dict(ROUNDS[2], stress_rmse_mpa=40.0),
    ]
    fig = drawn(learning_curves(rows))
    assert [ax.get_ylabel().split()[0] for ax in fig.axes] == ["Energy", "Force", "Stress", "Coverage"]
    assert list(fig.axes[1].lines[0].get_data()[0]) == [8, 24]
    assert list(fig.axes[2].lines[0].get_data()[1]) == [40.0]
    assert len(drawn(learning_curves(ROUNDS[:1])).axes) == 3
    with pytest.raises(InputError, match="rounds holds no error"):
        learning_curves([{"round": 0, "n_train": 7, "n_valid": 1, "force_rmse_ev_per_ang": float("nan")}])


def test_learning_curves_without_a_test_set_say_that_errors_are_of_validation():
    names = ("energy_rmse_mev_per_atom", "force_rmse_ev_per_ang")
    rows = [row | {f"valid_{name}": row[name] for name in names} | dict.fromkeys(names) for row in ROUNDS]
    fig = drawn(learning_curves(rows))
    assert [" ".join(ax.get_ylabel().split()[:2]) for ax in fig.axes] == [
        "Validation energy", "Validation force", "Coverage of",
    ]  # fmt: skip


PLANE = (variable_axis("phi", Torsion([0, 1, 2, 3])), variable_axis("psi", Torsion([1, 2, 3, 4])))


def test_plane_wraps_angles_and_keeps_the_first_round_of_each_cell():
    phi = np.radians([10.2, 10.4, 10.6, 200.5, np.nan])
    psi = np.radians([20.5, 20.5, 20.5, -300.5, 0.0])
    fig = drawn(explored_plane(PLANE, np.stack([phi, psi], 1), rounds=[2, 1, 3, 4, 0]))
    ax, bar = fig.axes
    points = ax.collections[0]
    np.testing.assert_allclose(points.get_offsets(), [[-159.5, 59.5], [10.4, 20.5]], atol=1e-9)
    np.testing.assert_array_equal(points.get_array(), [4, 1])  # the earliest is drawn last, on top
    assert (ax.get_xlim(), ax.get_ylim()) == ((-180, 180), (-180, 180))
    assert (ax.get_xlabel(), ax.get_ylabel(), bar.get_ylabel()) == ("φ (degrees)", "ψ (degrees)", "Round")
    assert list(bar.get_yticks()) == [0, 1, 2, 3, 4]


def test_plane_of_a_distance_and_an_angle_has_their_ranges():
    axes = (
        variable_axis("oh", Distance([0, 1], bounds=(0.8, 1.8))),
        variable_axis("bend", Angle([0, 1, 2], bounds=(0, 3))),
    )
    (ax,) = drawn(explored_plane(axes, [[1.0, 1.5], [9.0, 0.0]])).axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("oh (Å)", "bend (degrees)")
    assert ax.get_xlim() == (0.8, 1.8)
    np.testing.assert_allclose(ax.get_ylim(), [0, np.degrees(3)])
    with pytest.raises(InputError, match="has no range"):
        explored_plane((axes[0], variable_axis("d", Distance([0, 1]))), [[1.0, 1.0]])


@pytest.mark.parametrize(("last", "ticks"), [(0, [0]), (3, [0, 1, 2, 3]), (39, [0, 10, 20, 30])])
def test_bar_of_the_plane_counts_whole_rounds(last: int, ticks: list[int]):
    bar = drawn(explored_plane(PLANE, [[0.0, 0.0], [1.0, 1.0]], rounds=[0, last])).axes[1]
    assert list(bar.get_yticks()) == ticks


def test_plane_marks_labelled_structures_on_top():
    fig = drawn(explored_plane(PLANE, [[0.1, 0.2]], labelled=[[-1.35, 1.211], [1.165, -1.081]]))
    (ax,) = fig.axes
    explored, labelled = ax.collections
    np.testing.assert_allclose(labelled.get_offsets(), np.degrees([[-1.35, 1.211], [1.165, -1.081]]))
    assert labelled.get_zorder() > explored.get_zorder()
    assert len(drawn(explored_plane(PLANE, np.empty((0, 2)), rounds=[])).axes) == 2
    with pytest.raises(InputError, match="points has shape"):
        explored_plane(PLANE, [0.1])
    with pytest.raises(InputError, match="rounds has shape"):
        explored_plane(PLANE, [[0.1, 0.2]], rounds=[0, 1])


def test_calibration_counts_every_structure_and_says_how_many_are_covered():
    rng = np.random.default_rng(1)
    error = np.exp(rng.normal(-2, 1, 400))
    uncertainty = np.full(400, np.quantile(error, 0.9))
    fig = drawn(calibration_scatter(error, uncertainty, alpha=0.05))
    ax = fig.axes[0]
    assert ax.collections[0].get_array().sum() == 400
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_xlim()) == ("log", "log", ax.get_ylim())
    x, y = ax.lines[0].get_data()
    np.testing.assert_array_equal(x, y)
    assert x[0] < error.min()
    assert x[1] > max(error.max(), uncertainty.max())
    assert ax.texts[0].get_text() == "covered: 90.0 %\ntarget: 95 %"
    assert ax.get_xlabel() == "Max. calibrated uncertainty (eV/Å)"
    assert ax.get_ylabel() == "Max. atomic force RMSE (eV/Å)"


def test_calibration_shows_half_confidence_beside():
    error = np.linspace(0.1, 1.0, 10)
    fig = drawn(calibration_scatter(error, np.full(10, 1.0), half=np.full(10, 0.551), alpha=0.05))
    pale, bins = fig.axes[0].collections
    assert pale.get_zorder() < bins.get_zorder()
    assert pale.get_array().sum() == bins.get_array().sum() == 10
    assert fig.axes[0].texts[0].get_text() == "covered: 100.0 %\ntarget: 95 %\ngrey, α = 0.5: 50.0 %"
    with pytest.raises(InputError, match="half has shape"):
        calibration_scatter([0.1], [0.1], half=[0.1, 0.2], alpha=0.05)


def test_calibration_with_one_structure_and_without_any():
    drawn(calibration_scatter([0.1], [0.1], alpha=0.5))
    with pytest.raises(InputError, match="no pair of positive"):
        calibration_scatter([0.0, np.nan], [1.0, 1.0], alpha=0.05)
    with pytest.raises(InputError, match="uncertainty has shape"):
        calibration_scatter([0.1], [0.1, 0.2], alpha=0.05)
    with pytest.raises(InputError, match="alpha is 1"):
        calibration_scatter([0.1], [0.1], alpha=1)


def test_saved_figures_are_whole_png_files_of_150_dpi(tmp_path: Path):
    path = tmp_path / "figures" / "plane.png"
    fig = explored_plane(PLANE, [[0.1, 0.2]])
    save_figure(fig, path)
    save_figure(fig, path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == tuple(round(150 * inches) for inches in fig.get_size_inches())
    assert os.listdir(path.parent) == ["plane.png"]
    save_figure(fig, path.with_suffix(".pdf"))
    first = path.with_suffix(".pdf").read_bytes()
    save_figure(fig, path.with_suffix(".pdf"))
    assert first.startswith(b"%PDF")
    assert path.with_suffix(".pdf").read_bytes() == first
    with pytest.raises(InputError, match=r"ends in \.png or \.pdf"):
        save_figure(fig, tmp_path / "plane.svg")


def test_global_state_of_matplotlib_is_left_alone():
    before = dict(matplotlib.rcParams)
    drawn(learning_curves(ROUNDS))
    drawn(explored_plane(PLANE, [[0.1, 0.2]], rounds=[0]))
    assert dict(matplotlib.rcParams) == before
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []
