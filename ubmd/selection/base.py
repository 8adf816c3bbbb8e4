"""What a selection is given and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from ase import Atoms
from torch import Tensor, nn

from ubmd.data.batch import collate
from ubmd.errors import InputError
from ubmd.uncertainty.base import Uncertainty

__all__ = ["Pool", "Selection", "check_features", "check_selection", "check_size", "distinct", "pool_features"]

MOST_ATOMS = 2**16
"""Atoms whose neighbour lists are in memory together."""


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

    @property
    def needs_features(self) -> bool:
        """Whether the pool must have features."""
        ...

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


def check_selection(selection: Selection, uncertainty: Uncertainty) -> None:
    """Refuses a selection by features where the uncertainty has none.

    Raises:
        InputError: naming both.
    """
    if selection.needs_features and uncertainty.n_features == 0:
        raise InputError(
            f"selection {type(selection).__name__} needs features, which {type(uncertainty).__name__} has not; "
            "use selection=max_diag or selection=random"
        )


def check_features(pool: Pool, n_select: int) -> tuple[Tensor, Tensor]:
    """Features of candidates [n, d] and labelled structures [m, d] in float64.

    Raises:
        InputError: if there are none, they are not finite, or fewer candidates than wanted.
    """
    if pool.features is None or pool.labelled_features is None:
        raise InputError("the pool has no features, which this selection needs; use selection=max_diag")
    check_size(n_select, len(pool.features))
    check_finite(pool.features, "candidates")
    check_finite(pool.labelled_features, "labelled structures")
    return pool.features.detach().double(), pool.labelled_features.detach().double()


def check_finite(features: Tensor, what: str) -> None:
    """Refuses features [n, d] that are not finite.

    Raises:
        InputError: with their number.
    """
    bad = int((~torch.isfinite(features).all(1)).sum())
    if bad:
        raise InputError(f"{bad} of {len(features)} {what} have features that are not finite; drop them")


def pool_features(
    uncertainty: Uncertainty,
    model: nn.Module,
    structures: Sequence[Atoms],
    *,
    cutoff: float,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """phi(S) [n, n_features] of structures, with the neighbours of ``MOST_ATOMS`` atoms in memory at a time.

    Args:
        uncertainty: makes the features.
        model: of the structures.
        structures: any number of them.
        cutoff: of the neighbour lists, Å.
        batch_size: structures computed at once.
        dtype: of the positions.
        device: to compute on.
    """
    parts = [torch.zeros(0, uncertainty.n_features, dtype=dtype, device=device)]
    ends = np.cumsum([len(atoms) for atoms in structures])
    start = 0
    while start < len(structures):
        before = ends[start - 1] if start else 0
        end = max(int(np.searchsorted(ends, before + MOST_ATOMS, side="right")), start + 1)
        batch = collate(structures[start:end], cutoff, dtype=dtype, device=device)
        for pieces in torch.arange(batch.n_systems, device=device).split(batch_size):
            parts.append(uncertainty.total_features(model, batch.select(pieces)))
        start = end
    return torch.cat(parts)


def distinct(candidates: Sequence[Atoms], labelled: Sequence[Atoms]) -> list[int]:
    """Indices of candidates that are neither copies of earlier ones nor labelled already, in their order.

    Structures are the same if elements, periodicity and, to 1e-8 Å, positions and cell are.
    """
    seen = {_fingerprint(atoms) for atoms in labelled}
    out = []
    for index, atoms in enumerate(candidates):
        fingerprint = _fingerprint(atoms)
        if fingerprint not in seen:
            out.append(index)
        seen.add(fingerprint)
    return out


def _fingerprint(atoms: Atoms) -> tuple[bytes, ...]:
    lengths = (np.asarray(atoms.positions), np.asarray(atoms.cell))
    # adding 0 makes -0 a 0
    return (atoms.numbers.tobytes(), atoms.pbc.tobytes(), *((np.round(x, 8) + 0.0).tobytes() for x in lengths))
