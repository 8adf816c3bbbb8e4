"""Figs. 3 and 4: what walkers explored of a molecule's collective variables, and how fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase.data import covalent_radii
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from ubmd.analysis import style
from ubmd.analysis.axes import VariableAxis, variable_axis
from ubmd.analysis.comparison import explored_against_steps
from ubmd.analysis.curves import draw_means, mean_curve
from ubmd.analysis.explored import plane_of
from ubmd.analysis.figures import draw_plane
from ubmd.analysis.paper.drawn import Drawn, NotDrawnError, described, footer
from ubmd.analysis.paper.panels import correlation_panel, keep_panels, learning_row, rows_of
from ubmd.analysis.paper.source import RoundFrames, Setting, Source
from ubmd.errors import InputError

__all__ = ["draw_fig3", "draw_fig4"]

_ERRORS = ("energy_rmse_mev_per_atom", "force_rmse_ev_per_ang")
_COLOURS = {1: "#FFFFFF", 6: "#707070", 7: "#3B6FB6", 8: "#C9352C"}
"""Of atoms: H white, C grey, N blue, O red."""
_PANEL = 2.45
"""Width of a panel, inches."""


def draw_fig3(settings: Sequence[Setting]) -> Drawn:
    """Coverage, energy and force RMSE against structures acquired, and what each setting explored (Fig. 3).

    Raises:
        NotDrawnError: the runs follow no space of collective variables.
    """
    missing: list[str] = []
    planes = _planes(settings, missing)
    columns = max(3, min(len(planes), 5))
    height = 2.6 + (2.3 if planes else 0.0)
    fig = Figure(figsize=(max(3 * _PANEL, columns * 1.75), height), layout="constrained", facecolor="white")
    top, *bottom = rows_of(fig, [2.6, *([2.3] if planes else [])])
    shown = learning_row(top, ("coverage", *_ERRORS), settings, missing)
    if not shown:
        raise NotDrawnError("the runs have neither a coverage nor errors on a test set (data.test)")
    if planes:
        axes: Any = bottom[0].subplots(1, len(planes), squeeze=False, sharey=True)
        for ax, (setting, (x, y), points) in zip(axes[0], planes, strict=True):
            draw_plane(ax, (x, y), points, colour=setting.look.colour, size=3.0)
            ax.set_title(_broken(setting.name), fontsize=7.5, color=style.INK)
        _tidy(axes)
        bottom[0].suptitle("(d)", x=0.01, ha="left", fontsize=9, color=style.INK)
    footer(fig, settings)
    what = (
        "Fig. 3. Top: coverage of the space of collective variables (walkers of all rounds so far and labelled "
        "structures), and errors on the test set, against labelled structures. Bottom: what the walkers of all rounds "
        "explored, one seed of each setting, the first that is named below."
    )
    return Drawn(described(settings, what, missing), fig, missing=tuple(missing))


def draw_fig4(settings: Sequence[Setting]) -> Drawn:
    """How fast the space was explored (Fig. 4).

    Coverage against simulation time, auto-correlation functions, the largest uncertainty in time, and the plane of the
    variables round by round.

    Raises:
        NotDrawnError: the runs have neither a coverage against time nor trajectories.
    """
    missing: list[str] = []
    planes = _planes(settings, missing)
    extremes = _extremes(settings)
    timed = [s for s in extremes if s.name in {p[0].name for p in planes}] if planes else extremes
    heights = [2.7, *([3.6] if timed else []), *([1.85 * len(timed) + 0.3] if planes else [])]
    fig = Figure(figsize=(8.0, sum(heights)), layout="constrained", facecolor="white")
    rows = rows_of(fig, heights)
    axes = rows[0].subplots(1, 3)
    shown = [
        _coverage_panel(axes[0], settings, missing),
        correlation_panel(axes[1], "position", settings, missing),
        correlation_panel(axes[2], "uncertainty", settings, missing),
    ]
    keep_panels(rows[0], axes, shown)
    if not any(shown):
        raise NotDrawnError(" ".join(missing) or "the runs have no trajectories")
    if timed:
        _time_rows(rows[1], timed)
    if planes:
        _round_planes(rows[2], [plane for plane in planes if plane[0] in timed])
    footer(fig, settings)
    what = (
        "Fig. 4. (a) Coverage of the space of collective variables against the time of all walkers together. (b), (c) "
        "Auto-correlation functions (Eq. 29) of positions and of atomic uncertainties, trajectories of all rounds and "
        "walkers end to end. (d) Largest atomic uncertainty of one walker, the first of each round: in the round in "
        "which it went farthest, and over the run; dashed: the threshold that stops a walker; circles and insets: "
        "where that walker crossed it. (e) What was explored in single rounds (colour) and before (grey), and in the "
        "whole run. (d), (e): first "
        f"seed of {', '.join(setting.name for setting in timed)}."
    )
    return Drawn(described(settings, what, missing), fig, missing=tuple(missing))


def _coverage_panel(ax: Axes, settings: Sequence[Setting], missing: list[str]) -> bool:
    curves = {}
    for setting in settings:
        found = []
        for source in setting.sources:
            curve = explored_against_steps(source.result.rounds, "coverage")
            if source.dt is None:
                missing.append(f"{setting.name}: its steps are not steps in time, so it has no coverage against time.")
            elif len(curve):
                found.append(curve * [1e-3 * source.dt, 1.0])
        if found:
            curves[setting.name] = mean_curve(found)
    if not any(len(curve) for curve in curves.values()):
        missing.append("No coverage against time: no run has an axis of time and a coverage.")
        return False
    draw_means(ax, curves, {s.name: s.look for s in settings}, log=False)
    ax.set(xlabel="Simulation time (ps)", ylabel="Coverage of CV space", ylim=(0, 1), xlim=(0, None))
    ax.xaxis.set_major_locator(MaxNLocator(5))
    style.style_axes(ax)
    return True


def _time_rows(part: SubFigure, settings: Sequence[Setting]) -> None:
    """Largest uncertainty of one walker: above in one round, below over the run."""
    axes: Any = part.subplots(2, len(settings), squeeze=False, sharey="col")
    for column, setting in enumerate(settings):
        source = setting.sources[0]
        scale = 1.0 if source.dt is None else 1e-3 * source.dt
        rounds = source.explored.rounds
        own = [_of_first_walker(frames) for frames in rounds]
        longest = int(np.argmax([step[-1] for step, _ in own]))
        threshold = source.threshold
        lines = {0: [(scale * own[longest][0], own[longest][1])], 1: []}
        start = 0.0
        for step, value in own:
            lines[1].append((start + scale * step, value))
            start += scale * step[-1]
        for row, pieces in lines.items():
            ax: Axes = axes[row, column]
            for time, value in pieces:
                ax.plot(time, value, "-o", color=setting.look.colour, lw=0.9, ms=1.6, zorder=3)
                if threshold is not None and value[-1] >= threshold:
                    ax.plot(time[-1], value[-1], "o", ms=4.5, mfc="none", mec=style.INK, mew=0.8, zorder=4)
            if threshold is not None:
                ax.axhline(threshold, color=style.GREY, ls="--", lw=0.9, zorder=1)
            where = f"round {rounds[longest].index}" if row == 0 else "all rounds"
            ax.set_xlabel(f"Time, {where} (ps)" if source.dt is not None else f"Steps, {where}")
            ax.set_xlim(0, None)
            ax.set_ylim(0, None)
            ax.xaxis.set_major_locator(MaxNLocator(4))
            style.style_axes(ax)
        axes[0, column].set_title(_broken(setting.name), fontsize=7.5, color=style.INK)
        _insets(axes[1, column], source)
    for row in (0, 1):
        axes[row, 0].set_ylabel("Max. uncertainty\n(eV/Å)")
    part.suptitle("(d)", x=0.01, ha="left", fontsize=9, color=style.INK)


def _of_first_walker(frames: RoundFrames) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    own = frames.walker == frames.walker[0]
    return frames.step[own], frames.uncertainty[own]


def _insets(ax: Axes, source: Source) -> None:
    """Up to three structures that crossed the threshold, above the data, where the axes are given room for them."""
    chosen = source.explored.crossed
    chosen = [chosen[round(k)] for k in np.linspace(0, len(chosen) - 1, min(3, len(chosen)))]
    if not chosen:
        return
    ax.set_ylim(0, 1.75 * ax.get_ylim()[1])
    for place, (numbers, positions) in enumerate(chosen):
        inset = ax.inset_axes((0.02 + 0.33 * place, 0.62, 0.3, 0.38))
        _draw_molecule(inset, numbers, positions)


def _draw_molecule(ax: Axes, numbers: NDArray[np.int64], positions: NDArray[np.float64]) -> None:
    """Balls and sticks in the plane of the two longest axes of inertia."""
    centred = positions - positions.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    x, y, depth = (centred @ directions.T).T
    radii = covalent_radii[numbers]
    distances = np.linalg.norm(centred[:, None] - centred[None], axis=-1)
    for i, j in zip(*np.nonzero(np.triu(distances < 1.25 * (radii[:, None] + radii[None]), 1)), strict=True):
        ax.plot(x[[i, j]], y[[i, j]], color=style.INK, lw=0.7, zorder=1)
    order = np.argsort(depth)
    colours = [_COLOURS.get(int(z), style.GREY) for z in numbers[order]]
    ax.scatter(x[order], y[order], s=22 * radii[order], c=colours, edgecolor=style.INK, lw=0.4, zorder=2)
    ax.set_aspect("equal")
    ax.margins(0.12)
    ax.axis("off")


_Plane = tuple[Setting, tuple[VariableAxis, VariableAxis], NDArray[np.float64]]


def _planes(settings: Sequence[Setting], missing: list[str]) -> list[_Plane]:
    """Of each setting the two axes of its plane and what its first run explored, [n, 2]."""
    out: list[_Plane] = []
    for setting in settings:
        source = setting.sources[0]
        try:
            explored = source.explored
            variables = source.variables()
        except InputError as error:
            missing.append(f"{setting.name}: {error}.")
            continue
        plane = plane_of(variables)
        if not plane:
            missing.append(
                f"{setting.name}: no plane of two collective variables that have a range (system.variables)."
            )
            continue
        x, y = (variable_axis(name, variables[name], source.states) for name in plane)
        out.append((setting, (x, y), np.stack([explored.together(name) for name in plane], axis=1)))
    return out


def _round_planes(part: SubFigure, planes: Sequence[_Plane]) -> None:
    """Three rounds and the whole run side by side, a row for each setting."""
    panels: Any = part.subplots(len(planes), 4, squeeze=False, sharex=True, sharey=True)
    for row, (setting, axes, points) in zip(panels, planes, strict=True):
        source = setting.sources[0]
        names = plane_of(source.variables())
        rounds = source.explored.rounds
        chosen = sorted({round(k) for k in np.linspace(0, len(rounds) - 1, 3)})
        for ax, place in zip(row, chosen, strict=False):
            found = [np.stack([f.values[name] for name in names], axis=1) for f in rounds[: place + 1]]
            if place:
                draw_plane(ax, axes, np.concatenate(found[:-1]), colour="#D0D0D0", size=3.0)
            draw_plane(ax, axes, found[-1], colour=setting.look.colour, size=3.0)
            style.note(ax, f"round {rounds[place].index}")
        draw_plane(row[-1], axes, points, colour=setting.look.colour, size=3.0)
        style.note(row[-1], "all rounds")
        for ax in row[len(chosen) : -1]:
            ax.set_visible(False)
        row[0].set_ylabel(f"{_broken(setting.name)}\n{axes[1].label}", fontsize=8)
    _tidy(panels)
    part.suptitle("(e)", x=0.01, ha="left", fontsize=9, color=style.INK)


def _tidy(panels: Any) -> None:
    """Labels at the left and at the bottom alone, and few of them where angles have many."""
    for number, ax in np.ndenumerate(panels):
        if number[1]:
            ax.set_ylabel("")
        if number[0] < len(panels) - 1:
            ax.set_xlabel("")
        for axis in (ax.xaxis, ax.yaxis):
            if list(axis.get_majorticklocs()) == [-180, -90, 0, 90, 180]:
                axis.set_major_formatter(
                    FuncFormatter(lambda v, _: "" if abs(v) == 90 else f"{v:.0f}".replace("-", "\u2212"))
                )


def _extremes(settings: Sequence[Setting]) -> list[Setting]:
    """The coldest and the hottest unbiased setting, and the last biased one, as far as there are any."""
    unbiased = [s for s in settings if s.name.startswith("unbiased")]
    biased = [s for s in settings if s.name.startswith("biased")]
    return list(dict.fromkeys([*unbiased[:1], *unbiased[-1:], *biased[-1:]])) or list(settings[:3])


def _broken(name: str) -> str:
    """A name in two lines."""
    return name.replace(" (", "\n(", 1)
