"""What adapters of foundation potentials share: their elements, and edges instead of padded neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from ase.data import chemical_symbols
from torch import Tensor

from ubmd.data.batch import AtomicBatch
from ubmd.data.elements import species_numbers
from ubmd.errors import InputError

__all__ = ["edges", "element_places"]


def element_places(places: Mapping[int, int], species: Sequence[str], name: str | None) -> Tensor:
    """[120] place of an atomic number among the elements of a network; -1 for one that it does not know.

    Args:
        places: the places of those that it knows, by atomic number.
        species: chemical symbols that it has to know.
        name: of the weights, for messages.

    Raises:
        InputError: it does not know one of them.
    """
    index = torch.full((120,), -1)
    index[list(places)] = torch.tensor(list(places.values()))
    unknown = [chemical_symbols[z] for z in species_numbers(species) if index[z] < 0]
    if unknown:
        raise InputError(f"model.checkpoint={name} does not know the element {unknown[0]}; choose another model")
    return index


def edges(vectors: Tensor, batch: AtomicBatch, cutoff: float) -> tuple[Tensor, Tensor]:
    """Atoms and columns [n_edges] of the neighbours that are closer than ``cutoff`` (Å), from [n_atoms, k, 3] vectors.

    Networks of others may have cutoff functions that do not vanish beyond it.
    """
    # as what is not beyond: NaN, of a structure that has blown up, has to go on
    beyond = vectors.detach().square().sum(2) >= cutoff**2
    i, k = (batch.mask & ~beyond).nonzero(as_tuple=True)
    return i, k
