"""Batch selection by the largest determinant of the posterior covariance (Eqs. 25 and 26)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ubmd.errors import InputError
from ubmd.selection.base import Pool, check_features, check_finite, check_size
from ubmd.uncertainty.distance import first_largest
from ubmd.uncertainty.posterior import gram_matrix, whitening_matrix

__all__ = ["MaxDet", "max_det"]

_ZERO = 1e-24
"""Squared residual, relative to the whole, below which a candidate adds nothing new (float64 rounding)."""
_BLOCK = 2**17
"""Numbers of a block of residuals, one megabyte."""


def max_det(whitened: Tensor, n_select: int) -> Tensor:
    """Greedy maximisation of det[Cov] (Eq. 26) for Cov(S, S') = x . x'.

    Adding a structure multiplies the determinant by the squared norm of the part of its x that is
    orthogonal to those chosen before, so each step takes the largest such part and removes its direction
    from all others: O(n d) a step, no determinant anywhere. Candidates without a remaining part (copies
    of chosen ones) come last; ties go to the lower index.

    Args:
        whitened: x [n, d] of the candidates.
        n_select: how many to choose.

    Returns:
        indices [n_select] int64, in the order of choice.

    Raises:
        InputError: if ``n_select`` exceeds n, or x is not finite.
    """
    check_size(n_select, len(whitened))
    check_finite(whitened, "candidates")
    residual = whitened.detach().to(torch.float64, copy=True)
    blocks = residual.split(max(_BLOCK // max(residual.shape[1], 1), 1))
    squared = torch.cat([rows.square().sum(1) for rows in blocks])
    floor = _ZERO * squared
    chosen = torch.zeros(len(residual), dtype=torch.bool, device=residual.device)
    order = []
    for _ in range(n_select):
        left = torch.where(squared > floor, squared, 0.0).masked_fill(chosen, -1.0)
        best, pick = left.max(), first_largest(left)
        order.append(pick)
        chosen[pick] = True
        if best > 0:
            direction = residual[pick] / best.sqrt()
            # block by block, which stays in the processor's cache: else memory is what takes time
            squared = torch.cat([_without(direction, rows).square().sum(1) for rows in blocks])
    return torch.stack(order) if order else torch.zeros(0, dtype=torch.int64, device=whitened.device)


def _without(direction: Tensor, rows: Tensor) -> Tensor:
    """``rows`` [n, d], from which their part along a unit vector [d] is taken away in place."""
    return rows.sub_(torch.outer(rows @ direction, direction))


@dataclass(frozen=True)
class MaxDet:
    """Selection by :func:`max_det`, conditioned on the labelled structures.

    Raises:
        InputError: if ``regularisation`` is not positive.
    """

    needs_features: ClassVar[bool] = True
    regularisation: float = 0.01
    """lambda of the posterior (Eq. 25), with the labelled features' mean squared norm as the unit."""

    def __post_init__(self) -> None:
        if not self.regularisation > 0:
            raise InputError(f"selection.regularisation must be a positive number, got {self.regularisation}")

    def __call__(self, pool: Pool, n_select: int, *, seed: int = 0) -> Tensor:
        """Indices [n_select] of the chosen candidates, most uncertain first; nothing here is random."""
        features, labelled = check_features(pool, n_select)
        whitening = whitening_matrix(gram_matrix(labelled), len(labelled), self.regularisation)
        return max_det(features @ whitening.T, n_select)
