"""Starts a fit from the regression for atomic energies."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, Trainer

from ubmd.training.module import PotentialModule

__all__ = ["FitScaleShift"]


class FitScaleShift(Callback):
    """Initialises shift and c from the training energies (Eq. 10) before the first step."""

    def on_fit_start(self, trainer: Trainer, pl_module: PotentialModule) -> None:  # pyright: ignore
        if trainer.ckpt_path is not None:
            return  # a resumed fit has them from its checkpoint
        batch = trainer.datamodule.split("train", pl_module.device)  # pyright: ignore
        assert isinstance(batch.energy, torch.Tensor)
        pl_module.model.fit_scale_shift(batch.energy, pl_module.model.composition(batch))
