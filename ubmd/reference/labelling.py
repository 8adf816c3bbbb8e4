"""Labelling of structures: each one once, failures and too large forces set aside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ubmd.errors import InputError
from ubmd.reference.base import Label, Reference, ReferenceError
from ubmd.reference.store import Failure, LabelStore

if TYPE_CHECKING:
    from ase import Atoms


@dataclass(frozen=True)
class LabelReport:
    """What came of a list of structures; every list keeps the order of the input."""

    labelled: list[Atoms] = field(default_factory=list)
    """Copies as :func:`with_label` makes them."""
    rejected: list[tuple[Atoms, str]] = field(default_factory=list)
    """Labelled copies with a force above the limit, and the reason."""
    failed: list[tuple[Atoms, str]] = field(default_factory=list)
    """Copies without label, and what the reference said."""
    n_computed: int = 0
    """Evaluations of the reference, failed ones included; everything else came from the store."""


def label_structures(
    structures: Sequence[Atoms],
    reference: Reference,
    store: LabelStore,
    *,
    max_force: float | None = 20.0,
    on_label: Callable[[int, int], None] | None = None,
) -> LabelReport:
    """Label structures, taking from the store what it knows and storing at once what it does not.

    Args:
        structures: what to label; they are left as they are.
        reference: computes labels.
        store: remembers labels and failures.
        max_force: largest norm of the force on an atom in eV/Å; a structure above is rejected, after its
            label was stored. None: no limit.
        on_label: called with (structures done, structures in all) after each.

    Raises:
        InputError: ``max_force`` is not positive, or the reference refuses this kind of structure.
    """
    if max_force is not None and not max_force > 0:
        raise InputError(f"max_force: {max_force} eV/Å is not positive; give a positive limit or null for none")
    fingerprint = reference.fingerprint()
    labelled: list[Atoms] = []
    rejected: list[tuple[Atoms, str]] = []
    failed: list[tuple[Atoms, str]] = []
    n_computed = 0
    for done, atoms in enumerate(structures, start=1):
        result = store.get(atoms, fingerprint)
        if result is None:
            result = _evaluate(atoms, reference)
            store.put(atoms, fingerprint, result)
            n_computed += 1
        if isinstance(result, Failure):
            failed.append((_without_label(atoms), result.message))
        else:
            largest = float(np.linalg.norm(result.forces, axis=1).max(initial=0.0))
            if max_force is not None and largest > max_force:
                reason = f"force of {largest:.1f} eV/Å exceeds the limit of {max_force:g} eV/Å"
                rejected.append((with_label(atoms, result), reason))
            else:
                labelled.append(with_label(atoms, result))
        if on_label is not None:
            on_label(done, len(structures))
    return LabelReport(labelled, rejected, failed, n_computed)


def with_label(atoms: Atoms, label: Label) -> Atoms:
    """Copy of a structure with its label in ``REF_`` keys.

    These are ``info['REF_energy']``, ``arrays['REF_forces']`` and, where there is a stress, the [3, 3] array
    ``info['REF_stress']``. Other entries of ``info`` and ``arrays`` stay; there is no calculator.
    """
    copy = _without_label(atoms)
    copy.info["REF_energy"] = float(label.energy)
    copy.arrays["REF_forces"] = label.forces.copy()
    if label.stress is not None:
        copy.info["REF_stress"] = label.stress.copy()
    return copy


def _without_label(atoms: Atoms) -> Atoms:
    """Copy without calculator and without a label of an earlier reference."""
    copy = atoms.copy()
    copy.info.pop("REF_energy", None)
    copy.info.pop("REF_stress", None)
    copy.arrays.pop("REF_forces", None)
    return copy


def _evaluate(atoms: Atoms, reference: Reference) -> Label | Failure:
    try:
        return reference.compute(atoms)
    except ReferenceError as error:
        return Failure(str(error))
