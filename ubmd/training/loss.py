"""The training loss (Eq. 14)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from torch import Tensor
from torchmetrics import Metric

from ubmd.data.batch import AtomicBatch
from ubmd.errors import InputError
from ubmd.models.potential import Prediction
from ubmd.schema import MAY_BE_INFINITE

__all__ = ["HuberLoss", "Loss", "MeanLoss", "SquaredLoss", "virial_triangle"]


class Loss(Protocol):
    """What training asks of a loss."""

    @property
    def stress(self) -> float:
        """Weight of the stress; without any, stress is neither predicted nor asked for."""
        ...

    def __call__(self, prediction: Prediction, batch: AtomicBatch) -> Tensor:
        """Loss of a labelled batch, a scalar: a sum over its structures."""
        ...


def virial_triangle(stress: Tensor, volume: Tensor) -> Tensor:
    """Upper triangle of V sigma, [n_systems, 6] eV, from stress [n_systems, 3, 3] and volume [n_systems]."""
    rows, columns = torch.triu_indices(3, 3, device=stress.device)
    return (stress * volume[:, None, None])[:, rows, columns]


def _virial_error(prediction: Prediction, batch: AtomicBatch) -> Tensor:
    """Errors of V sigma, [n_systems, 6] eV; zero, with zero slope, for structures without a reference stress."""
    assert batch.stress is not None
    assert prediction.stress is not None
    error = virial_triangle(prediction.stress - batch.stress, batch.volume)
    return torch.where(batch.has_stress[:, None], error, 0.0)


@dataclass(frozen=True)
class SquaredLoss:
    """Weighted sum of squared errors over a mini-batch (Eq. 14).

    Args:
        energy: C_e, dimensionless.
        forces: C_f, Å².
        stress: C_s, dimensionless (the term is V times the stress, upper triangle, of the structures that have
            one); 0 leaves stress out.
    """

    energy: float = 1.0
    forces: float = 4.0
    stress: float = 0.0

    def __post_init__(self) -> None:
        _check_weights(self.energy, self.forces, self.stress)

    def __call__(self, prediction: Prediction, batch: AtomicBatch) -> Tensor:
        """Loss of a labelled batch, a scalar."""
        assert batch.energy is not None
        assert batch.forces is not None
        loss = self.energy * (prediction.energy - batch.energy).square().sum()
        loss = loss + self.forces * (prediction.forces - batch.forces).square().sum()
        if self.stress and batch.stress is not None:
            loss = loss + self.stress * _virial_error(prediction, batch).square().sum()
        return loss


@dataclass(frozen=True)
class HuberLoss:
    """:class:`SquaredLoss` that grows linearly where an error exceeds a limit (Huber 1964).

    The square of an error e becomes d (2 |e| - d) beyond the limit d, with continuous value and slope. Few
    structures with large forces or bad labels then weigh less; with infinite limits (``inf``, in a YAML file
    ``.inf``) it is :class:`SquaredLoss`. As a configuration, ``training=huber``::

        training:
          loss: {_target_: ubmd.training.loss.HuberLoss, energy_delta: 0.01, forces_delta: 0.1, stress_delta: 0.001}

    Args:
        energy: C_e, dimensionless.
        forces: C_f, Å².
        stress: C_s, dimensionless; 0 leaves stress out.
        energy_delta: limit of the error of the energy per atom, eV/atom.
        forces_delta: limit of the error of a force component, eV/Å.
        stress_delta: limit of the error of a stress component, eV/Å³.

    Raises:
        InputError: for a negative weight, or a limit that is not positive.
    """

    energy: float = 1.0
    forces: float = 4.0
    stress: float = 0.0
    energy_delta: Annotated[float, MAY_BE_INFINITE] = 0.01
    forces_delta: Annotated[float, MAY_BE_INFINITE] = 0.1
    stress_delta: Annotated[float, MAY_BE_INFINITE] = 0.001

    def __post_init__(self) -> None:
        _check_weights(self.energy, self.forces, self.stress)
        for name in ("energy_delta", "forces_delta", "stress_delta"):
            if not getattr(self, name) > 0:
                raise InputError(f"training.loss.{name}={getattr(self, name)} must be positive")

    def __call__(self, prediction: Prediction, batch: AtomicBatch) -> Tensor:
        """Loss of a labelled batch, a scalar."""
        assert batch.energy is not None
        assert batch.forces is not None
        # limits are per atom and per component; a structure's energy and virial have limits of their own
        loss = self.energy * _huber(prediction.energy - batch.energy, self.energy_delta * batch.n_atoms)
        loss = loss + self.forces * _huber(prediction.forces - batch.forces, self.forces_delta)
        if self.stress and batch.stress is not None:
            error = _virial_error(prediction, batch)
            loss = loss + self.stress * _huber(error, self.stress_delta * batch.volume[:, None])
        return loss


def _huber(error: Tensor, delta: Tensor | float) -> Tensor:
    """Sum of e² where |e| <= delta and of delta (2 |e| - delta) beyond."""
    size = error.abs()
    inner = torch.minimum(size, delta.to(size)) if isinstance(delta, Tensor) else size.clamp(max=delta)
    return (inner * (2 * size - inner)).sum()


def _check_weights(energy: float, forces: float, stress: float) -> None:
    for name, weight in (("energy", energy), ("forces", forces), ("stress", stress)):
        if not 0 <= weight < math.inf:
            raise InputError(f"training.loss.{name}={weight} must not be negative, nan or inf")


class MeanLoss(Metric):
    """Mean of a loss over the structures of an epoch, those of all processes that train together.

    Lightning's own mean rounds the number of structures a process down to a whole one.
    """

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, loss: Tensor, n: int) -> None:
        """Adds a mini-batch's loss, which is a sum over its ``n`` structures."""
        self.total += loss
        self.count += n

    def compute(self) -> Tensor:
        return self.total / self.count
