"""Weights & Biases as a guest of a run."""

from __future__ import annotations

from lightning.pytorch.loggers import WandbLogger

from ubmd.rounds.guest import Guest

__all__ = ["SteadyWandbLogger", "of_wandb"]


class SteadyWandbLogger(Guest, WandbLogger):
    """Lightning's logger of Weights & Biases that never stops a run."""

    service = "wandb"
    packages = ("wandb",)


of_wandb = SteadyWandbLogger.fails
