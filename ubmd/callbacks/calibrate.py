"""Fits and calibrates the uncertainty of the best model."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from lightning.pytorch import Callback, Trainer

from ubmd.data.batch import AtomicBatch
from ubmd.models.potential import Prediction
from ubmd.training.module import PotentialModule
from ubmd.uncertainty.base import Uncertainty
from ubmd.uncertainty.calibration import CalibrationData, ConformalCalibration, calibrate

__all__ = ["Calibrate"]


class Calibrate(Callback):
    """Runs over the predict loop, whose dataloader is the calibration split.

    Before the first batch the uncertainty is conditioned on the training structures; every batch adds
    errors and uncertainties; after the last one the conformal factors are set and ``done`` is called.

    Args:
        uncertainty: to be fitted and calibrated.
        atomic: calibration of atomic uncertainties.
        total: calibration of total uncertainties.
        done: called with everything in place, e.g. to save the potential.
    """

    def __init__(
        self,
        uncertainty: Uncertainty,
        atomic: ConformalCalibration,
        total: ConformalCalibration,
        done: Callable[[], None],
    ):
        self.uncertainty, self.atomic, self.total, self.done = uncertainty, atomic, total, done
        self.seconds = 0.0
        self.errors: dict[str, float] = {}
        self._parts: list[CalibrationData] = []
        self._started = 0.0

    def on_predict_start(self, trainer: Trainer, pl_module: PotentialModule) -> None:  # pyright: ignore
        self._started = time.perf_counter()
        self._parts = []
        self.uncertainty.to(pl_module.device)  # pyright: ignore[reportAttributeAccessIssue]
        chunks = trainer.datamodule.chunks("train", pl_module.device)  # pyright: ignore
        self.uncertainty.fit(pl_module.model, chunks)

    def on_predict_batch_end(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        trainer: Trainer,
        pl_module: PotentialModule,
        outputs: Prediction,
        batch: AtomicBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._parts.append(calibration_data(pl_module, self.uncertainty, outputs, batch))

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: PotentialModule) -> None:  # pyright: ignore
        data = CalibrationData.cat(self._parts)
        self.errors = {
            "valid_energy_rmse_mev_per_atom": 1e3 * float(data.total_error.square().mean().sqrt()),
            "valid_force_rmse_ev_per_ang": float(data.atomic_error.square().mean().sqrt()),
        }
        calibrate(self.uncertainty, data, atomic=self.atomic, total=self.total)
        self.done()
        self.seconds = time.perf_counter() - self._started


@torch.no_grad()
def calibration_data(
    module: PotentialModule, uncertainty: Uncertainty, prediction: Prediction, batch: AtomicBatch
) -> CalibrationData:
    """Errors and uncertainties of a labelled batch whose energies and forces are predicted already."""
    with torch.enable_grad():
        output, vectors = module.potential.atoms(batch)
        total, atomic = uncertainty(module.model, output, vectors, batch)
    return CalibrationData.of(
        Prediction(
            energy=prediction.energy,
            forces=prediction.forces,
            uncertainty=total.detach(),
            atomic_uncertainty=atomic.detach(),
        ),
        batch,
    )
