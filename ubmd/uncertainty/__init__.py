"""Uncertainties of a trained potential, calibrated so that errors exceed them with a chosen probability.

A plain function or a module for each step:

    readout's trace -> features (Eq. 20) -> posterior (Eq. 4) or distance (Eq. 3) -> conformal factor (Eq. 28)
    members of an ensemble -> deviation of energies and forces (Eqs. 22, 23) -> conformal factor (Eq. 28)
"""

from __future__ import annotations

from ubmd.uncertainty.base import POOLED, Features, FeaturesFactory, Uncertainty
from ubmd.uncertainty.calibration import (
    AtomicCalibration,
    CalibrationData,
    CalibrationSizeError,
    ConformalCalibration,
    Factors,
    MondrianCalibration,
    atomic_error,
    calibrate,
    conformal_factor,
    coverage,
    held_out_coverage,
    total_error,
)
from ubmd.uncertainty.distance import Distance, farthest_points
from ubmd.uncertainty.ensemble import EnsembleUncertainty
from ubmd.uncertainty.evidence import CrossConformal, Prequential, Split
from ubmd.uncertainty.feature_uncertainty import DistanceUncertainty, FeatureUncertainty
from ubmd.uncertainty.features import FullGradients, LastLayer, SketchedGradients
from ubmd.uncertainty.posterior import Posterior, whitening_matrix

__all__ = [
    "POOLED",
    "AtomicCalibration",
    "CalibrationData",
    "CalibrationSizeError",
    "ConformalCalibration",
    "CrossConformal",
    "Distance",
    "DistanceUncertainty",
    "EnsembleUncertainty",
    "Factors",
    "FeatureUncertainty",
    "Features",
    "FeaturesFactory",
    "FullGradients",
    "LastLayer",
    "MondrianCalibration",
    "Posterior",
    "Prequential",
    "SketchedGradients",
    "Split",
    "Uncertainty",
    "atomic_error",
    "calibrate",
    "conformal_factor",
    "coverage",
    "farthest_points",
    "held_out_coverage",
    "total_error",
    "whitening_matrix",
]
