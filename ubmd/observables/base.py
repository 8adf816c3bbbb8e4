"""What a collective variable is: a number of a structure, followed by reports and figures, biased by metadynamics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from ase import Atoms
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ubmd.data.batch import AtomicBatch
from ubmd.errors import InputError
from ubmd.observables.geometry import nearest_images

__all__ = ["CollectiveVariable", "Structures", "check_atoms", "derivatives", "values_of"]

_CHUNK = 256
"""Structures evaluated at once outside of dynamics; bounds the memory of variables of many pairs."""


@dataclass(frozen=True)
class Structures:
    """Structures of the same number of atoms, as collective variables see them."""

    positions: Tensor
    """[m, n, 3] Å."""
    numbers: Tensor
    """[m, n] atomic numbers."""
    lattice: Tensor | None
    """[m, 3, 3] Å, rows are lattice vectors, zeros along directions that are not periodic; None if none is."""

    @property
    def n_atoms(self) -> int:
        """Atoms of a structure."""
        return self.positions.shape[1]

    @classmethod
    def of_batch(cls, batch: AtomicBatch) -> Structures:
        """Walkers of a batch; differentiable by its positions and cell."""
        shape = (batch.n_systems, len(batch.numbers) // batch.n_systems)
        lattice = None if batch.shifts is None else batch.cell * batch.pbc[..., None]
        return cls(batch.positions.view(*shape, 3), batch.numbers.view(shape), lattice)

    @classmethod
    def of_arrays(cls, positions: ArrayLike, numbers: ArrayLike, cell: ArrayLike, pbc: ArrayLike) -> Structures:
        """Frames with positions [m, n, 3], numbers [n] or [m, n], cells [m, 3, 3] and pbc [3] or [m, 3]; float64."""
        xyz = torch.as_tensor(np.asarray(positions, dtype=np.float64))
        z = torch.as_tensor(np.asarray(numbers, dtype=np.int64)).expand(xyz.shape[:2])
        periodic = np.asarray(pbc, dtype=np.bool_)
        lattice = np.asarray(cell, dtype=np.float64) * periodic[..., None] if periodic.any() else None
        return cls(xyz, z, None if lattice is None else torch.as_tensor(lattice))

    def __getitem__(self, chosen: slice) -> Structures:
        lattice = None if self.lattice is None else self.lattice[chosen]
        return Structures(self.positions[chosen], self.numbers[chosen], lattice)

    def vectors(self, origins: Sequence[int], ends: Sequence[int]) -> Tensor:
        """[m, k, 3] Å from each of k atoms to its partner, the nearest image where the structure is periodic."""
        return nearest_images(self.positions[:, list(ends)] - self.positions[:, list(origins)], self.lattice)


@dataclass(frozen=True, kw_only=True)
class CollectiveVariable:
    """A number that says where a structure is, differentiable by positions and cell. A subclass says which.

    A subclass is a frozen dataclass of its own options; :meth:`__call__` is all that it must have.

    Args:
        width: standard deviation of a hill of metadynamics, in the variable's unit; None if it is not biased.
        bounds: the range whose coverage is followed; None takes that of a period, or follows none.

    Raises:
        InputError: for a width or bounds that are none.
    """

    unit: ClassVar[str] = ""
    """``Å``, ``rad``, ``Å³`` ...; empty for a plain number."""
    period: ClassVar[float | None] = None
    """After which values repeat; None if they do not."""
    of_cell: ClassVar[bool] = False
    """Whether it depends on the cell alone."""

    width: float | None = None
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.width is not None and not 0 < self.width < math.inf:
            raise InputError(f"width={self.width} must be a positive number")
        if self.bounds is not None:
            object.__setattr__(self, "bounds", tuple(self.bounds))
            if len(self.bounds) != 2 or not -math.inf < self.bounds[0] < self.bounds[1] < math.inf:
                raise InputError(f"bounds={list(self.bounds)} must be two numbers, the lower one first")

    def __call__(self, structures: Structures, /) -> Tensor:
        """[m] the variable of each structure."""
        raise NotImplementedError

    def check(self, structures: Structures, /) -> None:
        """Raises InputError if the structures have no such variable."""

    @property
    def range(self) -> tuple[float, float] | None:
        """The range whose coverage is followed, if any."""
        if self.bounds is None and self.period is not None:
            return -self.period / 2, self.period / 2
        return self.bounds

    @property
    def wraps(self) -> bool:
        """Whether the range is a whole period, into which all values are folded."""
        return self.bounds is None and self.period is not None


def check_atoms(what: str, atoms: Iterable[int], number: int | None = None) -> tuple[int, ...]:
    """Different atoms, counted from 0, as many as ``number`` says.

    Raises:
        InputError: naming ``what``.
    """
    found = tuple(atoms)
    if len(set(found)) < len(found) or (number is not None and len(found) != number) or min(found, default=-1) < 0:
        count = {2: "two ", 3: "three ", 4: "four "}.get(number or 0, "")
        raise InputError(f"{what}={list(found)} must be {count}different atoms, counted from 0")
    return found


def values_of(
    variables: Mapping[str, CollectiveVariable], structures: Structures | Sequence[Atoms]
) -> dict[str, NDArray[np.float64]]:
    """Values [m] of each variable, by its name.

    Args:
        variables: by name.
        structures: frames, or ASE structures, of which some may have more atoms than others.

    Raises:
        InputError: a structure that has no such variable.
    """
    if not isinstance(structures, Structures):
        return _values_of_atoms(variables, structures)
    parts = [structures[start : start + _CHUNK] for start in range(0, len(structures.positions), _CHUNK)]
    out = {}
    with torch.no_grad():
        for name, variable in variables.items():
            variable.check(structures)
            found = [variable(part).double() for part in parts]
            out[name] = (torch.cat(found) if found else torch.zeros(0)).double().cpu().numpy()
    return out


def _values_of_atoms(
    variables: Mapping[str, CollectiveVariable], structures: Sequence[Atoms]
) -> dict[str, NDArray[np.float64]]:
    out = {name: np.empty(len(structures)) for name in variables}
    kinds = [(len(atoms), bool(atoms.pbc.any())) for atoms in structures]
    for kind in dict.fromkeys(kinds):
        places = [place for place, other in enumerate(kinds) if other == kind]
        alike = [structures[place] for place in places]
        found = Structures.of_arrays(
            [a.positions for a in alike], [a.numbers for a in alike], [a.cell for a in alike], [a.pbc for a in alike]
        )
        for name, values in values_of(variables, found).items():
            out[name][places] = values
    return out


def derivatives(batch: AtomicBatch, variables: Iterable[CollectiveVariable]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Values of all variables together, with the leaves to differentiate by.

    Args:
        batch: structures of the same number of atoms.
        variables: d of them.

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
    structures = Structures.of_batch(strained)
    return torch.stack([variable(structures) for variable in variables], dim=1), (positions, strain)
