from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor

from ubmd.errors import InputError
from ubmd.uncertainty import Distance, distance, farthest_points


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def brute_force(features: Tensor, points: Tensor) -> Tensor:
    return torch.stack([min((f - p).norm() for p in points) for f in features])


def naive_farthest(points: Tensor, chosen: list[int], n: int) -> list[int]:
    """Eq. 27, every distance anew in every step."""
    chosen = list(chosen)
    while len(chosen) < n:
        left = [i for i in range(len(points)) if i not in chosen]
        nearest = [min(float((points[i] - points[j]).square().sum()) for j in chosen) for i in left]
        chosen.append(left[nearest.index(max(nearest))])
    return chosen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_train", [1, 3, 50])
def test_equals_brute_force(n_train: int, dtype: torch.dtype) -> None:
    train, features = normal(n_train, 6, dtype=dtype), normal(9, 6, seed=1, dtype=dtype)
    estimator = Distance(6).to(dtype)
    estimator.fit(train)
    torch.testing.assert_close(estimator(features), brute_force(features, train))


def test_parts_and_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, features = normal(50, 6), normal(30, 6, seed=1)
    whole, parts = Distance(6, 20).double(), Distance(6, 20).double()
    whole.fit(train)
    expected = whole(features)
    monkeypatch.setattr(distance, "BLOCK", 64)
    parts.fit_chunks(part for part in train.split(7))
    assert torch.equal(parts(features), expected)


def test_no_digits_are_lost_far_from_the_origin() -> None:
    """Near a training point |a|^2 + |b|^2 - 2 a.b in float32 would be noise, of either sign."""
    train = (1000 + normal(40, 16)).float()
    step = 1e-2 * normal(40, 16, seed=1).float()
    features = train + step
    estimator = Distance(16)
    estimator.fit(train)
    exact = (features.double()[:, None] - train.double()[None]).norm(dim=2).min(1).values
    torch.testing.assert_close(estimator(features).double(), exact, rtol=1e-5, atol=0.0)
    a, b = features, train
    expanded = (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).min(1).values
    assert ((expanded.double() - exact.square()).abs() > 0.5 * exact.square()).any(), "the easy way must fail here"


def test_nearest_of_points_that_rounding_cannot_tell_apart() -> None:
    """Three points 0.05 apart at a distance of 1000: a matrix product in float32 ranks them at random."""
    centres = 1000 * normal(20, 1, 8) / 8**0.5
    train = (centres + 0.02 * normal(20, 3, 8, seed=1)).float()
    features = train[:, 0] + 1e-3 * normal(20, 8, seed=2).float()
    estimator = Distance(8)
    estimator.fit(train.flatten(0, 1))
    exact = (features.double()[:, None] - train.double().flatten(0, 1)[None]).norm(dim=2).min(1).values
    torch.testing.assert_close(estimator(features).double(), exact, rtol=0.2, atol=0.0)


def test_subset_equals_everything_when_it_is_everything() -> None:
    train, features = normal(30, 5), normal(20, 5, seed=1)
    exact, limited, small = Distance(5).double(), Distance(5, 30).double(), Distance(5, 10).double()
    for estimator in (exact, limited, small):
        estimator.fit(train)
    assert torch.equal(limited(features), exact(features))
    assert (small(features) >= exact(features) - 1e-12).all()
    assert (small(features) > exact(features) + 1e-3).any()


def test_subset_is_the_farthest_points_from_the_longest() -> None:
    train = normal(30, 5)
    estimator = Distance(5, 8).double()
    estimator.fit(train)
    longest = int(train.norm(dim=1).argmax())
    expected = train[naive_farthest(train, [longest], 8)]
    torch.testing.assert_close(estimator.points + estimator.centre, expected)


def test_subset_covers_better_than_a_random_one() -> None:
    train = torch.cat([normal(900, 5), 6 + normal(5, 5, seed=1)])
    estimator, random = Distance(5, 60).double(), Distance(5).double()
    estimator.fit(train)
    random.fit(train[:60])
    assert estimator(train).max() < 0.5 * random(train).max()


def test_farthest_points_with_copies_and_ties() -> None:
    points = torch.tensor([[0.0], [3.0], [3.0], [-3.0], [1.0], [0.0]], dtype=torch.float64)
    known = points[0] - points
    order = farthest_points(points, 6, known.square().sum(1)).tolist()
    # 1 and -3 tie for the first place by index; copies of the known or chosen ones come last, in order
    assert order == [1, 3, 4, 0, 2, 5]
    assert farthest_points(points, 0, known.square().sum(1)).tolist() == []


def test_gradient_against_differences() -> None:
    estimator = Distance(6).double()
    estimator.fit(normal(15, 6))
    features = normal(4, 6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(estimator, features)


def test_zero_with_zero_gradient_at_a_training_point() -> None:
    train = normal(15, 6, dtype=torch.float32)
    estimator = Distance(6)
    estimator.fit(train)
    features = train[3:5].clone()
    features[1] += 1.0
    features.requires_grad_()
    found = estimator(features)
    found.sum().backward()
    assert found[0] == 0
    assert features.grad is not None
    assert (features.grad[0] == 0).all()
    assert features.grad[1].norm() == pytest.approx(1.0)


def test_non_finite_rows_stay_alone() -> None:
    estimator = Distance(5).double()
    estimator.fit(normal(30, 5))
    features = normal(3, 5, seed=1)
    expected = estimator(features)
    features[1] = torch.nan
    out = estimator(features)
    assert torch.equal(out[[0, 2]], expected[[0, 2]])
    assert out[1].isnan()


def test_state_round_trip() -> None:
    """Also into one that holds another number of points."""
    estimator, features = Distance(5, 10), normal(4, 5, seed=1, dtype=torch.float32)
    estimator.fit(normal(30, 5, dtype=torch.float32))
    file = io.BytesIO()
    torch.save(estimator.state_dict(), file)
    file.seek(0)
    restored = Distance(5, 10)
    restored.fit(normal(3, 5, seed=9, dtype=torch.float32))
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(restored(features), estimator(features))
    restored.load_state_dict(Distance(5).state_dict())
    with pytest.raises(RuntimeError, match="not been fitted"):
        restored(features)


def test_refusals() -> None:
    with pytest.raises(InputError, match="max_points=0"):
        Distance(3, 0)
    with pytest.raises(InputError, match="at least one"):
        Distance(3).fit(torch.zeros(0, 3))
    with pytest.raises(InputError, match="not finite"):
        Distance(3).fit(torch.full((2, 3), torch.inf))
