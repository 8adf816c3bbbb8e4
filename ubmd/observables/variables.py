"""Collective variables: a few numbers that say where a structure is, differentiable by positions and cell."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ubmd.data.batch import AtomicBatch
from ubmd.errors import InputError

__all__ = ["CellLengths", "CollectiveVariables", "Torsions", "Volume", "variable_derivatives"]


class CollectiveVariables(nn.Module):
    """Some collective variables of the same kind; a subclass says which.

    Args:
        widths: [d] standard deviations of a hill, in the variables' units.
        periods: [d]; infinite for a variable that is not periodic.
    """

    of_cell = False
    """Whether they depend on the cell alone."""

    def __init__(self, widths: Sequence[float], periods: Sequence[float]):
        super().__init__()
        self.widths, self.periods = tuple(widths), tuple(periods)

    def forward(self, batch: AtomicBatch, /) -> Tensor:
        """[n_systems, d], differentiable by the positions and the cell of ``batch``."""
        raise NotImplementedError

    def check(self, batch: AtomicBatch, /) -> None:
        """Raises InputError if the structures have no such variables."""


class Torsions(CollectiveVariables):
    """Torsion angles, rad in (-π, π], 0 for cis (IUPAC). Positions are used as they are: molecules must be whole.

    Args:
        atoms: for each torsion, by name, its four atoms, counted from 0 within a structure.
        width: of a hill, rad.

    Raises:
        InputError: without torsions, for one that is not four different atoms, or for a width not above 0.
    """

    atoms: Tensor

    def __init__(self, atoms: Mapping[str, Sequence[int]], width: float = 0.35):
        if not atoms:
            raise InputError("metadynamics on torsions needs some: name four atoms each in system.torsions")
        for name, four in atoms.items():
            if len(four) != 4 or len(set(four)) != 4 or min(four) < 0:
                raise InputError(f"torsion {name}={list(four)} must be four different atoms, counted from 0")
        super().__init__([_positive("width", width)] * len(atoms), [2 * math.pi] * len(atoms))
        self.register_buffer("atoms", torch.tensor([list(four) for four in atoms.values()]), persistent=False)

    def forward(self, batch: AtomicBatch, /) -> Tensor:
        starts = batch.n_atoms.cumsum(0) - batch.n_atoms
        rows = starts[:, None, None] + self.atoms
        p0, p1, p2, p3 = batch.positions[rows].unbind(2)
        axis = p2 - p1
        normal_first = torch.linalg.cross(p1 - p0, axis)
        normal_last = torch.linalg.cross(axis, p3 - p2)
        sine = axis.norm(dim=-1) * ((p1 - p0) * normal_last).sum(-1)
        return torch.atan2(sine, (normal_first * normal_last).sum(-1))

    def check(self, batch: AtomicBatch, /) -> None:
        last, smallest = int(self.atoms.max()), int(batch.n_atoms.min())
        if last >= smallest:
            raise InputError(f"a torsion names atom {last}, but the atoms are 0 to {smallest - 1}; count from 0")


class Volume(CollectiveVariables):
    """The cell's volume, Å³.

    Args:
        width: of a hill, Å³.
    """

    of_cell = True

    def __init__(self, width: float = 20.0):
        super().__init__([_positive("width", width)], [math.inf])

    def forward(self, batch: AtomicBatch, /) -> Tensor:
        return torch.linalg.det(batch.cell).abs()[:, None]

    def check(self, batch: AtomicBatch, /) -> None:
        _check_cell(batch)


class CellLengths(CollectiveVariables):
    """Lengths of lattice vectors, Å.

    Args:
        axes: which of the three, counted from 0.
        width: of a hill, Å.
    """

    of_cell = True
    axes: Tensor

    def __init__(self, axes: Sequence[int] = (0, 1, 2), width: float = 0.2):
        if not axes or len(set(axes)) != len(axes) or not set(axes) <= {0, 1, 2}:
            raise InputError(f"axes={list(axes)} must be some of 0, 1 and 2")
        super().__init__([_positive("width", width)] * len(axes), [math.inf] * len(axes))
        self.register_buffer("axes", torch.tensor(list(axes)), persistent=False)

    def forward(self, batch: AtomicBatch, /) -> Tensor:
        return batch.cell.norm(dim=2)[:, self.axes]

    def check(self, batch: AtomicBatch, /) -> None:
        _check_cell(batch)


def variable_derivatives(
    batch: AtomicBatch, variables: Iterable[Callable[[AtomicBatch], Tensor]]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Values of all variables together, with the leaves to differentiate by.

    Returns:
        values [n_systems, d] float64, and the leaves: positions [n_atoms, 3] and the strain eps
        [n_systems, 3, 3] of r -> (1 + eps) r, zero; make its derivative symmetric, as
        :func:`~ubmd.models.potential.differentiate` does.
    """
    positions = batch.positions.detach().double().requires_grad_()
    cell = batch.cell.detach().double()
    strain = torch.zeros_like(cell).requires_grad_()
    strained = batch.replace(
        # row vectors: (1 + eps) r is r + r eps^T
        positions=positions + torch.einsum("nb,nab->na", positions, strain[batch.system_idx]),
        cell=cell + torch.einsum("skb,sab->ska", cell, strain),
    )
    return torch.cat([variable(strained) for variable in variables], dim=1), (positions, strain)


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise InputError(f"{name} must be positive, got {value}")
    return float(value)


def _check_cell(batch: AtomicBatch) -> None:
    if not bool(batch.pbc.all()):
        raise InputError("a bias on the cell needs structures that are periodic in three directions")
