"""Figures of a run. Every function returns a new figure and touches no global state of matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

from ubmd.analysis import style
from ubmd.errors import InputError
from ubmd.files import replaced

__all__ = [
    "calibration_scatter",
    "log_ticks",
    "ramachandran",
    "save_figure",
    "uncertainty_trace",
]

_CELL_DEGREES = 1.0
"""Ramachandran plots draw one point for each cell of this width, a fifth of a marker's diameter."""


def ramachandran(
    phi: ArrayLike, psi: ArrayLike, *, rounds: ArrayLike | None = None, labelled: ArrayLike | None = None
) -> Figure:
    """Explored backbone torsions, coloured by the round that first came there (Figs. 3 d and 4 e).

    Earlier rounds lie on top, so that each round shows as the ground that it has gained. Of the points in one
    cell of 1°, which no eye could tell apart, the earliest is drawn.

    Args:
        phi: [n] rad, any period; points that are not finite are left out.
        psi: [n] rad.
        rounds: [n] round of each point; one colour for all if None.
        labelled: [m, 2] φ and ψ (rad) of labelled structures, marked on top.

    Raises:
        InputError: arrays of different lengths.
    """
    x = _vector("phi", phi)
    points = np.stack([x, _vector("psi", psi, len(x))], axis=1)
    when = np.zeros(len(points)) if rounds is None else _vector("rounds", rounds, len(points))
    points, when = _first_in_cell(points, when)
    fig, (ax,) = style.new_figure(3.9 if rounds is not None else 3.3, 3.4)
    style.style_axes(ax, boxed=True)
    marks = {"s": 5.0, "lw": 0, "rasterized": True, "zorder": 2}
    if rounds is None:
        ax.scatter(*points.T, color=style.BLUE, **marks)
    else:
        last = int(when.max()) if len(when) else 0
        colours, norm = style.round_colours(last)
        ax.scatter(*points.T, c=when, cmap=colours, norm=norm, **marks)
        style.round_bar(fig, ax, colours, norm, last)
    if labelled is not None:
        chosen = _degrees(np.asarray(labelled, dtype=np.float64).reshape(-1, 2))
        ax.scatter(*chosen.T, s=11, facecolor="white", edgecolor=style.INK, lw=0.7, zorder=4, label="labelled")
        style.legend_above(ax)
    for axis, name in ((ax.xaxis, "φ"), (ax.yaxis, "ψ")):
        axis.set_major_locator(FixedLocator([-180, -90, 0, 90, 180]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}".replace("-", "\N{MINUS SIGN}")))
        axis.set_label_text(f"{name} (degrees)")
    ax.set(xlim=(-180, 180), ylim=(-180, 180), aspect="equal")
    return fig


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
    if not 0 < alpha < 1:
        raise InputError(f"alpha is {alpha}; give a number between 0 and 1")
    y = _vector("error", error)
    x = _vector("uncertainty", uncertainty, len(y))
    drawn = np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)
    if not drawn.any():
        raise InputError("uncertainty and error hold no pair of positive numbers; give those of a test set")
    pale = None if half is None else _vector("half", half, len(y))[drawn]
    x, y = x[drawn], y[drawn]
    inside = [values[values > 0] for values in (x, y, pale) if values is not None]
    span = np.log10([min(v.min(initial=np.inf) for v in inside), max(v.max(initial=0) for v in inside)])
    span += np.array([-1, 1]) * max(0.06 * (span[1] - span[0]), 0.1)
    low, high = 10**span
    fig, (ax,) = style.new_figure(3.8, 3.3)
    style.style_axes(ax, boxed=True)
    pale_to_blue = LinearSegmentedColormap.from_list("pale_to_blue", ["#C6DBEF", "#6BAED6", style.BLUE, "#08306B"])
    hexagons = {"xscale": "log", "yscale": "log", "gridsize": 36, "extent": (*span, *span), "mincnt": 1, "bins": "log"}
    if pale is not None:
        greys = LinearSegmentedColormap.from_list("greys", ["#E0E0E0", "#6F6F6F"])
        ax.hexbin(pale, y, cmap=greys, linewidths=0.1, alpha=0.6, zorder=1, **hexagons)
    bins = ax.hexbin(x, y, cmap=pale_to_blue, linewidths=0.1, zorder=2, **hexagons)
    ax.plot([low, high], [low, high], color=style.RED, lw=1.2, zorder=3)
    ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    ax.set_xlabel(f"{uncertainty_label} ({unit})")
    ax.set_ylabel(f"{error_label} ({unit})")
    told = f"covered: {100 * np.mean(y <= x):.1f} %\ntarget: {100 * (1 - alpha):g} %"
    if pale is not None:
        told += f"\ngrey, α = 0.5: {100 * np.mean(y <= pale):.1f} %"
    style.note(ax, told)
    for axis in (ax.xaxis, ax.yaxis):
        log_ticks(axis, high / low)
    bar = fig.colorbar(bins, ax=ax, shrink=0.8, aspect=22, pad=0.02, label="Structures")
    style.style_axes(bar.ax, boxed=True)
    log_ticks(bar.ax.yaxis, float(bins.get_array().max()))  # pyright: ignore[reportOptionalMemberAccess]
    return fig


def uncertainty_trace(
    steps: ArrayLike | Sequence[ArrayLike],
    uncertainty: ArrayLike | Sequence[ArrayLike],
    threshold: float,
    *,
    timestep: float | None = None,
) -> Figure:
    """Largest atomic uncertainty of the walkers along time, with the threshold that stops them (Fig. 4 d).

    Args:
        steps: [n] MD step of each frame of one walker, or a list with one such array for each walker.
        uncertainty: the values (eV/Å) at ``steps``, of the same structure.
        threshold: eV/Å.
        timestep: fs; the abscissa is then the time in ps.

    Raises:
        InputError: different numbers of walkers or frames.
    """
    xs, ys = _walkers(steps), _walkers(uncertainty)
    if len(xs) != len(ys):
        raise InputError(f"uncertainty has {len(ys)} walkers, steps {len(xs)}; give both for every walker")
    fig, (ax,) = style.new_figure(4.6, 2.7)
    scale = 1.0 if timestep is None else 1e-3 * timestep
    opacity = 1.0 if len(xs) == 1 else 0.55
    highest = threshold
    for x, y in zip(xs, ys, strict=True):
        time = scale * _vector("steps", x)
        value = _vector("uncertainty", y, len(time))
        over = value >= threshold
        ax.plot(time, value, color=style.BLUE, lw=0.9, alpha=opacity, zorder=2)
        ax.plot(time[over], value[over], "o", color=style.RED, ms=4, mec="white", mew=0.5, zorder=4)
        highest = max(highest, np.max(value, initial=0.0, where=np.isfinite(value)))
    ax.axhline(threshold, color=style.GREY, lw=1.1, ls=(0, (5, 3)), zorder=3)
    ax.set_xlabel("MD step" if timestep is None else "Time (ps)")
    ax.set_ylabel("Max. atomic uncertainty (eV/Å)")
    ax.set_xlim(0, None)
    ax.set_ylim(0, 1.12 * highest)
    ax.annotate(
        f"threshold {threshold:g} eV/Å", (1, threshold), (0, 3), xycoords=ax.get_yaxis_transform(),
        textcoords="offset points", ha="right", va="bottom", fontsize=8, color=style.INK,
    )  # fmt: skip
    return fig


def save_figure(fig: Figure, path: str | Path) -> None:
    """Write the figure as PNG (150 dpi) in one step, so that no reader meets half a file.

    Raises:
        InputError: a path that does not end in ``.png``.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"path is {path}; give a name that ends in .png")
    with replaced(path) as temporary:
        fig.savefig(temporary, dpi=150, format="png")


def log_ticks(axis: Axis, ratio: float) -> None:
    """Plain numbers on a logarithmic axis that spans ``ratio``: at 1, 2, 5 up to two decades, else at 1."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if ratio < 100 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _degrees(radians: NDArray[np.float64]) -> NDArray[np.float64]:
    """Angles in degrees, [-180, 180)."""
    return np.mod(np.degrees(radians) + 180.0, 360.0) - 180.0


def _first_in_cell(
    points: NDArray[np.float64], when: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points [n, 2] in degrees and their rounds [n], the earliest of each cell alone, latest round first."""
    usable = np.isfinite(points).all(axis=1)
    order = np.argsort(when[usable], kind="stable")
    degrees, when = _degrees(points[usable][order]), when[usable][order]
    cell = np.floor((degrees + 180.0) / _CELL_DEGREES).astype(np.int64)
    _, first = np.unique(cell[:, 0] * 1000 + cell[:, 1], return_index=True)
    first = np.sort(first)[::-1]
    return degrees[first], when[first]


def _vector(name: str, values: ArrayLike, length: int | None = None) -> NDArray[np.float64]:
    """``values`` as [n] floats, of the given length."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or (length is not None and len(array) != length):
        expected = "[n]" if length is None else f"[{length}]"
        raise InputError(f"{name} has shape {array.shape}; give {expected}")
    return array


def _walkers(values: ArrayLike | Sequence[ArrayLike]) -> list[ArrayLike]:
    """One entry for each walker, whether one or many were given."""
    if isinstance(values, np.ndarray):
        return [values] if values.ndim == 1 else list(values)
    entries = list(values)  # pyright: ignore[reportArgumentType]
    return [np.asarray(entries)] if entries and np.ndim(entries[0]) == 0 else entries
