"""Relaxation of atoms and cell with a reference, done once and kept in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from ase.stress import full_3x3_to_voigt_6_stress

from ubmd.data.inherit import Inherited, descendant, fixed_atoms
from ubmd.data.sealed import read_sealed, write_sealed
from ubmd.errors import InputError
from ubmd.files import locked
from ubmd.reference.base import Reference, ReferenceError, shared_fingerprint
from ubmd.reference.executors import LabelExecutor
from ubmd.reference.labelling import label_structures
from ubmd.reference.store import LabelStore

__all__ = ["ReferenceCalculator", "Relaxation"]

CELL_FACTOR = 12.0
"""``exp_cell_factor`` of ASE's filter: how stiff the cell is beside the atoms. ASE's default is the number of atoms,
with which the soft cells of large crystals hardly move."""

_RECORD = "relaxation"
"""Entry of a relaxed structure's file by which it is known."""


class ReferenceCalculator(Calculator):
    """A reference as a calculator of ASE, which keeps every label in a store and takes known ones from it.

    Args:
        reference: computes energy, forces and, for crystals, the stress.
        store: of the labels.
        executor: where labels are computed, which is open; None: in this process.
    """

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012  (as ASE declares it)

    def __init__(self, reference: Reference, store: LabelStore, executor: LabelExecutor | None = None):
        super().__init__()
        self.reference, self.store, self.executor = reference, store, executor

    def calculate(
        self, atoms: Atoms | None = None, properties: Any = ("energy",), system_changes: Any = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        report = label_structures([self.atoms], self.reference, self.store, executor=self.executor, max_force=None)
        if report.failed:
            raise ReferenceError(report.failed[0][1])
        (labelled,) = report.labelled
        self.results = {"energy": labelled.info["REF_energy"], "forces": labelled.arrays["REF_forces"]}
        if "REF_stress" in labelled.info:
            self.results["stress"] = full_3x3_to_voigt_6_stress(labelled.info["REF_stress"])


@dataclass(frozen=True)
class Relaxation:
    """Finds the minimum of a reference nearest to a structure, with the cell where that is periodic.

    Fixed atoms stay where they are, and with them the cell.

    Args:
        folder: of the relaxed structures, one file for each structure, reference and ``fmax``, and of
            ``labels.db``, from which an interrupted relaxation continues.
        fmax: the largest force on an atom that is left, eV/Å; the cell's generalised forces obey it too.
        max_steps: steps after which to give up.

    Raises:
        InputError: if a limit is not positive.
    """

    folder: str | Path
    fmax: float = 0.05
    max_steps: int = 500

    def __post_init__(self) -> None:
        for name in ("fmax", "max_steps"):
            if not getattr(self, name) > 0:
                raise InputError(f"system.relax.{name}={getattr(self, name)} must be positive")

    def __call__(
        self,
        atoms: Atoms,
        reference: Reference,
        *,
        executor: LabelExecutor | None = None,
        on_step: Callable[[int, float], None] | None = None,
    ) -> Atoms:
        """The relaxed structure, with its label.

        Args:
            atoms: where to start; left as it is.
            reference: to relax with.
            executor: where labels are computed, which is open; None: in this process.
            on_step: called after each step with the number of steps and the largest force in eV/Å.

        Raises:
            InputError: the reference fails, gives no stress for a crystal, or the limit of steps is reached; or the
                file of the relaxed structure was changed since it was written.
        """
        if _moves_cell(atoms) and not reference.has_stress:
            raise InputError(
                f"system.relax: {type(reference).__name__} computes no stress, which a crystal's cell is relaxed by; "
                "choose another reference or set system.relax=null"
            )
        file = self.file(atoms, reference)
        if not file.exists():
            with locked(file):
                if not file.exists():
                    store = LabelStore(Path(self.folder) / "labels.db", shared=True)
                    calculator = ReferenceCalculator(reference, store, executor)
                    write_sealed(file, [self._relaxed(atoms, calculator, on_step)], _RECORD, {"fmax": self.fmax})
        return read_sealed(file, _RECORD)[0][0]

    def file(self, atoms: Atoms, reference: Reference) -> Path:
        """Where the structure that results from ``atoms`` is kept."""
        settings = {"reference": shared_fingerprint(reference), "fmax": self.fmax}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for values in (atoms.numbers, atoms.positions, np.asarray(atoms.cell), atoms.pbc):
            digest.update(np.ascontiguousarray(values).tobytes())
        digest.update(Inherited.of(atoms, reference.reads).record().encode())
        return Path(self.folder) / f"{atoms.get_chemical_formula()}-{digest.hexdigest()[:12]}.extxyz"

    def _relaxed(
        self, atoms: Atoms, calculator: ReferenceCalculator, on_step: Callable[[int, float], None] | None
    ) -> Atoms:
        moving = descendant(atoms, calculator.reference.reads)
        moving.calc = calculator
        target = FrechetCellFilter(moving, exp_cell_factor=CELL_FACTOR) if _moves_cell(moving) else moving
        optimiser = BFGS(target, logfile=None)  # pyright: ignore[reportArgumentType]
        largest = np.nan
        try:
            for _ in optimiser.irun(fmax=self.fmax, steps=self.max_steps):
                largest = float(np.linalg.norm(target.get_forces(), axis=1).max())
                if on_step is not None:
                    on_step(optimiser.nsteps, largest)
        except ReferenceError as error:
            raise InputError(f"system.relax: the reference failed ({error}); check reference and structure") from error
        if not largest < self.fmax:
            raise InputError(
                f"system.relax: after max_steps={self.max_steps} the largest force is still {largest:.3f} eV/Å; raise "
                "system.relax.max_steps (what was computed is kept) or system.relax.fmax"
            )
        moving.calc = None
        return label_structures([moving], calculator.reference, calculator.store, max_force=None).labelled[0]


def _moves_cell(atoms: Atoms) -> bool:
    """Whether the cell is relaxed too; it would take fixed atoms along."""
    return bool(atoms.pbc.all()) and not fixed_atoms(atoms, "system.structure").any()
