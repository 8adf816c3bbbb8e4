"""Panels and rows that several of the paper's figures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ubmd.analysis import style
from ubmd.analysis.curves import draw_means, learning_panel, legend_of_settings, mean_curve
from ubmd.analysis.paper.source import Setting
from ubmd.errors import InputError

__all__ = ["correlation_panel", "keep_panels", "learning_row", "rows_of"]


def learning_row(part: Any, names: Sequence[str], settings: Sequence[Setting], missing: list[str]) -> bool:
    """Panels of columns of ``metrics.csv``; a sentence for each that no run has."""
    looks = {s.name: s.look for s in settings}
    rows = {s.name: s.rounds for s in settings}
    axes = part.subplots(1, len(names))
    shown = [learning_panel(ax, name, rows, looks) for ax, name in zip(axes, names, strict=True)]
    for name, there in zip(names, shown, strict=True):
        if not there:
            missing.append(f"No run has {name} in its metrics.csv.")
    for ax in axes:
        style.style_axes(ax)
    keep_panels(part, axes, shown)
    return any(shown)


def keep_panels(part: Any, axes: Any, shown: Sequence[bool], *, lettered: bool = True, legend: bool = True) -> None:
    """Takes empty panels away, letters the others and puts the legend above them."""
    letters = iter("abcdef")
    for ax, there in zip(axes, shown, strict=True):
        if not there:
            ax.remove()
        elif lettered:
            ax.set_title(f"({next(letters)})", loc="left", fontsize=9, color=style.INK)
    kept = [ax for ax, there in zip(axes, shown, strict=True) if there]
    if kept and legend:
        legend_of_settings(part, kept[0])


def rows_of(fig: Figure, heights: Sequence[float]) -> list[Any]:
    """Parts of a figure below one another."""
    return list(np.ravel(fig.subfigures(len(heights), 1, height_ratios=list(heights), squeeze=False)))


def correlation_panel(ax: Axes, name: str, settings: Sequence[Setting], missing: list[str]) -> bool:
    """Auto-correlation functions against the lag, mean and deviation over seeds; whether there are any.

    Args:
        ax: an empty panel.
        name: ``position`` or ``uncertainty``.
        settings: with their runs.
        missing: takes a sentence for each setting that has none.
    """
    curves = {}
    for setting in settings:
        found = []
        for source in setting.sources:
            try:
                found.append(source.explored.correlations.get(name, np.empty((0, 2))))
            except InputError as error:
                missing.append(f"{setting.name}: {error}.")
        kept = [_thinned(curve[1 : len(curve) // 2]) for curve in found if len(curve) > 8]
        if kept:
            curves[setting.name] = mean_curve(kept)
        elif found:
            missing.append(f"{setting.name}: no auto-correlation of the {name}, its walkers made too few frames.")
    if not curves:
        return False
    draw_means(ax, curves, {s.name: s.look for s in settings}, log=False, marked=False)
    ax.axhline(0.0, color=style.GREY, lw=0.6, zorder=1)
    ax.set_xscale("log")
    ax.set(xlabel="Lag time (ps)", ylabel=f"ACF of {'positions' if name == 'position' else 'uncertainties'}")
    ax.set_ylim(min(-0.25, ax.get_ylim()[0]), 1.02)
    style.style_axes(ax)
    return True


def _thinned(curve: NDArray[np.float64], most: int = 200) -> NDArray[np.float64]:
    """At most so many rows, the first ones all and then ever fewer, as a logarithmic axis shows them."""
    places = np.unique(np.round(np.geomspace(1, len(curve), most)).astype(int)) - 1
    return curve[places]
