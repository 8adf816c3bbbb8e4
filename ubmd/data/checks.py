"""What a structure must be for any computation to start from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from ubmd.data.neighbours import neighbour_matrix
from ubmd.errors import InputError

__all__ = ["check_species", "check_structure"]

LONGEST = 1.0e4
"""Å. Models see positions in single precision, whose steps reach 0.001 Å here."""
SHORTEST = 0.1
"""Å, of a lattice vector; no two atoms are that close."""


def check_structure(atoms: Atoms, name: str) -> None:
    """Refuses a structure that no computation can be started from.

    Raises:
        InputError: for no atoms, ghost atoms, coordinates that are no numbers or out of all proportion, sites that are
            occupied in part, a periodic cell without volume, or coinciding atoms.
    """
    if len(atoms) == 0:
        raise InputError(f"{name} has no atoms")
    unknown = np.flatnonzero((atoms.numbers < 1) | (atoms.numbers >= len(chemical_symbols)))
    if len(unknown):
        first = int(unknown[0])
        what = "X (a ghost)" if atoms.numbers[first] == 0 else f"of number {atoms.numbers[first]}"
        raise InputError(f"{name} has an atom {what}, atom {first}, which is no element; remove it or name its element")
    if not np.isfinite(atoms.positions).all():
        bad = int(np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))[0])
        raise InputError(f"{name} has a position that is not a number at atom {bad}; repair or remove it")
    far = np.abs(atoms.positions).max(axis=1)
    if far.max() > LONGEST:
        raise InputError(
            f"{name} has atom {int(far.argmax())} {far.max():.3g} Å from the origin, beyond the {LONGEST:g} Å up to "
            "which positions are exact; wrap it into its cell, move it to the origin or repair it"
        )
    _check_occupancy(atoms, name)
    if atoms.pbc.any():
        _check_cell(atoms, name)
    cell = np.asarray(atoms.cell)[None] if atoms.pbc.any() else np.zeros((1, 3, 3))
    touching = neighbour_matrix(atoms.positions, cell, atoms.pbc[None], np.array([len(atoms)]), 1e-3)[1].any(axis=1)
    if touching.any():
        raise InputError(f"{name} has two atoms in the same place (atom {int(touching.argmax())}); remove one")


def _check_occupancy(atoms: Atoms, name: str) -> None:
    """Refuses an average of several structures, as in the CIF file of a disordered crystal."""
    sites = atoms.info.get("occupancy")
    for site in sites.values() if isinstance(sites, dict) else ():
        for symbol, share in site.items() if isinstance(site, dict) else ():
            if isinstance(share, int | float) and share < 0.999:
                raise InputError(
                    f"{name} has a site that {symbol} occupies to {share:g}, an average that cannot be computed; make "
                    "an ordered structure of it"
                )


def _check_cell(atoms: Atoms, name: str) -> None:
    """Refuses lattice vectors that span no volume, or more than can be."""
    vectors = np.asarray(atoms.cell)[atoms.pbc]
    lengths = np.linalg.norm(vectors, axis=1)
    finite = bool(np.isfinite(vectors).all())
    if finite and lengths.max() > LONGEST:
        raise InputError(f"{name} has a lattice vector of {lengths.max():.3g} Å, above {LONGEST:g} Å; repair its cell")
    if finite and lengths.min() < SHORTEST and lengths.min() > 0:
        raise InputError(f"{name} has a lattice vector of {lengths.min():.3g} Å, below {SHORTEST:g} Å; repair its cell")
    if not finite or np.sqrt(max(np.linalg.det(vectors @ vectors.T), 0.0)) <= 1e-6 * max(np.prod(lengths), 1e-6):
        raise InputError(f"{name} is periodic but its cell has zero volume; give its lattice or switch pbc off")


def check_species(structures: Iterable[Atoms], species: Sequence[str], name: str) -> None:
    """Refuses elements that the model would not know.

    Raises:
        InputError: naming the element and the remedy.
    """
    known = set(species)
    for number, atoms in enumerate(structures):
        foreign = sorted({chemical_symbols[z] for z in atoms.numbers} - known)
        if foreign:
            raise InputError(
                f"structure {number} of {name} contains {foreign[0]}, which is not in "
                f"system.species={sorted(known)}; add it there or remove the structure"
            )
