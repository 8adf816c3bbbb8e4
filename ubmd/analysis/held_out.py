"""Errors of a run's potentials on its test structures against what these are: their collective variables."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

from ubmd.analysis.axes import variable_axis
from ubmd.analysis.evaluation import Evaluation, evaluate_structures
from ubmd.analysis.explored import drawn_alone
from ubmd.analysis.figures import save_figure
from ubmd.analysis.numbers import write_numbers
from ubmd.analysis.variable_figures import error_by_variable
from ubmd.errors import InputError
from ubmd.observables.base import CollectiveVariable, values_of
from ubmd.observables.states import States
from ubmd.uncertainty.checkpoint import load_potential
from ubmd.units import MPA

if TYPE_CHECKING:
    from ubmd.runs.store import RoundStore
    from ubmd.systems.several import Systems

__all__ = ["SQUARED", "draw_errors", "squared_errors"]

log = logging.getLogger(__name__)

SQUARED = {
    "Energy RMSE (meV/atom)": "squared_energy_error_mev2_per_atom2",
    "Force RMSE (eV/Å)": "squared_force_error_ev2_per_ang2",
    "Stress RMSE (MPa)": "squared_stress_error_mpa2",
}
"""Columns of ``error_by_<variable>.csv`` with the mean squared errors of structures, by the label of their root."""


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
    systems: Systems,
    *,
    batch_size: int,
    device: torch.device,
    allow: Sequence[str] = (),
) -> None:
    """Draws ``error_by_<variable>.png``, the errors of rounds' potentials against a variable, unless it is there.

    ``error_by_<variable>.csv`` beside it has the round, the variable and the squared errors of each structure.

    Args:
        store: the run.
        rounds: finished rounds.
        structures: the test set; nothing is drawn without any.
        systems: that the run studied, each with the test structures that are its own; variables in the plane of a
            coverage are left out.
        batch_size: structures evaluated at once.
        device: to evaluate on.
        allow: what the potentials may name, see :func:`~ubmd.uncertainty.checkpoint.load_potential`.
    """
    for system in systems.parts:
        variables, states = systems.followed(system)
        own = systems.own(system, structures)
        _draw_errors(store, rounds, own, variables, states, batch_size=batch_size, device=device, allow=allow)


def _draw_errors(
    store: RoundStore,
    rounds: Sequence[int],
    structures: Sequence[Atoms],
    variables: Mapping[str, CollectiveVariable],
    states: States,
    *,
    batch_size: int,
    device: torch.device,
    allow: Sequence[str],
) -> None:
    """Draws the errors of a system; see :func:`draw_errors`."""
    files = {name: store.figures / f"error_by_{name}.png" for name in drawn_alone(variables)}
    values = {}
    for name, file in files.items():
        if structures and not (file.exists() and file.with_suffix(".csv").exists()):
            try:
                values |= values_of({name: variables[name]}, structures)
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
        axis = variable_axis(name, variables[name], states)
        write_numbers(
            files[name].with_suffix(".csv"), _columns(name, found, dict(zip(rounds, errors.values(), strict=True)))
        )
        save_figure(error_by_variable(axis, found, errors), files[name])


def _columns(
    name: str, values: NDArray[np.float64], errors: Mapping[int, Mapping[str, NDArray[np.float64]]]
) -> dict[str, NDArray[np.float64]]:
    """Columns of ``error_by_<name>.csv``, the structures of one round after those of the one before."""
    kinds = next(iter(errors.values()))
    return {
        "round": np.repeat(list(errors), len(values)),
        name: np.tile(values, len(errors)),
        **{SQUARED[kind]: np.concatenate([found[kind] for found in errors.values()]) for kind in kinds},
    }
