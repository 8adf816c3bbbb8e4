"""Conformal calibration: uncertainties that errors exceed with a chosen probability only (Eq. 28)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ubmd.data.batch import AtomicBatch
from ubmd.errors import InputError
from ubmd.models.potential import Prediction
from ubmd.uncertainty.base import Uncertainty

__all__ = [
    "CalibrationData",
    "CalibrationSizeError",
    "ConformalCalibration",
    "atomic_error",
    "calibrate",
    "conformal_factor",
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


def conformal_factor(error: Tensor, uncertainty: Tensor, alpha: float) -> float:
    """The factor s for which P(error <= s u) >= 1 - alpha for a new, exchangeable value.

    s is the k-th smallest ratio error / u with k = ceil((1 - alpha) (n + 1)): the quantile with its
    finite-sample correction. A ratio of 0 / 0 counts as 0. A zero uncertainty with a non-zero error
    would need an infinite factor and is an error.

    Args:
        error: [n] non-negative.
        uncertainty: [n] non-negative, same unit as ``error`` once multiplied by the factor.
        alpha: accepted rate of errors above the calibrated uncertainty.

    Raises:
        CalibrationSizeError: if n is too small, k > n.
        InputError: for alpha outside (0, 1), and for values that are not finite or have no factor.
    """
    ratio = _ratios(error, uncertainty)
    _check_alpha(alpha)
    n = len(ratio)
    if n < required_size(alpha):
        raise CalibrationSizeError(
            f"calibration with alpha={alpha} needs at least {required_size(alpha)} values, got {n}; "
            "label more validation structures or raise alpha"
        )
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

    def factor(self, error: Tensor, uncertainty: Tensor, what: str) -> float:
        """The conformal factor for errors [n] and uncertainties [n].

        Args:
            error: [n].
            uncertainty: [n].
            what: what is calibrated, for messages, e.g. "atoms".

        Raises:
            CalibrationSizeError: with too few values, unless ``too_small`` is "maximum".
            InputError: for values that are not finite or have no factor, or no values at all.
        """
        try:
            needed = required_size(self.alpha)
            if self.too_small == "error" or not 0 < len(error) < needed:
                return conformal_factor(error, uncertainty, self.alpha)
            message = "calibration of %s with %d values, but alpha=%s needs %d: the largest ratio is used"
            log.warning(message, what, len(error), self.alpha, needed)
            return float(_ratios(error, uncertainty).max())
        except InputError as problem:
            raise type(problem)(f"{what}: {problem}") from None


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
        )

    @classmethod
    def cat(cls, parts: Sequence[CalibrationData]) -> CalibrationData:
        """Joins the data of several batches."""
        return cls(
            atomic_error=torch.cat([p.atomic_error for p in parts]),
            atomic_uncertainty=torch.cat([p.atomic_uncertainty for p in parts]),
            total_error=torch.cat([p.total_error for p in parts]),
            total_uncertainty=torch.cat([p.total_uncertainty for p in parts]),
        )


@torch.no_grad()
def calibrate(
    uncertainty: Uncertainty,
    data: CalibrationData,
    *,
    atomic: ConformalCalibration,
    total: ConformalCalibration,
) -> None:
    """Multiplies the scales of ``uncertainty`` by the conformal factors of ``data``.

    ``data`` holds the uncertainties that the present scales gave, so calibrating twice is harmless.
    Either both scales change or, after an error, none.
    """
    atomic_factor = atomic.factor(data.atomic_error, data.atomic_uncertainty, "atoms")
    total_factor = total.factor(data.total_error, data.total_uncertainty, "structures")
    uncertainty.atomic_scale.mul_(atomic_factor)
    uncertainty.total_scale.mul_(total_factor)


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise InputError(f"calibration.alpha must lie between 0 and 1, got {alpha}")


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
