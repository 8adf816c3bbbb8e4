"""Learning curves and exploration: of one run, or of several settings side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from ubmd.analysis import style
from ubmd.analysis.comparison import explored_against_steps, is_tested
from ubmd.analysis.figures import log_ticks
from ubmd.analysis.looks import Look, plain_looks
from ubmd.errors import InputError
from ubmd.observables.columns import range_columns

__all__ = [
    "Looks",
    "compared_curves",
    "draw_means",
    "exploration_curves",
    "learning_curves",
    "learning_panel",
    "learning_panels",
    "legend_of_settings",
    "mean_curve",
]

Looks = Mapping[str, Look]
"""Of settings, by name."""

Rounds = Sequence[Mapping[str, float | int | None]]
"""Rows of a ``metrics.csv``, see :mod:`ubmd.runs.metrics`."""

_PANELS = (
    ("energy_rmse_mev_per_atom", "Energy RMSE (meV/atom)", True),
    ("force_rmse_ev_per_ang", "Force RMSE (eV/Å)", True),
    ("stress_rmse_mpa", "Stress RMSE (MPa)", True),
    ("coverage", "Coverage of CV space", False),
)
"""Learning curves: the column of ``metrics.csv``, the label, and whether the axis is logarithmic."""
_VALIDATION_PANELS = (
    ("valid_energy_rmse_mev_per_atom", "Validation energy\nRMSE (meV/atom)", True),
    ("valid_force_rmse_ev_per_ang", "Validation force\nRMSE (eV/Å)", True),
)
"""For runs without a test set."""

_LEGEND_COLUMNS = 3


def learning_curves(rounds: Rounds) -> Figure:
    """Test errors and coverage against the number of labelled structures (Fig. 3 a-c).

    Without a test set the errors are those of the validation structures.

    Panels for stress and coverage appear if any round has them; rounds without a value leave no mark.

    Args:
        rounds: rows of ``metrics.csv``, see :mod:`ubmd.runs.metrics`.

    Raises:
        InputError: no round has the sizes of its data and an energy or force error.
    """
    series = [(label, log, _against_size(rounds, name, positive=log)) for name, label, log in _panels([rounds])]
    shown = [entry for entry in series if len(entry[2])]
    if not shown:
        raise InputError("rounds holds no error with n_train and n_valid; give the rows of a metrics.csv")
    fig, axes = style.new_figure(2.55 * len(shown) + 0.2, 2.4, len(shown))
    for ax, (label, log, values) in zip(axes, shown, strict=True):
        small = len(values) > 30  # markers of many rounds would run into each other
        ax.plot(*values.T, "-o", color=style.BLUE, lw=1.4, ms=2.0 if small else 3.5, clip_on=False, zorder=3)
        _curve_axes(ax, label, log, values[:, 1])
    return fig


def learning_panels(rounds: Rounds) -> Iterator[tuple[str, Figure]]:
    """The panels of :func:`learning_curves` as figures of their own, with their labels; none without values.

    Args:
        rounds: rows of ``metrics.csv``.
    """
    settings = {"run": [rounds]}
    for name, label, _ in _panels([rounds]):
        fig, (ax,) = style.new_figure(3.1, 2.3)
        if learning_panel(ax, name, settings, plain_looks(list(settings))):
            yield label.replace("\n", " "), fig


def compared_curves(settings: Mapping[str, Sequence[Rounds]], looks: Looks | None = None) -> Figure | None:
    """Learning curves of several settings, each the mean over its runs with the standard deviation as shade.

    Runs whose data sets grew to different sizes are interpolated linearly, within the range that all of them have.

    Args:
        settings: for each label the runs, each as rows of its ``metrics.csv``.
        looks: of each label; None takes the palette in order.

    Returns:
        the figure, with panels of validation errors if a run has no test set; None if no run has the sizes of its data
        and an error or a coverage.
    """
    runs = [rounds for runs in settings.values() for rounds in runs]
    names = [name for name, _, log in _panels(runs) if any(len(_against_size(r, name, positive=log)) for r in runs)]
    if not names:
        return None
    fig, axes = _figure_with_legend(len(names), len(settings))
    for ax, name in zip(axes, names, strict=True):
        learning_panel(ax, name, settings, looks or plain_looks(list(settings)))
    legend_of_settings(fig, axes[0])
    return fig


def learning_panel(ax: Axes, name: str, settings: Mapping[str, Sequence[Rounds]], looks: Looks) -> bool:
    """Draws a column of ``metrics.csv`` against labelled structures (Figs. 3 a-c, 5 a-c): mean and deviation over runs.

    Args:
        ax: an empty panel.
        name: an error or ``coverage``.
        settings: for each label the runs, each as rows of its ``metrics.csv``.
        looks: of each label.

    Returns:
        whether any run has such values; the panel is left empty otherwise.
    """
    label, log = next((label, log) for n, label, log in (*_PANELS, *_VALIDATION_PANELS) if n == name)
    found = {k: mean_curve([_against_size(r, name, positive=log) for r in v]) for k, v in settings.items()}
    if not any(len(curve) for curve in found.values()):
        return False
    _curve_axes(ax, label, log, draw_means(ax, found, looks, log=log))
    return True


def exploration_curves(settings: Mapping[str, Sequence[Rounds]], looks: Looks | None = None) -> Figure | None:
    """What was explored against the steps of all walkers together (Fig. 4 a).

    That is the coverage of the space of collective variables, and the lowest and the highest value of those that have
    no period.
    Means and deviations are drawn as in :func:`compared_curves`.

    Args:
        settings: for each label the runs, each as rows of its ``metrics.csv``.
        looks: of each label; None takes the palette in order.

    Returns:
        the figure; None if no run knows what it explored.
    """

    def curves(name: str) -> dict[str, NDArray[np.float64]]:
        return {k: mean_curve([explored_against_steps(rounds, name) for rounds in v]) for k, v in settings.items()}

    ranges = range_columns(row for runs in settings.values() for rounds in runs for row in rounds)
    panels = {"Coverage of CV space": [curves("coverage")]}
    for found in ranges:
        label = f"{found.name} range" + (f" ({found.unit})" if found.unit else "")
        panels[label] = [curves(found.low), curves(found.high)]
    drawn = {label: found for label, found in panels.items() if any(len(c) for f in found for c in f.values())}
    if not drawn:
        return None
    fig, axes = _figure_with_legend(len(drawn), len(settings), width=4.4)
    for ax, (label, found) in zip(axes, drawn.items(), strict=True):
        for each in found:
            draw_means(ax, each, looks or plain_looks(list(settings)), log=False)
        ax.set_xlabel("Steps of all walkers")
        ax.set_xlim(0, None)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.set_ylabel(label)
        if label == "Coverage of CV space":
            ax.set_ylim(0, 1)
    legend_of_settings(fig, axes[0])
    return fig


def _panels(runs: Sequence[Rounds]) -> tuple[tuple[str, str, bool], ...]:
    """What to draw of runs: errors on validation structures too if one of them has no test set."""
    return _PANELS if all(is_tested(rounds) for rounds in runs) else (*_VALIDATION_PANELS, *_PANELS)


def _figure_with_legend(panels: int, n_settings: int, width: float = 2.55) -> tuple[Figure, list[Axes]]:
    """A row of panels with room for a legend of all settings above."""
    rows = math.ceil(n_settings / _LEGEND_COLUMNS)
    return style.new_figure(width * panels + 0.2, 2.45 + 0.2 * rows, panels)


def legend_of_settings(fig: Figure | SubFigure, ax: Axes, columns: int = _LEGEND_COLUMNS) -> None:
    """Legend of all settings that a panel shows, above the panels of a figure or of a part of one."""
    lines, labels = ax.get_legend_handles_labels()
    handles = dict(zip(labels, lines, strict=True))  # a setting may have several lines
    fig.legend(
        list(handles.values()),
        list(handles),
        loc="outside upper left",
        ncols=columns,
        fontsize=8,
        labelcolor=style.INK,
        frameon=False,
    )


def draw_means(
    ax: Axes, curves: Mapping[str, NDArray[np.float64]], looks: Looks, *, log: bool, marked: bool = True
) -> NDArray[np.float64]:
    """Draws curves [n, 3] of abscissa, mean and deviation; returns the heights that must be in view."""
    heights = []
    for setting, curve in curves.items():
        x, mean, deviation = curve.T
        look = looks[setting]
        marks = {"marker": "o", "ms": 2.5} if marked else {}
        ax.plot(x, mean, look.line, color=look.colour, lw=1.4, label=setting, zorder=3, **marks)
        low = np.maximum(mean - deviation, 0.3 * mean) if log else mean - deviation  # zero is at infinity
        ax.fill_between(x, low, mean + deviation, color=look.colour, alpha=0.2, lw=0, zorder=2)
        heights += [low, mean + deviation]
    return np.concatenate(heights)


def _against_size(rounds: Rounds, name: str, *, positive: bool) -> NDArray[np.float64]:
    """Rows (structures, value) of the rounds that have ``name``, [n, 2]."""
    found = []
    for row in rounds:
        train, valid, value = row.get("n_train"), row.get("n_valid"), row.get(name)
        if train is None or valid is None or value is None or not np.isfinite(value):
            continue
        if value > 0 or not positive:
            found.append((train + valid, value))
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def mean_curve(runs: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Rows (abscissa, mean, standard deviation), [n, 3], of curves [n_i, 2]; one curve alone deviates by 0.

    Where the abscissae differ, curves are interpolated linearly, within the range that all of them have.
    """
    curves = [curve[np.argsort(curve[:, 0], kind="stable")] for curve in runs if len(curve)]
    if not curves:
        return np.empty((0, 3))
    sizes = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
    common = max(curve[0, 0] for curve in curves), min(curve[-1, 0] for curve in curves)
    sizes = sizes[(sizes >= common[0]) & (sizes <= common[1])]
    values = np.stack([np.interp(sizes, *curve.T) for curve in curves])
    deviation = values.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(len(sizes))
    return np.stack([sizes, values.mean(axis=0), deviation], axis=1)


def _curve_axes(ax: Axes, label: str, log: bool, values: NDArray[np.float64]) -> None:
    """Labels, limits and ticks of a panel of learning curves that shows ``values``."""
    ax.set_xlabel("Labelled structures")
    ax.set_ylabel(label)
    ax.set_xlim(0, None)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    if not log:
        ax.set_ylim(0, 1)
    elif len(values):
        ax.set_yscale("log")
        low, high = values.min(), values.max()
        ax.set_ylim(low / 1.3, high * 1.3)
        log_ticks(ax.yaxis, high / low)
