"""Labelled structures from molecular dynamics that a reference itself drives, at constant temperature."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import cycle, islice

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from ubmd.data.inherit import descendant, fixed_atoms
from ubmd.errors import InputError
from ubmd.progress import run_progress
from ubmd.reference.base import Reference
from ubmd.reference.executors import LabelExecutor, Serial
from ubmd.reference.labelling import LabelReport, label_structures
from ubmd.reference.store import LabelStore
from ubmd.systems.sampling import Origin, check_finished, originals
from ubmd.units import ACCELERATION, KB

__all__ = ["sample_dynamics"]

EQUILIBRATION = 0.2
"""Share of a trajectory that no structure is taken from."""


def sample_dynamics(
    n_structures: int,
    *,
    structures: Origin,
    reference: Reference,
    labels: str | os.PathLike[str],
    temperature: float,
    seed: int,
    steps: int = 300,
    trajectories: int = 10,
    timestep: float = 1.0,
    friction: float = 0.01,
    executor: LabelExecutor | None = None,
) -> list[Atoms]:
    """Frames of Langevin trajectories on the reference's own energy surface, labelled, behind a progress bar.

    Each step takes a label of each trajectory, ``steps * trajectories`` in all: for references of up to a second. The
    cell stays as it is. Frames are equally spaced in the last four fifths of a trajectory, those of all trajectories
    in turn, so that the first ones are a sample of all.

    Args:
        n_structures: frames to take; fewer where a trajectory ends early, as the reference refuses a structure.
        structures: where trajectories start in turn: one or several, the path of their file, or a system.
        reference: labels the structures.
        labels: file of the label store, from which an interrupted sampling continues.
        temperature: K.
        seed: makes the result reproducible.
        steps: of each trajectory.
        trajectories: independent of each other; an executor computes them side by side.
        timestep: fs.
        friction: 1/fs.
        executor: where labels are computed, opened here; None: one by one in this process.

    Returns:
        Structures with ``info['REF_energy']``, ``arrays['REF_forces']`` and, if the reference gives it,
        ``info['REF_stress']``.

    Raises:
        InputError: a value is not positive, there are fewer steps than structures to take from them, a label came to no
            end, or no structure was left.
    """
    for name, value in (
        *(("n_structures", n_structures), ("temperature", temperature), ("steps", steps)),
        *(("trajectories", trajectories), ("timestep", timestep), ("friction", friction)),
    ):
        if not value > 0:
            raise InputError(f"{name}: {value} is not positive; give a positive value")
    each = -(-n_structures // trajectories)
    taken = [round(steps * (EQUILIBRATION + (1 - EQUILIBRATION) * (k + 1) / each)) for k in range(each)]
    if len(set(taken)) < each:
        raise InputError(f"steps: {steps} of each trajectory are too few to take {each} structures from; raise it")
    frames: dict[int, list[Atoms]] = {step: [] for step in taken}
    place, store = executor or Serial(), LabelStore(labels, shared=True)
    with run_progress() as progress, progress.stage("test set dynamics", steps + 1) as stage, place:
        starts = islice(cycle(originals(structures, reference, place)), trajectories)
        walkers = [
            _Walker(descendant(atoms, reference.reads), temperature, timestep, friction, (seed, number))
            for number, atoms in enumerate(starts)
        ]
        for step, report in enumerate(_reports(walkers, reference, store, place, steps)):
            stage.update(step + 1)
            if step in frames:
                frames[step] = report.labelled
            if not report.labelled:
                raise InputError(
                    f"reference: no trajectory of the test set is left after {step} steps ({report.failed[0][1]})"
                )
    return [atoms for step in taken for atoms in frames[step]][:n_structures]


class _Walker:
    """A structure in Langevin dynamics by the splitting BAOAB (Leimkuhler and Matthews, 2013)."""

    def __init__(self, atoms: Atoms, temperature: float, timestep: float, friction: float, stream: tuple[int, int]):
        self.atoms, self.timestep = atoms, timestep
        self._moving = ~fixed_atoms(atoms, "the structure to start from")[:, None]
        # a stream of its own: a run with this seed must not have the same noise
        self._rng = np.random.default_rng(np.random.SeedSequence(stream[0], spawn_key=(2, stream[1])))
        masses = atoms.get_masses()[:, None]
        self._per_force = 0.5 * timestep * ACCELERATION / masses
        self._thermal = np.sqrt(KB * temperature * ACCELERATION / masses)  # Å/fs
        self._kept = float(np.exp(-friction * timestep))
        self._velocities = self._noise()

    def _noise(self) -> NDArray[np.float64]:
        return self._moving * self._thermal * self._rng.standard_normal((len(self.atoms), 3))

    def kick(self, forces: NDArray[np.float64]) -> None:
        """Half a step of the forces, eV/Å."""
        self._velocities += self._moving * self._per_force * forces

    def drift(self) -> None:
        """Half a step, the thermostat, half a step."""
        self.atoms.positions += 0.5 * self.timestep * self._velocities
        self._velocities = self._kept * self._velocities + np.sqrt(1 - self._kept**2) * self._noise()
        self.atoms.positions += 0.5 * self.timestep * self._velocities


def _reports(
    walkers: Sequence[_Walker], reference: Reference, store: LabelStore, place: LabelExecutor, steps: int
) -> Iterator[LabelReport]:
    """The labels at the start and after each step, of those trajectories that the reference has not refused."""
    running = list(walkers)
    for step in range(steps + 1):
        if step:
            for walker in running:
                walker.drift()
        structures = [walker.atoms for walker in running]
        report = label_structures(structures, reference, store, executor=place, max_force=None)
        check_finished(report, reference, store)
        if report.failed:
            refused = [atoms.positions for atoms, _ in report.failed]
            running = [w for w in running if not any(np.array_equal(w.atoms.positions, x) for x in refused)]
        yield report
        for walker, labelled in zip(running, report.labelled, strict=True):
            forces = labelled.arrays["REF_forces"]
            if step:
                walker.kick(forces)
            walker.kick(forces)
