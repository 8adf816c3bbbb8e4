"""What a run of ``ubmd learn`` must fulfil, in one sentence each: before any expensive work, and at its end."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from ubmd.data.datamodule import GrowingDataModule
from ubmd.data.electronic import stated
from ubmd.data.labels import SYSTEM, has_stress, is_labelled
from ubmd.dynamics.explore import Explorer
from ubmd.errors import InputError, StoppedShort
from ubmd.reference.base import Reference
from ubmd.reference.by_system import BySystem
from ubmd.rounds.fit import Fitting
from ubmd.rounds.limits import Limits
from ubmd.systems.several import Systems
from ubmd.systems.system import System

log = logging.getLogger(__name__)

__all__ = ["check_complete", "check_same_method", "check_sizes", "check_test", "check_trainer", "trains_stress"]

SAME_ENERGY = 0.01
"""eV/atom; two computations by one method, with other settings of their convergence, differ by less."""
SAME_FORCE = 0.1
"""eV/Å."""


def trains_stress(weight: float, systems: Systems, explorers: Mapping[str, Explorer], reference: Reference) -> bool:
    """Whether the potential learns stress, whose ``weight`` the loss has; refuses what this cannot go with."""
    if isinstance(reference, BySystem):
        reference.check_systems(list(systems.parts))
    if any(explorer.needs_stress for explorer in explorers.values()) and not weight > 0:
        raise InputError(
            f"training.loss.stress={weight} leaves untrained the stress that dynamics at constant pressure follow; "
            "set it to, say, 0.01 or choose dynamics=langevin"
        )
    if weight > 0 and not any(system.periodic for system in systems.parts.values()):
        raise InputError(f"training.loss.stress={weight} needs a periodic system; set it to 0")
    crystals = [atoms for system in systems.parts.values() if system.periodic for atoms in system.given]
    lacking = sum(is_labelled(a) and not has_stress(a) for a in crystals)
    if weight > 0 and lacking and lacking == len(crystals):
        raise InputError(
            f"training.loss.stress={weight} needs a stress, but no label of system.initial has a REF_stress; "
            "add it, remove the labels or set training.loss.stress=0"
        )
    crystal = [name for name, system in systems.parts.items() if system.periodic]
    of = [reference.references[name] for name in crystal] if isinstance(reference, BySystem) else [reference]
    if weight > 0 and not any(part.has_stress for part in of):
        raise InputError(
            f"training.loss.stress={weight} needs a reference that computes stress, which "
            f"{type(reference).__name__} does not; set it to 0 or choose another reference"
        )
    if weight > 0 and lacking:
        log.warning("stress is trained on where there is one: %d labels of system.initial have none", lacking)
    return weight > 0


def check_test(reference: Mapping[str, Any], systems: Systems, test: Sequence[Atoms]) -> None:
    """Refuses test structures of another charge or multiplicity, whose labels are of another potential.

    Args:
        reference: its options, among which a ``charge`` and a ``multiplicity`` may be.
        systems: of the run; structures are compared with the system that they are of.
        test: the test set.

    Raises:
        InputError: naming the structure and what it states.
    """
    whose = [systems.name_of(atoms) for atoms in test]
    if untold := whose.count(None):
        log.warning(
            "data.test: %d structures are of no system, or their atoms do not tell of which (%s=NAME in info does); "
            "they are in no system's errors",
            *(untold, SYSTEM),
        )
    for name, system in systems.parts.items():
        _check_test(reference, system, {n: atoms for n, atoms in enumerate(test) if whose[n] == name})


def _check_test(reference: Mapping[str, Any], system: System, test: Mapping[int, Atoms]) -> None:
    """Refuses test structures, by their number, of another charge or multiplicity than their system."""
    own = stated(system.atoms)
    charge = own.charge if own.charge is not None else reference.get("charge") or 0
    multiplicity = None if own.unpaired is None else own.unpaired + 1
    if system.atoms.pbc.any():  # moments of a crystal's atoms are first guesses
        multiplicity = None
    multiplicity = multiplicity or reference.get("multiplicity")
    silent = 0
    for number, atoms in test.items():
        found = stated(atoms)
        silent += bool(charge and found.charge is None)
        differs = ""
        if found.charge is not None and abs(found.charge - charge) > 0.01:
            differs = f"the charge {found.charge:g}, the system {charge:g}"
        same_atoms = sorted(atoms.numbers) == sorted(system.atoms.numbers)
        if same_atoms and multiplicity and found.unpaired is not None and abs(found.unpaired + 1 - multiplicity) > 0.01:
            differs = f"the multiplicity {found.unpaired + 1:g}, the system {multiplicity:g}"
        if differs:
            raise InputError(f"structure {number} of data.test has {differs}; test with structures of the same state")
    if silent:
        log.warning("data.test: %d structures state no charge; it is taken for that of the system, %g", silent, charge)


def check_sizes(learning: Limits, systems: Systems, explorers: Mapping[str, Explorer]) -> None:
    """Refuses numbers that are out of range or do not go together."""
    for name in ("max_structures", "batch_size"):
        if getattr(learning, name) < 1:
            raise InputError(f"learning.{name}={getattr(learning, name)} must be at least 1")
    if learning.max_rounds is not None and learning.max_rounds < 1:
        raise InputError(f"learning.max_rounds={learning.max_rounds} must be at least 1, or null for no limit")
    largest = sum(explorer.max_candidates for explorer in explorers.values())
    if learning.batch_size > largest:
        raise InputError(
            f"learning.batch_size={learning.batch_size} is larger than the pool, which holds at most "
            f"{largest} candidates; use more walkers, a longer dynamics.stopping.max_steps "
            "or a smaller batch"
        )
    if learning.max_structures < systems.n_start:
        raise InputError(
            f"learning.max_structures={learning.max_structures} is below the {systems.n_start} structures that the run "
            "starts from; raise it or lower system.n_initial"
        )
    if learning.warm_start is not None and not 0 < learning.warm_start <= 1:
        raise InputError(f"learning.warm_start={learning.warm_start} must be a share between 0 and 1, or null")


def check_trainer(fitting: Fitting, learning: Limits, n_start: int, datamodule: GrowingDataModule) -> None:
    """Refuses, beforehand, a trainer whose fits cannot be, or end before their first validation.

    A fit of a number of steps has the fewest epochs at the end of the run, an epoch the fewest batches at its start.
    """
    fitting.check()
    largest = learning.max_structures
    if learning.max_rounds is not None:
        largest = min(largest, n_start + (learning.max_rounds - 1) * learning.batch_size)
    for n, share in ((n_start, 1.0), (largest, learning.warm_start or 1.0)):
        n_train = max(int((1 - datamodule.validation_fraction) * n), 1)
        fitting.limits(n_train, datamodule.batch_size, share)


def check_complete(limits: Limits, last: Mapping[str, Any], n_structures: int, dataset: Path) -> None:
    """Says that a run ended because its last round acquired nothing, not because it has all that it was to have.

    Args:
        limits: of the run.
        last: metrics of the last round.
        n_structures: labelled structures in all.
        dataset: their file.

    Raises:
        StoppedShort: naming the cause and how to go on.
    """
    selected = last.get("n_selected")
    if selected is None or selected > last["n_rejected"]:
        return
    if selected:
        cause = f"all {selected} structures that it selected were rejected (see the warnings above)"
        remedy = "a higher labelling.max_force, a lower bias.tau or dynamics.stopping.uncertainty_threshold"
    elif last["n_candidates"]:
        cause = f"its {last['n_candidates']} candidates are copies of labelled structures"
        remedy = "a higher temperature, longer walkers or a bias"
    else:
        cause = "every walker became unphysical before its first frame"
        remedy = "a lower bias.tau, dynamics.integrator.dt or dynamics.frame_interval"
    raise StoppedShort(
        f"round {last['round']} acquired no structure, as {cause}; the run ends at {n_structures} of "
        f"learning.max_structures={limits.max_structures}; to go on from its labels, start a run of another name "
        f"with system.initial={dataset} and {remedy}"
    )


def check_same_method(given: Atoms, computed: Atoms, n_given: int) -> None:
    """Refuses labels of another method than the reference's, told by a structure that both have labelled.

    Args:
        given: a structure of ``system.initial`` with the label that it came with.
        computed: the same structure, labelled by the reference.
        n_given: number of structures that came with labels, for the message.

    Raises:
        InputError: energies differ by more than 10 meV/atom, or a force by more than 0.1 eV/Å.
    """
    energies = [a.info["REF_energy"] for a in (given, computed)]
    force = np.linalg.norm(given.arrays["REF_forces"] - computed.arrays["REF_forces"], axis=1).max()
    if abs(energies[0] - energies[1]) > SAME_ENERGY * len(given) or force > SAME_FORCE:
        raise InputError(
            f"system.initial: a label of another method: {energies[0]:.4f} eV in the file, {energies[1]:.4f} eV by the "
            f"reference, and forces that differ by up to {force:.3f} eV/Å; choose the reference that the file was "
            f"labelled with, or remove the labels of its {n_given} structures"
        )
    log.info("system.initial: %d structures keep their labels; the reference agrees with the first", n_given)
