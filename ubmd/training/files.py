"""A fixed data set from files, for one fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from ase import Atoms
from ase.data import chemical_symbols

from ubmd.data.datamodule import GrowingDataModule
from ubmd.data.io import read_labelled
from ubmd.errors import InputError

__all__ = ["DataFiles"]


@dataclass(frozen=True)
class DataFiles:
    """Labelled structures in extended XYZ files, read at once.

    Labels are ``REF_energy``, ``REF_forces`` and ``REF_stress``, or those that ASE reads as results of a
    calculator (``energy``, ``forces``, ``stress``).

    Args:
        train: path of the structures to train on.
        valid: path of those that validate and calibrate; None splits ``train`` at random.
        test: held-out structures, or their path; None if there are none.
        batch_size: structures in a training mini-batch.
        evaluation_batch_size: structures evaluated at once.
        validation_fraction: share of ``train`` that validates and calibrates; without meaning if ``valid`` is given.

    Raises:
        InputError: if a file is missing or unreadable, or lacks labels.
    """

    train: str
    valid: str | None = None
    test: Sequence[Atoms] | str | None = None
    batch_size: int = 32
    evaluation_batch_size: int = 64
    validation_fraction: float = 0.1
    train_structures: list[Atoms] = field(init=False, repr=False)
    valid_structures: list[Atoms] = field(init=False, repr=False)
    test_structures: list[Atoms] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        test = read_labelled(self.test) if isinstance(self.test, str) else list(self.test or ())
        object.__setattr__(self, "train_structures", read_labelled(self.train))
        object.__setattr__(self, "valid_structures", [] if self.valid is None else read_labelled(self.valid))
        object.__setattr__(self, "test_structures", test)

    @property
    def structures(self) -> dict[str, list[Atoms]]:
        """All structures by the name of their file's option."""
        return {"train": self.train_structures, "valid": self.valid_structures, "test": self.test_structures}

    @property
    def symbols(self) -> list[str]:
        """Chemical symbols of all elements that occur, by atomic number."""
        numbers = {int(z) for part in self.structures.values() for atoms in part for z in atoms.numbers}
        return [chemical_symbols[z] for z in sorted(numbers)]

    def check_species(self, species: Sequence[str]) -> None:
        """Refuses structures with elements that are not listed.

        Raises:
            InputError: naming the file's option and the element.
        """
        for name, part in self.structures.items():
            for number, atoms in enumerate(part):
                foreign = sorted({chemical_symbols[z] for z in atoms.numbers} - set(species))
                if foreign:
                    raise InputError(
                        f"structure {number} of data.{name} contains {foreign[0]}, which is not in "
                        f"species={list(species)}; add it there or leave species=auto"
                    )

    def datamodule(
        self, *, cutoff: float, species: Sequence[str], stress: bool, dtype: torch.dtype, seed: int, members: int = 1
    ) -> GrowingDataModule:
        """The structures split and ready to be trained on; see :class:`~ubmd.data.datamodule.GrowingDataModule`.

        Raises:
            InputError: for options that it refuses, and for structures without a stress that is needed.
        """
        module = GrowingDataModule(
            cutoff,
            species,
            self.batch_size,
            self.evaluation_batch_size,
            self.validation_fraction,
            self.test_structures,
            stress,
            dtype,
            seed,
            members,
        )
        if self.valid is None and len(self.train_structures) < 2:
            raise InputError(
                f"data.train={self.train} holds one structure, which cannot be split; add some or give data.valid"
            )
        if self.valid is None:
            module.set_round(0, self.train_structures)
            return module
        n_train, n_valid = len(self.train_structures), len(self.valid_structures)
        module.set_round(0, [*self.train_structures, *self.valid_structures])
        module.train_indices = list(range(n_train))
        module.valid_indices = list(range(n_train, n_train + n_valid))
        return module
