"""How a collective variable is drawn: label and unit, range, and the states along it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from ubmd.analysis import style
from ubmd.observables.base import CollectiveVariable
from ubmd.observables.states import States

__all__ = ["VariableAxis", "variable_axis"]

_GREEK = {"phi": "φ", "psi": "ψ", "omega": "ω", "chi": "χ", "theta": "θ"}
_TINT = "#F1F1F1"
_DEGREES = 180.0 / math.pi


@dataclass(frozen=True)
class VariableAxis:
    """An axis of a variable; angles are shown in degrees."""

    label: str
    scale: float = 1.0
    """Factor from the variable's unit to the one that is shown."""
    limits: tuple[float, float] | None = None
    """Its range as it is shown; None if it has none."""
    wraps: bool = False
    """Whether all values are folded into the range."""
    bands: tuple[tuple[str, float, float], ...] = ()
    """Names and ends of states, as they are shown."""

    def shown(self, values: ArrayLike) -> NDArray[np.float64]:
        """Values as they are shown."""
        out = self.scale * np.asarray(values, dtype=np.float64)
        if self.limits is None or not self.wraps:
            return out
        low, high = self.limits
        return np.mod(out - low, high - low) + low

    def tick(self, axis: Axis) -> None:
        """Sets label and ticks: quarters of a turn, or a few round numbers."""
        axis.set_label_text(self.label)
        if self.wraps and self.limits == (-180.0, 180.0):
            axis.set_major_locator(FixedLocator([-180, -90, 0, 90, 180]))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}".replace("-", "\N{MINUS SIGN}")))
        else:
            axis.set_major_locator(MaxNLocator(5))

    def shade(self, ax: Axes, *, vertical: bool, named: bool = True) -> None:
        """Tints the states along the axis within its limits, and names them at the edge.

        Args:
            ax: with its final limits.
            vertical: states are vertical strips, the variable being the abscissa.
            named: whether to write their names.
        """
        low, high = ax.get_xlim() if vertical else ax.get_ylim()
        span, limits = (ax.axvspan, ax.set_xlim) if vertical else (ax.axhspan, ax.set_ylim)
        for name, start, end in self.bands:
            start, end = max(start, low), min(end, high)
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


def variable_axis(name: str, variable: CollectiveVariable, states: States | None = None) -> VariableAxis:
    """The axis of a variable, with those states that it has a part in."""
    angle = variable.unit == "rad"
    scale = _DEGREES if angle else 1.0
    unit = "degrees" if angle else variable.unit
    label = _GREEK.get(name, name) + (f" ({unit})" if unit else "")
    bands = []
    for state, ranges in (states or {}).items():
        if name in ranges:
            low, high = ranges[name]
            half = math.inf if variable.period is None else variable.period / 2
            parts = [(low, high)] if low < high else [(low, half), (-half, high)]  # through the end of a period
            bands += [(state, scale * start, scale * end) for start, end in parts]
    limits = None if variable.range is None else (scale * variable.range[0], scale * variable.range[1])
    return VariableAxis(label, scale, limits, variable.wraps, tuple(bands))
