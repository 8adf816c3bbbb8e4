from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest
import torch
from ase import Atoms

from ubmd.data.batch import AtomicBatch, collate

CUTOFF = 3.0


def molecule(n: int, seed: int = 0, *, labels: str = "") -> Atoms:
    rng = np.random.default_rng(seed)
    atoms = Atoms(numbers=rng.choice([1, 6, 8], size=n), positions=rng.uniform(0, 3, size=(n, 3)))
    return with_labels(atoms, labels)


def crystal(n: int, seed: int = 0, *, labels: str = "") -> Atoms:
    atoms = molecule(n, seed)
    atoms.set_cell([[2.9, 0, 0], [0.7, 3.1, 0], [0.2, -0.6, 3.0]])
    atoms.pbc = True
    return with_labels(atoms, labels)


def with_labels(atoms: Atoms, labels: str) -> Atoms:
    rng = np.random.default_rng(len(atoms))
    if "e" in labels:
        atoms.info["REF_energy"] = float(rng.normal())
    if "f" in labels:
        atoms.arrays["REF_forces"] = rng.normal(size=(len(atoms), 3))
    if "s" in labels:
        atoms.info["REF_stress"] = rng.normal(size=(3, 3))
    return atoms


def assert_equal(found: AtomicBatch, expected: AtomicBatch) -> None:
    """Equal up to the width of the padding."""
    for field in fields(AtomicBatch):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if field.name in ("neighbours", "mask", "shifts") or a is b is None:
            continue
        assert torch.equal(torch.nan_to_num(a, nan=1e9), torch.nan_to_num(b, nan=1e9)), field.name
    for row in range(len(expected.positions)):
        assert pairs(found, row) == pairs(expected, row)


def pairs(batch: AtomicBatch, row: int) -> list[tuple[float, ...]]:
    found = []
    for column in batch.mask[row].nonzero().flatten():
        shift = (0.0,) * 3 if batch.shifts is None else tuple(batch.shifts[row, column].tolist())
        found.append((float(batch.neighbours[row, column]), *shift))
    return sorted(found)


def test_collate_lays_structures_end_to_end() -> None:
    first, second = crystal(3, labels="efs"), crystal(5, seed=1, labels="efs")
    batch = collate([first, second], CUTOFF, dtype=torch.float64)
    assert batch.n_systems == 2
    assert batch.n_atoms.tolist() == [3, 5]
    assert batch.system_idx.tolist() == [0] * 3 + [1] * 5
    np.testing.assert_array_equal(batch.positions, np.vstack([first.positions, second.positions]))
    np.testing.assert_array_equal(batch.numbers, np.hstack([first.numbers, second.numbers]))
    np.testing.assert_array_equal(batch.cell, [np.asarray(first.cell), np.asarray(second.cell)])
    np.testing.assert_allclose(batch.volume, [first.get_volume(), second.get_volume()])
    assert batch.energy is not None
    assert batch.forces is not None
    assert batch.stress is not None
    assert batch.energy.tolist() == [first.info["REF_energy"], second.info["REF_energy"]]
    np.testing.assert_array_equal(batch.forces[3:], second.arrays["REF_forces"])
    np.testing.assert_array_equal(batch.stress[1], second.info["REF_stress"])
    assert (batch.system_idx[batch.neighbours] == batch.system_idx[:, None]).all()


def test_vectors_point_from_the_neighbour_to_the_atom() -> None:
    """ASE's neighbour list as another source: D = r_j - r_i with its periodic images."""
    from ase.neighborlist import neighbor_list

    structures = [crystal(4), molecule(5)]
    batch = collate(structures, CUTOFF, dtype=torch.float64)
    vectors, start = batch.vectors().numpy(), 0
    for atoms in structures:
        i, D = neighbor_list("iD", atoms, CUTOFF)
        for row in range(len(atoms)):
            mine = vectors[start + row][batch.mask[start + row].numpy()]
            theirs = -D[i == row]
            assert mine.shape == theirs.shape
            difference = np.linalg.norm(mine[:, None] - theirs[None], axis=-1)
            assert difference.min(axis=0).max(initial=0.0) < 1e-12
            assert difference.min(axis=1).max(initial=0.0) < 1e-12
        start += len(atoms)
    padding = vectors[~batch.mask.numpy()]
    assert len(padding) > 0
    assert np.linalg.norm(padding, axis=1).min() > 100 * CUTOFF


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_types(dtype: torch.dtype) -> None:
    batch = collate([crystal(3, labels="efs")], CUTOFF, dtype=dtype)
    for name in ("positions", "cell", "shifts", "forces", "stress"):
        assert getattr(batch, name).dtype == dtype, name
    for name in ("numbers", "system_idx", "n_atoms", "neighbours"):
        assert getattr(batch, name).dtype == torch.int64, name
    for name in ("pbc", "mask"):
        assert getattr(batch, name).dtype == torch.bool, name


@pytest.mark.parametrize(
    ("labels", "kept"),
    [
        (("efs", "efs"), {"energy", "forces", "stress"}),
        (("efs", "ef"), {"energy", "forces", "stress"}),
        (("e", "ef"), {"energy"}),
        (("fs", "es"), {"stress"}),
        (("efs", ""), {"stress"}),
        (("ef", "ef"), {"energy", "forces"}),
    ],
)
def test_labels_that_count(labels: tuple[str, str], kept: set[str]) -> None:
    batch = collate([crystal(2, labels=labels[0]), crystal(3, labels=labels[1])], CUTOFF)
    assert {name for name in ("energy", "forces", "stress") if getattr(batch, name) is not None} == kept


def test_only_crystals_have_a_stress() -> None:
    slab, wire, box = crystal(2, labels="s"), crystal(2, labels="s"), crystal(2, labels="s")
    slab.pbc, wire.pbc, box.pbc = (True, True, False), (False, True, False), False
    batch = collate([slab, crystal(2, labels="s"), wire, crystal(2, labels="ef"), box], CUTOFF)
    assert batch.stress is not None
    assert batch.has_stress.tolist() == [False, True, False, False, False]
    assert batch.stress.isnan().all(dim=2).all(dim=1).tolist() == [True, False, True, True, True]
    assert collate([slab, box], CUTOFF).stress is None
    assert not collate([slab, box], CUTOFF).has_stress.any()


def test_label_energies_keep_their_digits() -> None:
    """Total energies of 10^4 eV lose meV in single precision, in labels as in sums of atomic energies."""
    atoms = crystal(2, labels="f")
    atoms.info["REF_energy"] = -56000.1237
    batch = collate([atoms], CUTOFF, dtype=torch.float32)
    assert batch.energy is not None
    assert batch.energy.double().item() == pytest.approx(-56000.1237, abs=1e-6)


def test_molecules_have_no_cell_and_no_shifts() -> None:
    boxed = molecule(3)
    boxed.set_cell([10, 10, 10])
    batch = collate([boxed, molecule(4)], CUTOFF)
    assert batch.shifts is None
    assert torch.count_nonzero(batch.cell) == 0
    assert batch.volume.tolist() == [0.0, 0.0]


def test_nothing_to_collate() -> None:
    with pytest.raises(ValueError, match="at least one structure"):
        collate([], CUTOFF)


STRUCTURES = [crystal(3, labels="efs"), molecule(1, 2, labels="efs"), crystal(5, 1, labels="efs")]


@pytest.mark.parametrize("chosen", [[0], [2], [1, 0], [2, 1, 0], [0, 1, 2], [2, 2, 0, 2]], ids=str)
def test_select(chosen: list[int]) -> None:
    batch = collate(STRUCTURES, CUTOFF, dtype=torch.float64)
    expected = collate([STRUCTURES[i] for i in chosen], CUTOFF, dtype=torch.float64)
    found = batch.select(torch.tensor(chosen))
    assert_equal(found, expected)
    padding = ~found.mask
    assert (found.neighbours[padding] == torch.arange(len(found.positions))[:, None].expand_as(padding)[padding]).all()


def test_select_of_a_selection_and_of_nothing() -> None:
    batch = collate(STRUCTURES, CUTOFF, dtype=torch.float64)
    again = batch.select(torch.tensor([2, 0, 1])).select(torch.tensor([1, 2]))
    assert_equal(again, batch.select(torch.tensor([0, 1])))
    nothing = batch.select(torch.tensor([], dtype=torch.int64))
    assert nothing.n_systems == 0
    assert len(nothing.positions) == 0


def test_select_without_labels_or_shifts() -> None:
    found = collate([molecule(2), molecule(3)], CUTOFF).select(torch.tensor([1]))
    assert found.shifts is found.energy is found.forces is found.stress is None
    assert found.n_atoms.tolist() == [3]


def test_with_neighbours_follows_the_positions() -> None:
    """Atoms move: new neighbours are those of the moved structures, at any cutoff."""
    structures = [crystal(4), molecule(5)]
    batch = collate(structures, 2.0, dtype=torch.float64)
    moved = [a.copy() for a in structures]
    for seed, atoms in enumerate(moved):
        atoms.rattle(0.8, seed=seed)
    positions = torch.from_numpy(np.vstack([a.positions for a in moved]))
    found = batch.replace(positions=positions).with_neighbours(CUTOFF)
    assert_equal(found, collate(moved, CUTOFF, dtype=torch.float64))
    single = batch.to(torch.float32).with_neighbours(CUTOFF)
    assert single.shifts is not None
    assert single.shifts.dtype == torch.float32


def test_sum_atoms() -> None:
    batch = collate(STRUCTURES, CUTOFF)
    values = torch.arange(18.0).reshape(9, 2)
    expected = torch.stack([values[:3].sum(0), values[3], values[4:].sum(0)])
    assert torch.equal(batch.sum_atoms(values), expected)
    assert torch.equal(batch.sum_atoms(values[:, 0]), expected[:, 0])
    assert batch.sum_atoms(torch.ones(9, dtype=torch.int64)).tolist() == [3, 1, 5]


def test_max_atoms() -> None:
    batch = collate(STRUCTURES, CUTOFF)
    values = torch.tensor([-5.0, -3.0, -4.0, -7.0, 0.0, 2.0, 1.0, 9.0, 8.0])
    assert batch.max_atoms(values).tolist() == [-3.0, -7.0, 9.0]
    values[1] = torch.nan
    assert torch.isnan(batch.max_atoms(values)).tolist() == [True, False, False]


def test_to_converts_floating_point_fields_only() -> None:
    batch = collate([crystal(3, labels="efs"), crystal(2, labels="efs")], CUTOFF, dtype=torch.float64)
    fixed = torch.zeros(len(batch.numbers), dtype=torch.bool)
    batch = batch.replace(member=torch.tensor([1, 0]), fixed=fixed)
    single = batch.to("cpu", torch.float32)
    for field in fields(AtomicBatch):
        before, after = getattr(batch, field.name), getattr(single, field.name)
        if before.is_floating_point():
            assert after.dtype == torch.float32 or field.name == "energy", field.name
            torch.testing.assert_close(after.double(), before.double(), rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(after, before), field.name
    meta = batch.to(torch.device("meta"))
    assert all(getattr(meta, field.name).device.type == "meta" for field in fields(AtomicBatch))


def test_is_immutable() -> None:
    batch = collate([molecule(2)], CUTOFF)
    with pytest.raises(FrozenInstanceError):
        batch.positions = batch.positions + 1  # pyright: ignore
    changed = batch.replace(positions=batch.positions + 1)
    assert torch.equal(changed.positions, batch.positions + 1)
    assert changed.neighbours is batch.neighbours
