"""Errors of a run's potentials on its test structures against their volumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

from ubmd.analysis.evaluation import Evaluation, evaluate_structures
from ubmd.analysis.figures import save_figure
from ubmd.analysis.report import labelled_volumes
from ubmd.analysis.volume_figures import error_by_volume
from ubmd.uncertainty.checkpoint import load_potential
from ubmd.units import MPA

if TYPE_CHECKING:
    from ubmd.runs.store import RoundStore
    from ubmd.systems.system import System

__all__ = ["draw_errors_by_volume", "squared_errors"]


def squared_errors(found: Evaluation) -> dict[str, NDArray[np.float64]]:
    """Mean squared errors of each structure, [n], by the label of their root with its unit."""
    energy = 1e3 * (found.energy[0] - found.energy[1]) / found.n_atoms
    forces = np.square(found.forces[0] - found.forces[1])
    out = {
        "Energy RMSE (meV/atom)": np.square(energy),
        "Force RMSE (eV/Å)": np.array([part.mean() for part in found.per_structure(forces)]),
    }
    if found.stress is not None:
        out["Stress RMSE (MPa)"] = np.square((found.stress[0] - found.stress[1]) / MPA).mean(axis=(1, 2))
    return out


def draw_errors_by_volume(
    store: RoundStore,
    rounds: Sequence[int],
    structures: Sequence[Atoms],
    system: System,
    *,
    batch_size: int,
    device: torch.device,
) -> None:
    """Draws ``error_by_volume.png``, the errors of rounds' potentials against the volume, unless it is there.

    Args:
        store: the run.
        rounds: finished rounds.
        structures: the test set; nothing is drawn without any.
        system: the crystal that the run studied.
        batch_size: structures evaluated at once.
        device: to evaluate on.
    """
    file = store.figures / "error_by_volume.png"
    if not structures or file.exists():
        return
    errors = {}
    for index in rounds:
        trained = load_potential(store.folder(index).model, device=device)
        found = evaluate_structures(trained.model, trained.uncertainty, structures, batch_size=batch_size)
        errors[f"round {index}"] = squared_errors(found)
    save_figure(error_by_volume(labelled_volumes(structures, system), errors, system.phases), file)
