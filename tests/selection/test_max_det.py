from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ubmd.errors import InputError
from ubmd.selection import MaxDet, Pool, max_det


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pool(features: Tensor, labelled: Tensor) -> Pool:
    return Pool(torch.ones(len(features)), features, labelled)


def dense_covariance(features: Tensor, labelled: Tensor, regularisation: float) -> Tensor:
    """Eq. 25 as it is written, after rescaling the labelled features to a mean squared norm of 1."""
    factor = labelled.square().sum(1).mean().sqrt()
    labelled, features = labelled / factor, features / factor
    matrix = labelled.T @ labelled + regularisation**2 * torch.eye(labelled.shape[1], dtype=labelled.dtype)
    return regularisation**2 * features @ torch.linalg.inv(matrix) @ features.T


@pytest.mark.parametrize(("regularisation", "n_labelled"), [(0.01, 4), (0.01, 40), (0.5, 6)])
def test_every_step_maximises_the_determinant(regularisation: float, n_labelled: int) -> None:
    features, labelled = 20 * normal(30, 8), 20 * normal(n_labelled, 8, seed=1)
    covariance = dense_covariance(features, labelled, regularisation)
    chosen: list[int] = []
    for _ in range(8):
        determinants = torch.tensor(
            [
                -1.0 if i in chosen else torch.linalg.det(covariance[[*chosen, i]][:, [*chosen, i]]).item()
                for i in range(30)
            ]
        )
        chosen.append(int(determinants.argmax()))
    selection = MaxDet(regularisation)(pool(features, labelled), 8)
    assert selection.dtype == torch.int64
    assert selection.tolist() == chosen


def test_first_is_the_most_uncertain_not_the_longest() -> None:
    labelled = torch.tensor([[1.0, 0.0], [0.9, 0.0], [1.1, 0.0]], dtype=torch.float64)
    features = torch.tensor([[5.0, 0.0], [0.0, 0.5]], dtype=torch.float64)
    assert MaxDet()(pool(features, labelled), 2).tolist() == [1, 0]


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_the_order_does_not_depend_on_units(scale: float) -> None:
    candidates = torch.cat([normal(6, 10), normal(6, 10)])
    assert torch.equal(max_det(scale * candidates, 12), max_det(candidates, 12))


def test_copies_come_last_and_ties_go_to_the_lower_index() -> None:
    one = normal(6, 10)
    one[4] *= 0.001
    candidates = torch.cat([one, one])
    order = max_det(candidates, 12).tolist()
    assert sorted(order) == list(range(12)), "each at most once"
    assert sorted(order[:6]) == list(range(6)), "something new, however little, before a copy"
    assert order[6:] == list(range(6, 12)), "nothing but copies left: in order"


def test_copies_of_labelled_structures_are_not_singled_out() -> None:
    """A candidate that is labelled already has next to no uncertainty and is chosen last."""
    labelled = normal(5, 30)
    features = torch.cat([labelled[:2], 0.3 * normal(6, 30, seed=1)])
    assert set(MaxDet()(pool(features, labelled), 8).tolist()[-2:]) == {0, 1}


def test_more_than_the_dimension() -> None:
    order = max_det(normal(20, 3), 20).tolist()
    assert sorted(order) == list(range(20))
    assert order[3:] == sorted(order[3:])


def test_orthogonal_directions_before_a_long_known_one() -> None:
    candidates = torch.tensor([[3.0, 0.0], [2.9, 0.01], [0.0, 0.1]], dtype=torch.float64)
    assert max_det(candidates, 2).tolist() == [0, 2]


def test_tiny_residuals_still_rank() -> None:
    """What is left of a candidate may be 1e-10 of it: differences of squares would drown it in rounding."""
    exponents = [7, 3, 10, 5, 9, 4, 8, 6]
    candidates = torch.zeros(9, 12, dtype=torch.float64)
    candidates[:, 0] = 1
    candidates[8, 0] = 2
    candidates[torch.arange(8), torch.arange(1, 9)] = 10.0 ** -torch.tensor(exponents).double()
    rotation, _ = torch.linalg.qr(normal(12, 12))
    expected = [8, *sorted(range(8), key=lambda i: exponents[i])]
    assert max_det(candidates @ rotation, 9).tolist() == expected


def test_nothing_is_changed_and_nothing_is_random() -> None:
    features, labelled = normal(30, 8), normal(5, 8, seed=1)
    before = features.clone()
    first = MaxDet()(pool(features, labelled), 6, seed=0)
    max_det(features, 3)
    assert torch.equal(features, before)
    torch.manual_seed(1)
    assert torch.equal(MaxDet()(pool(features, labelled), 6, seed=1), first)
    assert MaxDet()(pool(features, labelled), 0).tolist() == []


def test_single_precision_features_are_handled_in_double() -> None:
    features, labelled = normal(30, 8).float(), normal(50, 8, seed=1).float()
    single = MaxDet()(pool(features, labelled), 8)
    assert torch.equal(single, MaxDet()(pool(features.double(), labelled.double()), 8))


def test_refusals() -> None:
    features, labelled = normal(3, 2), normal(5, 2, seed=1)
    with pytest.raises(InputError, match="cannot select 4 structures from a pool of 3"):
        MaxDet()(pool(features, labelled), 4)
    with pytest.raises(InputError, match="features"):
        MaxDet()(Pool(torch.ones(3)), 2)
    with pytest.raises(InputError, match="regularisation"):
        MaxDet(0.0)
    features[1, 0] = torch.nan
    with pytest.raises(InputError, match="1 of 3 candidates"):
        MaxDet()(pool(features, labelled), 2)
