"""Starts a fit from the regression for atomic energies."""

from __future__ import annotations

from lightning.pytorch import Callback, Trainer

from ubmd.training.module import PotentialModule

__all__ = ["FitScaleShift"]


class FitScaleShift(Callback):
    """Initialises shift and c from the training energies (Eq. 10) before the first step.

    Weights of an earlier fit keep them; only what the energies then lack is added to the shifts.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: PotentialModule) -> None:  # pyright: ignore
        if trainer.ckpt_path is not None:
            return  # a resumed fit has them from its checkpoint
        pl_module.initialise(trainer.datamodule.chunks("train", pl_module.device))  # pyright: ignore
        if trainer.world_size > 1:  # the same to the last bit, whatever the other processes have computed
            pl_module.load_state_dict(trainer.strategy.broadcast(pl_module.state_dict()))
