"""Selections that look at each candidate by itself: at random, and the most uncertain ones (Eq. 24)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ubmd.errors import InputError
from ubmd.selection.base import Pool, check_size

__all__ = ["MaxDiag", "Random"]


@dataclass(frozen=True)
class Random:
    """Candidates at random."""

    needs_features: ClassVar[bool] = False

    def __call__(self, pool: Pool, n_select: int, *, seed: int) -> Tensor:
        """Indices [n_select] of different candidates, each equally likely."""
        n = len(pool.uncertainty)
        check_size(n_select, n)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        return order[:n_select].to(pool.uncertainty.device)


@dataclass(frozen=True)
class MaxDiag:
    """The most uncertain candidates (Eq. 24), however alike they are."""

    needs_features: ClassVar[bool] = False

    def __call__(self, pool: Pool, n_select: int, *, seed: int = 0) -> Tensor:
        """Indices [n_select], most uncertain first, of equal ones the lower index; nothing here is random.

        Raises:
            InputError: also if an uncertainty is not finite.
        """
        check_size(n_select, len(pool.uncertainty))
        bad = int((~torch.isfinite(pool.uncertainty)).sum())
        if bad:
            raise InputError(f"{bad} of {len(pool.uncertainty)} candidates have no finite uncertainty; drop them")
        return torch.argsort(pool.uncertainty, descending=True, stable=True)[:n_select]
