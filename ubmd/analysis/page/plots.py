"""Drawings of the page that nothing else shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ubmd.analysis import style

__all__ = ["acquired_coverage"]

Row = Mapping[str, float | int | None]


def acquired_coverage(rows: Sequence[Row], alpha: float | None) -> Figure | None:
    """The share of new labels whose errors the round's potential had covered, against rounds; None without any.

    Args:
        rows: of ``metrics.csv``.
        alpha: that uncertainties are calibrated with, whose complement is marked.
    """
    fig, (ax,) = style.new_figure(3.6, 2.4)
    drawn = False
    for kind, label, colour in (("atom", "forces on atoms", style.BLUE), ("total", "energies", style.RED)):
        known = [(row["round"], row.get(f"acquired_coverage_{kind}")) for row in rows]
        points = [(x, y) for x, y in known if x is not None and y is not None]
        if points:
            drawn = True
            ax.plot(*zip(*points, strict=True), "-o", color=colour, lw=1.4, ms=3.5, label=label, clip_on=False)
    if not drawn:
        return None
    if alpha is not None:
        ax.axhline(1 - alpha, color=style.GREY, lw=1.0, ls=(0, (4, 3)), zorder=1)
    ax.set(ylim=(0, 1), xlabel="Round", ylabel="Share of errors covered")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.legend_above(ax)
    return fig
