"""What a run says about itself: analysis of each round, and tables and figures at its end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ubmd.analysis.comparison import is_tested
from ubmd.analysis.curves import learning_curves
from ubmd.analysis.figures import ramachandran, save_figure
from ubmd.analysis.tables import rounds_table, stage_times_table
from ubmd.analysis.torsions import torsion_angles
from ubmd.analysis.volume_figures import cell_histograms, volume_histogram, volume_series
from ubmd.analysis.volumes import cell_volumes, walker_transitions
from ubmd.dynamics.trajectory import read_trajectory
from ubmd.observables.autocorrelation import act
from ubmd.observables.coverage import coverage

if TYPE_CHECKING:
    from ase import Atoms

    from ubmd.dynamics.exploration import Exploration
    from ubmd.runs.store import RoundStore
    from ubmd.systems.system import System

__all__ = ["explorations", "report_run", "round_analysis", "torsion_coverage"]


def explorations(store: RoundStore, last: int) -> list[tuple[int, Exploration]]:
    """(round, exploration) of every round up to ``last`` that explored."""
    folders = [store.folder(index) for index in range(last + 1)]
    return [(f.index, read_trajectory(f.trajectory)) for f in folders if f.trajectory.exists()]


def torsion_coverage(angles: NDArray[np.float64]) -> float:
    """Coverage of the space of torsion angles [n, d] (rad) by the tree of the paper (n = 2, L = 5)."""
    bound = np.full(angles.shape[1], np.pi)
    return coverage(angles, -bound, bound, periodic=True)


def round_analysis(
    store: RoundStore,
    index: int,
    structures: Sequence[Atoms],
    system: System,
    *,
    frame_interval: int,
    dt: float | None,
) -> dict[str, float]:
    """Coverage of torsions and volumes, and auto-correlation times, of everything explored up to a round.

    Args:
        store: the run.
        index: the round.
        structures: all labelled structures; they count as explored.
        system: its torsions and phases; without any there is no coverage, or there are no transitions.
        frame_interval: steps between regular frames.
        dt: time step, fs; None if steps are not steps in time, which then have no auto-correlation times.

    Returns:
        ``coverage``, ``volume_min_ang3``, ``volume_max_ang3``, ``phase_transitions`` (of all walkers so far),
        ``act_position_ps`` and ``act_uncertainty_ps`` as far as they are defined.
    """
    explored = [exploration for _, exploration in explorations(store, index)]
    out: dict[str, float] = {}
    if len(system.torsions):
        positions = [e.positions for e in explored] + [a.positions[None] for a in structures]
        out["coverage"] = torsion_coverage(torsion_angles(np.concatenate(positions), system.torsion_indices))
    if system.periodic:
        volumes = np.concatenate(
            [*(explored_volumes(e, system) for e in explored), labelled_volumes(structures, system)]
        )
        out |= {"volume_min_ang3": float(volumes.min()), "volume_max_ang3": float(volumes.max())}
    if system.phases:
        changes = (walker_transitions(e, system.phases, scale=system.volume_scale(len(e.numbers))) for e in explored)
        out["phase_transitions"] = sum(changes)
    if dt is None:
        return out
    for name, series in (
        ("act_position_ps", [_centred(p) for p in _regular(explored, "positions", frame_interval)]),
        ("act_uncertainty_ps", list(_regular(explored, "atomic_uncertainty", frame_interval))),
    ):
        value = act(series, 1e-3 * dt * frame_interval) if series else math.nan
        if math.isfinite(value):
            out[name] = value
    return out


def _regular(explored: Iterable[Exploration], field: str, interval: int) -> Iterable[NDArray[np.float64]]:
    """Per walker the values at regular intervals; the frame at a crossing falls between them."""
    for exploration in explored:
        for walker in np.unique(exploration.walker):
            frames = (exploration.walker == walker) & (exploration.step % interval == 0)
            if frames.any():
                yield getattr(exploration, field)[frames]


def _centred(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions [f, n, 3] relative to their centroid, so that a molecule's drift does not count."""
    return positions - positions.mean(axis=1, keepdims=True)


def explored_volumes(exploration: Exploration, system: System) -> NDArray[np.float64]:
    """Volumes of the frames, [f] Å³, as the system's phases count them."""
    return system.volume_scale(len(exploration.numbers)) * cell_volumes(exploration.cell)


def labelled_volumes(structures: Sequence[Atoms], system: System) -> NDArray[np.float64]:
    """Volumes of structures, [n] Å³, as the system's phases count them."""
    scale = np.array([system.volume_scale(len(atoms)) for atoms in structures])
    return scale * cell_volumes([atoms.cell for atoms in structures])


def report_run(store: RoundStore, system: System, console: Console, *, dt: float | None) -> None:
    """Prints the tables of a run and draws its figures into ``figures/``.

    Args:
        store: the run.
        system: what it studied.
        console: to print on.
        dt: time step, fs; None if steps are not steps in time.
    """
    rows = [record["metrics"] for record in store.records()]
    if not rows:
        return
    shown = rows
    if not is_tested(rows):
        console.print("without data.test, the errors below are those of the validation structures")
        errors = ("energy_rmse_mev_per_atom", "force_rmse_ev_per_ang")
        shown = [row | {name: row.get(f"valid_{name}") for name in errors} for row in rows]
    console.print(rounds_table(shown))
    console.print(stage_times_table(rows))
    save_figure(learning_curves(rows), store.figures / "learning_curves.png")
    explored, structures = explorations(store, len(rows) - 1), store.structures(len(rows))
    if explored and len(system.torsions) >= 2:
        _draw_torsions(store, system, explored, structures)
    if explored and system.periodic:
        _draw_cells(store, system, explored, structures, dt)
    console.print(f"run folder: {store.path}", soft_wrap=True, highlight=False)
    console.print(f"potential:  {store.folder(len(rows) - 1).model}", soft_wrap=True, highlight=False)


def _draw_torsions(
    store: RoundStore, system: System, explored: Sequence[tuple[int, Exploration]], structures: Sequence[Atoms]
) -> None:
    """The plane of the first two torsions."""
    indices = system.torsion_indices[:2]
    angles = [torsion_angles(e.positions, indices) for _, e in explored]
    rounds = [np.full(len(a), index) for (index, _), a in zip(explored, angles, strict=True)]
    labelled = torsion_angles(np.array([a.positions for a in structures]), indices)
    joined = np.concatenate(angles)
    figure = ramachandran(joined[:, 0], joined[:, 1], rounds=np.concatenate(rounds), labelled=labelled)
    save_figure(figure, store.figures / "ramachandran.png")


def _draw_cells(
    store: RoundStore,
    system: System,
    explored: Sequence[tuple[int, Exploration]],
    structures: Sequence[Atoms],
    dt: float | None,
) -> None:
    """Volumes and cell parameters, how often and when."""
    volumes = [explored_volumes(e, system) for _, e in explored]
    labelled = labelled_volumes(structures, system)
    save_figure(volume_histogram(np.concatenate(volumes), labelled, system.phases), store.figures / "volumes.png")
    cells = np.concatenate([e.cell for _, e in explored])
    chosen = np.array([np.asarray(a.cell) for a in structures if len(a) == len(explored[0][1].numbers)])
    save_figure(cell_histograms(cells, chosen), store.figures / "cell_parameters.png")
    if not sum(map(len, volumes)):
        return
    walkers = [
        (index, e.step[e.walker == walker], v[e.walker == walker])
        for (index, e), v in zip(explored, volumes, strict=True)
        for walker in np.unique(e.walker)
    ]
    scale = 1.0 if dt is None else 1e-3 * dt
    times, series = [scale * steps for _, steps, _ in walkers], [v for _, _, v in walkers]
    rounds = [index for index, _, _ in walkers]
    figure = volume_series(times, series, rounds, system.phases, in_time=dt is not None)
    save_figure(figure, store.figures / "volume_series.png")
