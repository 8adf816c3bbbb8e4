"""Elements that a model knows."""

from __future__ import annotations

from collections.abc import Sequence

from ase.data import atomic_numbers

from ubmd.errors import InputError

__all__ = ["species_numbers"]


def species_numbers(species: Sequence[str]) -> list[int]:
    """Atomic numbers of chemical symbols, ascending.

    Raises:
        InputError: for an unknown symbol or a symbol given twice.
    """
    unknown = [s for s in species if not atomic_numbers.get(s)]  # X is a ghost, with the number 0
    if unknown:
        raise InputError(f"system.species names {unknown[0]!r}, which is not a chemical symbol; write e.g. H, C, Al")
    if len(set(species)) != len(species) or not species:
        raise InputError(f"system.species must list each element once, got {list(species)}")
    return sorted(atomic_numbers[s] for s in species)
