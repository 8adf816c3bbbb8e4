"""Figures of collective variables and cells: what was explored, when, and how errors depend on it.

Every function returns a new figure and touches no global state of matplotlib.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ase.geometry import cell_to_cellpar
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from ubmd.analysis import style
from ubmd.analysis.axes import VariableAxis
from ubmd.analysis.figures import log_ticks
from ubmd.errors import InputError

__all__ = [
    "SquaredErrors",
    "binned_rmse",
    "cell_histograms",
    "cell_parameters",
    "error_by_variable",
    "variable_histogram",
    "variable_series",
]

SquaredErrors = Mapping[str, ArrayLike]
"""Mean squared errors of structures, [n] each, by the label of their root with its unit."""

_BINS = 40
_PARAMETERS = ("a (Å)", "b (Å)", "c (Å)", "α (degrees)", "β (degrees)", "γ (degrees)")


def variable_histogram(axis: VariableAxis, explored: ArrayLike, labelled: ArrayLike) -> Figure:
    """How often each value was explored and labelled, both as shares of their number (Figs. 5 d, 6 a).

    Args:
        axis: of the variable; its states are shaded.
        explored: [n] of all frames.
        labelled: [m] of the labelled structures.

    Raises:
        InputError: there is no value at all.
    """
    found, chosen = axis.shown(explored), axis.shown(labelled)
    edges = _edges(np.concatenate([found, chosen]), _BINS, axis.limits)
    fig, (ax,) = style.new_figure(4.6, 2.7)
    for values, colour, name in ((found, style.BLUE, "explored"), (chosen, style.RED, "labelled")):
        if len(values):
            share = np.histogram(values, edges)[0] / len(values)
            ax.stairs(share, edges, color=colour, fill=True, alpha=0.25, lw=0, zorder=2)
            ax.stairs(share, edges, color=colour, lw=1.3, label=f"{name} ({len(values)})", zorder=3)
    ax.set(ylabel="Share of structures", xlim=(edges[0], edges[-1]))
    axis.tick(ax.xaxis)
    ax.set_ylim(0, 1.08 * ax.get_ylim()[1])  # room for the states' names
    axis.shade(ax, vertical=True)
    style.legend_above(ax)
    return fig


def variable_series(
    axis: VariableAxis,
    times: Sequence[ArrayLike],
    values: Sequence[ArrayLike],
    rounds: Sequence[int],
    *,
    in_time: bool = True,
) -> Figure:
    """A variable of every walker along its rounds, which follow one another; one colour for each round (Fig. 6 d).

    Args:
        axis: of the variable; its states are shaded.
        times: for each walker of each round the times of its frames since the round's start, ps; ``in_time`` tells
            whether they are steps instead.
        values: the variable at these times.
        rounds: the round of each.
        in_time: whether ``times`` are times.

    Raises:
        InputError: lists of different lengths, or no frame.
    """
    if not len(times) == len(values) == len(rounds):
        raise InputError(f"values has {len(values)} walkers, times {len(times)}, rounds {len(rounds)}; give equal ones")
    segments = [(int(r), np.asarray(t), axis.shown(v)) for r, t, v in zip(rounds, times, values, strict=True)]
    segments = [segment for segment in segments if len(segment[1])]
    if not segments:
        raise InputError("values holds no frame; give those of a run")
    last = max(r for r, _, _ in segments)
    lengths = [max((t[-1] for r, t, _ in segments if r == index), default=0.0) for index in range(last + 1)]
    starts = np.concatenate([[0.0], np.cumsum(lengths)])
    colours, norm = style.round_colours(last)
    fig, (ax,) = style.new_figure(5.6, 2.9)
    for index, time, value in segments:
        # lines from one end of a period to the other would hide everything
        look = {"ls": "", "marker": "o", "ms": 1.5} if axis.wraps else {"marker": "o", "ms": 2.0}
        look = look if axis.wraps or len(time) == 1 else {}
        ax.plot(starts[index] + time, value, color=colours(norm(index)), lw=0.8, alpha=0.7, zorder=3, **look)
    for start in starts[1:-1]:
        ax.axvline(start, color=style.GREY, lw=0.6, ls=(0, (2, 3)), zorder=1)
    ax.set_xlabel("Time, one round after the other (ps)" if in_time else "Steps, one round after the other")
    axis.tick(ax.yaxis)
    ax.set_xlim(0, starts[-1])
    if axis.limits is not None:
        ax.set_ylim(*axis.limits)
    axis.shade(ax, vertical=False)
    style.round_bar(fig, ax, colours, norm, last)
    return fig


def cell_parameters(cells: ArrayLike) -> NDArray[np.float64]:
    """Lengths a, b, c (Å) and angles α, β, γ (degrees) of cells [n, 3, 3], [n, 6]."""
    matrices = np.asarray(cells, dtype=np.float64)
    return np.array([cell_to_cellpar(cell) for cell in matrices], dtype=np.float64).reshape(-1, 6)


def cell_histograms(explored: ArrayLike, labelled: ArrayLike) -> Figure:
    """How often each length and angle of the cell was explored and labelled, as shares of their number.

    Args:
        explored: [n, 3, 3] Å, cells of all frames.
        labelled: [m, 3, 3] Å, cells of the labelled structures.

    Raises:
        InputError: there is no cell at all.
    """
    found, chosen = cell_parameters(explored), cell_parameters(labelled)
    fig, axes = style.new_figure(7.4, 4.2, 3, rows=2)
    for k, (ax, name) in enumerate(zip(axes, _PARAMETERS, strict=True)):
        edges = _edges(np.concatenate([found[:, k], chosen[:, k]]), _BINS // 2)
        for values, colour, label in ((found[:, k], style.BLUE, "explored"), (chosen[:, k], style.RED, "labelled")):
            if len(values):
                share = np.histogram(values, edges)[0] / len(values)
                ax.stairs(share, edges, color=colour, fill=True, alpha=0.25, lw=0, zorder=2)
                ax.stairs(share, edges, color=colour, lw=1.2, label=label, zorder=3)
        ax.set_xlabel(name)
        ax.set_xlim(edges[0], edges[-1])
        ax.set_ylim(0, None)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.yaxis.set_major_locator(MaxNLocator(3))
    for ax in (axes[0], axes[3]):
        ax.set_ylabel("Share of structures")
    style.legend_above(axes[0])
    return fig


def error_by_variable(
    axis: VariableAxis, values: ArrayLike, errors: Mapping[str, SquaredErrors], *, n_bins: int = 8
) -> Figure:
    """RMSEs of the test structures in equal ranges of a variable (Fig. 5 d, e), a panel for each kind of error.

    Args:
        axis: of the variable; its states are shaded.
        values: [n] of the test structures.
        errors: for each potential, by its label, the mean squared errors of every structure.
        n_bins: number of ranges.

    Raises:
        InputError: there is no structure or no error.
    """
    x = axis.shown(values)
    edges = _edges(x, n_bins, axis.limits)
    kinds = list(next(iter(errors.values()), {}))
    if not kinds:
        raise InputError("errors holds no error; give those of at least one potential")
    fig, axes = style.new_figure(2.6 * len(kinds) + 0.2, 2.6, len(kinds))
    middles = (edges[1:] + edges[:-1]) / 2
    for ax, kind in zip(axes, kinds, strict=True):
        heights = []
        for number, (name, found) in enumerate(errors.items()):
            rmse, counts = binned_rmse(x, found[kind], edges)
            known = counts > 0
            colour = (style.GREY, *style.PALETTE)[number] if len(errors) > 1 else style.BLUE
            ax.plot(middles[known], rmse[known], "-o", color=colour, lw=1.4, ms=3.5, label=name, zorder=3)
            heights.append(rmse[known])
        low, high = np.concatenate(heights).min(initial=np.inf), np.concatenate(heights).max(initial=0.0)
        ax.set(ylabel=kind, xlim=(edges[0], edges[-1]))
        axis.tick(ax.xaxis)
        if 0 < low < np.inf:
            ax.set_yscale("log")
            ax.set_ylim(low / 1.4, high * 1.6)
            log_ticks(ax.yaxis, high / low)
        axis.shade(ax, vertical=True, named=False)
    style.legend_above(axes[0])
    return fig


def binned_rmse(
    values: ArrayLike, squared_errors: ArrayLike, edges: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Root of the mean squared error of the structures in each range of a variable (Fig. 5 d, e).

    Args:
        values: [n] of the variable.
        squared_errors: [n] mean squared error of each structure, any unit; NaN for one that has none.
        edges: [b + 1] ascending; a value on an edge belongs to the range above.

    Returns:
        RMSE [b], NaN for a range without structures, and the number of structures [b].
    """
    bounds = np.asarray(edges, dtype=np.float64)
    place = np.digitize(np.asarray(values, dtype=np.float64), bounds) - 1
    errors = np.asarray(squared_errors, dtype=np.float64)
    inside = (place >= 0) & (place < len(bounds) - 1) & ~np.isnan(errors)
    counts = np.bincount(place[inside], minlength=len(bounds) - 1)
    sums = np.bincount(place[inside], weights=errors[inside], minlength=len(bounds) - 1)
    with np.errstate(invalid="ignore"):
        return np.sqrt(sums / counts), counts


def _edges(values: NDArray[np.float64], n: int, limits: tuple[float, float] | None = None) -> NDArray[np.float64]:
    """Edges of ``n`` equal bins over the range, or over the values with the last one inside, [n + 1]."""
    if not len(values):
        raise InputError("there are no values to draw; give those of a run")
    if limits is not None:
        return np.linspace(*limits, n + 1)
    low, high = float(values.min()), float(values.max())
    room = max(0.01 * (high - low), 1e-3 * abs(high), 1e-9)
    return np.linspace(low - room, high + room, n + 1)
