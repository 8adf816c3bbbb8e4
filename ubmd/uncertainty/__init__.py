"""Uncertainties of a trained potential: gradient features, posterior, conformal calibration.

A plain function or a module for each step, put together by
:class:`~ubmd.uncertainty.feature_uncertainty.FeatureUncertainty`:

    readout's trace -> features (Eq. 20) -> posterior (Eq. 4) -> conformal factor (Eq. 28)
"""

from __future__ import annotations

from ubmd.uncertainty.base import Features, FeaturesFactory, Uncertainty
from ubmd.uncertainty.calibration import (
    CalibrationData,
    CalibrationSizeError,
    ConformalCalibration,
    atomic_error,
    calibrate,
    conformal_factor,
    total_error,
)
from ubmd.uncertainty.feature_uncertainty import FeatureUncertainty
from ubmd.uncertainty.features import SketchedGradients
from ubmd.uncertainty.posterior import Posterior, whitening_matrix

__all__ = [
    "CalibrationData",
    "CalibrationSizeError",
    "ConformalCalibration",
    "FeatureUncertainty",
    "Features",
    "FeaturesFactory",
    "Posterior",
    "SketchedGradients",
    "Uncertainty",
    "atomic_error",
    "calibrate",
    "conformal_factor",
    "total_error",
    "whitening_matrix",
]
