"""Errors of a run's potentials on its test structures against what these are: their collective variables."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

from ubmd.analysis.axes import variable_axis
from ubmd.analysis.evaluation import Evaluation, evaluate_structures
from ubmd.analysis.explored import drawn_alone
from ubmd.analysis.figures import save_figure
from ubmd.analysis.variable_figures import error_by_variable
from ubmd.errors import InputError
from ubmd.observables.base import values_of
from ubmd.uncertainty.checkpoint import load_potential
from ubmd.units import MPA

if TYPE_CHECKING:
    from ubmd.runs.store import RoundStore
    from ubmd.systems.system import System

__all__ = ["draw_errors", "squared_errors"]

log = logging.getLogger(__name__)


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


def draw_errors(
    store: RoundStore,
    rounds: Sequence[int],
    structures: Sequence[Atoms],
    system: System,
    *,
    batch_size: int,
    device: torch.device,
    allow: Sequence[str] = (),
) -> None:
    """Draws ``error_by_<variable>.png``, the errors of rounds' potentials against a variable, unless it is there.

    Args:
        store: the run.
        rounds: finished rounds.
        structures: the test set; nothing is drawn without any.
        system: that the run studied; its variables in the plane of the coverage are left out.
        batch_size: structures evaluated at once.
        device: to evaluate on.
        allow: what the potentials may name, see :func:`~ubmd.uncertainty.checkpoint.load_potential`.
    """
    files = {name: store.figures / f"error_by_{name}.png" for name in drawn_alone(system.variables)}
    values = {}
    for name, file in files.items():
        if structures and not file.exists():
            try:
                values |= values_of({name: system.variables[name]}, structures)
            except InputError as error:  # test structures may be of anything
                log.warning("no %s: %s", file.name, error)
    if not values:
        return
    errors = {}
    for index in rounds:
        trained = load_potential(store.folder(index).model, device=device, allow=allow)
        found = evaluate_structures(trained, structures, batch_size=batch_size)
        errors[f"round {index}"] = squared_errors(found)
    for name, found in values.items():
        axis = variable_axis(name, system.variables[name], system.states)
        save_figure(error_by_variable(axis, found, errors), files[name])
