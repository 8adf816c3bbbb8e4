"""Which uncertainty of a structure a bias follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ubmd.data.batch import AtomicBatch

__all__ = ["BiasQuantity", "SumOfAtomic", "TotalUncertainty"]


class BiasQuantity(Protocol):
    """The u of Eq. 5: one number a structure, differentiable if the uncertainties are."""

    def __call__(self, total: Tensor, atomic: Tensor, batch: AtomicBatch, /) -> Tensor:
        """[n_systems] from the uncertainties of energies [n_systems] (eV/atom) and forces [n_atoms] (eV/Å)."""
        ...


@dataclass(frozen=True)
class TotalUncertainty:
    """The uncertainty of the energy per atom, eV/atom, as in the paper."""

    def __call__(self, total: Tensor, atomic: Tensor, batch: AtomicBatch, /) -> Tensor:
        return total


@dataclass(frozen=True)
class SumOfAtomic:
    """The sum of the atoms' uncertainties, eV/Å.

    The uncertainty of the energy is that of the atoms' mean features and may stay small where one atom's
    environment is unknown; the sum has a term for every atom.
    """

    def __call__(self, total: Tensor, atomic: Tensor, batch: AtomicBatch, /) -> Tensor:
        return batch.sum_atoms(atomic)
