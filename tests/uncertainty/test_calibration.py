from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import molecule
from scipy import stats
from torch import Tensor

from ubmd.data.batch import collate
from ubmd.errors import InputError
from ubmd.models.potential import Prediction
from ubmd.uncertainty import (
    CalibrationData,
    CalibrationSizeError,
    ConformalCalibration,
    atomic_error,
    calibrate,
    conformal_factor,
    total_error,
)
from ubmd.uncertainty.calibration import required_size


class Scales:
    """The part of an uncertainty that calibration touches."""

    def __init__(self) -> None:
        self.atomic_scale = torch.ones(119)
        self.total_scale = torch.ones(())


@pytest.mark.parametrize(("alpha", "n"), [(0.05, 19), (0.05, 59), (0.2, 37), (0.5, 11)])
def test_coverage_on_exchangeable_data(alpha: float, n: int) -> None:
    """With ratios uniform on [0, 1] the factor is the coverage of new values: Beta(k, n + 1 - k)."""
    generator = torch.Generator().manual_seed(n)
    uncertainty = 10 ** torch.randn(2000, n, generator=generator, dtype=torch.float64)
    error = uncertainty * torch.rand(2000, n, generator=generator, dtype=torch.float64)
    factors = torch.tensor([conformal_factor(e, u, alpha) for e, u in zip(error, uncertainty, strict=True)])
    k = math.ceil(round((1 - alpha) * (n + 1), 9))
    expected = k / (n + 1)
    assert expected >= 1 - alpha - 1e-12
    spread = math.sqrt(expected * (1 - expected) / (n + 2))
    assert abs(factors.mean().item() - expected) < 4 * spread / math.sqrt(2000)
    assert stats.kstest(factors.numpy(), stats.beta(k, n + 1 - k).cdf).pvalue > 1e-4


def test_factor_is_the_kth_smallest_ratio() -> None:
    error = torch.tensor([3.0, 1.0, 9.0, 4.0, 8.0, 2.0, 7.0, 5.0, 6.0])
    uncertainty = torch.full((9,), 2.0)
    assert conformal_factor(error, uncertainty, 0.1) == 4.5
    assert conformal_factor(error, uncertainty, 0.5) == 2.5
    assert conformal_factor(error, uncertainty, 0.51) == 2.5
    assert conformal_factor(error, uncertainty, 0.4999) == 3.0
    assert conformal_factor(error, uncertainty, 0.999) == 0.5


@pytest.mark.parametrize("alpha", [0.5, 0.3, 0.2, 0.1, 1 / 3, 0.05, 0.07, 0.01, 0.001])
def test_required_size(alpha: float) -> None:
    n = required_size(alpha)
    values = torch.ones(n + 1)
    conformal_factor(values[:n], values[:n], alpha)
    assert n == math.ceil(round(1 / alpha, 6)) - 1
    with pytest.raises(CalibrationSizeError, match=rf"at least {n} values, got {n - 1}"):
        conformal_factor(values[: n - 1], values[: n - 1], alpha)


def test_rounding_does_not_cost_a_rank() -> None:
    """0.7 * 10 and others are not whole numbers in floating point; the rank must not go up for that."""
    for n in range(1, 300):
        for hundredths in (3, 10, 30, 45, 90):
            k = -(-(100 - hundredths) * (n + 1) // 100)
            if k <= n:
                ratio = torch.arange(1.0, n + 1)
                assert conformal_factor(ratio, torch.ones(n), hundredths / 100) == k


def test_too_small(caplog: pytest.LogCaptureFixture) -> None:
    error, uncertainty = torch.tensor([1.0, 6.0, 2.0]), torch.tensor([1.0, 2.0, 1.0])
    with pytest.raises(CalibrationSizeError, match=r"structures: .*at least 19 values, got 3"):
        ConformalCalibration().factor(error, uncertainty, "structures")
    with caplog.at_level(logging.WARNING):
        assert ConformalCalibration(too_small="maximum").factor(error, uncertainty, "structures") == 3.0
    assert "structures" in caplog.text
    assert "19" in caplog.text
    caplog.clear()
    enough = torch.arange(20.0)
    assert ConformalCalibration(too_small="maximum").factor(enough, torch.ones(20), "atoms") == 19.0
    assert not caplog.records
    for mode in ("maximum", "error"):
        with pytest.raises(CalibrationSizeError, match="got 0"):
            ConformalCalibration(too_small=mode).factor(error[:0], error[:0], "atoms")


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, float("nan")])
def test_bad_alpha(alpha: float) -> None:
    with pytest.raises(InputError, match="alpha"):
        ConformalCalibration(alpha=alpha)
    with pytest.raises(InputError, match="alpha"):
        conformal_factor(torch.ones(30), torch.ones(30), alpha)


def test_bad_mode() -> None:
    with pytest.raises(InputError, match="too_small"):
        ConformalCalibration(too_small="maximal")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("error", "uncertainty", "message"),
    [
        ([1.0, math.nan], [1.0, 1.0], "1 of 2 errors"),
        ([1.0, 1.0], [1.0, math.inf], "1 of 2 uncertainties"),
        ([1.0, 1.0], [-1.0, -1.0], "2 of 2 uncertainties"),
        ([1.0, 1.0], [1.0, 0.0], "zero"),
        ([1.0], [1.0, 1.0], "do not match"),
    ],
)
def test_bad_values(error: list[float], uncertainty: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        conformal_factor(torch.tensor(error), torch.tensor(uncertainty), 0.5)


def test_nothing_wrong_and_nothing_uncertain() -> None:
    assert conformal_factor(torch.tensor([0.0, 0.0, 2.0]), torch.tensor([0.0, 0.0, 1.0]), 0.5) == 0.0


def test_errors() -> None:
    forces = torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(atomic_error(forces, torch.zeros(2, 3)), torch.tensor([3**0.5, 0.0]))
    error = total_error(torch.tensor([1.0, 5.0]), torch.tensor([4.0, 3.0]), torch.tensor([3, 4]))
    torch.testing.assert_close(error, torch.tensor([1.0, 0.5]))


def data(factor: float, scales: Scales) -> CalibrationData:
    ratio, numbers = torch.arange(1.0, 20.0), torch.full((19,), 6)
    atomic = scales.atomic_scale[numbers]
    return CalibrationData(factor * ratio, atomic, ratio, scales.total_scale * ratio, numbers)


@pytest.mark.parametrize("label", ["energy", "forces"])
def test_both_labels_are_needed(label: str) -> None:
    atoms = molecule("H2O")
    atoms.info["REF_energy"], atoms.arrays["REF_forces"] = 0.0, np.zeros((3, 3))
    batch = collate([atoms], 3.0)
    ones = torch.ones(1, dtype=torch.float64)
    prediction = Prediction(ones, torch.ones(3, 3), uncertainty=ones, atomic_uncertainty=torch.ones(3))
    assert CalibrationData.of(prediction, batch).total_error == pytest.approx(1 / 3)
    with pytest.raises(InputError, match="both energy and force"):
        CalibrationData.of(prediction, replace(batch, **{label: None}))


def test_calibrate_sets_the_scales_once() -> None:
    scales = Scales()
    modes: dict[str, ConformalCalibration] = {
        "atomic": ConformalCalibration(0.5),
        "total": ConformalCalibration(0.1),
    }
    factors = calibrate(scales, data(2.0, scales), **modes)  # pyright: ignore[reportArgumentType]
    assert (scales.atomic_scale == 20.0).all()
    assert scales.total_scale == 1.0
    assert (factors.atomic == 20.0).all()
    assert factors.total == 1.0
    with pytest.raises(ValueError, match="calibrated already"):
        calibrate(scales, data(2.0, scales), **modes)  # pyright: ignore[reportArgumentType]


def test_calibrate_is_all_or_nothing() -> None:
    scales = Scales()
    bad = data(2.0, scales)
    bad = replace(bad, total_error=bad.total_error[:3], total_uncertainty=bad.total_uncertainty[:3])
    with pytest.raises(CalibrationSizeError, match="structures"):
        calibrate(scales, bad, atomic=ConformalCalibration(), total=ConformalCalibration())  # pyright: ignore
    assert (scales.atomic_scale == 1).all()


def test_cat() -> None:
    def part(values: Tensor) -> CalibrationData:
        return CalibrationData(values, values + 1, values + 2, values + 3, values.long())

    joined = CalibrationData.cat([part(torch.arange(3.0)), part(torch.arange(3.0, 5.0))])
    assert torch.equal(joined.total_uncertainty, torch.arange(5.0) + 3)
    assert torch.equal(joined.atomic_uncertainty, torch.arange(5.0) + 1)
