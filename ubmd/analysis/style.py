"""The shared look of all figures: colours that colour-blind readers can tell apart, units, no decoration.

Everything is set on the figure at hand; matplotlib's global settings stay as the user has them.
"""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap
from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "GREY",
    "INK",
    "PALETTE",
    "RED",
    "SEQUENTIAL",
    "SEQUENTIAL_END",
    "legend_above",
    "new_figure",
    "note",
    "round_bar",
    "round_colours",
    "style_axes",
]

PALETTE: tuple[str, ...] = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Okabe and Ito's colours, without the yellow and black that vanish on paper or against text."""

BLUE, RED = PALETTE[0], PALETTE[1]
GREY = "#8C8C8C"
INK = "#262626"
"""Text, ticks and axes."""

SEQUENTIAL = "viridis"
"""Colour map for ordered quantities."""

SEQUENTIAL_END = 0.93
"""Where to stop in it: its brightest yellow is hard to see on white."""

_LABEL_SIZE = 9.0
_TICK_SIZE = 8.0


def new_figure(width: float, height: float, columns: int = 1, *, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of ``columns`` panels side by side, in the shared style.

    Args:
        width: inches, whole figure.
        height: inches.
        columns: number of panels.
        rows: number of such rows.

    Returns:
        The figure and its axes from left to right, row by row.
    """
    fig = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(fig)  # draws without a display, whatever backend the user has chosen
    axes: Any = fig.subplots(rows, columns, squeeze=False)
    panels: list[Axes] = list(np.ravel(axes))
    for ax in panels:
        style_axes(ax)
    return fig, panels


def style_axes(ax: Axes, *, boxed: bool = False) -> None:
    """Thin dark axes on the left and at the bottom (all around if ``boxed``), small ticks, no grid."""
    for side, spine in ax.spines.items():
        spine.set_visible(boxed or side in ("left", "bottom"))
        spine.set_linewidth(0.8)
        spine.set_color(INK)
    ax.tick_params(which="both", labelsize=_TICK_SIZE, color=INK, labelcolor=INK, width=0.8)
    ax.tick_params(which="major", length=3.5)
    ax.tick_params(which="minor", length=2.0)
    for label in (ax.xaxis.label, ax.yaxis.label, ax.title):
        label.set_fontsize(_LABEL_SIZE)
        label.set_color(INK)


def note(ax: Axes, text: str, *, corner: str = "upper left") -> None:
    """Small text in a corner of a panel."""
    vertical, horizontal = corner.split()
    ax.text(
        0.04 if horizontal == "left" else 0.96,
        0.96 if vertical == "upper" else 0.04,
        text,
        transform=ax.transAxes,
        ha=horizontal,
        va="top" if vertical == "upper" else "bottom",
        fontsize=_TICK_SIZE,
        color=INK,
    )


def round_colours(last: int) -> tuple[Colormap, BoundaryNorm]:
    """One colour for each round 0..last."""
    shades = matplotlib.colormaps[SEQUENTIAL](np.linspace(0, SEQUENTIAL_END, last + 1))
    return ListedColormap(shades), BoundaryNorm(np.arange(last + 2) - 0.5, last + 1)


def round_bar(fig: Figure, ax: Axes, colours: Colormap, norm: BoundaryNorm, last: int) -> None:
    """Colour bar beside a panel whose ticks are rounds."""
    bar = fig.colorbar(ScalarMappable(norm, colours), ax=ax, shrink=0.8, aspect=22, pad=0.02, label="Round")
    step = next(f * 10**p for p in range(9) for f in (1, 2, 5) if last <= 6 * f * 10**p)
    bar.set_ticks(list(range(0, last + 1, step)))
    style_axes(bar.ax, boxed=True)
    bar.ax.tick_params(which="minor", length=0)


def legend_above(ax: Axes) -> None:
    """Frameless legend in one row just above the panel, where it covers no data."""
    ax.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, fontsize=_TICK_SIZE, labelcolor=INK,
        frameon=False, handletextpad=0.3, borderaxespad=0.1,
    )  # fmt: skip
