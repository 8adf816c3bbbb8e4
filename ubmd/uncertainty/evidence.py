"""Which errors calibrate an uncertainty: those of a split, of all structures left out in turn, or of earlier rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ubmd.data.batch import AtomicBatch
from ubmd.errors import InputError
from ubmd.uncertainty.base import Uncertainty
from ubmd.uncertainty.calibration import CalibrationData

__all__ = ["CrossConformal", "Evidence", "Prequential", "Split", "left_out", "weighted"]


@dataclass(frozen=True)
class Split:
    """The validation structures calibrate, as in the paper: the fit has seen them only to choose its best weights."""


@dataclass(frozen=True)
class CrossConformal:
    """Training structures calibrate as well, each with the uncertainty as if it had not been in the fit of it.

    The training structures are dealt into folds, and the posterior or the distances are fitted to the features of all
    other folds. That costs no training, and so the network itself has seen each of them: its errors on them are
    smaller than those on new ones, while their uncertainties are not, so that the factor comes out too small
    wherever the network reproduces its labels. It suits fits whose training and validation errors are alike.

    Args:
        folds: number of folds; not below the number of training structures it leaves out one at a time.

    Raises:
        InputError: for fewer than two folds.
    """

    folds: int = 10

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise InputError(f"calibration.evidence.folds={self.folds} must be at least 2")


@dataclass(frozen=True)
class Prequential:
    """The structures that the last rounds have acquired calibrate, each with what the potential before had said.

    They are what walkers find, and as many as a round acquires instead of a tenth of all, but of other fits: the
    factor is right as far as the ratio of error to uncertainty (before any factor) stays alike from fit to fit. Older
    ones count less: a structure weighs 1/2 for every ``half_life`` rounds that it is older than the last round's.
    With unequal weights the factor is the weighted quantile of Barber et al., Ann. Stat. 51, 816 (2023), to which the
    new value adds a weight of 1.

    Args:
        half_life: rounds.

    Raises:
        InputError: for one that is not positive.
    """

    half_life: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.half_life < float("inf"):
            raise InputError(f"calibration.evidence.half_life={self.half_life} rounds must be a positive number")

    def weights(self, index: int) -> dict[int, float]:
        """Weights by round, of those before the given one that weigh at least 0.05, the last one first."""
        weights = {k: 0.5 ** ((index - 1 - k) / self.half_life) for k in range(index - 1, -1, -1)}
        return {k: weight for k, weight in weights.items() if weight >= 0.05}


Evidence = Split | CrossConformal | Prequential


def weighted(data: CalibrationData, weight: float) -> CalibrationData:
    """The same data, each of its structures and atoms with a weight."""
    atomic, total = (torch.full_like(error, weight) for error in (data.atomic_error, data.total_error))
    return replace(data, atomic_weight=atomic, total_weight=total)


def left_out(
    uncertainty: Uncertainty,
    model: nn.Module,
    batch: AtomicBatch,
    folds: int,
    *,
    compare: Callable[[AtomicBatch], CalibrationData],
    chunk: int,
) -> Iterator[CalibrationData]:
    """Errors and uncertainties of training structures, each fold's with an uncertainty that was fitted to the others.

    Args:
        uncertainty: is left fitted to all but the last fold.
        model: whose uncertainty it is.
        batch: the training structures; a single one is not left out.
        folds: how many.
        compare: errors of structures with the uncertainty as it is.
        chunk: structures evaluated at once.
    """

    def parts(indices: Tensor) -> Iterator[AtomicBatch]:
        return (batch.select(part) for part in indices.split(chunk))

    every = torch.arange(batch.n_systems, device=batch.positions.device)
    for fold in range(min(folds, batch.n_systems) if batch.n_systems > 1 else 0):
        out = every % folds == fold
        uncertainty.fit(model, parts(every[~out]))
        yield from map(compare, parts(every[out]))
