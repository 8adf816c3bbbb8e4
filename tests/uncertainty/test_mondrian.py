from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from ubmd.errors import InputError
from ubmd.uncertainty import (
    POOLED,
    CalibrationData,
    CalibrationSizeError,
    ConformalCalibration,
    MondrianCalibration,
    calibrate,
    conformal_factor,
    held_out_coverage,
)

ALPHA = 0.1


def atoms(n: int, seed: int) -> CalibrationData:
    """Hydrogen's errors are a tenth of carbon's at the same uncertainty; structures are all alike."""
    generator = torch.Generator().manual_seed(seed)

    def random() -> Tensor:
        return torch.rand(n, generator=generator, dtype=torch.float64)

    numbers = torch.where(random() < 0.7, 1, 6)
    uncertainty = 0.1 + random()
    error = uncertainty * random() * torch.where(numbers == 1, 0.3, 3.0)
    total = 0.1 + random()
    return CalibrationData(error, uncertainty, total * random(), total, numbers)


def coverage(data: CalibrationData, factors: Tensor, number: int) -> float:
    members = data.numbers == number
    covered = data.atomic_error[members] <= factors[number] * data.atomic_uncertainty[members]
    return covered.double().mean().item()


def test_every_element_is_covered_where_one_factor_fails() -> None:
    data, test = atoms(4000, 0), atoms(40000, 1)
    arguments = data.atomic_error, data.atomic_uncertainty, data.numbers
    plain = ConformalCalibration(ALPHA).atomic_factors(*arguments)
    mondrian = MondrianCalibration(ALPHA).atomic_factors(*arguments)
    assert coverage(test, plain, 1) == 1.0
    assert coverage(test, plain, 6) < 0.75, "the data must need it"
    for number in (1, 6):
        assert coverage(test, mondrian, number) == pytest.approx(1 - ALPHA, abs=0.02)
        members = data.numbers == number
        assert mondrian[number] == conformal_factor(arguments[0][members], arguments[1][members], ALPHA)
    assert mondrian[POOLED] == mondrian[8] == plain[POOLED], "elements without data"
    assert (plain == plain[0]).all()


def test_calibrate_sets_a_scale_for_each_element() -> None:
    class Scales:
        atomic_scale = torch.ones(119)
        total_scale = torch.ones(())

    data = atoms(200, 3)
    methods = {"atomic": MondrianCalibration(ALPHA), "total": ConformalCalibration(ALPHA)}
    factors = calibrate(Scales(), data, **methods)  # pyright: ignore
    assert Scales.atomic_scale[6] > 5 * Scales.atomic_scale[1]
    torch.testing.assert_close(Scales.atomic_scale.double(), factors.atomic, rtol=1e-6, atol=0.0)


def test_too_few_atoms_of_an_element(caplog: pytest.LogCaptureFixture) -> None:
    error, numbers = torch.arange(1.0, 31.0), torch.tensor([1] * 25 + [8] * 5)
    uncertainty = torch.ones(30)
    with caplog.at_level(logging.WARNING):
        factors = MondrianCalibration(ALPHA).atomic_factors(error, uncertainty, numbers)
    assert factors[1] == 24.0
    assert factors[8] == factors[POOLED] == 28.0
    assert "O atoms" in caplog.text
    assert "at least 9 values, got 5" in caplog.text
    assert "H atoms" not in caplog.text
    with pytest.raises(CalibrationSizeError, match=r"O atoms: .* got 5"):
        MondrianCalibration(ALPHA, too_few="error").atomic_factors(error, uncertainty, numbers)


def test_too_few_atoms_at_all() -> None:
    few = torch.tensor([1.0, 2.0]), torch.ones(2), torch.tensor([1, 1])
    with pytest.raises(CalibrationSizeError, match=r"^atoms: "):
        MondrianCalibration(ALPHA).atomic_factors(*few)
    factors = MondrianCalibration(ALPHA, too_small="maximum").atomic_factors(*few)
    assert factors[1] == 2.0


def test_bad_options() -> None:
    with pytest.raises(InputError, match="too_few"):
        MondrianCalibration(too_few="ignore")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="too_small"):
        MondrianCalibration(too_small="ignore")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="alpha"):
        MondrianCalibration(alpha=1.0)


@pytest.mark.parametrize("atomic", [ConformalCalibration(ALPHA), MondrianCalibration(ALPHA)])
def test_held_out_coverage(atomic: ConformalCalibration | MondrianCalibration) -> None:
    class Scales:
        atomic_scale = torch.ones(119)
        total_scale = torch.ones(())

    data, test, methods = atoms(4000, 0), atoms(40000, 1), {"atomic": atomic, "total": ConformalCalibration(ALPHA)}
    factors = calibrate(Scales(), data, **methods)  # pyright: ignore
    found = held_out_coverage(data, factors, test, **methods)
    assert set(found) == {
        "test_coverage_atom",
        "test_coverage_total",
        "test_coverage_atom_50",
        "test_coverage_total_50",
    }
    for name, value in found.items():
        assert value == pytest.approx(0.5 if name.endswith("_50") else 1 - ALPHA, abs=0.03), name
    # the same by hand, with the scales that were set
    covered = test.atomic_error <= Scales.atomic_scale[test.numbers] * test.atomic_uncertainty
    assert found["test_coverage_atom"] == pytest.approx(covered.double().mean().item(), abs=1e-3)


def test_coverage_of_worse_data_is_lower() -> None:
    data, test = atoms(4000, 0), atoms(4000, 1)
    worse = CalibrationData(
        3 * test.atomic_error, test.atomic_uncertainty, 3 * test.total_error, test.total_uncertainty, test.numbers
    )
    methods = {"atomic": ConformalCalibration(ALPHA), "total": ConformalCalibration(ALPHA)}

    class Scales:
        atomic_scale = torch.ones(119)
        total_scale = torch.ones(())

    factors = calibrate(Scales(), data, **methods)  # pyright: ignore
    found = held_out_coverage(data, factors, worse, **methods)
    # a ratio uniform on [0, 3] is below 0.9 three times in ten
    assert found["test_coverage_total"] == pytest.approx(0.3, abs=0.03)
    assert found["test_coverage_total_50"] == pytest.approx(1 / 6, abs=0.03)
