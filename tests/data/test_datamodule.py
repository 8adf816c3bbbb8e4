from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from ubmd.data.batch import AtomicBatch
from ubmd.data.datamodule import GrowingDataModule, MiniBatches, split_indices
from ubmd.data.io import write_structures
from ubmd.errors import InputError


def labelled(n: int, first: int = 0, *, stress: bool = False) -> list[Atoms]:
    """Structures whose energy is their number."""
    out = []
    for number in range(first, first + n):
        atoms = bulk("Cu", cubic=True) if stress else molecule("H2O" if number % 2 else "CH4")
        atoms.rattle(0.05, seed=number)
        atoms.info["REF_energy"] = float(number)
        atoms.arrays["REF_forces"] = np.full((len(atoms), 3), float(number))
        if stress:
            atoms.info["REF_stress"] = np.eye(3) * number
        out.append(atoms)
    return out


def datamodule(**options: Any) -> GrowingDataModule:
    return GrowingDataModule(**({"cutoff": 3.0, "species": ["H", "C", "O", "Cu"]} | options))


def numbers(batches: Any) -> list[list[int]]:
    return [[int(e) for e in batch.energy] for batch in batches]


@pytest.mark.parametrize("n", [2, 3, 5, 8, 10, 64, 512])
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.99])
def test_split_is_complete_and_disjoint(n: int, fraction: float) -> None:
    train, valid = split_indices(n, fraction, np.random.default_rng(0))
    assert sorted(train + valid) == list(range(n))
    assert train == sorted(train)
    assert valid == sorted(valid)
    assert len(train) >= 1
    assert len(valid) == min(max(1, round(n * fraction)), n - 1)


def test_split_is_random() -> None:
    """Every structure validates about as often as any other."""
    rng = np.random.default_rng(0)
    counts = np.bincount([i for _ in range(2000) for i in split_indices(20, 0.1, rng)[1]], minlength=20)
    assert counts.sum() == 4000
    assert np.abs(counts - 200).max() < 5 * np.sqrt(200)


def test_split_depends_on_seed_and_round_but_not_on_history() -> None:
    structures = labelled(40)
    grown, fresh, other = datamodule(seed=1), datamodule(seed=1), datamodule(seed=2)
    splits = []
    for index in range(4):
        grown.set_round(index, structures[: 10 * (index + 1)])
        grown.split("train")
        splits.append(grown.valid_indices)
    fresh.set_round(3, structures)
    other.set_round(3, structures)
    assert fresh.valid_indices == grown.valid_indices
    assert fresh.train_indices == grown.train_indices
    assert other.valid_indices != grown.valid_indices
    fresh.set_round(2, structures)
    assert fresh.valid_indices != grown.valid_indices


def test_splits_hold_their_structures() -> None:
    data = datamodule(test=labelled(3, 100), dtype=torch.float64)
    data.set_round(0, labelled(20))
    assert numbers([data.split("train")]) == [data.train_indices]
    assert numbers([data.split("valid")]) == [data.valid_indices]
    assert numbers([data.split("labelled")]) == [list(range(20))]
    assert numbers([data.split("test")]) == [[100, 101, 102]]
    assert data.split("train").positions.dtype == torch.float64
    assert data.split("train") is data.split("train")


def test_a_new_round_replaces_all_but_the_test_set() -> None:
    data = datamodule(test=labelled(3, 100))
    data.set_round(0, labelled(4))
    kept = data.split("test")
    for name in ("train", "valid", "labelled"):
        data.split(name)
    data.set_round(1, labelled(12, 50))
    assert data.split("test") is kept
    assert numbers([data.split("labelled")]) == [list(range(50, 62))]
    assert numbers([data.split("train")]) == [[50 + i for i in data.train_indices]]
    assert numbers([data.split("valid")]) == [[50 + i for i in data.valid_indices]]


def test_chunks() -> None:
    data = datamodule(evaluation_batch_size=3, test=labelled(7))
    assert numbers(data.chunks("test")) == [[0, 1, 2], [3, 4, 5], [6]]


def test_loaders_give_every_structure_once() -> None:
    data = datamodule(batch_size=4, evaluation_batch_size=2, validation_fraction=0.25, test=labelled(5, 100))
    data.set_round(0, labelled(20))
    train = numbers(data.train_dataloader())
    assert [len(b) for b in train] == [4, 4, 4, 3]
    assert sorted(n for b in train for n in b) == data.train_indices
    assert numbers(data.val_dataloader()) == [data.valid_indices[i : i + 2] for i in (0, 2, 4)]
    assert numbers(data.predict_dataloader()) == numbers(data.val_dataloader())
    assert numbers(data.test_dataloader()) == [[100, 101], [102, 103], [104]]
    for batch in data.train_dataloader():
        assert isinstance(batch, AtomicBatch)
        assert batch.forces is not None
        expected = batch.energy[batch.system_idx][:, None].expand(-1, 3)  # pyright: ignore
        assert torch.equal(batch.forces, expected)


def test_a_batch_is_never_larger_than_the_data() -> None:
    data = datamodule(batch_size=32)
    data.set_round(0, labelled(8))
    (only,) = data.train_dataloader()
    assert only.n_systems == 7


def test_epochs_shuffle_anew_and_can_be_resumed() -> None:
    sampler = MiniBatches(30, 30, (1, 2))
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        orders += sampler
        assert sorted(orders[-1]) == list(range(30))
        assert list(sampler) == orders[-1:]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    resumed = MiniBatches(30, 30, (1, 2))
    resumed.set_epoch(2)
    assert list(resumed) == orders[2:]
    for other in ((1, 3), (2, 2)):
        assert list(MiniBatches(30, 30, other)) != orders[:1]
    assert list(MiniBatches(5, 2)) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(("n", "members", "stream"), [(13, 1, (1, 2)), (13, 3, (1, 2)), (3, 1, None), (9, 1, (0, 0))])
def test_processes_share_every_mini_batch(n: int, members: int, stream: tuple[int, int] | None) -> None:
    """No structure comes twice or is left out, and all processes take as many mini-batches, of which some are empty."""
    whole = list(MiniBatches(n, 4, stream, members=members))
    parts = [MiniBatches(n, 4, stream, members=members, part=(rank, 3)) for rank in range(3)]
    assert {len(list(part)) for part in parts} == {len(part) for part in parts} == {len(whole)}
    for batch, *shares in zip(whole, *parts, strict=True):
        own = [np.reshape(share, (members, -1)) for share in shares]
        for j, indices in enumerate(np.reshape(batch, (members, -1)).tolist()):
            assert sorted(i for share in own for i in share[j]) == sorted(indices)
        sizes = [share.shape[1] for share in own]
        assert max(sizes) - min(sizes) <= 1


def test_test_set_from_a_file(tmp_path: Path) -> None:
    write_structures(tmp_path / "test.extxyz", labelled(3))
    for given in (tmp_path / "test.extxyz", str(tmp_path / "test.extxyz")):
        assert numbers([datamodule(test=given).split("test")]) == [[0, 1, 2]]
    with pytest.raises(InputError, match="does not exist"):
        datamodule(test=str(tmp_path / "other.extxyz"))


def test_a_stress_is_required_if_it_is_trained_on() -> None:
    data = datamodule(stress=True, test=labelled(2))
    data.set_round(0, [*labelled(1), *labelled(3, stress=True)])
    assert int(data.split("labelled").has_stress.sum()) == 3
    for structures in (labelled(4), [labelled(1, stress=True)[0], *labelled(3)]):
        structures[0].pbc = (True, True, False)
        with pytest.raises(InputError, match=r"no structure of the labelled data set is periodic.*stress=0"):
            data.set_round(1, structures)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size=0"),
        ({"evaluation_batch_size": 0}, r"data\.evaluation_batch_size"),
        ({"validation_fraction": 0.0}, r"data\.validation_fraction=0\.0 must lie between 0 and 1"),
        ({"validation_fraction": 1.0}, r"data\.validation_fraction=1\.0 must lie between 0 and 1"),
        ({"species": ["H", "C"], "test": labelled(2)}, r"structure 1 of data\.test contains O"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        datamodule(**options)


def test_bad_rounds() -> None:
    data = datamodule(species=["H", "C"])
    with pytest.raises(InputError, match=r"1 labelled structure.* cannot be split"):
        data.set_round(0, labelled(1))
    with pytest.raises(InputError, match="structure 1 of the labelled data set contains O"):
        data.set_round(0, labelled(3))
    assert data.structures == []


def test_large_splits_are_collated_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same tensors, and without any that hold more than a mini-batch."""
    kept = datamodule(batch_size=4, evaluation_batch_size=3, test=labelled(5, 100))
    kept.set_round(0, labelled(20))
    expected = [*kept.train_dataloader(), *kept.val_dataloader(), *kept.test_dataloader(), *kept.chunks("labelled")]
    monkeypatch.setattr("ubmd.data.datamodule.RESIDENT_ATOMS", 1)
    data = datamodule(batch_size=4, evaluation_batch_size=3, test=labelled(5, 100))
    data.set_round(0, labelled(20))
    found = [*data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader(), *data.chunks("labelled")]
    assert not data._batches
    for one, other in zip(found, expected, strict=True):
        for field in fields(one):
            a, b = getattr(one, field.name), getattr(other, field.name)
            assert (a is None) == (b is None), field.name
            assert a is None or torch.equal(a, b), field.name
