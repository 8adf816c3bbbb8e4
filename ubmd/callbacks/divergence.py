"""Stops a fit whose numbers are no numbers any more."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from ubmd.data.datamodule import GrowingDataModule
from ubmd.errors import InputError
from ubmd.training.module import PotentialModule

__all__ = ["Divergence", "FitDivergedError", "check_best"]

REMEDY = "lower training.learning_rates or limit the gradients with trainer.gradient_clip_val=100"
FAR = 1e3
"""Force error of the best weights, in units of the forces, at which they are worth nothing."""


class FitDivergedError(InputError):
    """The fit diverged; the data are not to blame."""


class Divergence(Callback):
    """Ends the fit after an epoch with a loss, or at a validation with an error, that is not finite.

    If that is due to a few structures, whose energy or forces are not finite with the weights that the fit began with
    either, they are named.
    """

    def __init__(self) -> None:
        self._begun: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: PotentialModule) -> None:  # pyright: ignore
        self._begun = {k: v.detach().clone() for k, v in pl_module.state_dict().items()}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: PotentialModule) -> None:  # pyright: ignore
        self._check(trainer, pl_module, "train/loss")

    def on_validation_end(self, trainer: Trainer, pl_module: PotentialModule) -> None:  # pyright: ignore
        self._check(trainer, pl_module, "valid/")

    def _check(self, trainer: Trainer, module: PotentialModule, names: str) -> None:
        for name, value in trainer.callback_metrics.items():
            if not name.startswith(names) or math.isfinite(value):
                continue
            module.load_state_dict(self._begun)
            bad = _not_finite(module, trainer.datamodule)  # pyright: ignore
            if bad:
                raise InputError(
                    f"of the labelled structures, counted from 0, {', '.join(bad[:5])} has no finite energy or forces, "
                    f"by its label or with any weights ({len(bad)} in all); look for atoms in one place, or drop it"
                )
            raise FitDivergedError(f"the fit diverged in epoch {trainer.current_epoch} ({name} is {value:g}); {REMEDY}")


def check_best(module: PotentialModule, datamodule: GrowingDataModule) -> None:
    """Refuses weights that are the best of a fit and still predict forces that have nothing to do with the labels.

    Raises:
        FitDivergedError: their mean absolute error on the validation structures is not below a thousand times that of
            predicting no forces (at least 1 eV/Å).
    """
    error, size, n = 0.0, 0.0, 0
    for batch in datamodule.chunks("valid", module.device):
        assert batch.forces is not None
        error += float((module.potential(batch).forces - batch.forces).double().abs().sum())
        size += float(batch.forces.double().abs().sum())
        n += batch.forces.numel()
    if not error / n < FAR * max(size / n, 1.0):
        raise FitDivergedError(
            f"the fit diverged: its best weights predict the forces of the validation structures with a mean error of "
            f"{error / n:.2g} eV/Å; {REMEDY}"
        )


def _not_finite(module: PotentialModule, datamodule: GrowingDataModule) -> list[str]:
    """Labelled structures without finite label or prediction; none if that holds for all of them."""
    good = list(_finite(module, datamodule))
    return [] if not any(good) else [str(i) for i, finite in enumerate(good) if not finite]


def _finite(module: PotentialModule, datamodule: GrowingDataModule) -> Iterator[bool]:
    for batch in datamodule.chunks("labelled", module.device):
        prediction = module.potential(batch)
        assert batch.energy is not None
        assert batch.forces is not None
        wrong = ~torch.isfinite(prediction.energy - batch.energy)
        forces = ~torch.isfinite(prediction.forces - batch.forces).all(1)
        wrong |= batch.sum_atoms(forces.long()) > 0
        yield from (~wrong).tolist()
