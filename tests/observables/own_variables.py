"""Collective variables as a user writes them, outside of ubmd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ubmd.observables import CollectiveVariable, Structures


@dataclass(frozen=True)
class Gap(CollectiveVariable):
    """Distance between an atom and its nearest partner, Å."""

    unit = "Å"
    atom: int
    partners: Sequence[int]

    def __call__(self, structures: Structures, /) -> Tensor:
        vectors = structures.vectors([self.atom] * len(self.partners), self.partners)
        return torch.linalg.vector_norm(vectors, dim=-1).min(dim=1).values


@dataclass(frozen=True)
class Neighbours(CollectiveVariable):
    """Number of neighbours of an atom, in any image of a periodic structure but itself."""

    atom: int
    distance: float

    def __call__(self, structures: Structures, /) -> Tensor:
        others = [i for i in range(structures.n_atoms) if i != self.atom]
        r = torch.linalg.vector_norm(structures.vectors([self.atom] * len(others), others), dim=-1)
        return torch.sigmoid(5 * (self.distance - r)).sum(dim=1)
