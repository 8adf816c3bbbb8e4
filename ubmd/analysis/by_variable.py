"""Errors of evaluated structures in ranges of collective variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from ubmd.analysis.axes import variable_axis
from ubmd.analysis.evaluation import Evaluation
from ubmd.analysis.figures import save_figure
from ubmd.analysis.held_out import squared_errors
from ubmd.analysis.variable_figures import binned_rmse, error_by_variable
from ubmd.observables.base import CollectiveVariable, values_of

__all__ = ["draw_by_variable", "errors_by_variable"]

BINS = 8
"""Ranges of a variable."""

_COLUMNS = {
    "Energy RMSE (meV/atom)": "energy_rmse_mev_per_atom",
    "Force RMSE (eV/Å)": "force_rmse_ev_per_ang",
    "Stress RMSE (MPa)": "stress_rmse_mpa",
}


def errors_by_variable(
    found: Evaluation, structures: Sequence[Atoms], variables: Mapping[str, CollectiveVariable]
) -> dict[str, dict[str, list[float | int | None]]]:
    """RMSEs in equal ranges of each variable, by its name.

    Args:
        found: the structures, evaluated.
        structures: the same.
        variables: by name.

    Returns:
        for each variable ``edges`` [b + 1] in its own unit, and for each range [b] ``n_structures``,
        ``energy_rmse_mev_per_atom``, ``force_rmse_ev_per_ang`` and, where any has one, ``stress_rmse_mpa``; None in a
        range without structures.

    Raises:
        InputError: a structure that has no such variable.
    """
    errors, out = squared_errors(found), {}
    for name, values in values_of(variables, structures).items():
        limits = variables[name].range
        if variables[name].wraps and limits is not None:
            values = np.mod(values - limits[0], limits[1] - limits[0]) + limits[0]
        low, high = limits or (float(values.min()), float(values.max()))
        edges = np.linspace(low, high, BINS + 1) if low < high else np.array([low - 0.5, low + 0.5])
        bounds = np.append(edges[:-1], np.nextafter(edges[-1], np.inf))  # the last range has its upper end
        rows: dict[str, list[Any]] = {"edges": edges.tolist()}
        rows["n_structures"] = binned_rmse(values, np.zeros(len(values)), bounds)[1].tolist()
        for label, squares in errors.items():
            rmse = binned_rmse(values, squares, bounds)[0]
            rows[_COLUMNS[label]] = [None if np.isnan(value) else value for value in rmse.tolist()]
        out[name] = rows
    return out


def draw_by_variable(
    found: Evaluation, structures: Sequence[Atoms], variables: Mapping[str, CollectiveVariable], folder: Path
) -> list[str]:
    """Draws ``error_by_<variable>.png`` into a folder; returns the names of the files."""
    errors, files = squared_errors(found), []
    for name, values in values_of(variables, structures).items():
        files.append(f"error_by_{name}.png")
        figure = error_by_variable(variable_axis(name, variables[name]), values, {"potential": errors}, n_bins=BINS)
        save_figure(figure, folder / files[-1])
    return files
