"""Neighbour matrices that stay valid for many steps, because they reach beyond the cutoff by a skin."""

from __future__ import annotations

from torch import Tensor

from ubmd.dynamics.state import WalkerState

__all__ = ["outran_skin", "rebuild_neighbours", "refresh_neighbours"]


def outran_skin(state: WalkerState, skin: float) -> Tensor:
    """Whether an atom moved by more than ``skin / 2`` (Å) since it was listed; [] bool, on the device.

    Two atoms that each moved by less than half the skin cannot have come closer by more than the skin, so a
    list to cutoff + skin still holds every pair within the cutoff. This takes the cell as fixed.
    """
    moved = (state.batch.positions - state.listed_positions).square().sum(1)
    # any(), not max(): a walker that became NaN must not hide the others
    return (moved > (0.5 * skin) ** 2).any()


def rebuild_neighbours(state: WalkerState, cutoff: float, skin: float) -> WalkerState:
    """The state with all pairs within ``cutoff + skin`` (Å) listed at its present positions."""
    return state.replace(batch=state.batch.with_neighbours(cutoff + skin), listed_positions=state.batch.positions)


def refresh_neighbours(state: WalkerState, cutoff: float, skin: float) -> WalkerState:
    """The state with neighbours that are valid for ``cutoff``, rebuilt only if an atom outran the skin.

    Costs one wait for the device; :func:`~ubmd.dynamics.walkers.run_walkers` combines it with the one for the
    stopping rules.
    """
    return rebuild_neighbours(state, cutoff, skin) if bool(outran_skin(state, skin)) else state
