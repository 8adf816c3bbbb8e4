"""The structures that a potential is worst on: of the test set, or else of those that it had chosen for labelling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from ubmd.analysis.evaluation import Evaluation, evaluate_structures, predicted_structures
from ubmd.data.io import read_labelled
from ubmd.errors import InputError
from ubmd.runs.store import RoundStore
from ubmd.uncertainty.checkpoint import load_potential

__all__ = ["WORST", "WorstStructures", "atomic_errors", "worst_structures"]

WORST = "worst.extxyz"
"""Name of the file in ``figures/`` with what :func:`worst_structures` chose of the test set."""

_MOST = 6


@dataclass(frozen=True)
class WorstStructures:
    """Labelled structures with predictions, the worst first."""

    told: str
    """Of which structures they are, and of which potential the errors."""
    structures: list[Atoms]
    """With what :func:`~ubmd.analysis.evaluation.predicted_structures` adds, and ``info['number']`` among all."""

    @classmethod
    def of_run(cls, path: Path, allow: Sequence[str] = ()) -> WorstStructures:
        """Those that the end of a run kept of its test set; without them, of the last round's labels.

        Args:
            path: of the run's folder.
            allow: what potentials may name, see :func:`~ubmd.uncertainty.checkpoint.load_potential`.

        Raises:
            InputError: there are neither, or the potential cannot be read.
        """
        file = path / "figures" / WORST
        if file.is_file():
            return cls("of the test set, predicted by the last potential", read_labelled(file, report=False))
        store = RoundStore(path)
        rounds = sorted(int(f.parent.name) for f in path.glob("rounds/*/labelled.extxyz") if f.stat().st_size)
        rounds = [index for index in rounds if store.round(index).model.is_file()]
        if not rounds:
            raise InputError("no round has acquired labels, and no test set was evaluated")
        last = store.round(rounds[-1])
        structures = read_labelled(last.labelled, report=False)
        found = evaluate_structures(load_potential(last.model, allow=allow), structures, batch_size=16)
        told = f"of those labelled in round {last.index}, as predicted by its potential, which had not learnt from them"
        return cls(told, worst_structures(structures, found))


def worst_structures(structures: Sequence[Atoms], found: Evaluation) -> list[Atoms]:
    """Those with the largest error of a force, the worst first, with their predictions and ``info['number']``.

    Args:
        structures: that were evaluated.
        found: what came of it.
    """
    errors = found.largest(found.atomic_error)
    chosen = np.argsort(-errors, kind="stable")[:_MOST]
    predicted = predicted_structures(structures, found)
    for number in chosen:
        predicted[number].info["number"] = int(number)
    return [predicted[number] for number in chosen]


def atomic_errors(atoms: Atoms) -> NDArray[np.float64]:
    """RMSE of the force on each atom over its components, [n], eV/Å, of a structure with predictions."""
    return np.sqrt(np.square(atoms.arrays["model_forces"] - atoms.arrays["REF_forces"]).mean(axis=1))
