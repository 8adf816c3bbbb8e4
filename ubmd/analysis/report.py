"""What a run says about itself: analysis of each round, and tables and figures at its end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console

from ubmd.analysis.axes import variable_axis
from ubmd.analysis.comparison import is_tested
from ubmd.analysis.correlations import position_series, uncertainty_series
from ubmd.analysis.curves import learning_curves
from ubmd.analysis.explored import Values, drawn_alone, explored_metrics, frame_values, plane_of
from ubmd.analysis.figures import explored_plane, save_figure
from ubmd.analysis.tables import rounds_table, stage_times_table, systems_table
from ubmd.analysis.variable_figures import cell_histograms, variable_histogram, variable_series
from ubmd.dynamics.trajectory import read_trajectories
from ubmd.observables.autocorrelation import act
from ubmd.observables.base import CollectiveVariable, values_of
from ubmd.observables.columns import RangeColumns
from ubmd.observables.states import States

if TYPE_CHECKING:
    from ase import Atoms

    from ubmd.dynamics.exploration import Exploration
    from ubmd.dynamics.explore import Explorer
    from ubmd.runs.store import RoundStore
    from ubmd.systems.several import Systems

__all__ = ["CELLS", "UNTESTED", "explorations", "explored_figures", "report_run", "round_analysis", "shown_rows"]

Row = Mapping[str, float | int | None]

CELLS = "cell_parameters"
"""The figure that is of no variable."""
UNTESTED = "without data.test, the errors below are those of the validation structures"


def explorations(store: RoundStore, last: int) -> list[tuple[int, dict[str, Exploration]]]:
    """(round, exploration of each system) of every round up to ``last`` that explored."""
    folders = [store.round(index) for index in range(last + 1)]
    return [(f.index, read_trajectories(f.trajectory)) for f in folders if f.trajectory.exists()]


def round_analysis(
    store: RoundStore,
    index: int,
    structures: Sequence[Atoms],
    systems: Systems,
    explorers: Mapping[str, Explorer],
) -> dict[str, float]:
    """What was explored of the systems' variables up to a round, and auto-correlation times.

    Args:
        store: the run.
        index: the round.
        structures: all labelled structures; they count as explored.
        systems: with their variables and states.
        explorers: how each is explored; where steps are not steps in time there are no auto-correlation times.

    Returns:
        What :func:`~ubmd.analysis.explored.explored_metrics` tells, ``act_position_ps`` and ``act_uncertainty_ps`` as
        far as they are defined. Where systems have names these are in the columns: before those of variables, behind
        others.
    """
    found = [by_system for _, by_system in explorations(store, index)]
    out: dict[str, float] = {}
    for name, explorer in explorers.items():
        explored = [by_system[name] for by_system in found]
        variables, states = systems.followed(name)
        told = explored_metrics(variables, states, explored, systems.own(name, structures))
        told |= _correlation_times(explored, explorer.frame_interval, explorer.time_step)
        own = {column for key, v in variables.items() for column in _range_of(key, v)}
        out |= {key if key in own or not name else f"{key}_{name}": value for key, value in told.items()}
    return out


def _range_of(name: str, variable: CollectiveVariable) -> tuple[str, str]:
    columns = RangeColumns(name, variable.unit)
    return columns.low, columns.high


def _correlation_times(explored: Sequence[Exploration], frame_interval: int, dt: float | None) -> dict[str, float]:
    """Auto-correlation times, ps, as far as they are defined; none without a time step (fs)."""
    out: dict[str, float] = {}
    if dt is None:
        return out
    for name, series in (
        ("act_position_ps", position_series(explored, frame_interval)),
        ("act_uncertainty_ps", uncertainty_series(explored, frame_interval)),
    ):
        value = act(series, 1e-3 * dt * frame_interval) if series else math.nan
        if math.isfinite(value):
            out[name] = value
    return out


def shown_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows for :func:`~ubmd.analysis.tables.rounds_table`; without a test set the errors are those of validation."""
    if is_tested(rows):
        return list(rows)
    errors = ("energy_rmse_mev_per_atom", "force_rmse_ev_per_ang")
    return [{**row, **{name: row.get(f"valid_{name}") for name in errors}} for row in rows]


def report_run(store: RoundStore, systems: Systems, explorers: Mapping[str, Explorer], console: Console) -> None:
    """Prints the tables of a run and draws its figures into ``figures/``.

    Args:
        store: the run.
        systems: what it studied.
        explorers: how each is explored.
        console: to print on.
    """
    rows = [record["metrics"] for record in store.records()]
    if not rows:
        return
    if not is_tested(rows):
        console.print(UNTESTED)
    console.print(rounds_table(shown_rows(rows)))
    console.print(stage_times_table(rows))
    if systems.named:
        console.print(systems_table(rows[-1], list(systems.parts)))
    save_figure(learning_curves(rows), store.figures / "learning_curves.png")
    found, structures = explorations(store, len(rows) - 1), store.structures(len(rows))
    for system, explorer in explorers.items():
        explored = [(index, by_system[system]) for index, by_system in found]
        own, prefix = systems.own(system, structures), f"{system}_" if system else ""
        for name, figure in explored_figures(*systems.followed(system), explored, own, explorer.time_step):
            save_figure(figure, store.figures / f"{prefix if name == CELLS else ''}{name}.png")
    console.print(f"run folder: {store.path}", soft_wrap=True, highlight=False)
    console.print(f"potential:  {store.folder(len(rows) - 1).model}", soft_wrap=True, highlight=False)


def explored_figures(
    variables: Mapping[str, CollectiveVariable],
    states: States,
    explored: Sequence[tuple[int, Exploration]],
    structures: Sequence[Atoms],
    dt: float | None,
) -> Iterator[tuple[str, Figure]]:
    """Figures of what a run explored, by the name of their file.

    They are the plane of the first two variables that span the coverage; of each other one how often, and when; and of
    a crystal the lengths and angles of the cell.

    Args:
        variables: of the system.
        states: of the system.
        explored: round and exploration; without any there is nothing to draw.
        structures: all labelled ones.
        dt: time step, fs; None if steps are not steps in time.
    """
    if not explored:
        return
    frames = [frame_values(variables, e) for _, e in explored]
    labelled = values_of(variables, structures)
    rounds = np.concatenate([np.full(e.n_frames, index) for index, e in explored])

    def joined(name: str) -> NDArray[np.float64]:
        return np.concatenate([f[name] for f in frames])

    if plane := plane_of(variables):
        x, y = (variable_axis(name, variables[name]) for name in plane)
        points, chosen = (np.stack([of(name) for name in plane], axis=1) for of in (joined, labelled.__getitem__))
        yield "_".join(plane), explored_plane((x, y), points, rounds=rounds, labelled=chosen)
    for name in drawn_alone(variables):
        axis = variable_axis(name, variables[name], states)
        yield name, variable_histogram(axis, joined(name), labelled[name])
        if len(rounds):
            times, series, of_round = _walkers_in_time(name, explored, frames, dt)
            yield f"{name}_series", variable_series(axis, times, series, of_round, in_time=dt is not None)
    if explored[0][1].pbc.all():
        yield CELLS, _drawn_cells(explored, structures)


def _walkers_in_time(
    name: str, explored: Sequence[tuple[int, Exploration]], frames: Sequence[Values], dt: float | None
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]], list[int]]:
    """Times (ps; steps without ``dt``) and values of each walker of each round, and the rounds."""
    scale = 1.0 if dt is None else 1e-3 * dt
    times, series, rounds = [], [], []
    for (index, e), values in zip(explored, frames, strict=True):
        for walker in np.unique(e.walker):
            own = e.walker == walker
            times.append(scale * e.step[own])
            series.append(values[name][own])
            rounds.append(index)
    return times, series, rounds


def _drawn_cells(explored: Sequence[tuple[int, Exploration]], structures: Sequence[Atoms]) -> Figure:
    """How often each length and angle of the cell was met."""
    cells = np.concatenate([e.cell for _, e in explored])
    chosen = np.array([np.asarray(a.cell) for a in structures if len(a) == len(explored[0][1].numbers)])
    return cell_histograms(cells, chosen)
