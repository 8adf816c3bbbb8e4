"""Left-out structures against refits and a closed form; weighted quantiles against a plain search."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ubmd.errors import InputError
from ubmd.rounds.run import Calibration
from ubmd.uncertainty import (
    CalibrationData,
    CalibrationSizeError,
    ConformalCalibration,
    CrossConformal,
    MondrianCalibration,
    Posterior,
    Prequential,
    Split,
    conformal_factor,
)
from ubmd.uncertainty.evidence import left_out, weighted


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class FakeBatch:
    """Structures of three atoms that are their features."""

    def __init__(self, features: Tensor, numbers: Tensor):
        self.positions, self.numbers, self.n_systems = features, numbers, len(features)

    def select(self, indices: Tensor) -> FakeBatch:
        return FakeBatch(self.positions[indices], self.numbers[indices])


class OnFeatures(nn.Module):
    """Posteriors of atoms and of their means."""

    def __init__(self, n_features: int, regularisation: float):
        super().__init__()
        self.atomic, self.total = (Posterior(n_features, regularisation).double() for _ in range(2))

    def fit(self, model: Any, batches: Iterable[Any]) -> None:
        features = torch.cat([batch.positions for batch in batches])
        self.atomic.fit(features.flatten(0, 1))
        self.total.fit(features.mean(1))


@pytest.mark.parametrize("folds", [2, 4, 50])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_left_out_is_a_refit_without_the_fold(folds: int, chunk: int) -> None:
    """Against Woodbury's identity in numpy: u^2 = l^2 m' diag(H (I - H)^-1), H of the structure's rows in all others'
    Gram matrix with the others' mean squared norm m'; what order the structures come in is theirs by number."""
    n, n_atoms, width, regularisation = 9, 3, 5, 0.1
    features = random(n, n_atoms, width)
    batch = FakeBatch(features, torch.arange(n))
    uncertainty = OnFeatures(width, regularisation)
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def compare(part: Any) -> CalibrationData:
        atomic = uncertainty.atomic(part.positions.flatten(0, 1)).view(-1, n_atoms)
        total = uncertainty.total(part.positions.mean(1))
        for number, a, t in zip(part.numbers.tolist(), atomic, total, strict=True):
            assert number not in found
            found[number] = a, t
        return CalibrationData(atomic.flatten(), atomic.flatten(), total, total, part.numbers)

    parts = left_out(uncertainty, nn.Identity(), batch, folds, compare=compare, chunk=chunk)  # pyright: ignore
    data = CalibrationData.cat(list(parts))
    assert sorted(found) == list(range(n))
    assert len(data.total_error) == n
    for rows, kind in ((features.numpy(), 0), (features.mean(1, keepdim=True).numpy(), 1)):
        everything = rows.reshape(-1, width)
        for number in range(n):
            fold = [k for k in range(n) if k % folds == number % folds]
            left = rows[fold].reshape(-1, width)
            m = (np.square(everything).sum() - np.square(left).sum()) / (len(everything) - len(left))
            inverse = np.linalg.inv(everything.T @ everything + regularisation**2 * m * np.eye(width))
            h = left @ inverse @ left.T
            squares = regularisation**2 * np.diag(h @ np.linalg.inv(np.eye(len(h)) - h))
            expected = np.sqrt(squares).reshape(len(fold), -1)[fold.index(number)]
            np.testing.assert_allclose(found[number][kind].reshape(-1), expected, rtol=1e-8)


def test_a_single_structure_is_not_left_out() -> None:
    batch = FakeBatch(random(1, 3, 4), torch.arange(1))
    assert not list(left_out(OnFeatures(4, 0.1), nn.Identity(), batch, 3, compare=lambda b: b, chunk=2))  # pyright: ignore


def brute_force(ratio: Tensor, weight: Tensor, alpha: float) -> float:
    """The smallest ratio up to which enough weight lies, the new value's 1 included in all."""
    enough = [r for r in ratio.tolist() if weight[ratio <= r].sum() >= (1 - alpha) * (weight.sum() + 1) - 1e-9]
    return min(enough)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5])
def test_weighted_factor(alpha: float) -> None:
    n = 80
    error, uncertainty = random(n).abs(), random(n, seed=1).abs() + 0.1
    weight = torch.tensor([0.5**k for k in range(4)], dtype=torch.float64).repeat_interleave(n // 4)
    assert conformal_factor(error, uncertainty, alpha, weight) == brute_force(error / uncertainty, weight, alpha)
    for k in range(1, n):  # equal weights are none, for any number of values
        arguments = error[:k], uncertainty[:k], alpha
        try:
            expected = conformal_factor(*arguments)
        except CalibrationSizeError:
            with pytest.raises(CalibrationSizeError, match=f"got {k};"):
                conformal_factor(*arguments, torch.ones(k))
        else:
            assert conformal_factor(*arguments, torch.ones(k)) == expected
    with pytest.raises(CalibrationSizeError, match=r"got 0\.75"):
        conformal_factor(error[:3], uncertainty[:3], alpha, torch.full((3,), 0.25))


def test_weighted_coverage_of_a_drifting_ratio() -> None:
    """Ratios that shrink from round to round: the newest labels, weighted, cover as promised, all alike too much."""
    scales = torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0], dtype=torch.float64).repeat_interleave(200)
    error, ones = random(1000).abs() * scales, torch.ones(1000, dtype=torch.float64)
    new = random(4000, seed=3).abs()
    weight = torch.tensor([0.25**k for k in (4, 3, 2, 1, 0)], dtype=torch.float64).repeat_interleave(200)
    covered = [(new <= conformal_factor(error, ones, 0.1, w)).double().mean().item() for w in (weight, None)]
    assert 0.88 < covered[0] < 0.97 < covered[1]


def test_weights_of_rounds() -> None:
    assert Prequential(1.0).weights(0) == {}
    assert Prequential(1.0).weights(2) == {1: 1.0, 0: 0.5}
    assert list(Prequential(1.0).weights(10)) == [9, 8, 7, 6, 5]
    assert Prequential(2.0).weights(3)[1] == pytest.approx(0.5**0.5)


def test_weights_reach_every_factor() -> None:
    """Two rounds with different ratios: what weighs nothing has no say, for elements one by one neither."""
    numbers, ones = torch.tensor([1, 8]).repeat(60), torch.ones(120, dtype=torch.float64)
    new = CalibrationData(random(120).abs(), ones, random(60).abs(), ones[:60], numbers)
    old = CalibrationData(new.atomic_error + 9, ones, new.total_error + 9, ones[:60], numbers)
    both = CalibrationData.cat([weighted(old, 1e-9), weighted(new, 1.0)])
    for atomic in (ConformalCalibration(0.1), MondrianCalibration(0.1, too_few="error")):
        factors = [atomic.atomic_factors(d.atomic_error, d.atomic_uncertainty, d.numbers, d.atomic_weight)
                   for d in (both, new)]  # fmt: skip
        assert torch.equal(*factors)
    total = ConformalCalibration(0.1)
    assert total.factor(both.total_error, both.total_uncertainty, "", both.total_weight) == total.factor(
        new.total_error, new.total_uncertainty, ""
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossConformal(1), "calibration.evidence.folds=1 must be at least 2"),
        (lambda: Prequential(0.0), "calibration.evidence.half_life=0.0 rounds must be a positive number"),
        (lambda: Prequential(float("nan")), "half_life=nan"),
    ],
)
def test_bad_options(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        make()


def test_evidence_that_cannot_be() -> None:
    class WithoutFeatures:
        n_features = 0

    class WithFeatures:
        n_features = 4

    methods = ConformalCalibration(), ConformalCalibration()
    with pytest.raises(InputError, match="a WithoutFeatures has none; use calibration=conformal"):
        Calibration(*methods, CrossConformal()).check(WithoutFeatures())
    with pytest.raises(InputError, match="calibration=prequential takes the labels of earlier rounds"):
        Calibration(*methods, Prequential()).check(WithFeatures(), rounds=False)
    for evidence, rounds in itertools.product((Split(), Prequential()), (True, True)):
        Calibration(*methods, evidence).check(WithoutFeatures(), rounds=rounds)
    Calibration(*methods, CrossConformal()).check(WithFeatures(), rounds=False)
