"""Fits and calibrates the uncertainty of the best model."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from ubmd.data.batch import AtomicBatch
from ubmd.data.datamodule import GrowingDataModule
from ubmd.models.potential import Prediction
from ubmd.training.module import PotentialModule
from ubmd.uncertainty.base import Uncertainty
from ubmd.uncertainty.calibration import (
    AtomicCalibration,
    CalibrationData,
    ConformalCalibration,
    calibrate,
    held_out_coverage,
)
from ubmd.uncertainty.evidence import CrossConformal, Evidence, Prequential, Split, left_out

__all__ = ["Calibrate"]

log = logging.getLogger(__name__)

SPLIT = Split()


class Calibrate(Callback):
    """Runs over the predict loop, whose dataloader is the calibration split.

    Before the first batch the uncertainty is conditioned on the training structures; every batch adds
    errors and uncertainties; after the last one the conformal factors are set and ``done`` is called. Where
    there is a test set, ``coverage`` then says how many of its errors lie within their uncertainty
    (:func:`~ubmd.uncertainty.calibration.held_out_coverage`); it is empty otherwise.

    Args:
        uncertainty: to be fitted and calibrated.
        atomic: calibration of atomic uncertainties.
        total: calibration of total uncertainties.
        done: called with everything in place, e.g. to save the potential.
        evidence: which errors calibrate.
        earlier: what earlier rounds know, for :class:`~ubmd.uncertainty.evidence.Prequential`; while there is nothing,
            the validation structures calibrate.
    """

    def __init__(
        self,
        uncertainty: Uncertainty,
        atomic: AtomicCalibration,
        total: ConformalCalibration,
        done: Callable[[], None],
        evidence: Evidence = SPLIT,
        earlier: CalibrationData | None = None,
    ):
        self.uncertainty, self.atomic, self.total, self.done = uncertainty, atomic, total, done
        self.evidence, self.earlier = evidence, earlier
        self.seconds = 0.0
        self.errors: dict[str, float] = {}
        self.coverage: dict[str, float] = {}
        self._parts: list[CalibrationData] = []
        self._left_out: list[CalibrationData] = []
        self._started = 0.0

    def on_predict_start(self, trainer: Trainer, pl_module: PotentialModule) -> None:  # pyright: ignore
        self._started = time.perf_counter()
        self._parts, self._left_out = [], []
        self.uncertainty.to(pl_module.device)  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(self.evidence, CrossConformal):
            self._left_out = list(self._cross(trainer.datamodule, pl_module))  # pyright: ignore
        chunks = trainer.datamodule.chunks("train", pl_module.device)  # pyright: ignore
        self.uncertainty.fit(pl_module.model, chunks)

    def on_predict_batch_end(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        trainer: Trainer,
        pl_module: PotentialModule,
        outputs: dict[str, Tensor],
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
        test = self._test_data(trainer, pl_module)
        methods = {"atomic": self.atomic, "total": self.total}
        if self._left_out:
            data = CalibrationData.cat([*self._parts, *self._left_out])
        if isinstance(self.evidence, Prequential):
            if self.earlier is None:
                log.info("no round has acquired labels yet: the validation structures calibrate")
            data = data if self.earlier is None else self.earlier.to(pl_module.device)
        factors = calibrate(self.uncertainty, data, **methods)
        self.coverage = held_out_coverage(data, factors, test, **methods) if test is not None else {}
        self.done()
        self.seconds = time.perf_counter() - self._started

    def _cross(self, datamodule: GrowingDataModule, module: PotentialModule) -> Iterator[CalibrationData]:
        """What the training structures say, each left out of the fit of its uncertainty."""
        assert isinstance(self.evidence, CrossConformal)
        return left_out(
            self.uncertainty,
            module.model,
            datamodule.split("train", module.device),
            self.evidence.folds,
            compare=lambda batch: calibration_data(module, self.uncertainty, module.predict_step(batch), batch),
            chunk=datamodule.evaluation_batch_size,
        )

    def _test_data(self, trainer: Trainer, module: PotentialModule) -> CalibrationData | None:
        """Errors and uncertainties of the test set under the present scales; None without a test set."""
        datamodule: GrowingDataModule = trainer.datamodule  # pyright: ignore
        if not datamodule.test_structures:
            return None
        chunks = datamodule.chunks("test", module.device)
        return CalibrationData.cat(
            [calibration_data(module, self.uncertainty, module.predict_step(b), b) for b in chunks]
        )


@torch.no_grad()
def calibration_data(
    module: PotentialModule, uncertainty: Uncertainty, predicted: Mapping[str, Tensor], batch: AtomicBatch
) -> CalibrationData:
    """Errors and uncertainties of a labelled batch whose energies and forces are predicted already."""
    output, leaf = module.potential.atoms(batch, differentiable=False)
    total, atomic = uncertainty(module.model, output, leaf, batch)
    return CalibrationData.of(
        Prediction(
            energy=predicted["energy"],
            forces=predicted["forces"],
            uncertainty=total,
            atomic_uncertainty=atomic,
        ),
        batch,
    )
