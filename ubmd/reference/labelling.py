"""Labelling of structures: each one once, failures and too large forces set aside."""

from __future__ import annotations

import logging
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from ubmd import interruption
from ubmd.data.inherit import free_atoms
from ubmd.errors import InputError
from ubmd.reference.base import (
    Label,
    Plain,
    Reference,
    ReferenceError,
    SetupError,
    UnfinishedError,
    checked_label,
    same_structure,
    shared_fingerprint,
    told,
)
from ubmd.reference.executors import LabelExecutor, Serial
from ubmd.reference.isolation import isolated
from ubmd.reference.store import Failure, LabelStore, label_key
from ubmd.secrecy import hidden, hide

if TYPE_CHECKING:
    from ase import Atoms

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelReport:
    """What came of a list of structures; every list keeps the order of the input."""

    labelled: list[Atoms] = field(default_factory=list)
    """Copies as :func:`with_label` makes them."""
    rejected: list[tuple[Atoms, str]] = field(default_factory=list)
    """Labelled copies with a force above the limit, and the reason."""
    failed: list[tuple[Atoms, str]] = field(default_factory=list)
    """Copies without label, and what the reference said or why it came to no end."""
    n_computed: int = 0
    """Structures that the reference was asked for; everything else came from the store."""


@dataclass(frozen=True)
class _Unfinished:
    """Nothing is known about a structure, because its computation broke off."""

    message: str
    setup: bool = False
    """Whether it says that the reference is not set up."""


NOT_SET_UP = 3
"""Computations that say so, before any label is known, until the others are not tried either."""


def label_structures(
    structures: Sequence[Atoms],
    reference: Reference,
    store: LabelStore,
    *,
    executor: LabelExecutor | None = None,
    max_force: float | None = 20.0,
    on_label: Callable[[int, int], None] | None = None,
) -> LabelReport:
    """Label structures, taking from the store what it knows and storing at once what it does not.

    Labels that the reference refuses (:class:`~ubmd.reference.base.ReferenceError`) are stored as failures.
    A computation that broke off in whatever way, was killed or took too long is tried again as often as the
    executor says; then its structure is reported as failed, but nothing is stored, so that the next run tries it
    again. If nothing at all is known of any structure then, the reference itself is taken to be at fault.

    Args:
        structures: what to label; they are left as they are. One that is listed twice is computed once.
        reference: computes labels.
        store: remembers labels and failures.
        executor: where labels are computed, which is open and stays so; None: one by one in this process.
        max_force: largest norm of the force on a free atom in eV/Å; a structure above is rejected, after its
            label was stored. None: no limit.
        on_label: called with (structures done, structures in all) after each.

    Raises:
        InputError: ``max_force`` is not positive, the reference refuses a structure beforehand or is not set up,
            or there is no label or failure of any structure, old or new.
    """
    check_max_force(max_force)
    reads, versions = reference.reads, reference.versions()
    fingerprint = shared_fingerprint(reference) if store.shared else hidden(reference.fingerprint())
    keys = [label_key(atoms, fingerprint, reads) for atoms in structures]
    results: dict[str, Label | Failure | _Unfinished] = {}
    todo: dict[str, Atoms] = {}
    for key, atoms in dict(zip(keys, structures, strict=True)).items():
        known = store.get(atoms, fingerprint, reads, versions)
        if known is None:
            todo[key] = atoms
        else:
            results[key] = known
    _check_atoms(structures, keys, todo, reference)
    if todo and not store.shared:
        _tell_of_another_reference(store, fingerprint)
    copies = Counter(keys)
    done = sum(copies[key] for key in results)
    if on_label is not None and done:
        on_label(done, len(structures))
    with interruption.shielded():  # a label that is computed is stored
        for key, result in _computed(todo, reference, executor or Serial()):
            if not isinstance(result, _Unfinished):
                store.put(todo[key], fingerprint, result, reads, versions)
            results[key] = result
            done += copies[key]
            if on_label is not None:
                on_label(done, len(structures))
            _check_set_up(results)
    _check_any(results)
    _tell_of_failures(results, store)
    return _sorted(structures, [results[key] for key in keys], max_force, len(todo))


def check_max_force(limit: object) -> None:
    """Raises InputError for a limit on forces that is neither None nor a positive number."""
    if limit is not None and (not isinstance(limit, int | float) or not limit > 0):
        raise InputError(f"labelling.max_force={limit} must be a positive force in eV/Å, or null for no limit")


def _check_atoms(
    structures: Sequence[Atoms], keys: Sequence[str], todo: Mapping[str, Atoms], reference: Reference
) -> None:
    """Refuses, before anything is computed, a structure that states what the reference cannot compute."""
    for number, (atoms, key) in enumerate(zip(structures, keys, strict=True)):
        if key in todo:
            try:
                reference.check_atoms(atoms)
            except InputError as error:
                raise InputError(f"structure {number} of {len(structures)} cannot be labelled: {error}") from error


def _check_set_up(results: Mapping[str, Label | Failure | _Unfinished]) -> None:
    """Refuses to go on with a reference that is not set up, without waiting for all structures to say so."""
    broken = [result for result in results.values() if isinstance(result, _Unfinished) and result.setup]
    if len(broken) == len(results) >= NOT_SET_UP:
        raise InputError(f"reference: {broken[0].message}; set it up, then start the same command again")


def _check_any(results: Mapping[str, Label | Failure | _Unfinished]) -> None:
    """Refuses to go on when nothing is known of any structure."""
    broken = [result.message for result in results.values() if isinstance(result, _Unfinished)]
    if broken and len(broken) == len(results):
        raise InputError(
            f"reference: none of {len(broken)} labels came to an end ({broken[0]}); nothing of that is remembered: see "
            "that the reference runs, then start the same command again"
        )


def _tell_of_failures(results: Mapping[str, Label | Failure | _Unfinished], store: LabelStore) -> None:
    """Says once what is remembered of structures that cannot be labelled, and where."""
    failures = [result.message for result in results.values() if isinstance(result, Failure)]
    if failures:
        log.warning(
            "%s remembers that %d of %d structures cannot be labelled (%s); retry=true tries them again",
            store.path,
            len(failures),
            len(results),
            failures[0],
        )


def _tell_of_another_reference(store: LabelStore, fingerprint: Mapping[str, Plain]) -> None:
    """Says that what a run's store holds is not of the reference as it is now, which the run's configuration hides."""
    before = store.last_fingerprint()
    if before is not None and before != fingerprint:
        parts = sorted(key for key in before.keys() | fingerprint.keys() if before.get(key) != fingerprint.get(key))
        log.warning(
            "%s holds labels of another reference (%s differs: an argument, a file that one names, or code of one's "
            "own); they are kept, but none of them is taken for this one",
            store.path,
            ", ".join(parts),
        )


def _computed(
    todo: Mapping[str, Atoms], reference: Reference, executor: LabelExecutor
) -> Iterator[tuple[str, Label | Failure | _Unfinished]]:
    """Results by key as they arrive; an error that is not one structure's is raised after the results it came with."""
    waiting = deque((key, 0) for key in todo)
    running: dict[Future[Label | Failure], tuple[str, int]] = {}
    while waiting or running:
        while waiting and len(running) < executor.ahead:
            key, attempt = waiting.popleft()
            running[executor.submit(evaluate, reference, todo[key])] = (key, attempt)
        error: Exception | None = None
        with interruption.exposed():
            finished = wait(running, return_when=FIRST_COMPLETED).done
        for future in finished:
            key, attempt = running.pop(future)
            try:
                result = future.result()
                yield key, Failure(hide(result.message)) if isinstance(result, Failure) else result
            except Exception as raised:
                reason = hide(str(raised)) if isinstance(raised, UnfinishedError) else executor.unfinished(raised)
                if reason is None:
                    error = raised
                elif isinstance(raised, SetupError):
                    yield key, _Unfinished(reason, setup=True)
                elif attempt < executor.retries:
                    log.warning("a label broke off and is tried again: %s", reason)
                    waiting.append((key, attempt + 1))
                else:
                    yield key, _Unfinished(reason)
        if error is not None:
            raise error


def evaluate(reference: Reference, atoms: Atoms) -> Label | Failure:
    """One label, or what the reference has against the structure: the task that executors run.

    The reference gets a copy of the structure, and computes apart from what else goes on in the process
    (:func:`ubmd.reference.isolation.isolated`).

    Raises:
        UnfinishedError: the computation broke off, with whatever error.
        InputError: no structure can be labelled here.
    """
    given = atoms.copy()
    try:
        with isolated(zlib.crc32(np.ascontiguousarray(atoms.positions).tobytes())):
            label = reference.compute(given)
    except ReferenceError as error:
        return Failure(str(error))
    except (UnfinishedError, InputError):
        raise
    except (Exception, SystemExit) as error:
        raise UnfinishedError(told(error)) from error
    if not isinstance(label, Label):
        raise UnfinishedError(f"the reference returned {type(label).__name__} instead of a label")
    if not same_structure(given, atoms):
        raise UnfinishedError("the reference changed the structure that it was given; let it work on a copy")
    return checked_label(label.energy, label.forces, label.stress, len(atoms))


def _sorted(
    structures: Sequence[Atoms],
    results: Sequence[Label | Failure | _Unfinished],
    max_force: float | None,
    n_computed: int,
) -> LabelReport:
    """The structures by what came of them."""
    report = LabelReport(n_computed=n_computed)
    for atoms, result in zip(structures, results, strict=True):
        if isinstance(result, Label):
            report.labelled.append(with_label(atoms, result))
        else:
            report.failed.append((_without_label(atoms), result.message))
    labelled, rejected = within_limit(report.labelled, max_force)
    return replace(report, labelled=labelled, rejected=rejected)


def within_limit(labelled: Sequence[Atoms], max_force: float | None) -> tuple[list[Atoms], list[tuple[Atoms, str]]]:
    """Labelled structures whose forces do not exceed ``max_force`` (eV/Å, None: no limit), and the others with why.

    A fixed atom may have any force: it never moves, and no walker could lower it.
    """
    kept: list[Atoms] = []
    rejected: list[tuple[Atoms, str]] = []
    for atoms in labelled:
        largest = float(np.linalg.norm(atoms.arrays["REF_forces"][free_atoms(atoms)], axis=1).max(initial=0.0))
        if max_force is not None and largest > max_force:
            rejected.append((atoms, f"force of {largest:.1f} eV/Å exceeds the limit of {max_force:g} eV/Å"))
        else:
            kept.append(atoms)
    return kept, rejected


def restore_labels(structures: Sequence[Atoms], reference: Reference, store: LabelStore) -> None:
    """Puts labels that structures carry into a store that has lost everything; one that holds anything is left alone.

    Args:
        structures: with the labels that the reference gave them.
        reference: under whose settings they are stored.
        store: of the run that the structures belong to.
    """
    if not structures or len(store):
        return
    for atoms in structures:
        label = Label(atoms.info["REF_energy"], atoms.arrays["REF_forces"], atoms.info.get("REF_stress"))
        store.put(atoms, hidden(reference.fingerprint()), label, reference.reads, reference.versions())
    log.warning("%s was missing or empty; the labels of %d structures were put back", store.path, len(structures))


def with_label(atoms: Atoms, label: Label) -> Atoms:
    """Copy of a structure with its label in ``REF_`` keys.

    These are ``info['REF_energy']``, ``arrays['REF_forces']`` and, where there is a stress, the [3, 3] array
    ``info['REF_stress']``. Other entries of ``info`` and ``arrays`` stay; there is no calculator.
    """
    copy = _without_label(atoms)
    copy.info["REF_energy"] = float(label.energy)
    copy.arrays["REF_forces"] = label.forces.copy()
    if label.stress is not None:
        copy.info["REF_stress"] = label.stress.copy()
    return copy


def _without_label(atoms: Atoms) -> Atoms:
    """Copy without calculator and without a label of an earlier reference."""
    copy = atoms.copy()
    copy.info.pop("REF_energy", None)
    copy.info.pop("REF_stress", None)
    copy.arrays.pop("REF_forces", None)
    return copy
