"""Neighbour matrices that stay valid for many steps, because they reach beyond the cutoff by a skin."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ubmd.data.batch import AtomicBatch
from ubmd.dynamics.state import WalkerState

__all__ = ["Listed", "outran_skin", "rebuild_neighbours", "refresh_neighbours"]


class Listed(Protocol):
    """Structures, and where their neighbours were listed."""

    @property
    def batch(self) -> AtomicBatch:
        """As they are now, with the neighbours."""
        ...

    @property
    def listed_positions(self) -> Tensor:
        """[n_atoms, 3] Å."""
        ...

    @property
    def listed_cell(self) -> Tensor:
        """[n_systems, 3, 3] Å."""
        ...


def outran_skin(state: Listed, cutoff: float, skin: float) -> Tensor:
    """Whether a pair within ``cutoff`` (Å) may be missing from lists to ``cutoff + skin``; [] bool, on the device.

    Let 1 + D take a walker's cell at the time of listing to the present one, and d be the furthest that one of
    its atoms moved apart from that. A pair that was not listed was further apart than cutoff + skin. The cell
    shortens no vector to less than 1 - |D| of its length, and the atoms have then come closer by at most 2 d.
    So the list holds every pair within the cutoff while 2 d <= skin - |D| (cutoff + skin). |D| is the
    Frobenius norm, which is never below the spectral one.
    """
    batch = state.batch
    moved = batch.positions - state.listed_positions
    spare = moved.new_full((), skin)
    # most walkers keep their cell for life, and a tensor that is still the same one needs no look
    if batch.cell is not state.listed_cell:
        strain = _strain(state.listed_cell, batch.cell)
        moved = moved - torch.einsum("na,nab->nb", state.listed_positions, strain[batch.system_idx])
        spare = (spare - strain.norm(dim=(1, 2)) * (cutoff + skin))[batch.system_idx]
    # any(), not max(): a walker that became NaN must not hide the others
    return (2 * moved.norm(dim=1) > spare).any()


def _strain(before: Tensor, after: Tensor) -> Tensor:
    """[n, 3, 3] D with after = before (1 + D); zero where the cell is the same, also where it spans no volume."""
    change = after - before
    strain = torch.linalg.inv_ex(before).inverse @ change
    return torch.where((change == 0).all(2).all(1)[:, None, None], 0.0, strain)


def rebuild_neighbours(state: WalkerState, cutoff: float, skin: float) -> WalkerState:
    """The state with all pairs within ``cutoff + skin`` (Å) listed at its present positions and cell."""
    batch = state.batch.with_neighbours(cutoff + skin)
    return state.replace(batch=batch, listed_positions=batch.positions, listed_cell=batch.cell)


def refresh_neighbours(state: WalkerState, cutoff: float, skin: float) -> WalkerState:
    """The state with neighbours that are valid for ``cutoff``, rebuilt only if the skin may have been outrun.

    Costs one wait for the device; :func:`~ubmd.dynamics.walkers.run_walkers` combines it with the one for the
    stopping rules.
    """
    return rebuild_neighbours(state, cutoff, skin) if bool(outran_skin(state, cutoff, skin)) else state
