"""Figures of runs on crystals: what cells were explored, when, and how errors depend on the volume.

Every function returns a new figure and touches no global state of matplotlib.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from ubmd.analysis import style
from ubmd.analysis.figures import log_ticks
from ubmd.analysis.volumes import Phases, cell_parameters, rmse_by_volume
from ubmd.errors import InputError

__all__ = ["VolumeErrors", "cell_histograms", "error_by_volume", "volume_histogram", "volume_series"]

VolumeErrors = Mapping[str, ArrayLike]
"""Mean squared errors of structures, [n] each, by the label of their root with its unit."""

_BINS = 40
_PARAMETERS = ("a (Å)", "b (Å)", "c (Å)", "α (degrees)", "β (degrees)", "γ (degrees)")
_TINT = "#F1F1F1"


def volume_histogram(explored: ArrayLike, labelled: ArrayLike, phases: Phases | None = None) -> Figure:
    """How often each volume was explored and labelled, both as shares of their number (Figs. 5 d, 6 a).

    Args:
        explored: [n] Å³, of all frames.
        labelled: [m] Å³, of the labelled structures.
        phases: named ranges of volume, shaded.

    Raises:
        InputError: there is no volume at all.
    """
    found, chosen = np.asarray(explored, dtype=np.float64), np.asarray(labelled, dtype=np.float64)
    edges = _edges(np.concatenate([found, chosen]), _BINS)
    fig, (ax,) = style.new_figure(4.6, 2.7)
    for values, colour, name in ((found, style.BLUE, "explored"), (chosen, style.RED, "labelled")):
        if len(values):
            share = np.histogram(values, edges)[0] / len(values)
            ax.stairs(share, edges, color=colour, fill=True, alpha=0.25, lw=0, zorder=2)
            ax.stairs(share, edges, color=colour, lw=1.3, label=f"{name} ({len(values)})", zorder=3)
    ax.set(xlabel="Volume (Å³)", ylabel="Share of structures", xlim=(edges[0], edges[-1]))
    ax.set_ylim(0, 1.08 * ax.get_ylim()[1])  # room for the phases' names
    _shade(ax, phases or {}, vertical=True)
    style.legend_above(ax)
    return fig


def volume_series(
    times: Sequence[ArrayLike],
    volumes: Sequence[ArrayLike],
    rounds: Sequence[int],
    phases: Phases | None = None,
    *,
    in_time: bool = True,
) -> Figure:
    """Volume of every walker along its rounds, which follow one another; one colour for each round (Fig. 6 d).

    Args:
        times: for each walker of each round the times of its frames since the round's start, ps; ``in_time`` tells
            whether they are steps instead.
        volumes: the volumes at these times, Å³.
        rounds: the round of each.
        phases: named ranges of volume, shaded.
        in_time: whether ``times`` are times.

    Raises:
        InputError: lists of different lengths, or no frame.
    """
    if not len(times) == len(volumes) == len(rounds):
        raise InputError(
            f"volumes has {len(volumes)} walkers, times {len(times)}, rounds {len(rounds)}; give equal ones"
        )
    segments = [(int(r), np.asarray(t), np.asarray(v)) for r, t, v in zip(rounds, times, volumes, strict=True)]
    segments = [segment for segment in segments if len(segment[1])]
    if not segments:
        raise InputError("volumes holds no frame; give those of a run")
    last = max(r for r, _, _ in segments)
    lengths = [max((t[-1] for r, t, _ in segments if r == index), default=0.0) for index in range(last + 1)]
    starts = np.concatenate([[0.0], np.cumsum(lengths)])
    colours, norm = style.round_colours(last)
    fig, (ax,) = style.new_figure(5.6, 2.9)
    for index, time, volume in segments:
        alone = {"marker": "o", "ms": 2.0} if len(time) == 1 else {}
        ax.plot(starts[index] + time, volume, color=colours(norm(index)), lw=0.8, alpha=0.7, zorder=3, **alone)
    for start in starts[1:-1]:
        ax.axvline(start, color=style.GREY, lw=0.6, ls=(0, (2, 3)), zorder=1)
    ax.set_xlabel("Time, one round after the other (ps)" if in_time else "Steps, one round after the other")
    ax.set_ylabel("Volume (Å³)")
    ax.set_xlim(0, starts[-1])
    _shade(ax, phases or {}, vertical=False)
    style.round_bar(fig, ax, colours, norm, last)
    return fig


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


def error_by_volume(
    volumes: ArrayLike, errors: Mapping[str, VolumeErrors], phases: Phases | None = None, *, n_bins: int = 8
) -> Figure:
    """RMSEs of the test structures in equal ranges of their volume (Fig. 5 d, e), a panel for each kind of error.

    Args:
        volumes: [n] Å³, of the test structures.
        errors: for each potential, by its label, the mean squared errors of every structure.
        phases: named ranges of volume, shaded.
        n_bins: number of ranges.

    Raises:
        InputError: there is no structure or no error.
    """
    v = np.asarray(volumes, dtype=np.float64)
    edges = _edges(v, n_bins)
    kinds = list(next(iter(errors.values()), {}))
    if not kinds:
        raise InputError("errors holds no error; give those of at least one potential")
    fig, axes = style.new_figure(2.6 * len(kinds) + 0.2, 2.6, len(kinds))
    middles = (edges[1:] + edges[:-1]) / 2
    for ax, kind in zip(axes, kinds, strict=True):
        heights = []
        for number, (name, found) in enumerate(errors.items()):
            rmse, counts = rmse_by_volume(v, found[kind], edges)
            known = counts > 0
            colour = (style.GREY, *style.PALETTE)[number] if len(errors) > 1 else style.BLUE
            ax.plot(middles[known], rmse[known], "-o", color=colour, lw=1.4, ms=3.5, label=name, zorder=3)
            heights.append(rmse[known])
        low, high = np.concatenate(heights).min(), np.concatenate(heights).max()
        ax.set(xlabel="Volume (Å³)", ylabel=kind, xlim=(edges[0], edges[-1]))
        if low > 0:
            ax.set_yscale("log")
            ax.set_ylim(low / 1.4, high * 1.6)
            log_ticks(ax.yaxis, high / low)
        _shade(ax, phases or {}, vertical=True, named=False)
        ax.xaxis.set_major_locator(MaxNLocator(4))
    style.legend_above(axes[0])
    return fig


def _edges(values: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Edges of ``n`` equal bins over the values, [n + 1]; the last value lies inside."""
    if not len(values):
        raise InputError("there are no cells to draw; give those of a run")
    low, high = float(values.min()), float(values.max())
    room = max(0.01 * (high - low), 1e-3 * abs(high), 1e-9)
    return np.linspace(low - room, high + room, n + 1)


def _shade(ax: Axes, phases: Phases, *, vertical: bool, named: bool = True) -> None:
    """Tints the ranges of volume of the phases within the axis' limits, and names them at its edge."""
    low, high = ax.get_xlim() if vertical else ax.get_ylim()
    span, limits = (ax.axvspan, ax.set_xlim) if vertical else (ax.axhspan, ax.set_ylim)
    for name, bounds in phases.items():
        start, end = max(bounds[0], low), min(bounds[1], high)
        if start >= end:
            continue
        span(start, end, color=_TINT, lw=0, zorder=0)
        if named:
            place = ((start + end) / 2, 0.985) if vertical else (0.01, end - 0.015 * (high - low))
            ax.text(
                *place, name, transform=ax.get_xaxis_transform() if vertical else ax.get_yaxis_transform(),
                ha="center" if vertical else "left", va="top",
                fontsize=8, color=style.GREY, zorder=4,
            )  # fmt: skip
    limits(low, high)
