"""The system under study: where it starts, what it is made of and how its motion is followed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray

from ubmd.data.io import check_species, check_structure, read_structures
from ubmd.data.perturb import perturb
from ubmd.errors import InputError
from ubmd.models.gmnn import species_numbers

__all__ = ["System"]


@dataclass(frozen=True)
class System:
    """A system to learn a potential for.

    Args:
        structure: the initial structure, or the path of a file that ASE reads (its first frame is taken).
        species: chemical symbols that the model shall know; None takes those of the structure.
        torsions: named dihedral angles (four atom indices each, from 0) that span the space whose
            coverage is followed; empty if there are none.
        n_initial: number of randomly perturbed structures that are labelled before the first round.
        displacement: half-width of the perturbation of each coordinate, Å (Eq. 32).
        strain: half-width of the perturbation of the cell (Eqs. 33, 34); 0 keeps it.
    """

    structure: Atoms | str
    species: Sequence[str] | None = None
    torsions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    n_initial: int = 8
    displacement: float = 0.02
    strain: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.structure, str | Path):
            object.__setattr__(self, "structure", read_structures(self.structure, index="0")[0])
        check_structure(self.atoms, "system.structure")
        if self.species is None:
            object.__setattr__(self, "species", [chemical_symbols[z] for z in sorted(set(self.atoms.numbers))])
        species_numbers(self.symbols)
        check_species([self.atoms], self.symbols, "system.structure")
        if self.n_initial < 2:
            raise InputError(
                f"system.n_initial={self.n_initial} leaves nothing to train on or to calibrate with; use at least 2"
            )
        for name, quantity in (("displacement", self.displacement), ("strain", self.strain)):
            if quantity < 0:
                raise InputError(f"system.{name}={quantity} must not be negative")
            if (not quantity < 1 / 6 and name == "strain") or not np.isfinite(quantity):
                # the eigenvalues of I + 2 eps stay positive for entries of eps below 1/6
                raise InputError(f"system.{name}={quantity} is too large; use a small number such as 0.02")
        if self.strain and not self.periodic:
            raise InputError(f"system.strain={self.strain} needs a structure that is periodic in three directions")
        for name, atoms in self.torsions.items():
            if len(set(atoms)) != 4 or len(atoms) != 4 or not all(0 <= i < len(self.atoms) for i in atoms):
                raise InputError(
                    f"system.torsions.{name}={list(atoms)} must be four different atom indices "
                    f"from 0 to {len(self.atoms) - 1}"
                )

    @property
    def atoms(self) -> Atoms:
        """The initial structure."""
        return self.structure  # pyright: ignore[reportReturnType]

    @property
    def symbols(self) -> list[str]:
        """Chemical symbols of the species."""
        return list(self.species or ())

    @property
    def periodic(self) -> bool:
        """True if the structure is periodic in all three directions."""
        return bool(self.atoms.pbc.all())

    @property
    def torsion_indices(self) -> NDArray[np.int64]:
        """[n_torsions, 4] atom indices."""
        return np.array([list(t) for t in self.torsions.values()], dtype=np.int64).reshape(-1, 4)

    def perturbed(self, rng: np.random.Generator) -> list[Atoms]:
        """The ``n_initial`` structures that a run starts from."""
        return perturb(self.atoms, self.n_initial, displacement=self.displacement, strain=self.strain, rng=rng)
