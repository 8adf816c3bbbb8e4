"""Conformal calibration: uncertainties that errors exceed with a chosen probability only (Eq. 28)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from ase.data import chemical_symbols
from torch import Tensor

from ubmd.data.batch import AtomicBatch
from ubmd.errors import InputError
from ubmd.models.potential import Prediction
from ubmd.uncertainty.base import N_ELEMENTS, Uncertainty

__all__ = [
    "AtomicCalibration",
    "CalibrationData",
    "CalibrationSizeError",
    "ConformalCalibration",
    "Factors",
    "MondrianCalibration",
    "atomic_error",
    "calibrate",
    "conformal_factor",
    "coverage",
    "held_out_coverage",
    "required_size",
    "total_error",
]

log = logging.getLogger(__name__)

_ROUNDING = 1e-9
"""Absorbs the rounding of products such as 0.9 * 30, which must not reach past an integer."""


class CalibrationSizeError(InputError):
    """Too few calibration values for the confidence asked for."""


def atomic_error(forces: Tensor, reference: Tensor) -> Tensor:
    """Per-atom force RMSE over the three components [n_atoms], eV/Å, of forces [n_atoms, 3]."""
    return ((forces - reference).square().sum(-1) / 3).sqrt()


def total_error(energy: Tensor, reference: Tensor, n_atoms: Tensor) -> Tensor:
    """Absolute energy error per atom [n_systems], eV/atom, of energies [n_systems] in eV."""
    return (energy - reference).abs() / n_atoms


def required_size(alpha: float) -> int:
    """Smallest number of calibration values for which a factor of confidence 1 - alpha exists."""
    return math.ceil(1 / alpha - _ROUNDING) - 1


def conformal_factor(error: Tensor, uncertainty: Tensor, alpha: float, weight: Tensor | None = None) -> float:
    """The factor s for which P(error <= s u) >= 1 - alpha for a new, exchangeable value.

    s is the k-th smallest ratio error / u with k = ceil((1 - alpha) (n + 1)): the quantile with its
    finite-sample correction. A ratio of 0 / 0 counts as 0. A zero uncertainty with a non-zero error
    would need an infinite factor and is an error. With weights, s is the smallest ratio such that the values up to it
    have a share of 1 - alpha of all weights, to which the new value adds 1; weights of 1 change nothing.

    Args:
        error: [n] non-negative.
        uncertainty: [n] non-negative, same unit as ``error`` once multiplied by the factor.
        alpha: accepted rate of errors above the calibrated uncertainty.
        weight: [n] from 0 to 1, of values that are less and less like the new one; None: all are like it.

    Raises:
        CalibrationSizeError: if n is too small, k > n.
        InputError: for alpha outside (0, 1), and for values that are not finite or have no factor.
    """
    ratio = _ratios(error, uncertainty)
    _check_alpha(alpha)
    n = len(ratio)
    if _size(ratio, weight) < required_size(alpha) - _ROUNDING:
        raise CalibrationSizeError(
            f"calibration with alpha={alpha} needs at least {required_size(alpha)} values, got "
            f"{_size(ratio, weight):g}; label more validation structures or raise alpha"
        )
    if weight is not None:
        order = ratio.argsort()
        sums = weight.to(ratio)[order].cumsum(0)
        k = int((sums < (1 - alpha) * (sums[-1] + 1) - _ROUNDING).sum())
        return float(ratio[order[min(k, n - 1)]])
    k = math.ceil((1 - alpha) * (n + 1) - _ROUNDING)
    return float(ratio.sort().values[min(max(k, 1), n) - 1])


@dataclass(frozen=True)
class ConformalCalibration:
    """How to calibrate one kind of uncertainty.

    Raises:
        InputError: for alpha outside (0, 1) or an unknown ``too_small``.
    """

    alpha: float = 0.05
    """Accepted rate of errors above the calibrated uncertainty."""
    too_small: Literal["error", "maximum"] = "error"
    """With too few values for alpha: an error, or the largest ratio (and a warning), which promises less."""

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)
        if self.too_small not in ("error", "maximum"):
            raise InputError(f"calibration.too_small must be 'error' or 'maximum', got {self.too_small!r}")

    def factor(self, error: Tensor, uncertainty: Tensor, what: str, weight: Tensor | None = None) -> float:
        """The conformal factor for errors [n] and uncertainties [n].

        Args:
            error: [n].
            uncertainty: [n].
            what: what is calibrated, for messages, e.g. "atoms".
            weight: [n], see :func:`conformal_factor`.

        Raises:
            CalibrationSizeError: with too few values, unless ``too_small`` is "maximum".
            InputError: for values that are not finite or have no factor, or no values at all.
        """
        try:
            needed, size = required_size(self.alpha), _size(error, weight)
            if self.too_small == "error" or not 0 < size < needed - _ROUNDING:
                return conformal_factor(error, uncertainty, self.alpha, weight)
            message = "calibration of %s with %g value%s, but alpha=%s needs %d: the largest ratio is used"
            log.warning(message, what, size, "" if size == 1 else "s", self.alpha, needed)
            return float(_ratios(error, uncertainty).max())
        except InputError as problem:
            raise type(problem)(f"{what}: {problem}") from None

    def atomic_factors(
        self, error: Tensor, uncertainty: Tensor, numbers: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Conformal factors by atomic number: one for all elements.

        Args:
            error: [n].
            uncertainty: [n].
            numbers: [n] atomic numbers.
            weight: [n], see :func:`conformal_factor`.

        Returns:
            [119] float64.

        Raises:
            CalibrationSizeError, InputError: as :meth:`factor`.
        """
        factor = self.factor(error, uncertainty, "atoms", weight)
        return torch.full((N_ELEMENTS,), factor, dtype=torch.float64, device=error.device)


@dataclass(frozen=True)
class MondrianCalibration:
    """A conformal factor for each element, so that the confidence holds for each and not only on average.

    Raises:
        InputError: for alpha outside (0, 1) or an unknown ``too_few`` or ``too_small``.
    """

    alpha: float = 0.05
    """Accepted rate of errors above the calibrated uncertainty, for each element."""
    too_few: Literal["error", "pooled"] = "pooled"
    """With too few atoms of an element for alpha: an error, or the factor of all elements (and a warning)."""
    too_small: Literal["error", "maximum"] = "error"
    """With too few atoms of all elements together, see :class:`ConformalCalibration`."""

    def __post_init__(self) -> None:
        ConformalCalibration(self.alpha, self.too_small)
        if self.too_few not in ("error", "pooled"):
            raise InputError(f"calibration.too_few must be 'error' or 'pooled', got {self.too_few!r}")

    def atomic_factors(
        self, error: Tensor, uncertainty: Tensor, numbers: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Conformal factors by atomic number: one for each element.

        Elements without any atom have the factor of all elements together, whatever ``too_few`` is.

        Args:
            error: [n].
            uncertainty: [n].
            numbers: [n] atomic numbers.
            weight: [n], see :func:`conformal_factor`.

        Returns:
            [119] float64; entry 0, which is no element, holds the factor of all elements together.

        Raises:
            CalibrationSizeError, InputError: as :meth:`ConformalCalibration.factor`, for any element.
        """
        pooled = ConformalCalibration(self.alpha, self.too_small)
        factors = pooled.atomic_factors(error, uncertainty, numbers, weight)
        own = ConformalCalibration(self.alpha, "error")
        for number in numbers.unique().tolist():
            symbol, members = chemical_symbols[number], numbers == number
            try:
                share = None if weight is None else weight[members]
                factors[number] = own.factor(error[members], uncertainty[members], f"{symbol} atoms", share)
            except CalibrationSizeError as problem:
                if self.too_few == "error":
                    raise
                log.warning("%s; the factor of all elements is used", problem)
        return factors


AtomicCalibration = ConformalCalibration | MondrianCalibration
"""How to calibrate the uncertainties of atoms."""


@dataclass(frozen=True)
class CalibrationData:
    """Errors and uncertainties of labelled structures that the model was not trained on."""

    atomic_error: Tensor
    """[n_atoms] eV/Å."""
    atomic_uncertainty: Tensor
    """[n_atoms] eV/Å."""
    total_error: Tensor
    """[n_systems] eV/atom."""
    total_uncertainty: Tensor
    """[n_systems] eV/atom."""
    numbers: Tensor
    """[n_atoms] atomic numbers."""
    atomic_weight: Tensor | None = None
    """[n_atoms], see :func:`conformal_factor`; None: all alike."""
    total_weight: Tensor | None = None
    """[n_systems], likewise."""

    @classmethod
    def of(cls, prediction: Prediction, batch: AtomicBatch) -> CalibrationData:
        """Compares an unbiased prediction that has uncertainties with a labelled batch.

        Raises:
            InputError: if labels or uncertainties are missing.
        """
        if batch.energy is None or batch.forces is None:
            raise InputError("calibration structures need both energy and force labels")
        if prediction.uncertainty is None or prediction.atomic_uncertainty is None:
            raise InputError("calibration needs a potential that predicts uncertainties")
        return cls(
            atomic_error=atomic_error(prediction.forces, batch.forces).double(),
            atomic_uncertainty=prediction.atomic_uncertainty.double(),
            total_error=total_error(prediction.energy, batch.energy, batch.n_atoms).double(),
            total_uncertainty=prediction.uncertainty.double(),
            numbers=batch.numbers,
        )

    def to(self, device: torch.device) -> CalibrationData:
        """The same data on a device."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in values.items() if value is not None})

    @classmethod
    def cat(cls, parts: Sequence[CalibrationData]) -> CalibrationData:
        """Joins the data of several batches, of which all or none have weights."""
        columns = {f.name: [getattr(p, f.name) for p in parts] for f in fields(cls)}
        known: dict[str, Any] = {name: torch.cat(values) for name, values in columns.items() if values[0] is not None}
        return cls(**known)


@dataclass(frozen=True)
class Factors:
    """Conformal factors of one uncertainty."""

    atomic: Tensor
    """[119] by atomic number, float64; entry 0 is the factor of all elements together."""
    total: float

    @classmethod
    def of(cls, data: CalibrationData, *, atomic: AtomicCalibration, total: ConformalCalibration) -> Factors:
        """The factors for what ``data`` holds.

        Raises:
            CalibrationSizeError, InputError: as the calibrations do.
        """
        return cls(
            atomic.atomic_factors(data.atomic_error, data.atomic_uncertainty, data.numbers, data.atomic_weight),
            total.factor(data.total_error, data.total_uncertainty, "structures", data.total_weight),
        )


@torch.no_grad()
def calibrate(
    uncertainty: Uncertainty,
    data: CalibrationData,
    *,
    atomic: AtomicCalibration,
    total: ConformalCalibration,
) -> Factors:
    """Sets the scales of ``uncertainty`` to the conformal factors of ``data``, and returns those.

    Either both scales change or, after an error, none.

    Args:
        uncertainty: not calibrated since it was fitted.
        data: errors, and what ``uncertainty`` said.
        atomic: calibration of atoms.
        total: calibration of structures.

    Raises:
        CalibrationSizeError, InputError: as the calibrations do.
        ValueError: if ``uncertainty`` is calibrated: a factor of all elements does not follow from
            uncertainties that have a factor for each.
    """
    if not ((uncertainty.atomic_scale == 1).all() and uncertainty.total_scale == 1):
        raise ValueError("the uncertainty is calibrated already: fit it again, or set its scales to 1")
    factors = Factors.of(data, atomic=atomic, total=total)
    uncertainty.atomic_scale.copy_(factors.atomic)
    uncertainty.total_scale.fill_(factors.total)
    return factors


def coverage(data: CalibrationData, factors: Factors) -> tuple[float, float]:
    """Fractions of atoms and of structures whose error is at most ``factors`` times their uncertainty.

    Both are NaN without any.
    """
    atomic = data.atomic_error <= factors.atomic[data.numbers] * data.atomic_uncertainty
    total = data.total_error <= factors.total * data.total_uncertainty
    return atomic.double().mean().item(), total.double().mean().item()


def held_out_coverage(
    calibration: CalibrationData,
    factors: Factors,
    test: CalibrationData,
    *,
    atomic: AtomicCalibration,
    total: ConformalCalibration,
) -> dict[str, float]:
    """Coverage of structures that were used neither for training nor for calibration.

    It should be 1 - alpha, and one half for factors calibrated from the same data with alpha = 0.5. Test
    structures from elsewhere (another temperature, say) need not reach it: the promise is for data alike.

    Args:
        calibration: what was calibrated with.
        factors: that came of it.
        test: held-out data, its uncertainties not calibrated, as those of ``calibration``.
        atomic: the calibration of atoms.
        total: the calibration of structures.

    Returns:
        ``test_coverage_atom`` and ``test_coverage_total``, and both with ``_50`` for alpha = 0.5.
    """
    half = Factors.of(calibration, atomic=replace(atomic, alpha=0.5), total=replace(total, alpha=0.5))
    found = {}
    for suffix, used in (("", factors), ("_50", half)):
        found[f"test_coverage_atom{suffix}"], found[f"test_coverage_total{suffix}"] = coverage(test, used)
    return found


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise InputError(f"alpha must lie between 0 and 1, got {alpha}")


def _size(values: Tensor, weight: Tensor | None) -> float:
    """How many values there are, those of a small weight counting less."""
    return len(values) if weight is None else weight.double().sum().item()


def _ratios(error: Tensor, uncertainty: Tensor) -> Tensor:
    """Ratios error / uncertainty [n] in float64, 0 where both are 0."""
    error, uncertainty = error.detach().double(), uncertainty.detach().double()
    if error.shape != uncertainty.shape or error.ndim != 1:
        raise InputError(f"errors {tuple(error.shape)} and uncertainties {tuple(uncertainty.shape)} do not match")
    for name, values in (("errors", error), ("uncertainties", uncertainty)):
        bad = int((~(torch.isfinite(values) & (values >= 0))).sum())
        if bad:
            raise InputError(f"{bad} of {len(values)} {name} are negative or not finite; drop their structures")
    certain = int(((uncertainty == 0) & (error > 0)).sum())
    if certain:
        raise InputError(f"{certain} of {len(error)} uncertainties are zero but the error is not; check the features")
    return torch.where(error == 0, torch.zeros_like(error), error / uncertainty)
