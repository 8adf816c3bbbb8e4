from __future__ import annotations

import sys
from functools import partial

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor

from ubmd.data.batch import collate
from ubmd.errors import InputError
from ubmd.models.gmnn import GMNN
from ubmd.selection import (
    LCMD,
    MaxDet,
    MaxDiag,
    MaxDist,
    Pool,
    Random,
    Selection,
    base,
    check_selection,
    distinct,
    max_det,
)
from ubmd.testing import potentials
from ubmd.uncertainty import FeatureUncertainty, SketchedGradients
from ubmd.uncertainty.distance import nearest

ALL: list[Selection] = [Random(), MaxDiag(), MaxDet(), MaxDist(), LCMD()]
BY_FEATURES: list[Selection] = [MaxDet(), MaxDist(), LCMD()]


def ids(selection: Selection) -> str:
    return type(selection).__name__


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pool(features: Tensor, labelled: Tensor) -> Pool:
    return Pool(features.norm(dim=1), features, labelled)


def naive_max_dist(features: Tensor, labelled: Tensor, n: int) -> list[int]:
    """Eq. 27 as it is written."""
    chosen: list[int] = []
    for _ in range(n):
        left = [i for i in range(len(features)) if i not in chosen]
        known = [*labelled, *features[chosen]]
        nearest = [min(float((features[i] - k).square().sum()) for k in known) for i in left]
        chosen.append(left[nearest.index(max(nearest))])
    return chosen


def naive_lcmd(features: Tensor, labelled: Tensor, n: int) -> list[int]:
    """Clusters drawn anew in every step."""
    chosen: list[int] = []
    for _ in range(n):
        centres = [*labelled, *features[chosen]]
        clusters: list[list[tuple[float, int]]] = [[] for _ in centres]
        for i in range(len(features)):
            if i not in chosen:
                distances = [float((features[i] - c).square().sum()) for c in centres]
                clusters[distances.index(min(distances))].append((min(distances), i))
        sizes = [sum(d for d, _ in cluster) for cluster in clusters]
        largest = clusters[sizes.index(max(sizes))]
        chosen.append(max(largest, key=lambda pair: (pair[0], -pair[1]))[1])
    return chosen


@pytest.mark.parametrize("n_labelled", [1, 7])
def test_max_dist_equals_naive(n_labelled: int) -> None:
    features, labelled = normal(40, 3), normal(n_labelled, 3, seed=1)
    found = MaxDist()(pool(features, labelled), 15)
    assert found.dtype == torch.int64
    assert found.tolist() == naive_max_dist(features, labelled, 15)


@pytest.mark.parametrize("n_labelled", [1, 7])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lcmd_equals_naive(n_labelled: int, seed: int) -> None:
    features, labelled = normal(40, 3, seed=seed), normal(n_labelled, 3, seed=10 + seed)
    found = LCMD()(pool(features, labelled), 20)
    assert found.dtype == torch.int64
    assert found.tolist() == naive_lcmd(features, labelled, 20)


def test_max_dist_avoids_what_is_labelled() -> None:
    features = torch.tensor([[10.0, 0.0], [0.0, 3.0], [0.5, 0.0]], dtype=torch.float64)
    labelled = torch.tensor([[0.0, 0.0], [10.0, 0.1]], dtype=torch.float64)
    assert MaxDist()(pool(features, labelled), 3).tolist() == [1, 2, 0]


def test_lcmd_takes_the_crowd_before_the_outlier() -> None:
    """Many points at a distance of 1 outweigh one at 3: what sets it apart from max_dist."""
    crowd = torch.zeros(20, 2, dtype=torch.float64)
    crowd[:, 0] = torch.linspace(1.0, 1.1, 20)
    outlier = torch.tensor([[-3.0, 50.0]], dtype=torch.float64)
    labelled = torch.tensor([[0.0, 0.0], [0.0, 50.0]], dtype=torch.float64)
    together = pool(torch.cat([crowd, outlier]), labelled)
    assert LCMD()(together, 2).tolist() == [19, 20]
    assert MaxDist()(together, 1).tolist() == [20]


def test_max_diag_takes_the_most_uncertain() -> None:
    uncertainty = torch.tensor([0.3, 0.9, 0.1, 0.9, 0.5])
    assert MaxDiag()(Pool(uncertainty), 4).tolist() == [1, 3, 4, 0]
    with pytest.raises(InputError, match="1 of 2"):
        MaxDiag()(Pool(torch.tensor([1.0, torch.nan])), 1)


def test_random_is_uniform_and_seeded() -> None:
    candidates = Pool(torch.ones(6))
    first = Random()(candidates, 6, seed=3)
    torch.manual_seed(1)
    assert torch.equal(Random()(candidates, 6, seed=3), first)
    picks = torch.stack([Random()(candidates, 2, seed=s) for s in range(1200)])
    counts = torch.bincount(picks.flatten(), minlength=6)
    assert (counts - 400).abs().max() < 5 * 400**0.5
    assert all(len(set(p)) == 2 for p in picks.tolist())


@pytest.mark.parametrize("selection", ALL, ids=ids)
def test_never_the_same_twice_and_copies_last(selection: Selection) -> None:
    different = normal(6, 8)
    candidates = pool(torch.cat([different, different]), normal(3, 8, seed=1))
    order = selection(candidates, 12, seed=0).tolist()
    assert sorted(order) == list(range(12))
    if selection.needs_features:
        assert {i % 6 for i in order[:6]} == set(range(6)), "something new before a copy"
        assert order[:6] == [i % 6 for i in order[:6]], "of two equal ones the lower index"
        assert order[6:] == sorted(order[6:])


@pytest.mark.parametrize("selection", BY_FEATURES, ids=ids)
def test_copies_of_labelled_structures_come_last(selection: Selection) -> None:
    labelled = normal(5, 30)
    features = torch.cat([labelled[:2], normal(6, 30, seed=1)])
    assert set(selection(pool(features, labelled), 8, seed=0).tolist()[-2:]) == {0, 1}


@pytest.mark.parametrize("selection", BY_FEATURES, ids=ids)
def test_all_the_same(selection: Selection) -> None:
    features = torch.ones(4, 3, dtype=torch.float64)
    assert selection(pool(features, features[:1]), 3, seed=0).tolist() == [0, 1, 2]


@pytest.mark.parametrize("selection", ALL, ids=ids)
def test_same_again_and_nothing_changed(selection: Selection) -> None:
    candidates = pool(normal(30, 8), normal(5, 8, seed=1))
    assert candidates.features is not None
    before = candidates.features.clone()
    first = selection(candidates, 6, seed=4)
    assert torch.equal(selection(candidates, 6, seed=4), first)
    assert torch.equal(candidates.features, before)
    assert selection(candidates, 0, seed=4).tolist() == []


@pytest.mark.parametrize("selection", ALL, ids=ids)
def test_refusals(selection: Selection) -> None:
    candidates = pool(normal(3, 2), normal(5, 2, seed=1))
    with pytest.raises(InputError, match="cannot select 4 structures from a pool of 3"):
        selection(candidates, 4, seed=0)
    if selection.needs_features:
        with pytest.raises(InputError, match="features"):
            selection(Pool(torch.ones(3)), 2, seed=0)
        assert candidates.features is not None
        candidates.features[1, 0] = torch.nan
        with pytest.raises(InputError, match="1 of 3 candidates"):
            selection(candidates, 2, seed=0)
    else:
        assert len(selection(Pool(torch.ones(3)), 2, seed=0)) == 2


def test_selection_must_fit_the_uncertainty() -> None:
    class Without:
        n_features = 0

    class With:
        n_features = 4

    for selection in ALL:
        check_selection(selection, With())  # pyright: ignore
    check_selection(MaxDiag(), Without())  # pyright: ignore
    with pytest.raises(InputError, match=r"LCMD needs features, which Without has not; use selection=max_diag"):
        check_selection(LCMD(), Without())  # pyright: ignore


def test_distinct() -> None:
    base = Atoms("CO", [[0.0, 0.0, 0.0], [1.1, 0.0, 0.0]], cell=[5, 5, 5], pbc=True)
    rounding, moved, stretched, other = (base.copy() for _ in range(4))
    rounding.positions[0] = -1e-10
    moved.positions[1, 0] += 1e-5
    stretched.set_cell([5, 5, 5.001])
    other.numbers = np.array([6, 7])
    candidates = [moved, base, rounding, stretched, other, moved.copy()]
    assert distinct(candidates, []) == [0, 1, 3, 4]
    assert distinct(candidates, [base, other]) == [0, 3]
    assert distinct([], [base]) == []


def test_pools_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features do not depend on how many structures are in memory together."""
    model = GMNN(["H", "C", "O"], hidden=(8,), n_basis=2).double()
    uncertainty = FeatureUncertainty(partial(SketchedGradients, n_projections=5), model)
    structures = [a for a in potentials.structures() if set(a.symbols) <= {"H", "C", "O"}] * 3
    settings = {"cutoff": model.cutoff, "dtype": torch.float64}
    whole = uncertainty.total_features(model, collate(structures, **settings))
    for most_atoms, batch_size in ((2**16, 64), (2**16, 5), (9, 2), (1, 1)):
        monkeypatch.setattr(base, "MOST_ATOMS", most_atoms)
        found = base.pool_features(uncertainty, model, structures, batch_size=batch_size, **settings)
        torch.testing.assert_close(found, whole)
    assert base.pool_features(uncertainty, model, [], batch_size=1, **settings).shape == (0, 5)


@pytest.mark.parametrize("size", [1, 50, 10**6])
def test_max_det_does_not_depend_on_the_blocks_it_works_in(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features = normal(200, 4) @ normal(4, 12, seed=1) + 1e-3 * normal(200, 12, seed=2)
    before = features.clone()
    expected = max_det(features, 30)
    monkeypatch.setattr(sys.modules["ubmd.selection.max_det"], "_BLOCK", size)
    assert max_det(features, 30).tolist() == expected.tolist()
    assert torch.equal(features, before)


def test_the_nearest_of_many_copies_is_the_first() -> None:
    points = normal(30, 6)
    points[7:19] = points[7]
    rows = torch.cat([points[12:14], points[7] + 1e-3 * normal(20, 6, seed=1), normal(200, 6, seed=2)]) + 50.0
    points += 50.0
    distances = (rows[:, None] - points).square().sum(2)
    expected, index = distances.min(1).values, [row.tolist().index(row.min()) for row in distances]
    distance, found = nearest(rows, points)
    torch.testing.assert_close(distance, expected, rtol=1e-12, atol=0.0)
    assert found.tolist() == index
    assert distance[:2].tolist() == [0.0, 0.0]
