"""What a structure hands on to those that arise from it: perturbed and relaxed ones and the frames of walkers."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian, FixScaled
from numpy.typing import NDArray

from ubmd.data.electronic import ELECTRONIC
from ubmd.errors import InputError

__all__ = ["INHERITED", "Inherited", "descendant", "fixed_atoms", "free_atoms"]

INHERITED = ("masses", "tags", *ELECTRONIC)
"""Arrays and entries of ``info`` that are true of a structure wherever its atoms are."""


@dataclass(frozen=True, eq=False)
class Inherited:
    """What is true of a structure wherever its atoms are, and of its walkers' frames with it.

    All else, such as labels, momenta and remarks about its energy, is of one structure alone.
    """

    arrays: Mapping[str, NDArray[Any]]
    """[n, ...] by name."""
    info: Mapping[str, Any]
    fixed: NDArray[np.bool_]
    """[n] atoms that stay where they are."""

    @classmethod
    def of(cls, atoms: Atoms, reads: Collection[str] = ()) -> Inherited:
        """What ``atoms`` hands on: :data:`INHERITED`, fixed atoms, and what a reference ``reads`` besides.

        Raises:
            InputError: for a constraint that is not kept, see :func:`fixed_atoms`.
        """
        names = dict.fromkeys([*INHERITED, *reads])
        arrays = {name: atoms.arrays[name].copy() for name in names if name in atoms.arrays}
        info = {name: copy.deepcopy(atoms.info[name]) for name in names if name in atoms.info}
        return cls(arrays, info, fixed_atoms(atoms, "the structure"))

    def onto(self, atoms: Atoms) -> Atoms:
        """``atoms``, which has as many atoms, with all of it."""
        for name, values in self.arrays.items():
            atoms.set_array(name, values)
        atoms.info.update(copy.deepcopy(dict(self.info)))
        if self.fixed.any():
            atoms.set_constraint(FixAtoms(mask=self.fixed))
        return atoms

    def record(self) -> str:
        """As JSON, for :meth:`from_record`; numbers come back bit by bit."""
        values = {"arrays": self.arrays, "info": self.info, "fixed": np.flatnonzero(self.fixed)}
        try:
            return json.dumps(values, default=lambda value: value.tolist())
        except (TypeError, AttributeError) as error:
            raise InputError(f"what a structure says in {sorted(self.info)} cannot be written as JSON") from error

    @classmethod
    def from_record(cls, text: str, n_atoms: int) -> Inherited:
        """What :meth:`record` wrote about a structure of ``n_atoms`` atoms.

        Raises:
            ValueError: if it is no such text.
        """
        values = json.loads(text)
        if not isinstance(values, dict) or values.keys() != {"arrays", "info", "fixed"}:
            raise ValueError("no record of what frames inherit")
        arrays = {name: np.array(array) for name, array in dict(values["arrays"]).items()}
        fixed = np.zeros(n_atoms, dtype=bool)
        indices = np.array(values["fixed"], dtype=np.int64)
        if any(len(array) != n_atoms for array in arrays.values()) or not ((indices >= 0) & (indices < n_atoms)).all():
            raise ValueError(f"a record of what frames inherit is not of {n_atoms} atoms")
        fixed[indices] = True
        return cls(arrays, dict(values["info"]), fixed)


def descendant(atoms: Atoms, reads: Collection[str] = ()) -> Atoms:
    """A copy to be moved: without labels, calculator, momenta and whatever else does not outlive a move.

    Args:
        atoms: left as it is.
        reads: names in ``arrays`` or ``info``, besides the usual ones, that a reference reads of a structure.

    Raises:
        InputError: for a constraint that is not kept, see :func:`fixed_atoms`.
    """
    bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    return Inherited.of(atoms, reads).onto(bare)


def fixed_atoms(atoms: Atoms, what: str) -> NDArray[np.bool_]:
    """Which atoms are fixed, [n]: by ``FixAtoms``, or by a constraint that fixes all three coordinates of an atom.

    Raises:
        InputError: for any other constraint, which nothing here would keep; ``what`` names the structure.
    """
    for constraint in atoms.constraints:
        if _directions(constraint) not in ({True}, {False}):
            raise InputError(
                f"{what} carries the constraint {type(constraint).__name__}, which walkers would not keep; remove it "
                "(whole atoms alone can be fixed, with FixAtoms)"
            )
    return ~free_atoms(atoms)


def free_atoms(atoms: Atoms) -> NDArray[np.bool_]:
    """Which atoms can move, [n]: all that are not fixed as whole atoms, whatever other constraints say of them."""
    free = np.ones(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if _directions(constraint) == {True}:
            free[constraint.index] = False
    return free


def _directions(constraint: Any) -> set[bool]:
    """Which answers there are to whether a direction is fixed; empty if the constraint is not about directions."""
    if isinstance(constraint, FixCartesian | FixScaled):
        return set(constraint.mask.tolist())
    return {True} if isinstance(constraint, FixAtoms) else set()
