"""A fixed data set from files, for one fit."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from ase import Atoms
from ase.data import chemical_symbols

from ubmd.data.datamodule import GrowingDataModule
from ubmd.data.electronic import stated
from ubmd.data.foreign import LabelKeys, LabelUnits
from ubmd.data.io import read_labelled
from ubmd.data.labels import has_stress
from ubmd.errors import InputError

__all__ = ["DataFiles"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataFiles:
    """Labelled structures in extended XYZ files, read at once.

    Labels are ``REF_energy``, ``REF_forces`` and ``REF_stress``, or those that ASE reads as results of a
    calculator, all from one source a file (:func:`~ubmd.data.labels.adopt_labels`), or what ``keys`` name.

    Args:
        train: path of the structures to train on.
        valid: path of those that validate and calibrate; None splits ``train`` at random.
        test: held-out structures, or their path; None if there are none.
        batch_size: structures in a training mini-batch.
        evaluation_batch_size: structures evaluated at once.
        validation_fraction: share of ``train`` that validates and calibrates; without meaning if ``valid`` is given.
        keys: what the labels are called in all three files.
        units: of the labels and positions.

    Raises:
        InputError: if a file is missing or unreadable, or lacks labels.
    """

    train: str
    valid: str | None = None
    test: Sequence[Atoms] | str | None = None
    batch_size: int = 32
    evaluation_batch_size: int = 64
    validation_fraction: float = 0.1
    keys: LabelKeys | None = None
    units: LabelUnits | None = None
    train_structures: list[Atoms] = field(init=False, repr=False)
    valid_structures: list[Atoms] = field(init=False, repr=False)
    test_structures: list[Atoms] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        read = partial(read_labelled, keys=self.keys, units=self.units)
        test = read(self.test) if isinstance(self.test, str) else list(self.test or ())
        object.__setattr__(self, "train_structures", read(self.train))
        object.__setattr__(self, "valid_structures", [] if self.valid is None else read(self.valid))
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

    def check_trained(self, module: GrowingDataModule) -> None:
        """Refuses elements that only structures for validation or test have, of which nothing would be learned.

        Raises:
            InputError: naming the option and the element.
        """
        trained = {z for i in module.train_indices for z in module.structures[i].numbers.tolist()}
        drawn = f"data.train, drawn for validation with seed={module.seed}," if self.valid is None else "data.valid"
        valid = [module.structures[i] for i in module.valid_indices]
        for name, part in ((drawn, valid), ("data.test", self.test_structures)):
            foreign = sorted({z for atoms in part for z in atoms.numbers.tolist()} - trained)
            if foreign:
                raise InputError(
                    f"a structure of {name} contains {chemical_symbols[foreign[0]]}, which no structure to train on "
                    "does; add some with it or remove it"
                )

    def datamodule(
        self, *, cutoff: float, species: Sequence[str], stress: bool, dtype: torch.dtype, seed: int, members: int = 1
    ) -> GrowingDataModule:
        """The structures split and ready to be trained on; see :class:`~ubmd.data.datamodule.GrowingDataModule`.

        Raises:
            InputError: for options that it refuses, and where stress is to be trained but no structure has one.
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
        self._remark(stress)
        if self.valid is None:
            module.set_round(0, self.train_structures)
            if stress:
                _check_stress(module)
            return module
        n_train, n_valid = len(self.train_structures), len(self.valid_structures)
        module.set_round(0, [*self.train_structures, *self.valid_structures])
        module.train_indices = list(range(n_train))
        module.valid_indices = list(range(n_train, n_train + n_valid))
        if stress:
            _check_stress(module)
        return module

    def _remark(self, stress: bool) -> None:
        """Says what the labels of the structures leave open."""
        for name, part in self.structures.items():
            without = [atoms for atoms in part if not has_stress(atoms)]
            if stress and without and len(without) < len(part):
                crystals = sum(bool(atoms.pbc.all()) for atoms in without)
                others = ((crystals, "crystals without a REF_stress"), (len(without) - crystals, "molecules or slabs"))
                log.warning(
                    "data.%s: stress counts for %d of %d structures; the others are %s",
                    name,
                    len(part) - len(without),
                    len(part),
                    " and ".join(f"{count} {what}" for count, what in others if count),
                )
        states = {_state(atoms) for part in self.structures.values() for atoms in part}
        for what, values in zip(("charges", "numbers of unpaired electrons"), zip(*states, strict=True), strict=True):
            if len(set(values)) > 1:
                few = ", ".join(f"{value:g}" for value in sorted(set(values))[:5])
                log.warning("data: the structures have several %s (%s), which the model cannot tell apart", what, few)


def _state(atoms: Atoms) -> tuple[float, float]:
    """Total charge and number of unpaired electrons, zero where a structure says nothing."""
    state = stated(atoms)
    return round(state.charge or 0.0, 3) + 0.0, round(abs(state.unpaired or 0.0), 3)


def _check_stress(module: GrowingDataModule) -> None:
    """Refuses a division that leaves all stress to validation."""
    if not any(has_stress(module.structures[i]) for i in module.train_indices):
        raise InputError(
            "no structure to train on is periodic in three directions and has a REF_stress, which "
            "training.loss.stress > 0 needs; add some or set training.loss.stress=0"
        )
