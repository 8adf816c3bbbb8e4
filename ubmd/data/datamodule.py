"""The growing data set of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from ubmd.data.batch import AtomicBatch, collate
from ubmd.data.foreign import LabelKeys, LabelUnits
from ubmd.data.io import check_species, read_labelled
from ubmd.data.labels import has_stress
from ubmd.errors import InputError
from ubmd.seeding import Stage, stage_rng

__all__ = ["GrowingDataModule", "split_indices"]

RESIDENT_ATOMS = 1_000_000
"""Of a split whose tensors are kept; with their neighbours these take up to some gibibytes."""


def split_indices(n: int, validation_fraction: float, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Random training and validation indices of ``n`` structures, each sorted and neither empty."""
    n_valid = min(max(1, round(validation_fraction * n)), n - 1)
    order = rng.permutation(n)
    return sorted(order[n_valid:].tolist()), sorted(order[:n_valid].tolist())


class MiniBatches(Sampler[list[int]]):
    """The mini-batches of an epoch as lists of indices.

    A shuffled order is drawn anew each epoch from a stream of (seed, round, epoch), so that a resumed fit sees the same
    one. The members of an ensemble have an order each; a mini-batch then holds every member's ``batch_size``
    structures, member by member. Of processes that train together each takes its part of every mini-batch, and all
    take as many of them; a part may be empty.

    Args:
        n: number of structures.
        batch_size: structures in a mini-batch of one member, of all processes together.
        stream: seed and round of the shuffled orders; None keeps the order as it is.
        members: number of orders.
        part: of this process: its number and how many there are.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        stream: tuple[int, int] | None = None,
        *,
        members: int = 1,
        part: tuple[int, int] = (0, 1),
    ):
        self.n, self.batch_size, self.stream, self.members, self.part = n, batch_size, stream, members, part
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.n // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        orders = np.arange(self.n)[None]
        if self.stream is not None:
            rng = stage_rng(*self.stream, Stage.SHUFFLE, self.epoch)
            orders = np.stack([rng.permutation(self.n) for _ in range(self.members)])
        rank, size = self.part
        for start in range(0, self.n, self.batch_size):
            yield orders[:, start : start + self.batch_size][:, rank::size].ravel().tolist()


class GrowingDataModule(LightningDataModule):
    """All labelled structures of a run, split into training and validation (= calibration) part, and a test set.

    The tensors of a split lie on the trainer's device as one batch, from which mini-batches are gathered;
    nothing is copied and no worker is needed. Those of a split of more than a million atoms are made mini-batch by
    mini-batch from its structures, neighbours included, and are not kept.

    Args:
        cutoff: of the neighbour lists, Å.
        species: chemical symbols that the model knows.
        batch_size: structures in a training mini-batch.
        evaluation_batch_size: structures evaluated at once.
        validation_fraction: share of the labelled structures that validate and calibrate.
        test: held-out structures with labels, or the path of their extended XYZ file; None if there are none.
        stress: require a stress label, of at least one structure.
        dtype: of the tensors.
        seed: root seed of the run.
        members: number of members of the ensemble that is trained, 1 for a single model. A training batch
            holds a mini-batch for each of them, in an order of its own (:class:`MiniBatches`).
        keys: what the labels of ``test`` are called in its file.
        units: of the labels and positions in that file.
    """

    def __init__(
        self,
        cutoff: float,
        species: Sequence[str],
        batch_size: int = 32,
        evaluation_batch_size: int = 64,
        validation_fraction: float = 0.1,
        test: Sequence[Atoms] | str | None = None,
        stress: bool = False,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        members: int = 1,
        keys: LabelKeys | None = None,
        units: LabelUnits | None = None,
    ):
        super().__init__()
        if batch_size < 1 or evaluation_batch_size < 1:
            raise InputError(f"data.batch_size={batch_size} and data.evaluation_batch_size must be at least 1")
        if not 0 < validation_fraction < 1:
            raise InputError(f"data.validation_fraction={validation_fraction} must lie between 0 and 1")
        self.cutoff, self.species, self.dtype, self.stress = cutoff, list(species), dtype, stress
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        self.validation_fraction = validation_fraction
        self.seed, self.members = seed, members
        self.round_index = 0
        self.structures: list[Atoms] = []
        self.train_indices: list[int] = []
        self.valid_indices: list[int] = []
        self._batches: dict[str, AtomicBatch] = {}
        read = partial(read_labelled, keys=keys, units=units)
        self.test_structures = read(test) if isinstance(test, str | Path) else list(test or ())
        check_species(self.test_structures, self.species, "data.test")

    def set_round(self, round_index: int, structures: Sequence[Atoms]) -> None:
        """Takes the labelled structures of a round and draws its training and validation parts."""
        if len(structures) < 2:
            raise InputError(
                f"{len(structures)} labelled structure(s) cannot be split into training and validation parts; "
                "check why the reference rejected the others (system.n_initial, labelling.max_force)"
            )
        check_species(structures, self.species, "the labelled data set")
        if self.stress and not any(map(has_stress, structures)):
            raise InputError(
                "no structure of the labelled data set is periodic in three directions and has a REF_stress, which "
                "training.loss.stress > 0 needs; use a reference that gives stress or set training.loss.stress=0"
            )
        self.round_index, self.structures = round_index, list(structures)
        rng = stage_rng(self.seed, round_index, Stage.SPLIT)
        self.train_indices, self.valid_indices = split_indices(len(structures), self.validation_fraction, rng)
        self._batches = {name: batch for name, batch in self._batches.items() if name == "test"}

    def _members(self, name: str) -> Sequence[Atoms]:
        """Structures of a split."""
        if name == "labelled":
            return self.structures
        if name == "test":
            return self.test_structures
        return [self.structures[i] for i in {"train": self.train_indices, "valid": self.valid_indices}[name]]

    def split(self, name: str, device: torch.device | str = "cpu") -> AtomicBatch:
        """All structures of ``"train"``, ``"valid"``, ``"test"`` or ``"labelled"`` (train and valid) as one batch."""
        if name not in self._batches:
            self._batches[name] = collate(self._members(name), self.cutoff, dtype=self.dtype)
        if self._batches[name].positions.device != torch.device(device):
            self._batches[name] = self._batches[name].to(device)
        return self._batches[name]

    def _gather(self, name: str, device: torch.device | str) -> Callable[[list[int]], AtomicBatch]:
        """Makes a batch of some structures of a split, by their places in it."""
        members = self._members(name)
        if sum(map(len, members)) > RESIDENT_ATOMS:
            return lambda chosen: collate([members[i] for i in chosen], self.cutoff, dtype=self.dtype, device=device)
        batch = self.split(name, device)
        return lambda chosen: batch.select(torch.tensor(chosen, dtype=torch.int64, device=device))

    def chunks(self, name: str, device: torch.device | str = "cpu") -> Iterator[AtomicBatch]:
        """The structures of ``"train"``, ``"valid"``, ``"test"`` or ``"labelled"`` in evaluation batches."""
        gather = self._gather(name, device)
        for indices in MiniBatches(len(self._members(name)), self.evaluation_batch_size):
            yield gather(indices)

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which has a trainer of its own and collates what it needs."""
        return self.__dict__ | {"trainer": None, "_batches": {}}

    def _loader(
        self, name: str, batch_size: int, stream: tuple[int, int] | None = None, *, members: int = 1
    ) -> DataLoader[AtomicBatch]:
        trainer = self.trainer
        device = trainer.strategy.root_device if trainer is not None else torch.device("cpu")
        part = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        gather = self._gather(name, device)

        def gathered(indices: list[int]) -> AtomicBatch:
            chosen = gather(indices)
            if members == 1:
                return chosen
            owners = torch.arange(members, device=device)
            return chosen.replace(member=owners.repeat_interleave(len(indices) // members))

        sampler = MiniBatches(len(self._members(name)), batch_size, stream, members=members, part=part)
        # what the sampler gives is a mini-batch already
        return DataLoader(_Itself(), sampler=sampler, batch_size=None, collate_fn=gathered)

    def train_dataloader(self) -> DataLoader[AtomicBatch]:
        size = min(self.batch_size, len(self.train_indices))
        return self._loader("train", size, (self.seed, self.round_index), members=self.members)

    def val_dataloader(self) -> DataLoader[AtomicBatch]:
        return self._loader("valid", self.evaluation_batch_size)

    def test_dataloader(self) -> DataLoader[AtomicBatch]:
        return self._loader("test", self.evaluation_batch_size)

    def predict_dataloader(self) -> DataLoader[AtomicBatch]:
        """The calibration split, which is the validation split."""
        return self._loader("valid", self.evaluation_batch_size)


class _Itself(Dataset[Any]):
    """Hands on what it is asked for."""

    def __getitem__(self, index: Any) -> Any:
        return index
