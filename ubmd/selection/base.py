"""What a selection is given and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ubmd.errors import InputError

__all__ = ["Pool", "Selection", "check_size"]


@dataclass(frozen=True)
class Pool:
    """Candidates, and what is labelled already. Features are as they come, neither rescaled nor whitened."""

    uncertainty: Tensor
    """[n] uncertainty of the candidates' energy per atom, eV/atom."""
    features: Tensor | None = None
    """[n, d] features phi(S) of the candidates; None where the uncertainty has none (ensembles)."""
    labelled_features: Tensor | None = None
    """[m, d] features of the training and validation structures."""


class Selection(Protocol):
    """Chooses candidates to be labelled."""

    def __call__(self, pool: Pool, n_select: int, *, seed: int) -> Tensor:
        """Indices [n_select] of different candidates, int64, in the order in which they were chosen.

        Args:
            pool: the candidates.
            n_select: how many to choose.
            seed: of anything random; the same pool and seed give the same selection.

        Raises:
            InputError: if more candidates are wanted than there are, or the pool lacks what is needed.
        """
        ...


def check_size(n_select: int, n_candidates: int) -> None:
    """Refuses to choose more than there is.

    Raises:
        InputError: naming both numbers.
    """
    if not 0 <= n_select <= n_candidates:
        raise InputError(f"cannot select {n_select} structures from a pool of {n_candidates}")
