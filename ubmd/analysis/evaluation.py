"""How far a potential is from labels, and whether its uncertainties say so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from torchmetrics.functional import mean_absolute_error, mean_squared_error

from ubmd.analysis.figures import calibration_scatter
from ubmd.data.batch import collate
from ubmd.data.labels import SYSTEM, has_stress
from ubmd.models.potential import Prediction
from ubmd.uncertainty.calibration import AtomicCalibration, CalibrationData, ConformalCalibration, Factors
from ubmd.uncertainty.potential import UncertainPotential
from ubmd.units import MPA

__all__ = [
    "Evaluation",
    "error_metrics",
    "errors_by_system",
    "errors_table",
    "evaluate_structures",
    "half_confidence",
    "predicted_structures",
    "scatter_of_worst_atoms",
    "worst_atoms",
]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """Predictions and labels of structures, their atoms laid end to end; float64."""

    numbers: NDArray[np.int64]
    """[n_atoms] atomic numbers."""
    n_atoms: NDArray[np.int64]
    """[n] atoms of each structure."""
    energy: Array
    """[2, n] eV; here and below the prediction first, then the label."""
    forces: Array
    """[2, n_atoms, 3] eV/Å."""
    stress: Array | None
    """[2, n, 3, 3] eV/Å³; NaN for a structure that is no crystal or has no label, None if all are that."""
    uncertainty: Array
    """[n] calibrated uncertainty of the energy per atom, eV/atom."""
    atomic_uncertainty: Array
    """[n_atoms] calibrated uncertainty of the force on each atom, eV/Å."""

    @property
    def total_error(self) -> Array:
        """[n] absolute error of the energy per atom, eV/atom."""
        return np.abs(self.energy[0] - self.energy[1]) / self.n_atoms

    @property
    def atomic_error(self) -> Array:
        """[n_atoms] RMSE of the force on each atom over its components, eV/Å."""
        return np.sqrt(np.square(self.forces[0] - self.forces[1]).mean(axis=1))

    @property
    def calibration_data(self) -> CalibrationData:
        """Errors and uncertainties, to be calibrated (once more)."""
        parts = (self.atomic_error, self.atomic_uncertainty, self.total_error, self.uncertainty, self.numbers)
        return CalibrationData(*map(torch.as_tensor, parts))

    def scaled(self, factors: Factors) -> Evaluation:
        """The same with all uncertainties times their factors."""
        atomic = self.atomic_uncertainty * factors.atomic[self.numbers].numpy()
        return replace(self, atomic_uncertainty=atomic, uncertainty=self.uncertainty * factors.total)

    def per_structure(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """Values of atoms [n_atoms, ...] structure by structure."""
        return np.split(values, np.cumsum(self.n_atoms)[:-1])

    def select(self, chosen: Sequence[bool]) -> Evaluation:
        """Those of the structures that are ``chosen`` [n]."""
        one = np.asarray(chosen, dtype=bool)
        atoms = np.repeat(one, self.n_atoms)
        return Evaluation(
            numbers=self.numbers[atoms],
            n_atoms=self.n_atoms[one],
            energy=self.energy[:, one],
            forces=self.forces[:, atoms],
            stress=None if self.stress is None or np.isnan(self.stress[1, one]).all() else self.stress[:, one],
            uncertainty=self.uncertainty[one],
            atomic_uncertainty=self.atomic_uncertainty[atoms],
        )

    def largest(self, values: Array) -> Array:
        """Largest of the atoms' values [n_atoms] in each structure, [n]."""
        return np.array([part.max() for part in self.per_structure(values)])


def evaluate_structures(
    potential: UncertainPotential,
    structures: Sequence[Atoms],
    *,
    batch_size: int,
    on_batch: Callable[[int], None] | None = None,
) -> Evaluation:
    """Predicts labelled structures with uncertainties, in the model's precision and on its device.

    Args:
        potential: with its uncertainty.
        structures: with ``REF_energy`` and ``REF_forces``, at least one.
        batch_size: structures evaluated at once.
        on_batch: called with the number of structures done.
    """
    weights = next(potential.model.parameters())
    known = [has_stress(a) for a in structures]
    stress = any(known)
    predictions: list[Prediction] = []
    for start in range(0, len(structures), batch_size):
        chunk = structures[start : start + batch_size]
        batch = collate(chunk, potential.cutoff, dtype=weights.dtype, device=weights.device)
        predictions.append(potential(batch, stress=stress))
        if on_batch is not None:
            on_batch(start + len(chunk))

    none = np.full((3, 3), np.nan)
    labels = [a.info["REF_stress"] if k else none for a, k in zip(structures, known, strict=True)]

    def joined(name: str) -> Array:
        return torch.cat([getattr(p, name) for p in predictions]).double().cpu().numpy()

    return Evaluation(
        numbers=np.concatenate([a.numbers for a in structures]).astype(np.int64),
        n_atoms=np.array([len(a) for a in structures]),
        energy=np.stack([joined("energy"), [a.info["REF_energy"] for a in structures]]),
        forces=np.stack([joined("forces"), np.concatenate([a.arrays["REF_forces"] for a in structures])]),
        stress=np.stack([joined("stress"), labels]) if stress else None,
        uncertainty=joined("uncertainty"),
        atomic_uncertainty=joined("atomic_uncertainty"),
    )


def half_confidence(
    found: Evaluation, valid: Evaluation, *, atomic: AtomicCalibration, total: ConformalCalibration
) -> Evaluation:
    """What ``found`` would be if the uncertainties had been calibrated with alpha = 0.5, as Fig. 2 compares.

    Args:
        found: any structures.
        valid: the structures that the same uncertainties were calibrated with.
        atomic: the calibration of atoms.
        total: the calibration of structures.
    """
    methods = {"atomic": replace(atomic, alpha=0.5), "total": replace(total, alpha=0.5)}
    return found.scaled(Factors.of(valid.calibration_data, **methods))


def error_metrics(found: Evaluation, half: Evaluation | None = None) -> dict[str, Any]:
    """Errors, the units in their names, and coverage.

    MAE, RMSE and the largest error of the energy per atom, the force components and, of the structures that have one,
    the stress components; those of forces also ``_by_species``; ``coverage_atom`` and ``coverage_total``, the shares
    of atoms and of structures whose error does not exceed its calibrated uncertainty; with ``half``, which is ``found``
    at the confidence of alpha = 0.5, both with ``_50`` for it.
    """
    out: dict[str, Any] = {"n_structures": len(found.n_atoms), "n_atoms": len(found.numbers)}
    errors = {
        "energy_{}_mev_per_atom": 1e3 * (found.energy[0] - found.energy[1]) / found.n_atoms,
        "force_{}_ev_per_ang": found.forces[0] - found.forces[1],
    }
    if found.stress is not None:
        known = ~np.isnan(found.stress[1]).any(axis=(1, 2))
        out["n_structures_with_stress"] = int(known.sum())
        errors["stress_{}_mpa"] = (found.stress[0] - found.stress[1])[known] / MPA
    for name, values in errors.items():
        out |= _summary(name, values)
    force = errors["force_{}_ev_per_ang"]
    species = {chemical_symbols[z]: found.numbers == z for z in sorted(set(found.numbers.tolist()))}
    for name in _summary("force_{}_ev_per_ang", force):
        out[f"{name}_by_species"] = {}
    for symbol, members in species.items():
        for name, value in _summary("force_{}_ev_per_ang", force[members]).items():
            out[f"{name}_by_species"][symbol] = value
    for suffix, level in (("", found), ("_50", half)):
        if level is not None:
            out[f"coverage_atom{suffix}"] = _covered(level.atomic_error, level.atomic_uncertainty)
            out[f"coverage_total{suffix}"] = _covered(level.total_error, level.uncertainty)
    return out


def errors_by_system(structures: Sequence[Atoms], found: Evaluation) -> dict[str, dict[str, Any]]:
    """:func:`error_metrics` of each system that structures name in their ``info``; none unless there are several.

    Args:
        structures: that were evaluated.
        found: what came of it.
    """
    stated = [atoms.info.get(SYSTEM) for atoms in structures]
    systems = list(dict.fromkeys(name for name in stated if isinstance(name, str)))
    if len(systems) < 2:
        return {}
    return {name: error_metrics(found.select([own == name for own in stated])) for name in systems}


def _summary(name: str, errors: Array) -> dict[str, float]:
    """MAE, RMSE and the largest of errors of any shape, by names that are made of ``name``."""
    found = torch.as_tensor(errors).flatten()
    none = torch.zeros_like(found)
    return {
        name.format("mae"): float(mean_absolute_error(found, none)),
        name.format("rmse"): float(mean_squared_error(found, none, squared=False)),
        name.format("max"): float(found.abs().max()),
    }


def _covered(error: Array, uncertainty: Array) -> float:
    # a conformal factor makes an uncertainty equal to an error; rounding in float32 must not decide which is larger
    return float(np.mean(error <= uncertainty * (1 + 1e-5)))


def errors_table(columns: dict[str, dict[str, Any]]) -> Table:
    """Metrics of :func:`error_metrics` as a table with a column for each set of structures."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for name, metrics in columns.items():
        table.add_column(f"{name}\n{metrics['n_structures']} structures", justify="right")
    symbols = {s: None for m in columns.values() for s in m["force_rmse_ev_per_ang_by_species"]}

    def add(label: str, values: Sequence[float | None], form: str) -> None:
        if any(value is not None for value in values):
            table.add_row(label, *("–" if value is None else form.format(value) for value in values))

    def add_metric(label: str, key: str, form: str) -> None:
        add(label, [metrics.get(key) for metrics in columns.values()], form)

    for kind, word in (("mae", "MAE"), ("rmse", "RMSE"), ("max", "largest error")):
        add_metric(f"energy {word}, meV/atom", f"energy_{kind}_mev_per_atom", "{:.2f}")
    for kind, word in (("mae", "MAE"), ("rmse", "RMSE"), ("max", "largest error")):
        key = f"force_{kind}_ev_per_ang"
        add_metric(f"force {word}, eV/Å", key, "{:.4f}")
        for symbol in symbols:
            add(f"  {symbol}", [m.get(f"{key}_by_species", {}).get(symbol) for m in columns.values()], "{:.4f}")
    for kind, word in (("mae", "MAE"), ("rmse", "RMSE"), ("max", "largest error")):
        add_metric(f"stress {word}, MPa", f"stress_{kind}_mpa", "{:.1f}")
    add_metric("errors covered, atoms", "coverage_atom", "{:.1%}")
    add_metric("errors covered, structures", "coverage_total", "{:.1%}")
    add_metric("  with α = 0.5, atoms", "coverage_atom_50", "{:.1%}")
    add_metric("  with α = 0.5, structures", "coverage_total_50", "{:.1%}")
    for kind, what in (("atom", "atoms"), ("total", "structures")):
        add_metric(f"uncertainty and error, {what}: Pearson", f"pearson_{kind}", "{:.2f}")
        add_metric("  Spearman", f"spearman_{kind}", "{:.2f}")
        add_metric("  miscalibration area", f"miscalibration_area_{kind}", "{:.3f}")
    add_metric("sharpness of forces, eV/Å", "sharpness_atom_ev_per_ang", "{:.4f}")
    add_metric("sharpness of energies, meV/atom", "sharpness_total_mev_per_atom", "{:.2f}")
    return table


def scatter_of_worst_atoms(found: Evaluation, alpha: float, half: Evaluation | None = None) -> Figure | None:
    """The worst atom of each structure, its error against its uncertainty (Fig. 2).

    Args:
        found: the structures.
        alpha: that their uncertainties were calibrated with.
        half: the same with uncertainties calibrated with alpha = 0.5, drawn pale; None leaves it out.

    Returns:
        None if no structure has an error and an uncertainty above zero, such as isolated atoms.
    """
    error, uncertainty = found.largest(found.atomic_error), found.largest(found.atomic_uncertainty)
    if not ((error > 0) & (uncertainty > 0) & (uncertainty < np.inf)).any():
        return None
    pale = None if half is None else half.largest(half.atomic_uncertainty)
    return calibration_scatter(error, uncertainty, alpha=alpha, half=pale)


def worst_atoms(found: Evaluation, half: Evaluation | None = None) -> dict[str, Array]:
    """The numbers of :func:`scatter_of_worst_atoms`, [n] each, eV/Å, by the column of ``calibration.csv``."""
    out = {
        "error_ev_per_ang": found.largest(found.atomic_error),
        "uncertainty_ev_per_ang": found.largest(found.atomic_uncertainty),
    }
    if half is not None:
        out["uncertainty_50_ev_per_ang"] = half.largest(half.atomic_uncertainty)
    return out


def predicted_structures(structures: Sequence[Atoms], found: Evaluation) -> list[Atoms]:
    """Copies of the structures that carry the predictions beside their labels.

    ``info`` gains model_energy (eV), model_stress (nine numbers, eV/Å³), uncertainty (of the energy per atom,
    eV/atom) and max_atomic_uncertainty (eV/Å); ``arrays`` gain model_forces (eV/Å) and atomic_uncertainty (eV/Å).
    """
    forces, atomic = found.per_structure(found.forces[0]), found.per_structure(found.atomic_uncertainty)
    out = []
    for k, atoms in enumerate(structures):
        copy = atoms.copy()
        copy.info["model_energy"] = float(found.energy[0, k])
        if found.stress is not None and atoms.pbc.all():
            copy.info["model_stress"] = found.stress[0, k].reshape(9)
        copy.info["uncertainty"] = float(found.uncertainty[k])
        copy.info["max_atomic_uncertainty"] = float(atomic[k].max())
        copy.arrays["model_forces"] = forces[k]
        copy.arrays["atomic_uncertainty"] = atomic[k]
        out.append(copy)
    return out
