"""Learning rates as the loggers see them."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from ubmd.training.module import parameter_groups

__all__ = ["LearningRates"]


class LearningRates(Callback):
    """Logs the learning rate of each group of parameters, ``lr/<group>``, at the end of an epoch.

    Unlike Lightning's ``LearningRateMonitor``, which counts steps from 0 in every round, it logs against the steps of
    the whole run (:class:`~ubmd.callbacks.steps.CumulativeStep`), and does nothing without a logger.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        names = parameter_groups(pl_module.model)  # pyright: ignore[reportArgumentType]
        for name, group in zip(names, trainer.optimizers[0].param_groups, strict=True):
            pl_module.log(f"lr/{name}", float(group["lr"]))
