"""Figures of a run. Every function returns a new figure and touches no global state of matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

from ubmd.analysis import style
from ubmd.analysis.axes import VariableAxis
from ubmd.errors import InputError
from ubmd.files import replaced

__all__ = [
    "calibration_scatter",
    "draw_hexbins",
    "draw_plane",
    "explored_plane",
    "log_ticks",
    "save_figure",
    "span_of",
]

_CELLS = 360
"""Planes draw one point for each of so many cells along a range; a cell is a fifth of a marker's diameter."""


def explored_plane(
    axes: tuple[VariableAxis, VariableAxis],
    points: ArrayLike,
    *,
    rounds: ArrayLike | None = None,
    labelled: ArrayLike | None = None,
) -> Figure:
    """What was explored of two variables, coloured by the round that first came there (Figs. 3 d and 4 e).

    Earlier rounds lie on top, so that each round shows as the ground that it has gained. Of the points in one cell,
    a 360th of each range wide, which no eye could tell apart, the earliest is drawn. For φ and ψ of a backbone this
    is a Ramachandran plot.

    Args:
        axes: of the two variables, which have a range.
        points: [n, 2] their values; those that are not finite are left out.
        rounds: [n] round of each point; one colour for all if None.
        labelled: [m, 2] of labelled structures, marked on top.

    Raises:
        InputError: arrays of different lengths.
    """
    fig, (ax,) = style.new_figure(3.9 if rounds is not None else 3.3, 3.4)
    last = draw_plane(ax, axes, points, rounds=rounds)
    if last is not None:
        style.round_bar(fig, ax, *style.round_colours(last), last)
    if labelled is not None:
        chosen = _shown(axes, np.asarray(labelled, dtype=np.float64).reshape(-1, 2))
        ax.scatter(*chosen.T, s=11, facecolor="white", edgecolor=style.INK, lw=0.7, zorder=4, label="labelled")
        style.legend_above(ax)
    return fig


def draw_plane(
    ax: Axes,
    axes: tuple[VariableAxis, VariableAxis],
    points: ArrayLike,
    *,
    rounds: ArrayLike | None = None,
    colour: str = style.BLUE,
    size: float = 5.0,
) -> int | None:
    """What was explored of two variables on a panel, see :func:`explored_plane`.

    Args:
        ax: the panel; what is on it stays.
        axes: of the two variables, which have a range.
        points: [n, 2] their values.
        rounds: [n] round of each point, which then has its colour.
        colour: of all points without ``rounds``.
        size: of a point's square, points².

    Returns:
        the last round; None without ``rounds``.

    Raises:
        InputError: arrays of different lengths.
    """
    xy = np.asarray(points, dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise InputError(f"points has shape {xy.shape}; give [n, 2]")
    when = np.zeros(len(xy)) if rounds is None else _vector("rounds", rounds, len(xy))
    xy, when = _first_in_cell(axes, xy, when)
    style.style_axes(ax, boxed=True)
    marks = {"marker": "s", "s": size, "lw": 0, "rasterized": True, "zorder": 2}
    last = None
    if rounds is None:
        ax.scatter(*xy.T, color=colour, **marks)
    else:
        last = int(when.max()) if len(when) else 0
        colours, norm = style.round_colours(last)
        ax.scatter(*xy.T, c=when, cmap=colours, norm=norm, **marks)
    for axis, drawn, set_limits in zip(axes, (ax.xaxis, ax.yaxis), (ax.set_xlim, ax.set_ylim), strict=True):
        axis.tick(drawn)
        set_limits(*_limits(axis))
    ax.set_box_aspect(1)
    return last


def calibration_scatter(
    error: ArrayLike,
    uncertainty: ArrayLike,
    *,
    alpha: float,
    half: ArrayLike | None = None,
    unit: str = "eV/Å",
    error_label: str = "Max. atomic force RMSE",
    uncertainty_label: str = "Max. calibrated uncertainty",
) -> Figure:
    """Actual errors against calibrated uncertainties with the diagonal (Fig. 2), both logarithmic.

    On or below the diagonal the uncertainty covers the error. The share of such points stands beside its
    target 1 - α; it can exceed the target, because both axes are maxima over the atoms of a structure.

    Args:
        error: [n] one for each structure, in ``unit``; n >= 1.
        uncertainty: [n], in ``unit``.
        alpha: the α of the conformal calibration, in (0, 1).
        half: [n] uncertainties calibrated with α = 0.5 instead, drawn pale and in grey below the others.
        unit: unit of both axes.
        error_label: what the ordinate shows.
        uncertainty_label: what the abscissa shows.

    Raises:
        InputError: arrays of different lengths, no pair of positive numbers, or α outside (0, 1).
    """
    fig, (ax,) = style.new_figure(3.8, 3.3)
    bins = draw_hexbins(ax, error, uncertainty, alpha=alpha, half=half)
    ax.set_xlabel(f"{uncertainty_label} ({unit})")
    ax.set_ylabel(f"{error_label} ({unit})")
    bar = fig.colorbar(bins, ax=ax, shrink=0.8, aspect=22, pad=0.02, label="Structures")
    style.style_axes(bar.ax, boxed=True)
    log_ticks(bar.ax.yaxis, float(bins.get_array().max()))  # pyright: ignore[reportOptionalMemberAccess]
    return fig


def draw_hexbins(
    ax: Axes,
    error: ArrayLike,
    uncertainty: ArrayLike,
    *,
    alpha: float,
    half: ArrayLike | None = None,
    span: tuple[float, float] | None = None,
) -> PolyCollection:
    """Errors against calibrated uncertainties on a panel, see :func:`calibration_scatter`.

    Args:
        ax: an empty panel.
        error: [n] one for each structure.
        uncertainty: [n], in the same unit.
        alpha: the α of the conformal calibration, in (0, 1).
        half: [n] uncertainties calibrated with α = 0.5 instead.
        span: ends of both axes, for panels that share them; None takes those of the data.

    Returns:
        the hexagons, whose colours are logarithms of counts.

    Raises:
        InputError: arrays of different lengths, no pair of positive numbers, or α outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise InputError(f"alpha is {alpha}; give a number between 0 and 1")
    y = _vector("error", error)
    x = _vector("uncertainty", uncertainty, len(y))
    drawn = np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)
    if not drawn.any():
        raise InputError("uncertainty and error hold no pair of positive numbers; give those of a test set")
    pale = None if half is None else _vector("half", half, len(y))[drawn]
    x, y = x[drawn], y[drawn]
    low, high = span or span_of([values for values in (x, y, pale) if values is not None])
    powers = np.log10([low, high])
    style.style_axes(ax, boxed=True)
    pale_to_blue = LinearSegmentedColormap.from_list("pale_to_blue", ["#C6DBEF", "#6BAED6", style.BLUE, "#08306B"])
    hexagons = {"xscale": "log", "yscale": "log", "gridsize": 36, "mincnt": 1, "bins": "log"}
    hexagons["extent"] = (*powers, *powers)
    if pale is not None:
        greys = LinearSegmentedColormap.from_list("greys", ["#E0E0E0", "#6F6F6F"])
        ax.hexbin(pale, y, cmap=greys, linewidths=0.1, alpha=0.6, zorder=1, **hexagons)
    bins = ax.hexbin(x, y, cmap=pale_to_blue, linewidths=0.1, zorder=2, **hexagons)
    ax.plot([low, high], [low, high], color=style.RED, lw=1.2, zorder=3)
    ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    told = f"covered: {100 * np.mean(y <= x):.1f} %\ntarget: {100 * (1 - alpha):g} %"
    if pale is not None:
        told += f"\ngrey, α = 0.5: {100 * np.mean(y <= pale):.1f} %"
    style.note(ax, told)
    for axis in (ax.xaxis, ax.yaxis):
        log_ticks(axis, high / low)
    return bins


def span_of(values: Sequence[ArrayLike]) -> tuple[float, float]:
    """Ends of a logarithmic axis with room for all positive numbers among values."""
    inside = np.concatenate([np.asarray(v, dtype=np.float64) for v in values])
    inside = inside[np.isfinite(inside) & (inside > 0)]
    powers = np.log10([inside.min(), inside.max()])
    room = max(0.06 * (powers[1] - powers[0]), 0.1)
    return float(10 ** (powers[0] - room)), float(10 ** (powers[1] + room))


def save_figure(fig: Figure, path: str | Path, *, dpi: int = 150) -> None:
    """Write the figure in one step, so that no reader meets half a file.

    Args:
        fig: the figure.
        path: its file, ``.png`` or, as vectors, ``.pdf``.
        dpi: of the PNG, and of what is drawn as pixels in a PDF.

    Raises:
        InputError: a path of another ending.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "pdf"):
        raise InputError(f"path is {path}; give a name that ends in .png or .pdf")
    with replaced(path) as temporary:
        # the time of writing would make the same figure another file
        fig.savefig(temporary, dpi=dpi, format=kind, metadata={"CreationDate": None} if kind == "pdf" else None)


def log_ticks(axis: Axis, ratio: float) -> None:
    """Plain numbers on a logarithmic axis that spans ``ratio``: at 1, 2, 5 up to two decades, else at 1."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if ratio < 100 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _limits(axis: VariableAxis) -> tuple[float, float]:
    if axis.limits is None:
        raise InputError(f"{axis.label} has no range; give it bounds")
    return axis.limits


def _shown(axes: tuple[VariableAxis, VariableAxis], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points [n, 2] as they are shown."""
    return np.stack([axis.shown(points[:, k]) for k, axis in enumerate(axes)], axis=1)


def _first_in_cell(
    axes: tuple[VariableAxis, VariableAxis], points: NDArray[np.float64], when: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points [n, 2] as shown and their rounds [n], the earliest of each cell alone, latest round first."""
    usable = np.isfinite(points).all(axis=1)
    order = np.argsort(when[usable], kind="stable")
    shown, when = _shown(axes, points[usable][order]), when[usable][order]
    low, high = np.transpose([_limits(axis) for axis in axes])
    cell = np.floor((shown - low) / (high - low) * _CELLS).astype(np.int64)
    _, first = np.unique(cell, axis=0, return_index=True)
    first = np.sort(first)[::-1]
    return shown[first], when[first]


def _vector(name: str, values: ArrayLike, length: int | None = None) -> NDArray[np.float64]:
    """``values`` as [n] floats, of the given length."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or (length is not None and len(array) != length):
        expected = "[n]" if length is None else f"[{length}]"
        raise InputError(f"{name} has shape {array.shape}; give {expected}")
    return array
