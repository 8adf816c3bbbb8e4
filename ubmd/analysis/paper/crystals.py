"""Figs. 5 to 7: volumes of a flexible crystal, errors along them, and how walkers forget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ubmd.analysis import style
from ubmd.analysis.axes import VariableAxis, variable_axis
from ubmd.analysis.correlations import fit_sine, sine_correlation
from ubmd.analysis.curves import draw_means, legend_of_settings, mean_curve
from ubmd.analysis.figures import log_ticks
from ubmd.analysis.held_out import SQUARED
from ubmd.analysis.looks import Look
from ubmd.analysis.numbers import read_numbers
from ubmd.analysis.paper.drawn import Drawn, NotDrawnError, described, footer
from ubmd.analysis.paper.panels import correlation_panel, keep_panels, learning_row, rows_of
from ubmd.analysis.paper.source import Setting, Source
from ubmd.analysis.variable_figures import binned_rmse
from ubmd.errors import InputError
from ubmd.observables import Volume

__all__ = ["draw_fig5", "draw_fig6", "draw_fig7"]

Array = NDArray[np.float64]

_ERRORS = ("energy_rmse_mev_per_atom", "force_rmse_ev_per_ang", "stress_rmse_mpa")
_BINS = 8
_HISTOGRAM_BINS = 30


def draw_fig5(temperatures: Mapping[float | None, Sequence[Setting]]) -> Drawn:
    """Errors against structures, and for each temperature the volumes explored and the errors along them (Fig. 5).

    Args:
        temperatures: settings by their temperature (K), the highest first.

    Raises:
        NotDrawnError: nothing of it can be drawn.
    """
    missing: list[str] = []
    heights = [2.6] + [2.5 if row == 0 else 2.2 for row in range(len(temperatures))]
    fig = Figure(figsize=(8.6, sum(heights)), layout="constrained", facecolor="white")
    first, *others = rows_of(fig, heights)
    main = next(iter(temperatures.values()))
    shown = learning_row(first, _ERRORS, main, missing)
    for part, letter, (temperature, settings) in zip(others, "defghij", temperatures.items(), strict=False):
        axes = part.subplots(1, 4)
        drawn = [_volume_panel(axes[0], settings, missing), *_error_panels(axes[1:], settings, missing)]
        keep_panels(part, axes, drawn, lettered=False, legend=settings is not main)
        if temperature is not None and any(drawn):
            part.supylabel(f"({letter}) {temperature:g} K", fontsize=9, color=style.INK)
        shown = shown or any(drawn)
    if not shown:
        raise NotDrawnError(" ".join(missing))
    everything = [setting for settings in temperatures.values() for setting in settings]
    footer(fig, everything)
    what = (
        "Fig. 5. Top: errors on the test set against labelled structures, at the highest temperature. Below, for each "
        "temperature: how often the walkers of all rounds had a volume, and the errors of the last round's potential "
        "on the test structures of equal ranges of volume. States of the system are shaded."
    )
    return Drawn(described(everything, what, missing), fig, missing=tuple(missing))


def draw_fig6(settings: Sequence[Setting]) -> Drawn:
    """Volumes, auto-correlation functions, and how volumes and errors evolve over rounds (Fig. 6).

    Args:
        settings: of one temperature.

    Raises:
        NotDrawnError: nothing of it can be drawn.
    """
    missing: list[str] = []
    heights = [2.6, *(2.0 for _ in settings)]
    fig = Figure(figsize=(8.6, sum(heights)), layout="constrained", facecolor="white")
    first, *others = rows_of(fig, heights)
    axes = first.subplots(1, 3)
    shown = [
        _volume_panel(axes[0], settings, missing),
        correlation_panel(axes[1], "position", settings, missing),
        correlation_panel(axes[2], "uncertainty", settings, missing),
    ]
    keep_panels(first, axes, shown)
    for part, setting in zip(others, settings, strict=True):
        shown.append(_evolution_row(part, setting, missing))
    if not any(shown):
        raise NotDrawnError(" ".join(missing))
    footer(fig, settings)
    what = (
        "Fig. 6. (a) How often the walkers of all rounds had a volume. (b), (c) Auto-correlation functions (Eq. 29) of "
        "positions and of atomic uncertainties. Below, for the first seed of each setting: volumes of the walkers up "
        "to a round, and errors of that round's potential on the test structures by volume; colours tell the round."
    )
    return Drawn(described(settings, what, missing), fig, missing=tuple(missing))


def draw_fig7(settings: Sequence[Setting]) -> Drawn:
    """Auto-correlation functions of positions with a sine wave and noise fitted to the biased ones (Fig. 7).

    Args:
        settings: of one temperature.

    Raises:
        NotDrawnError: no run has an auto-correlation function.
    """
    missing: list[str] = []
    fig, (ax,) = style.new_figure(4.8, 3.4)
    curves, fits = {}, []
    for setting in settings:
        found = [c for c in (_position_curve(source, setting, missing) for source in setting.sources) if c is not None]
        if not found:
            continue
        curves[setting.name] = mean_curve([curve[: int(0.9 * len(curve))] for curve in found])
        if setting.name.startswith("biased"):
            fits.append((setting, found))
    if not curves:
        raise NotDrawnError(" ".join(missing))
    draw_means(ax, curves, {s.name: s.look for s in settings}, log=False, marked=False)
    told = [_draw_model(ax, setting, found) for setting, found in fits]
    if not fits:
        missing.append("No sine wave is fitted: none of the runs is biased.")
    ax.axhline(0.0, color=style.GREY, lw=0.6, zorder=1)
    ax.set(xlabel="Lag time (ps)", ylabel="ACF of positions", xlim=(0, None), ylim=(-1.05, 1.05))
    legend_of_settings(fig, ax, columns=1)
    footer(fig, settings)
    what = (
        "Fig. 7. Auto-correlation functions (Eq. 29) of positions, and that of A sin(2πt/T₀) + B N(t) with the period "
        "T₀ twice the length of the simulation, whose noise B/A is fitted by least squares to the biased one. "
        + " ".join(told)
    )
    return Drawn(described(settings, what, missing), fig, missing=tuple(missing))


def _position_curve(source: Source, setting: Setting, missing: list[str]) -> Array | None:
    try:
        curve = source.explored.correlations.get("position")
    except InputError as error:
        missing.append(f"{setting.name}: {error}.")
        return None
    if curve is None or len(curve) < 8:
        missing.append(f"{setting.name}, seed {source.result.seed}: too few frames for an auto-correlation function.")
        return None
    return curve


def _draw_model(ax: Axes, setting: Setting, curves: Sequence[Array]) -> str:
    """The model of the first run; returns what was fitted, in words."""
    curve = curves[0]
    model = fit_sine(curve[:, 1])
    sine = sine_correlation(len(curve))
    variance = float(np.var(np.sin(np.pi * np.arange(len(curve)) / len(curve))))
    share = variance / (variance + model.noise**2)
    shown = slice(1, int(0.9 * len(curve)))
    ax.plot(
        curve[shown, 0],
        share * sine[shown],
        "--",
        color=style.INK,
        lw=1.2,
        zorder=4,
        label=f"sine, B/A = {model.noise:.2g}",
    )
    period = 2 * curve[-1, 0]
    return (
        f"{setting.name}: B/A = {model.noise:.3g}, T₀ = {period:.3g} ps, root mean squared difference "
        f"{model.residual:.2f} (first seed)."
    )


def _axis(source: Source) -> VariableAxis:
    return variable_axis("volume", Volume(), source.states)


def _volume_panel(ax: Axes, settings: Sequence[Setting], missing: list[str]) -> bool:
    """Share of frames in equal ranges of volume, mean and deviation over seeds."""
    volumes: dict[str, list[Array]] = {}
    for setting in settings:
        for source in setting.sources:
            try:
                volumes.setdefault(setting.name, []).append(source.explored.together("volume"))
            except (InputError, KeyError) as error:
                missing.append(f"{setting.name}: no volumes ({error}).")
    if not volumes:
        return False
    everything = np.concatenate([v for found in volumes.values() for v in found])
    edges = np.linspace(everything.min() - 1, everything.max() + 1, _HISTOGRAM_BINS + 1)
    looks = {s.name: s.look for s in settings}
    for name, found in volumes.items():
        shares = np.array([np.histogram(v, edges)[0] / len(v) for v in found])
        mean, look = shares.mean(axis=0), looks[name]
        ax.stairs(mean, edges, color=look.colour, ls=look.line, lw=1.3, label=name, zorder=3)
        if len(found) > 1:
            deviation = shares.std(axis=0, ddof=1)
            low, high = np.maximum(mean - deviation, 0), mean + deviation
            ax.stairs(high, edges, baseline=low, color=look.colour, fill=True, alpha=0.2, lw=0, zorder=2)
    _dress(ax, _axis(settings[0].sources[0]), (edges[0], edges[-1]))
    ax.set_ylabel("Share of frames")
    ax.set_ylim(0, 1.15 * ax.get_ylim()[1])
    _axis(settings[0].sources[0]).shade(ax, vertical=True)
    return True


def _error_panels(axes: Sequence[Axes], settings: Sequence[Setting], missing: list[str]) -> list[bool]:
    """Errors of the last round's potential by volume; whether each kind of error is there."""
    found: dict[str, list[dict[str, Array]]] = {}
    for setting in settings:
        for source in setting.sources:
            table = _errors(source, setting, missing)
            if table is not None:
                last = table["round"] == table["round"].max()
                found.setdefault(setting.name, []).append({name: column[last] for name, column in table.items()})
    if not found:
        return [False] * len(axes)
    everything = np.concatenate([table["volume"] for tables in found.values() for table in tables])
    edges = np.linspace(everything.min() - 1, everything.max() + 1, _BINS + 1)
    looks = {s.name: s.look for s in settings}
    return [
        _error_panel(
            ax, label, {k: [t for t in v if column in t] for k, v in found.items()}, column, edges, looks, settings
        )
        for ax, (label, column) in zip(axes, SQUARED.items(), strict=True)
    ]


def _error_panel(
    ax: Axes,
    label: str,
    found: Mapping[str, Sequence[Mapping[str, Array]]],
    column: str,
    edges: Array,
    looks: Mapping[str, Look],
    settings: Sequence[Setting],
) -> bool:
    middles = (edges[1:] + edges[:-1]) / 2
    curves = {}
    for name, tables in found.items():
        runs = [binned_rmse(table["volume"], table[column], edges)[0] for table in tables]
        kept = [np.stack([middles, rmse], axis=1)[np.isfinite(rmse) & (rmse > 0)] for rmse in runs]
        if any(len(curve) for curve in kept):
            curves[name] = mean_curve(kept)
    if not curves:
        return False
    heights = draw_means(ax, curves, looks, log=True)
    ax.set_yscale("log")
    ax.set_ylim(heights.min() / 1.3, heights.max() * 1.3)
    log_ticks(ax.yaxis, heights.max() / heights.min())
    ax.set_ylabel(label.replace(" (", "\n("))
    axis = _axis(settings[0].sources[0])
    _dress(ax, axis, (edges[0], edges[-1]))
    axis.shade(ax, vertical=True, named=False)
    return True


def _evolution_row(part: Any, setting: Setting, missing: list[str]) -> bool:
    """Volumes and errors of a run, round by round."""
    source = setting.sources[0]
    table = _errors(source, setting, missing)
    axes = part.subplots(1, 4)
    try:
        rounds = source.explored.rounds
    except InputError:
        rounds = ()  # said already
    last = max([frames.index for frames in rounds] + ([] if table is None else [int(table["round"].max())]), default=0)
    colours, norm = style.round_colours(last)
    axis = _axis(source)
    shown = [False] * 4
    if rounds:
        everything = source.explored.together("volume")
        edges = np.linspace(everything.min() - 1, everything.max() + 1, _HISTOGRAM_BINS + 1)
        for place in sorted({round(k) for k in np.linspace(0, len(rounds) - 1, 4)}):
            volumes = np.concatenate([frames.values["volume"] for frames in rounds[: place + 1]])
            share = np.histogram(volumes, edges)[0] / len(volumes)
            axes[0].stairs(share, edges, color=colours(norm(rounds[place].index)), lw=1.2)
        _dress(axes[0], axis, (edges[0], edges[-1]))
        axes[0].set_ylabel("Share of frames")
        axis.shade(axes[0], vertical=True, named=False)
        shown[0] = True
    if table is not None:
        edges = np.linspace(table["volume"].min() - 1, table["volume"].max() + 1, _BINS + 1)
        for place, (label, column) in enumerate(SQUARED.items(), start=1):
            if column in table:
                _rounds_by_volume(axes[place], table, column, edges, colours, norm)
                axes[place].set_ylabel(label.replace(" (", "\n("))
                _dress(axes[place], axis, (edges[0], edges[-1]))
                axis.shade(axes[place], vertical=True, named=False)
                shown[place] = True
    keep_panels(part, axes, shown, lettered=False, legend=False)
    if any(shown):
        part.suptitle(setting.name, fontsize=8, color=style.INK)
        kept = [ax for ax, there in zip(axes, shown, strict=True) if there]
        style.round_bar(part, kept[-1], colours, norm, last)
    return any(shown)


def _rounds_by_volume(ax: Axes, table: Mapping[str, Array], column: str, edges: Array, colours: Any, norm: Any) -> None:
    middles, heights = (edges[1:] + edges[:-1]) / 2, []
    for index in np.unique(table["round"]):
        own = table["round"] == index
        rmse, counts = binned_rmse(table["volume"][own], table[column][own], edges)
        known = (counts > 0) & (rmse > 0)
        ax.plot(middles[known], rmse[known], "-o", color=colours(norm(index)), lw=1.2, ms=2.5)
        heights.append(rmse[known])
    joined = np.concatenate(heights)
    ax.set_yscale("log")
    ax.set_ylim(joined.min() / 1.3, joined.max() * 1.3)
    log_ticks(ax.yaxis, joined.max() / joined.min())


def _errors(source: Source, setting: Setting, missing: list[str]) -> dict[str, Array] | None:
    """``error_by_volume.csv`` of a run; a sentence where there is none."""
    file = source.folder / "figures" / "error_by_volume.csv"
    if not file.is_file():
        missing.append(
            f"{setting.name}, seed {source.result.seed}: no errors by volume, {file} is not there (a run with a test "
            "set, data.test, writes it at its end, and when its command is started again)."
        )
        return None
    try:
        return read_numbers(file, ("round", "volume"))
    except InputError as error:
        missing.append(f"{setting.name}: {error}.")
        return None


def _dress(ax: Axes, axis: VariableAxis, limits: tuple[float, float]) -> None:
    axis.tick(ax.xaxis)
    ax.set_xlabel("Volume (Å³)")
    ax.set_xlim(*limits)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    style.style_axes(ax)
