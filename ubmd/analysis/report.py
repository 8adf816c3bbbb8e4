"""What a run says about itself: analysis of each round, and tables and figures at its end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ubmd.analysis.autocorrelation import act
from ubmd.analysis.coverage import coverage
from ubmd.analysis.curves import learning_curves
from ubmd.analysis.figures import ramachandran, save_figure
from ubmd.analysis.tables import rounds_table, stage_times_table
from ubmd.analysis.torsions import torsion_angles
from ubmd.dynamics.trajectory import read_trajectory

if TYPE_CHECKING:
    from ase import Atoms

    from ubmd.dynamics.exploration import Exploration
    from ubmd.rounds import RoundStore

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
    torsions: NDArray[np.int64],
    *,
    frame_interval: int,
    dt: float | None,
) -> dict[str, float]:
    """Coverage of the torsions and auto-correlation times of everything explored up to a round.

    Args:
        store: the run.
        index: the round.
        structures: all labelled structures; they count as explored.
        torsions: [m, 4] atom indices; without any there is no coverage.
        frame_interval: steps between regular frames.
        dt: time step, fs; None if steps are not steps in time, which then have no auto-correlation times.

    Returns:
        ``coverage``, ``act_position_ps`` and ``act_uncertainty_ps`` as far as they are defined.
    """
    explored = [exploration for _, exploration in explorations(store, index)]
    out: dict[str, float] = {}
    if len(torsions):
        positions = [e.positions for e in explored] + [a.positions[None] for a in structures]
        out["coverage"] = torsion_coverage(torsion_angles(np.concatenate(positions), torsions))
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


def report_run(store: RoundStore, torsions: Mapping[str, Sequence[int]], console: Console) -> None:
    """Prints the tables of a run and draws its figures into ``figures/``."""
    rows = [record["metrics"] for record in store.records()]
    if not rows:
        return
    if not any("force_rmse_ev_per_ang" in row for row in rows):
        console.print("without data.test, the errors below are those of the validation structures")
        errors = ("energy_rmse_mev_per_atom", "force_rmse_ev_per_ang")
        rows = [row | {name: row[f"valid_{name}"] for name in errors} for row in rows]
    console.print(rounds_table(rows))
    console.print(stage_times_table(rows))
    save_figure(learning_curves(rows), store.figures / "learning_curves.png")
    if len(torsions) >= 2:
        indices = np.array([list(t) for t in torsions.values()][:2], dtype=np.int64)
        explored = explorations(store, len(rows) - 1)
        angles = [torsion_angles(e.positions, indices) for _, e in explored]
        rounds = [np.full(len(a), index) for (index, _), a in zip(explored, angles, strict=True)]
        labelled = torsion_angles(np.array([a.positions for a in store.structures(len(rows))]), indices)
        if angles:
            joined = np.concatenate(angles)
            figure = ramachandran(joined[:, 0], joined[:, 1], rounds=np.concatenate(rounds), labelled=labelled)
            save_figure(figure, store.figures / "ramachandran.png")
    console.print(f"run folder: {store.path}", soft_wrap=True, highlight=False)
    console.print(f"potential:  {store.folder(len(rows) - 1).model}", soft_wrap=True, highlight=False)
