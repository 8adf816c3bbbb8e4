"""Collective variables of a crystal's cell."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from ubmd.errors import InputError
from ubmd.observables.base import CollectiveVariable, Structures

__all__ = ["CellLength", "Volume"]


@dataclass(frozen=True)
class _OfCell(CollectiveVariable):
    of_cell = True

    def check(self, structures: Structures, /) -> None:
        if structures.lattice is None or not bool(structures.lattice.any(dim=2).all()):
            raise InputError(f"a {type(self).__name__} needs structures that are periodic in three directions")

    def lattice(self, structures: Structures) -> Tensor:
        """[m, 3, 3] Å."""
        assert structures.lattice is not None, "checked before"
        return structures.lattice


@dataclass(frozen=True)
class Volume(_OfCell):
    """Volume of the cell, Å³.

    Args:
        n_atoms: counts the volume of so many atoms, which makes supercells comparable; None counts the whole cell.
        width: of a hill, Å³.
        bounds: range whose coverage is followed, Å³.
    """

    unit = "Å³"

    n_atoms: int | None = None
    _: KW_ONLY
    width: float | None = 20.0

    def __call__(self, structures: Structures, /) -> Tensor:
        volume = torch.linalg.det(self.lattice(structures)).abs()
        return volume if self.n_atoms is None else self.n_atoms / structures.n_atoms * volume


@dataclass(frozen=True)
class CellLength(_OfCell):
    """Length of a lattice vector, Å.

    Args:
        axis: which of the three, counted from 0.
        width: of a hill, Å.
        bounds: range whose coverage is followed, Å.

    Raises:
        InputError: for another axis.
    """

    unit = "Å"

    axis: int
    _: KW_ONLY
    width: float | None = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.axis not in (0, 1, 2):
            raise InputError(f"axis={self.axis} must be 0, 1 or 2")

    def __call__(self, structures: Structures, /) -> Tensor:
        return torch.linalg.vector_norm(self.lattice(structures)[:, self.axis], dim=-1)
