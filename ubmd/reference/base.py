"""What every reference method (an oracle that labels structures) has in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ubmd.data.electronic import ELECTRONIC

if TYPE_CHECKING:
    from ase import Atoms

Plain = str | int | float | bool | None | Sequence["Plain"] | Mapping[str, "Plain"]
"""A value that JSON can hold."""

_MEANS = ("executor", "reference.command", "reference.scratch", "reference.threads")
NOT_OF_LABELS = (*_MEANS, *(f"data.test.sample.{part}" for part in _MEANS))
"""Parts of a configuration that say how and where labels are computed, not what they are."""


class ReferenceError(RuntimeError):
    """One structure cannot be labelled, now or later, such as one whose SCF does not converge; it is remembered."""


class UnfinishedError(RuntimeError):
    """A computation broke off for a reason that is not the structure's: a crash, a full disk, a time limit.

    It says nothing about the structure, so it may be tried again and is never remembered.
    """


@dataclass(frozen=True)
class Label:
    """Energy, forces and stress of one structure."""

    energy: float
    """eV."""
    forces: NDArray[np.float64]
    """[n_atoms, 3] eV/Å."""
    stress: NDArray[np.float64] | None = None
    """[3, 3] eV/Å³, positive under tension; None for anything that is not periodic in three directions."""


class Reference(Protocol):
    """A method that labels structures, one at a time."""

    has_stress: bool = False
    """Whether structures that are periodic in three directions are labelled with a stress."""
    reads: tuple[str, ...] = ELECTRONIC
    """Arrays and entries of ``info`` that a label depends on, beyond numbers, positions, cell and periodicity.

    They travel with a structure wherever it goes to be labelled, and labels are stored under them.
    """

    def fingerprint(self) -> dict[str, Plain]:
        """Settings that determine a label, as plain JSON types; labels are stored under them.

        The class is part of them, versions of packages are not: an upgrade must not discard paid labels.
        """
        ...

    def compute(self, atoms: Atoms) -> Label:
        """Label one structure, which is left as it is.

        Raises:
            ReferenceError: this structure cannot be labelled.
            UnfinishedError: the computation broke off.
            ubmd.errors.InputError: no structure of this kind ever can be, or a program is missing.
        """
        ...

    def check_atoms(self, atoms: Atoms) -> None:
        """Refuse, before anything is computed, a structure that states what this method cannot compute.

        Raises:
            ubmd.errors.InputError: the sentence says what and why; its subject is the structure.
        """

    def check(self) -> None:
        """Refuse, at once and before anything is computed, what this machine cannot run.

        Raises:
            ubmd.errors.InputError: a program is missing.
        """


def class_path(obj: object) -> str:
    """Importable name of an object's class, as fingerprints record it."""
    return f"{type(obj).__module__}.{type(obj).__qualname__}"


def checked_label(energy: float, forces: ArrayLike, stress: ArrayLike | None, n_atoms: int) -> Label:
    """Label of the given values, copied to float64.

    Args:
        energy: eV.
        forces: [n_atoms, 3] eV/Å.
        stress: [3, 3] eV/Å³ or None.
        n_atoms: number of atoms of the structure.

    Raises:
        ReferenceError: a value is not finite or has the wrong shape.
    """
    f = np.array(forces, dtype=np.float64)
    s = None if stress is None else np.array(stress, dtype=np.float64)
    if f.shape != (n_atoms, 3):
        raise ReferenceError(f"the reference returned forces of shape {f.shape} for {n_atoms} atoms")
    if s is not None and s.shape != (3, 3):
        raise ReferenceError(f"the reference returned a stress of shape {s.shape} instead of (3, 3)")
    for name, value in (("energy", energy), ("forces", f), ("stress", s)):
        if value is not None and not np.all(np.isfinite(value)):
            raise ReferenceError(f"the reference returned a non-finite {name}")
    return Label(energy=float(energy), forces=f, stress=s)
