"""Exploration of a round: walkers from the structures labelled last, until each has a reason to stop."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ase import Atoms

from ubmd.data.batch import collate
from ubmd.data.inherit import Inherited, fixed_atoms
from ubmd.dynamics.exploration import Exploration
from ubmd.dynamics.processes import GroupTask, OnProgress, SharedProgress, check_sendable
from ubmd.dynamics.recording import Recording
from ubmd.dynamics.respa import check_every
from ubmd.dynamics.settings import in_turn
from ubmd.dynamics.state import WalkerState, initial_state, resting_state
from ubmd.dynamics.stopping import StoppingRules
from ubmd.dynamics.walkers import Integrator, MolecularDynamics, check_independent, run_walkers
from ubmd.errors import InputError
from ubmd.models.potential import WalkerPotential
from ubmd.seeding import Stage, stage_seed

__all__ = [
    "Elsewhere",
    "Explorer",
    "WalkerExploration",
    "WalkerGroup",
    "group_files",
    "run_groups",
    "walker_starts",
]

Elsewhere = Callable[[Sequence[GroupTask], OnProgress | None], Sequence[Exploration]]
"""Runs groups of walkers in other processes."""

log = logging.getLogger(__name__)

MOST_WALKERS = 100_000
"""All of them are in memory at once."""
LARGEST_SKIN = 10.0
"""Å; the pairs within it are computed with at every step."""
NO_NEIGHBOURS = 1e-3
"""Å."""


def walker_starts(structures: Sequence[Atoms], n_walkers: int) -> list[Atoms]:
    """``n_walkers`` starting structures, the given ones repeated in turn as often as needed."""
    return [structures[i % len(structures)] for i in range(n_walkers)]


@dataclass(frozen=True, kw_only=True)
class Explorer:
    """What all ways to explore have in common: walkers, limits and frames; a subclass says what a step is.

    Args:
        stopping: when a walker stops.
        n_walkers: number of walkers.
        slots: walkers that a batch has at a time: where one stops the next one begins. None for all at once.
        groups: number of batches that the walkers are dealt into, one after the other or in processes of their own.
        workers: number of processes that groups run in, at most one for each. It has no influence on results.
        frame_interval: steps between frames kept as candidates; a multiple of the bias's ``every``.
        skin: width of the neighbour lists beyond the cutoff, Å.
        checkpoint_interval: steps between savings of the walkers' states.

    Raises:
        InputError: if a value is out of range.
    """

    stopping: StoppingRules
    n_walkers: int = 8
    slots: int | None = None
    groups: int = 1
    workers: int = 1
    frame_interval: int = 200
    skin: float = 1.0
    checkpoint_interval: int = 1000

    def __post_init__(self) -> None:
        for name in ("n_walkers", "slots", "groups", "workers", "frame_interval", "checkpoint_interval"):
            value = getattr(self, name)
            if name == "slots" and value is None:
                continue
            if not isinstance(value, int) or value < 1:
                raise InputError(f"dynamics.{name}={value} must be a whole number, at least 1")
        if self.n_walkers > MOST_WALKERS:
            raise InputError(f"dynamics.n_walkers={self.n_walkers} must be at most {MOST_WALKERS}")
        if self.groups > self.n_walkers:
            raise InputError(
                f"dynamics.groups={self.groups} must be at most dynamics.n_walkers={self.n_walkers}; raise that as well"
            )
        if not 0 <= self.skin <= LARGEST_SKIN:
            raise InputError(f"dynamics.skin={self.skin} Å must be from 0 to {LARGEST_SKIN:g} Å")

    def begin(self, structures: Sequence[Atoms], seeds: Sequence[int]) -> tuple[Sequence[Atoms], Integrator]:
        """Where the walkers start, and what advances them by a step.

        Args:
            structures: one a walker.
            seeds: of the walkers; :func:`~ubmd.dynamics.noise.stream` makes generators of them.
        """
        raise NotImplementedError

    @property
    def time_step(self) -> float | None:
        """Time of a step, fs; None if a step is not one in time. Walkers then have no momenta."""
        return None

    @property
    def temperature(self) -> float | Sequence[float]:
        """Of the ensemble, K; a list is for the walkers in turn; NaN if none is sampled."""
        return math.nan

    @property
    def needs_stress(self) -> bool:
        """Whether a step depends on the stress, and structures must be periodic in three directions."""
        return False

    @property
    def moves_cell(self) -> bool:
        """Whether a step changes the cell, and with it the positions of all atoms."""
        return self.needs_stress

    def check_start(self, atoms: Atoms, what: str) -> None:
        """Raises InputError if walkers cannot start from a structure, named ``what``.

        It must have a stress where steps depend on it, a free atom, and no fixed ones where steps change the cell.
        """
        fixed = fixed_atoms(atoms, what)
        if fixed.all():
            raise InputError(f"all {len(atoms)} atoms of {what} are fixed, so that nothing can move; free some of them")
        if fixed.any() and self.moves_cell:
            raise InputError(
                f"{what} has {fixed.sum()} fixed atoms, which dynamics that change the cell would move; choose "
                "dynamics=langevin or remove the constraint"
            )
        if atoms.has("momenta") and atoms.get_momenta().any():
            log.info("the momenta of %s are not used: walkers start with those that the seed gives them", what)
        if self.needs_stress and not atoms.pbc.all():
            raise InputError(
                f"dynamics at constant pressure needs structures that are periodic in three directions, but {what} has "
                f"pbc={atoms.pbc.tolist()}; choose dynamics=langevin"
            )

    def check_bias(self, bias: object, *, cells_move: bool = False) -> None:
        """Raises InputError for a bias on the cell (``acts_on_cell``) where no step moves it: it would do nothing.

        Also for one that walkers share (``shared``), if they do not all run at a time in one batch, for one that
        cannot be sent to the processes of several ``workers``, of which there are at most as many as groups, and for
        an ``every`` that is none for these dynamics
        (:func:`~ubmd.dynamics.respa.check_every`).

        Args:
            bias: of the potential.
            cells_move: whether other walkers have cells that move.
        """
        acting = getattr(bias, "acts_on_cell", None)
        if acting is not None and not (self.needs_stress or cells_move):
            raise InputError(f"{acting} needs dynamics that move the cell; choose dynamics=npt")
        check_every(bias, getattr(self, "integrator", None), self.frame_interval)
        if self.slots is not None and self.slots < self.n_walkers:
            check_independent(bias, f"dynamics.slots={self.slots}")
        if self.groups > 1:
            check_independent(bias, f"dynamics.groups={self.groups}")
        if self.workers > self.groups:
            raise InputError(
                f"dynamics.workers={self.workers} must be at most dynamics.groups={self.groups}; raise that as well"
            )
        if self.workers > 1:
            check_sendable(self, bias)

    @property
    def fewest_walkers(self) -> int:
        """How many walkers there must at least be: one in each group, and one for each value of a list."""
        return self.groups

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
        on_progress: OnProgress | None = None,
        reads: Collection[str] = (),
        elsewhere: Elsewhere | None = None,
        recording: Recording | None = None,
    ) -> Exploration:
        """Runs the walkers, or continues them from ``checkpoint`` if that exists; see :func:`run_walkers`.

        Args:
            potential: biased or not.
            starts: structures to start from, in turn.
            seed: root seed of the run.
            round_index: of the random streams.
            dtype: of positions.
            device: to run on.
            checkpoint: file of the walkers' states; those of several groups are beside it, see :func:`group_files`.
            on_progress: called now and then with steps done, walkers running and the highest uncertainty.
            reads: names of what a reference reads of a structure besides the usual; frames have it of their start.
            elsewhere: runs groups in processes of their own, where ``workers`` are several:
                :meth:`~ubmd.dynamics.processes.WalkerProcesses.run` with the potential's file.
            recording: what to record besides, in a log for each group (:func:`group_files`).

        Raises:
            InputError: there are several ``workers``, but they are not given.
        """
        groups = self.groups_of(
            starts,
            seed=seed,
            round_index=round_index,
            dtype=dtype,
            device=device,
            checkpoint=checkpoint,
            recording=recording,
        )
        return self.joined(run_groups(groups, potential, self.workers, on_progress, elsewhere), starts, reads)

    def groups_of(
        self,
        starts: Sequence[Atoms],
        *,
        seed: int,
        round_index: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        checkpoint: Path | None = None,
        recording: Recording | None = None,
    ) -> list[WalkerGroup]:
        """The walkers in groups that are to run; arguments are those of :meth:`__call__`."""
        begun = walker_starts(starts, self.n_walkers)
        files = [None] * self.groups if checkpoint is None else group_files(checkpoint, self.groups)
        make = partial(WalkerGroup, self, begun, seed, round_index, dtype, device)
        logs: list[Recording | None] = [None] * self.groups
        if recording is not None:
            logs = [replace(recording, log=own) for own in group_files(recording.log, self.groups)]
        return [make(file, number, own) for number, (file, own) in enumerate(zip(files, logs, strict=True))]

    def joined(self, found: Sequence[Exploration], starts: Sequence[Atoms], reads: Collection[str] = ()) -> Exploration:
        """What the groups of :meth:`groups_of` found as one; arguments are those of :meth:`__call__`."""
        begun = walker_starts(starts, self.n_walkers)
        inherited = [Inherited.of(atoms, reads) for atoms in begun]
        return _inheriting(Exploration.joined(found), begun, inherited)

    def start(
        self, structures: Sequence[Atoms], seed: int, round_index: int, dtype: torch.dtype, device: torch.device | str
    ) -> tuple[WalkerState, Integrator]:
        """All walkers before their first step, neighbours not listed yet, and what advances them.

        Args:
            structures: one a walker.
            seed: root seed of the run.
            round_index: of the random streams.
            dtype: of positions.
            device: where they are.
        """
        seeds = [stage_seed(seed, round_index, Stage.WALKERS, w) for w in range(self.n_walkers)]
        fixed = torch.as_tensor(np.concatenate([Inherited.of(atoms).fixed for atoms in structures]))
        structures, integrator = self.begin(structures, seeds)
        state_of = resting_state if self.time_step is None else initial_state
        state = state_of(
            collate(structures, NO_NEIGHBOURS, dtype=dtype, device=device),
            temperature=in_turn(self.temperature, torch.arange(self.n_walkers)),
            seeds=seeds,
            masses=torch.as_tensor(np.concatenate([atoms.get_masses() for atoms in structures])),
            fixed=fixed,
        )
        return state, integrator


@dataclass(frozen=True)
class WalkerGroup:
    """A group of walkers, which run as a batch of their own: those whose number is ``number`` modulo the groups'."""

    exploration: Explorer
    structures: Sequence[Atoms]
    """Of all walkers."""
    seed: int
    round_index: int
    dtype: torch.dtype
    device: torch.device | str
    checkpoint: Path | None
    number: int
    recording: Recording | None = None

    def __call__(self, potential: WalkerPotential, on_progress: OnProgress) -> Exploration:
        """Runs its walkers, or continues them from their checkpoint."""
        how = self.exploration
        state, integrator = how.start(self.structures, self.seed, self.round_index, self.dtype, self.device)
        own = torch.arange(self.number, how.n_walkers, how.groups, device=state.step.device)
        return run_walkers(
            state.select(own) if how.groups > 1 else state,
            potential,
            integrator,
            how.stopping,
            frame_interval=how.frame_interval,
            skin=how.skin,
            slots=how.slots,
            checkpoint=self.checkpoint,
            checkpoint_interval=how.checkpoint_interval,
            on_progress=on_progress,
            recording=self.recording,
        )


def group_files(checkpoint: Path, groups: int) -> list[Path]:
    """Where each group of walkers is saved: ``walkers.pt`` if there is one group, else ``walkers-0.pt`` and so on."""
    if groups == 1:
        return [checkpoint]
    return [checkpoint.with_stem(f"{checkpoint.stem}-{number}") for number in range(groups)]


def run_groups(
    groups: Sequence[WalkerGroup],
    potential: WalkerPotential,
    workers: int,
    on_progress: OnProgress | None,
    elsewhere: Elsewhere | None,
) -> Sequence[Exploration]:
    """What groups find, in this process or in ``workers`` others; see :meth:`Explorer.__call__`."""
    if workers > 1 and elsewhere is not None:
        return elsewhere(groups, on_progress)
    if workers > 1:
        raise InputError(f"dynamics.workers={workers} needs processes (elsewhere=...), which are not given")
    found, progress = [], SharedProgress(on_progress, len(groups))
    for place, group in enumerate(groups):
        found.append(group(potential, partial(progress.update, place)))
        progress.finish(place, found[-1])
    return found


def _inheriting(found: Exploration, starts: Sequence[Atoms], inherited: Sequence[Inherited]) -> Exploration:
    """Frames with what they have of their starts, fixed atoms at the very places that walkers only know rounded."""
    positions = found.positions.copy()
    for i, walker in enumerate(found.walker):
        fixed = inherited[walker].fixed
        positions[i, fixed] = starts[walker].positions[fixed]
    return replace(found, positions=positions, inherited=tuple(inherited[walker] for walker in found.walkers))


@dataclass(frozen=True, kw_only=True)
class WalkerExploration(Explorer):
    """Explores by molecular dynamics.

    Args:
        integrator: advances the walkers by a step; holds time step and temperature.

    Raises:
        InputError: if a value is out of range, or a list for the walkers is longer than there are walkers.
    """

    integrator: MolecularDynamics

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in self._lists().items():
            if len(value) > self.n_walkers:
                raise InputError(
                    f"dynamics.integrator.{name}={list(value)} has {len(value)} values for {self.n_walkers} walkers; "
                    "raise dynamics.n_walkers"
                )

    def _lists(self) -> dict[str, Sequence[float]]:
        """Settings of which walkers take one value each, in turn."""
        found = {name: getattr(self.integrator, name, 0.0) for name in ("temperature", "pressure")}
        return {name: value for name, value in found.items() if isinstance(value, Sequence)}

    @property
    def fewest_walkers(self) -> int:
        return max(self.groups, *map(len, self._lists().values()), 1)

    def begin(self, structures: Sequence[Atoms], seeds: Sequence[int]) -> tuple[Sequence[Atoms], MolecularDynamics]:
        return structures, self.integrator

    @property
    def time_step(self) -> float:
        return self.integrator.dt

    @property
    def temperature(self) -> float | Sequence[float]:
        return self.integrator.temperature

    @property
    def needs_stress(self) -> bool:
        return self.integrator.needs_stress
