"""Training curves of all rounds on one axis."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["CumulativeStep"]


class CumulativeStep(Callback):
    """Logs against the optimisation steps of the whole run: a fresh Trainer counts its own from 0 every round.

    Loggers take the logged ``step`` for the step of everything that is logged with it.

    Args:
        before: steps of the earlier rounds.
    """

    def __init__(self, before: int):
        self.before = before

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module)

    def _log(self, trainer: Trainer, module: LightningModule) -> None:
        module.log("step", float(self.before + trainer.global_step))
