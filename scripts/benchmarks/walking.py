"""Times of walker steps, taken in :func:`~ubmd.dynamics.walkers.run_walkers` itself."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from benchmarks.rows import Found, Row, peak_memory, settled_memory, wait
from benchmarks.subjects import Subject
from ubmd.dynamics.state import WalkerState
from ubmd.dynamics.stopping import StoppingRules, StopReason
from ubmd.dynamics.walkers import run_walkers
from ubmd.models.potential import WalkerPotential


@dataclass(frozen=True)
class Walk:
    """A row of walkers."""

    name: str
    kind: str
    """``plain``, ``uncertain`` or ``biased``."""
    starts: Sequence[Atoms]
    n_walkers: int
    steps: int
    """Of the batch, that are timed together."""
    repeats: int
    """Such times of a pass."""
    options: tuple[str, ...] = ()
    """Of the bias."""
    every: int = 1
    """Steps from one bias to the next."""


class StoppedError(RuntimeError):
    """A walker stopped before its time, which would have made the batch smaller."""


def walk_rows(subject: Subject, walks: Sequence[Walk], found: Found, *, passes: int, threads: int, device: str) -> None:
    """Adds rows of walks that are run in turn, several times, so that a slow moment of the machine hits them alike."""
    times: dict[str, list[float]] = {walk.name: [] for walk in walks}
    memory: dict[str, float] = {}
    for _ in range(passes):
        for walk in walks:
            before = settled_memory()
            state = subject.walkers(walk.starts, walk.n_walkers)
            potential = subject.potential(walk.kind, *walk.options)
            try:
                times[walk.name] += batch_step_ms(subject, state, potential, walk, device)
            except StoppedError as error:
                found.skipped[walk.name] = str(error)
            memory.setdefault(walk.name, peak_memory() - before)
    for walk in walks:
        if not times[walk.name]:
            continue
        found.skipped.pop(walk.name, None)
        n_atoms = len(walk.starts[0])
        details = {"walkers": walk.n_walkers, "atoms": n_atoms, "memory_mib": round(memory[walk.name], 1)}
        ms = statistics.median(times[walk.name]) / walk.n_walkers
        flop = None if subject.floors is None else subject.floors.of(walk.kind, walk.every) * n_atoms
        found.rows.append(Row(walk.name, ms, "walker step", flop, threads, details))


def batch_step_ms(
    subject: Subject, state: WalkerState, potential: WalkerPotential, walk: Walk, device: str
) -> list[float]:
    """Times of a step of all walkers, neighbour lists included, each a mean over ``walk.steps``; the first is left out.

    Raises:
        StoppedError: if the potential drove a walker apart.
    """
    stamps: list[float] = []

    def tick(*_: object) -> None:
        wait(device)
        stamps.append(time.perf_counter())

    dynamics = subject.dynamics
    rules = StoppingRules(  # all of them are looked at, none is to be met
        uncertainty_threshold=None if walk.kind == "plain" else 1e9,
        max_steps=walk.steps * (walk.repeats + 1),
        min_distance=0.01,
        max_temperature_factor=1e3,
    )
    explored = run_walkers(
        state,
        potential,
        dynamics.integrator,
        rules,
        frame_interval=dynamics.frame_interval,
        skin=dynamics.skin,
        on_progress=tick,
        progress_interval=walk.steps,
    )
    if not (explored.reasons == StopReason.MAX_STEPS).all():
        reasons = ", ".join(sorted({StopReason(r).description for r in explored.reasons}))
        raise StoppedError(f"walkers stopped ({reasons})")
    return (1e3 * np.diff(stamps) / walk.steps).tolist()
