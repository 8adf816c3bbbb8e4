"""Shows how a fit advances."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from ubmd.progress import StageProgress

__all__ = ["FitProgress"]


class FitProgress(Callback):
    """Moves a progress bar once an epoch (a bar per batch would cost more than a small batch)."""

    def __init__(self, stage: StageProgress):
        self.stage = stage
        self._total = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._total = int(trainer.estimated_stepping_batches)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = trainer.callback_metrics
        detail = ""
        if "valid/force_mae" in metrics:
            detail = f"validation force MAE {metrics['valid/force_mae']:.3f} eV/Å"
        self.stage.update(trainer.global_step, self._total, detail)
