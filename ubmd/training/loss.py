"""The training loss (Eq. 14)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ubmd.data.batch import AtomicBatch
from ubmd.errors import InputError
from ubmd.models.potential import Prediction

__all__ = ["SquaredLoss", "virial_triangle"]


def virial_triangle(stress: Tensor, volume: Tensor) -> Tensor:
    """Upper triangle of V sigma, [n_systems, 6] eV, from stress [n_systems, 3, 3] and volume [n_systems]."""
    rows, columns = torch.triu_indices(3, 3, device=stress.device)
    return (stress * volume[:, None, None])[:, rows, columns]


@dataclass(frozen=True)
class SquaredLoss:
    """Weighted sum of squared errors over a mini-batch (Eq. 14).

    Args:
        energy: C_e, dimensionless.
        forces: C_f, Å².
        stress: C_s, dimensionless (the term is V times the stress, upper triangle); 0 leaves stress out.
    """

    energy: float = 1.0
    forces: float = 4.0
    stress: float = 0.0

    def __post_init__(self) -> None:
        for name in ("energy", "forces", "stress"):
            if getattr(self, name) < 0:
                raise InputError(f"training.loss.{name}={getattr(self, name)} must not be negative")

    def __call__(self, prediction: Prediction, batch: AtomicBatch) -> Tensor:
        """Loss of a labelled batch, a scalar."""
        assert batch.energy is not None
        assert batch.forces is not None
        loss = self.energy * (prediction.energy - batch.energy).square().sum()
        loss = loss + self.forces * (prediction.forces - batch.forces).square().sum()
        if self.stress:
            assert batch.stress is not None
            assert prediction.stress is not None
            error = virial_triangle(prediction.stress - batch.stress, batch.volume)
            loss = loss + self.stress * error.square().sum()
        return loss
