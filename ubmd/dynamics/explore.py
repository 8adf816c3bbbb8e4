"""Exploration of a round: walkers from the structures labelled last, until each has a reason to stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from ase import Atoms

from ubmd.data.batch import collate
from ubmd.dynamics.exploration import Exploration
from ubmd.dynamics.langevin import Langevin
from ubmd.dynamics.state import initial_state
from ubmd.dynamics.stopping import StoppingRules
from ubmd.dynamics.walkers import run_walkers
from ubmd.errors import InputError
from ubmd.models.potential import WalkerPotential
from ubmd.seeding import Stage, stage_seed

__all__ = ["WalkerExploration", "walker_starts"]


def walker_starts(structures: Sequence[Atoms], n_walkers: int) -> list[Atoms]:
    """``n_walkers`` starting structures, the given ones repeated in turn as often as needed."""
    return [structures[i % len(structures)] for i in range(n_walkers)]


@dataclass(frozen=True)
class WalkerExploration:
    """Settings of an exploration by molecular dynamics.

    Args:
        integrator: advances the walkers by a step; holds time step and temperature.
        stopping: when a walker stops.
        n_walkers: number of walkers, run as one batch.
        frame_interval: steps between frames kept as candidates.
        skin: width of the neighbour lists beyond the cutoff, Å.
        checkpoint_interval: steps between savings of the walkers' states.
    """

    integrator: Langevin
    stopping: StoppingRules
    n_walkers: int = 8
    frame_interval: int = 200
    skin: float = 1.0
    checkpoint_interval: int = 1000

    def __post_init__(self) -> None:
        for name in ("n_walkers", "frame_interval", "checkpoint_interval"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"dynamics.{name}={value} must be a whole number, at least 1")
        if self.skin < 0:
            raise InputError(f"dynamics.skin={self.skin} Å must not be negative")

    @property
    def max_candidates(self) -> int:
        """The most candidates that a round can have."""
        per_walker = self.stopping.max_steps // self.frame_interval
        return self.n_walkers * (per_walker + (self.stopping.uncertainty_threshold is not None))

    def __call__(
        self,
        potential: WalkerPotential,
        starts: Sequence[Atoms],
        *,
        seed: int,
        round_index: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        checkpoint: Path | None = None,
        on_progress: Callable[[int, int, float], None] | None = None,
    ) -> Exploration:
        """Runs the walkers, or continues them from ``checkpoint`` if that exists.

        Args:
            potential: biased or not.
            starts: structures to start from, in turn.
            seed: root seed of the run.
            round_index: of the random streams.
            dtype: of positions and momenta.
            device: to run on.
            checkpoint: file of the walkers' states.
            on_progress: called now and then with steps done, walkers running and the highest uncertainty.
        """
        structures = walker_starts(starts, self.n_walkers)
        batch = collate(structures, potential.cutoff + self.skin, dtype=dtype, device=device)
        seeds = [stage_seed(seed, round_index, Stage.WALKERS, w) for w in range(self.n_walkers)]
        state = initial_state(batch, temperature=self.integrator.temperature, seeds=seeds)
        return run_walkers(
            state,
            potential,
            self.integrator,
            self.stopping,
            frame_interval=self.frame_interval,
            skin=self.skin,
            checkpoint=checkpoint,
            checkpoint_interval=self.checkpoint_interval,
            on_progress=on_progress,
        )
