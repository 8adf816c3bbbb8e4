"""Labelled test structures, from long unbiased dynamics or by perturbation, sampled once and kept in a file."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from ubmd import interruption
from ubmd.data.inherit import Inherited
from ubmd.data.io import read_structures
from ubmd.data.perturb import perturb
from ubmd.data.sealed import read_sealed, write_sealed
from ubmd.errors import InputError
from ubmd.files import locked
from ubmd.progress import run_progress
from ubmd.reference.alanine_dipeptide import SYMBOLS, initial_structure
from ubmd.reference.base import Plain, Reference, checked_label, shared_fingerprint
from ubmd.reference.executors import LabelExecutor, Serial
from ubmd.reference.ff19sb import FF19SB, PACKAGES
from ubmd.reference.identity import code_of, described, versions_of
from ubmd.reference.labelling import LabelReport, label_structures, with_label
from ubmd.reference.openmm_system import build_system, reference_context
from ubmd.reference.store import LabelStore
from ubmd.systems.several import Systems, of_system
from ubmd.systems.system import System
from ubmd.units import ASE_TIME_PER_FS

PAPER_FRICTION_PER_PS = 0.02 * ASE_TIME_PER_FS * 1e3
"""The paper's Langevin friction, 0.02 inverse ASE time units, in 1/ps."""

Origin = Systems | System | Sequence[Atoms] | Atoms | str
"""Of test structures: a system or several, structures, or the path of their file."""

_DECIMALS = 8
"""Of a position in Å. Files hold all digits, but labels of earlier versions belong to structures of as many."""

_RECORD = "sampling"
"""Entry of the first structure that holds the settings."""

_LATER: dict[str, Plain] = {"trajectories": 1}
"""Arguments that earlier versions did not have, and so did not record, and what they were then."""

_MEANS = frozenset({"labels", "executor"})
"""Arguments of samplers that do not change what is sampled."""


def sample_ff19sb(
    n_structures: int,
    *,
    duration_ps: float,
    seed: int,
    cmap: bool = False,
    temperature: float = 1200.0,
    timestep_fs: float = 0.5,
    friction_per_ps: float = PAPER_FRICTION_PER_PS,
    record_every: int = 20,
    trajectories: int = 1,
) -> list[Atoms]:
    """Alanine dipeptide at random times of Langevin trajectories, labelled by :class:`FF19SB`.

    A trajectory starts from the C7eq minimum and runs in OpenMM; recorded frames are drawn without
    replacement, in random order, so that the first structures are a sample of all of it too. The
    centroid is the origin and positions are rounded to 1e-8 Å. The paper's test set: 2000 structures from 1000 ps.

    At 1200 K an amide bond turns from trans to cis about once in some hundred picoseconds, and stays so for as long.
    Of a single short trajectory that may be most or nothing, which decides how hard the test is; of several it is a
    few structures.

    Args:
        n_structures: structures to draw.
        duration_ps: length of the trajectories together, ps.
        seed: makes the result reproducible.
        cmap: with ff19SB's CMAP term.
        temperature: K.
        timestep_fs: fs.
        friction_per_ps: 1/ps.
        record_every: steps between frames that can be drawn.
        trajectories: that share the time.

    Returns:
        Structures with ``info['REF_energy']`` and ``arrays['REF_forces']``.

    Raises:
        InputError: a value is not positive, or there are fewer frames than structures.
        UnfinishedError: the dynamics broke down.
    """
    for name, value in (
        ("n_structures", n_structures),
        ("duration_ps", duration_ps),
        ("temperature", temperature),
        ("timestep_fs", timestep_fs),
        ("friction_per_ps", friction_per_ps),
        ("record_every", record_every),
        ("trajectories", trajectories),
    ):
        if not value > 0:
            raise InputError(f"{name}: {value} is not positive; give a positive value")
    each = round(duration_ps * 1e3 / timestep_fs / trajectories) // record_every
    n_frames = each * trajectories
    if n_structures > n_frames:
        raise InputError(
            f"n_structures: {n_structures} exceeds the {n_frames} frames of the dynamics; lengthen "
            "duration_ps or lower record_every"
        )
    rng = np.random.default_rng(seed)
    # OpenMM takes a seed of 0 for "choose one yourself".
    seeds = rng.integers(1, 2**31 - 1, size=2)
    frames = rng.choice(n_frames, size=n_structures, replace=False)
    order = np.argsort(frames)

    positions = np.empty((n_structures, len(SYMBOLS), 3))
    simulation, running = None, -1
    for index, frame in zip(order.tolist(), frames[order].tolist(), strict=True):
        trajectory, own = divmod(frame, each)
        if simulation is None or trajectory != running:
            if trajectory:
                seeds = np.random.default_rng((seed, trajectory)).integers(1, 2**31 - 1, size=2)
            simulation = _Langevin(cmap, temperature, timestep_fs, friction_per_ps, *map(int, seeds))
            running = trajectory
        positions[index] = simulation.positions_at((own + 1) * record_every)
    positions -= positions.mean(axis=1, keepdims=True)
    return _labelled(np.round(positions, _DECIMALS), cmap)


def sample_perturbed(
    n_structures: int,
    *,
    structures: Origin,
    reference: Reference,
    labels: str | os.PathLike[str],
    displacement: float,
    strain: float = 0.0,
    seed: int,
    max_force: float | None = 20.0,
    executor: LabelExecutor | None = None,
) -> list[Atoms]:
    """Perturbed copies (Eqs. 32-34) of structures in turn, labelled by a reference behind a progress bar.

    Args:
        n_structures: number of copies; those that cannot be labelled are left out.
        structures: to perturb: one or several, the path of their file, or a system (:func:`originals`); their own
            labels do not count.
        reference: labels the copies.
        labels: file of the label store, from which an interrupted sampling continues.
        displacement: half-width of the shift of each coordinate, Å.
        strain: half-width of the distribution behind the strain of the cell; 0 keeps it.
        seed: makes the result reproducible.
        max_force: copies with a larger force on an atom are left out, eV/Å; None: no limit.
        executor: where labels are computed, opened here; None: one by one in this process.

    Returns:
        Structures with ``info['REF_energy']``, ``arrays['REF_forces']`` and, if the reference gives it,
        ``info['REF_stress']``.

    Raises:
        InputError: there is nothing to label, a label came to no end, or no copy could be labelled.
    """
    if not n_structures > 0:
        raise InputError(f"n_structures: {n_structures} is not positive; give a positive value")
    place, store = executor or Serial(), LabelStore(labels, shared=True)
    # a stream of its own: a run with this seed must not start from its test structures
    rng, reads = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,))), reference.reads
    with run_progress() as progress, place:
        given = originals(structures, reference, place)
        copies = [
            perturb(given[i % len(given)], 1, displacement=displacement, strain=strain, rng=rng, reads=reads)[0]
            for i in range(n_structures)
        ]
        for atoms in copies:
            atoms.positions = np.round(atoms.positions, _DECIMALS)
        with progress.stage("test set labels", len(copies)) as stage:
            report = label_structures(
                copies,
                reference,
                store,
                executor=place,
                max_force=max_force,
                on_label=lambda done, total: stage.update(done, total),
            )
    check_finished(report, reference, store)
    if not report.labelled:
        reason = [*report.rejected, *report.failed][0][1]
        raise InputError(f"reference: none of the {n_structures} test structures could be labelled ({reason})")
    return report.labelled


def originals(structures: Origin, reference: Reference, place: LabelExecutor) -> list[Atoms]:
    """What test structures are made from: those given or of a file, or what a system starts from, relaxed if that is.

    Args:
        structures: one or several, the path of their file, or a system, perhaps one of several with a name.
        reference: to relax with.
        place: where labels are computed, which is open.
    """
    if isinstance(structures, str):
        return read_structures(structures)
    if isinstance(structures, System | Systems):
        ((name, system),) = Systems.of(structures).parts.items()
        if system.initial is None and system.relax is not None:
            (start,) = of_system(name, [system.atoms.copy()])
            system = replace(system, structure=system.relax(start, reference, executor=place))
        return of_system(name, [atoms.copy() for atoms in system.given or system.starts])
    return [structures] if isinstance(structures, Atoms) else list(structures)


def check_finished(report: LabelReport, reference: Reference, store: LabelStore) -> None:
    """Refuses labels that came to no end: which structures a test set has must not be a matter of luck.

    Raises:
        InputError: naming the first reason.
    """
    settings = shared_fingerprint(reference)
    unfinished = [reason for atoms, reason in report.failed if store.get(atoms, settings, reference.reads) is None]
    if unfinished:
        n = len(report.labelled) + len(report.failed) + len(report.rejected)
        raise InputError(
            f"reference: {len(unfinished)} of {n} labels of the test set came to no end ({unfinished[0]}); "
            "start the same command again, the others are kept"
        )


def cached_test_set(path: str | os.PathLike[str], sample: partial[list[Atoms]]) -> list[Atoms]:
    """Structures of a file, which is made when it is missing or was made with other settings.

    In a configuration::

        test_set:
          _target_: ubmd.systems.sampling.cached_test_set
          path: ${paths.cache}/ala2_test.extxyz
          sample:
            _target_: ubmd.systems.sampling.sample_ff19sb
            _partial_: true
            n_structures: 2000
            duration_ps: 1000
            seed: 0

    Args:
        path: extended XYZ with ``REF_`` keys. It appears all at once, or not at all. A name without ``xyz`` at its end
            is a folder, in which other settings have another file.
        sample: a function that samples labelled structures, with all of its arguments. They are recorded,
            defaults included, in the first structure's ``info``: plain JSON types as they are, files by what is in
            them, references as their fingerprints with versions, structures as digests. Of several systems as its
            ``structures`` it samples each by itself, as many of each, and these state their ``system``.

    Returns:
        The same structures whether they were sampled or read.

    Raises:
        InputError: the file exists but is not one that this function made, or was cut or changed since, hence is not
            replaced.
    """
    path = Path(path)
    settings = _settings_of(sample)
    if not path.name.endswith("xyz"):
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        path = path / f"{sample.func.__name__}-{digest[:12]}.extxyz"
    if (kept := _kept(path, settings)) is not None:
        return kept
    with interruption.exposed(), locked(path):
        if _kept(path, settings) is None:
            write_sealed(path, _sampled(sample), _RECORD, settings)
    return read_sealed(path, _RECORD)[0]


def _sampled(sample: partial[list[Atoms]]) -> list[Atoms]:
    """What a function samples; of several systems a set of each, whatever other systems there are."""
    systems = sample.keywords.get("structures")
    if not isinstance(systems, Systems):
        return sample()
    found: list[Atoms] = []
    for name, system in systems.parts.items():
        own = {"structures": systems.only(name), "seed": systems.seed(name, sample.keywords["seed"])}
        if not system.periodic and "strain" in sample.keywords:
            own["strain"] = 0.0  # that of the crystals among them
        try:
            found += of_system(name, sample(**own))
        except InputError as error:
            raise InputError(f"data.test: of the system {name}: {error}") from error
    return found


def _kept(path: Path, settings: dict[str, Plain]) -> list[Atoms] | None:
    """The structures in a file if they were sampled with these settings."""
    structures, recorded = read_sealed(path, _RECORD) if path.exists() else ([], None)
    return structures if recorded == settings else None


class _Langevin:
    """Dynamics that is asked for positions at later and later steps."""

    def __init__(
        self,
        cmap: bool,
        temperature: float,
        timestep_fs: float,
        friction_per_ps: float,
        dynamics_seed: int,
        velocity_seed: int,
    ) -> None:
        import openmm

        self._integrator = openmm.LangevinMiddleIntegrator(temperature, friction_per_ps, timestep_fs * 1e-3)
        self._integrator.setRandomNumberSeed(dynamics_seed)
        self._context = reference_context(build_system(cmap=cmap), self._integrator)
        self._context.setPositions(initial_structure(cmap=cmap).positions / 10.0)  # nm
        self._context.setVelocitiesToTemperature(temperature, velocity_seed)
        self._step = 0

    def positions_at(self, step: int) -> NDArray[np.float64]:
        """[22, 3] Å."""
        self._integrator.step(step - self._step)
        self._step = step
        return self._context.getState(getPositions=True).getPositions(asNumpy=True)._value * 10.0


def _labelled(positions: NDArray[np.float64], cmap: bool) -> list[Atoms]:
    energies, forces = FF19SB(cmap=cmap).compute_many(positions)
    return [
        with_label(Atoms(SYMBOLS, positions=x), checked_label(float(e), f, None, len(SYMBOLS)))
        for x, e, f in zip(positions, energies, forces, strict=True)
    ]


def _settings_of(sample: partial[list[Atoms]]) -> dict[str, Plain]:
    """The function and all of its arguments, as they come back from a file."""
    call = inspect.signature(sample.func).bind(*sample.args, **sample.keywords)
    call.apply_defaults()
    function = f"{sample.func.__module__}.{sample.func.__qualname__}"
    arguments = {
        name: value
        for name, value in call.arguments.items()
        if name not in _MEANS and not (name in _LATER and value == _LATER[name])
    }
    reads = getattr(arguments.get("reference"), "reads", ())
    settings = {"function": function, "versions": _versions(sample.func)}
    settings |= {name: described(value) if isinstance(value, str) else value for name, value in arguments.items()}
    return json.loads(json.dumps(settings, default=partial(_recorded, reads=reads)))


def _versions(function: Callable[..., Any]) -> dict[str, str]:
    """Of the packages that a sampling function takes its structures from; those of a reference are the reference's."""
    code = code_of({function.__module__})
    versions = {name: version for name, version in code.versions.items() if name != "ubmd"}
    if function is sample_ff19sb:
        versions |= versions_of(*PACKAGES)
    return versions | ({} if code.source is None else {"source": code.source})


def _recorded(value: Any, *, reads: Collection[str]) -> Plain:
    """What stands for an argument that JSON cannot hold."""
    if hasattr(value, "fingerprint"):
        return shared_fingerprint(value)
    if isinstance(value, Systems):
        return {name: _recorded(system, reads=reads) for name, system in value.parts.items()}
    if isinstance(value, System):
        kept = None if value.relax is None else [value.relax.fmax, value.relax.max_steps]
        return [kept, *(_recorded(atoms, reads=reads) for atoms in value.given or value.starts)]
    digest = hashlib.sha256()
    for array in (value.numbers, value.positions, np.asarray(value.cell), value.pbc):
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(Inherited.of(value, reads).record().encode())
    return digest.hexdigest()
