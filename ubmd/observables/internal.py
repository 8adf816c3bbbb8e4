"""Internal coordinates as collective variables: distances, angles, torsions and coordination numbers.

Atoms are counted from 0 within a structure. Where it is periodic, distances are those to the nearest image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ubmd.errors import InputError
from ubmd.observables.base import CollectiveVariable, Structures, check_atoms
from ubmd.observables.geometry import torsion_angles

__all__ = ["Angle", "Coordination", "Distance", "Torsion"]


@dataclass(frozen=True)
class _OfAtoms(CollectiveVariable):
    """A variable of some atoms.

    Args:
        atoms: indices, counted from 0.
    """

    number: ClassVar[int]

    atoms: Sequence[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "atoms", check_atoms("atoms", self.atoms, self.number))

    def check(self, structures: Structures, /) -> None:
        _check_there(type(self).__name__, self.atoms, structures)

    def bonds(self, structures: Structures) -> tuple[Tensor, ...]:
        """Vectors from each atom to the next, [m, 3] Å each."""
        return structures.vectors(self.atoms[:-1], self.atoms[1:]).unbind(1)


@dataclass(frozen=True)
class Distance(_OfAtoms):
    """Distance of two atoms, Å.

    Args:
        atoms: the two.
        width: of a hill, Å.
        bounds: range whose coverage is followed, Å.
    """

    unit = "Å"
    number = 2

    _: KW_ONLY
    width: float | None = 0.1

    def __call__(self, structures: Structures, /) -> Tensor:
        (bond,) = self.bonds(structures)
        return torch.linalg.vector_norm(bond, dim=-1)


@dataclass(frozen=True)
class Angle(_OfAtoms):
    """Angle of three atoms, the second at its apex, rad in [0, π].

    Args:
        atoms: the three.
        width: of a hill, rad.
        bounds: range whose coverage is followed, rad.
    """

    unit = "rad"
    number = 3

    _: KW_ONLY
    width: float | None = 0.2

    def __call__(self, structures: Structures, /) -> Tensor:
        first, last = self.bonds(structures)
        # atan2 keeps full precision near 0 and π
        sine = torch.linalg.vector_norm(torch.linalg.cross(first, last), dim=-1)
        return torch.atan2(sine, -(first * last).sum(-1))


@dataclass(frozen=True)
class Torsion(_OfAtoms):
    """Torsion (dihedral) angle of four atoms, rad, 0 for cis (IUPAC).

    Args:
        atoms: the four, in the order of the chain.
        width: of a hill, rad.
        bounds: range whose coverage is followed, rad; None takes the whole turn.
    """

    unit = "rad"
    period = 2 * math.pi
    number = 4

    _: KW_ONLY
    width: float | None = 0.35

    def __call__(self, structures: Structures, /) -> Tensor:
        return torsion_angles(*self.bonds(structures))


@dataclass(frozen=True)
class Coordination(CollectiveVariable):
    """Coordination number: how many of some atoms are near one of some others, on average, smoothly.

    Each pair counts (1 - (r/r0)^6) / (1 - (r/r0)^12) = 1 / (1 + (r/r0)^6), with the nearest image of a periodic pair.

    Args:
        atoms: whose neighbours are counted.
        neighbours: atoms that count as neighbours; an atom is none of its own.
        distance: r0, at which a pair counts half, Å.
        width: of a hill.
        bounds: range whose coverage is followed.

    Raises:
        InputError: for atoms that are none, or a distance that is not above 0.
    """

    atoms: Sequence[int]
    neighbours: Sequence[int]
    distance: float

    _: KW_ONLY
    width: float | None = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("atoms", "neighbours"):
            object.__setattr__(self, name, check_atoms(name, getattr(self, name)))
        if not set(self.neighbours) - set(self.atoms[:1]):
            raise InputError(f"neighbours={list(self.neighbours)} must be other atoms than atoms")
        if not 0 < self.distance < math.inf:
            raise InputError(f"distance={self.distance} must be a positive number of Å")

    def check(self, structures: Structures, /) -> None:
        _check_there("Coordination", (*self.atoms, *self.neighbours), structures)

    def __call__(self, structures: Structures, /) -> Tensor:
        pairs = [(i, j) for i in self.atoms for j in self.neighbours if i != j]
        vectors = structures.vectors([i for i, _ in pairs], [j for _, j in pairs])
        counts = 1 / (1 + (vectors.square().sum(-1) / self.distance**2) ** 3)
        return counts.sum(1) / len(self.atoms)


def _check_there(what: str, atoms: Sequence[int], structures: Structures) -> None:
    if max(atoms) >= structures.n_atoms:
        raise InputError(
            f"a {what} names atom {max(atoms)}, but the atoms are 0 to {structures.n_atoms - 1}; count from 0"
        )
