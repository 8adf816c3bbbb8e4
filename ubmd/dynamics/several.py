"""Exploration of several systems in a round: each has walkers, starts and dynamics, all share processes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from ase import Atoms

from ubmd.dynamics.exploration import Exploration, frames_to_atoms
from ubmd.dynamics.explore import Elsewhere, Explorer, run_groups
from ubmd.dynamics.processes import OnProgress, check_sendable
from ubmd.errors import InputError
from ubmd.models.potential import WalkerPotential
from ubmd.observables.base import values_of
from ubmd.systems.several import Systems, dealt, of_system

__all__ = ["SystemWalkers", "check_explorers", "explore_systems", "explorers_of", "frames_of_systems"]


@dataclass(frozen=True)
class SystemWalkers:
    """The walkers of a system before they begin."""

    explorer: Explorer
    starts: Sequence[Atoms]
    """Structures to start from, in turn."""
    seed: int
    """Root seed of the system."""
    checkpoint: Path | None = None
    """See :meth:`~ubmd.dynamics.explore.Explorer.__call__`."""


def explorers_of(
    systems: Systems, common: Explorer, uncertainty: Mapping[str, float] | None = None
) -> dict[str, Explorer]:
    """How each system is explored: by dynamics of its own, or by the common ones with its share of their walkers.

    Args:
        systems: of the run.
        common: dynamics whose walkers are dealt over the systems that have none of their own.
        uncertainty: by system, what weights are multiplied by; None deals by weights alone.

    Raises:
        InputError: there are fewer walkers than needed, or dynamics of a system that are none.
    """
    if not systems.named:
        return {"": common}
    own: dict[str, Explorer] = {}
    for name, explorer in systems.dynamics.items():
        if not isinstance(explorer, Explorer):
            raise InputError(
                f"system.dynamics.{name} is no dynamics; give it as +dynamics@system.dynamics.{name}=OPTION"
            )
        if explorer.workers != 1:
            raise InputError(f"system.dynamics.{name}.workers={explorer.workers}: all systems share dynamics.workers")
        own[name] = explorer
    factor = uncertainty or {}
    others = [name for name in systems.parts if name not in own]
    weights = {name: systems.weights.get(name, 1.0) * factor.get(name, 1.0) for name in others}
    counts = dealt(common.n_walkers, weights, dict.fromkeys(weights, common.fewest_walkers))
    shared = {name: replace(common, n_walkers=n, workers=1) for name, n in counts.items()}
    return {name: own[name] if name in own else shared[name] for name in systems.parts}


def check_explorers(systems: Systems, explorers: Mapping[str, Explorer], common: Explorer, bias: object) -> None:
    """Refuses dynamics that systems cannot start with, and a bias that cannot act on them.

    Args:
        systems: of the run.
        explorers: of each.
        common: dynamics of the run, which say how many processes there are.
        bias: of the potential.

    Raises:
        InputError: naming the system.
    """
    groups = sum(explorer.groups for explorer in explorers.values())
    if systems.named and common.workers > groups:
        raise InputError(
            f"dynamics.workers={common.workers} must be at most the {groups} groups of walkers of all systems "
            "(dynamics.groups of each)"
        )
    if systems.named and common.workers > 1:
        check_sendable(tuple(explorers.values()), bias)
    moves = any(explorer.needs_stress for explorer in explorers.values())
    variables = getattr(bias, "variables", None)
    for name, system in systems.parts.items():
        what = f"the structure of system {name}" if name else "system.structure"
        explorers[name].check_start(system.atoms, what)
        explorers[name].check_bias(bias, cells_move=moves)
        for key, variable in variables.items() if isinstance(variables, Mapping) else ():
            try:
                values_of({key: variable}, system.given[:1] or [system.atoms])
            except InputError as error:
                raise InputError(f"bias.variables.{key}: {error} ({what})") from None


def explore_systems(
    walkers: Mapping[str, SystemWalkers],
    potential: WalkerPotential,
    *,
    round_index: int,
    workers: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
    reads: Collection[str] = (),
    elsewhere: Elsewhere | None = None,
) -> dict[str, Exploration]:
    """Runs the walkers of each system in batches of its own, or continues them.

    What a system's walkers find is what they would find in a run of that system alone with the same seed: batches are
    of the same atoms, and know nothing of others.

    Args:
        walkers: by system.
        potential: biased or not.
        round_index: of the random streams.
        workers: processes that batches of all systems run in.
        dtype: of positions.
        device: to run on.
        on_progress: see :meth:`~ubmd.dynamics.explore.Explorer.__call__`.
        reads: see there.
        elsewhere: see there.
    """
    groups = {
        name: own.explorer.groups_of(
            own.starts,
            seed=own.seed,
            round_index=round_index,
            dtype=dtype,
            device=device,
            checkpoint=own.checkpoint,
        )
        for name, own in walkers.items()
    }
    found = run_groups([g for part in groups.values() for g in part], potential, workers, on_progress, elsewhere)
    pieces = iter(found)
    return {
        name: own.explorer.joined([next(pieces) for _ in groups[name]], own.starts, reads)
        for name, own in walkers.items()
    }


def frames_of_systems(found: Mapping[str, Exploration]) -> list[Atoms]:
    """The frames of all systems, see :func:`~ubmd.dynamics.exploration.frames_to_atoms`, system by system."""
    return [atoms for name, own in found.items() for atoms in of_system(name, frames_to_atoms(own))]
