"""Putting a run's folder right: files that follow from others are made again, other damage is refused."""

from __future__ import annotations

import csv
import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms

from ubmd.data.io import read_labelled, read_structures, write_structures
from ubmd.errors import InputError
from ubmd.files import replaced, sha256_of
from ubmd.reference.base import Label
from ubmd.reference.labelling import with_label, within_limit
from ubmd.reference.store import LabelStore
from ubmd.runs.continuation import NOT_CHECKED, config_digest, read_config
from ubmd.runs.folder import INITIAL, RoundFolder
from ubmd.runs.metrics import write_metrics
from ubmd.runs.records import checksums, faults, is_sealed, read_record, write_record
from ubmd.runs.store import RoundStore

__all__ = ["is_dataset", "is_json", "is_metrics", "repair"]

log = logging.getLogger(__name__)


def repair(store: RoundStore) -> None:
    """Makes again what other files of the folder tell, each with a line in the log.

    Raises:
        InputError: a file was damaged and cannot be made again.
    """
    _repair_record(store)
    n_rounds = len(store.records())
    _refuse_gaps(store, n_rounds)
    for index in range(n_rounds):
        _repair_round(store, store.round(index))
    _repair_unfinished(store.round(n_rounds))
    if store.initial.exists() and not is_dataset(store, n_rounds):
        log.warning("%s is missing or damaged; made again from the labelled structures of each round", store.dataset)
        store.write_dataset(n_rounds)
    if n_rounds and not is_metrics(store):
        log.warning("%s is missing or damaged; made again from the records of the rounds", store.path / "metrics.csv")
        write_metrics(store.path / "metrics.csv", [record["metrics"] for record in store.records()])


def _repair_record(store: RoundStore) -> None:
    """Puts the run's own record right, and the files that it vouches for."""
    try:
        record = read_record(store.record)
    except InputError:
        record = None
    if record is None:
        log.warning("%s is missing or damaged, or of an older version; files are taken as they are", store.record)
        first = _of_round(store, INITIAL)
        if not store.initial.exists() and first:
            write_structures(store.initial, first)
        files = checksums(
            store.initial, *(store.path / name for name in ("model.ckpt", "metrics.json", "trajectory.h5"))
        )
        if "model.ckpt" in files and "metrics.json" not in files:  # an unfinished fit
            del files["model.ckpt"]
        config = config_digest(read_config(store.path / "config.yaml"), leave_out=NOT_CHECKED)
        write_record(store.record, {"config": config, "files": files})
        return
    for name, fault in faults(store.path, record.get("files")).items():
        file = store.path / name
        made = file == store.initial and (
            _made_again(file, _of_round(store, INITIAL), record["files"][name])
            or _made_again(file, _first_in_store(store), record["files"][name])
        )
        if not made:
            raise InputError(
                f"{file} {_WORDS[fault]} and cannot be made again from other files; restore it, or remove "
                f"{store.path} to begin anew"
            )


_WORDS = {"missing": "is missing", "changed": "was changed since it was written"}


def _refuse_gaps(store: RoundStore, n_rounds: int) -> None:
    later = sorted((store.path / "rounds").glob("*/round.json"))
    behind = [file for file in later if file.parent.name.isdecimal() and int(file.parent.name) > n_rounds]
    if behind:
        folder = store.round(n_rounds)
        raise InputError(f"{folder.record} is missing, but there are later rounds; {folder.remedy}")


def _repair_round(store: RoundStore, folder: RoundFolder) -> None:
    """Puts the files of a finished round right."""
    record = read_record(folder.record)
    assert record is not None
    if not is_sealed(record):
        log.warning("%s has no checksums, it is of an older version; files are taken as they are", folder.record)
        write_record(folder.record, record | {"files": checksums(*folder.stages)})
        return
    for name, fault in faults(folder.path, record["files"]).items():
        file, digest = folder.path / name, record["files"][name]
        made = file == folder.labelled and _made_again(file, _of_round(store, folder.index), digest)
        made = made or (file == folder.labelled and _made_again(file, _from_store(store, folder), digest))
        made = made or (file == folder.selected and _made_again(file, _unlabelled(folder), digest))
        if not made:
            raise InputError(f"{file} {_WORDS[fault]} and cannot be made again from other files; {folder.remedy}")


def _repair_unfinished(folder: RoundFolder) -> None:
    """Removes files of the round in progress that are not what was noted, and those that were made of them."""
    if not folder.path.exists():
        return
    try:
        noted = folder.done()["files"]
    except (InputError, KeyError):
        log.warning("%s is damaged; round %d is computed again", folder.unfinished, folder.index)
        folder.unfinished.unlink()
        noted = {}
    wrong = faults(folder.path, noted)
    kept = 0
    while kept < len(folder.stages) and folder.stages[kept].name in noted.keys() - wrong.keys():
        kept += 1
    rest = [path for path in folder.stages[kept:] if path.exists() or path.name in noted]
    if rest:
        if not noted:
            log.warning("%s has files of which there is no record; they are computed again", folder.path)
        for name in wrong:
            log.warning("%s %s; it and what follows are computed again", folder.path / name, _WORDS[wrong[name]])
        folder.drop(rest)


def _of_round(store: RoundStore, index: int) -> list[Atoms]:
    """The structures of a round as the data set holds them, without the number of the round."""
    try:
        found = [a for a in read_labelled(store.dataset, report=False) if a.info.get("round") == index]
    except InputError:
        return []
    for atoms in found:
        del atoms.info["round"]
    return found


def _unlabelled(folder: RoundFolder) -> list[Atoms]:
    """The labelled structures of a round without their labels."""
    try:
        found = read_labelled(folder.labelled, report=False)
    except InputError:
        return []
    for atoms in found:
        for key in ("REF_energy", "REF_stress"):
            atoms.info.pop(key, None)
        del atoms.arrays["REF_forces"]
    return found


def _from_store(store: RoundStore, folder: RoundFolder) -> list[Atoms]:
    """The selected structures of a round with their labels in the store."""
    labels = {_place(atoms): label for atoms, label in _stored(store)}
    found = [with_label(a, labels[_place(a)]) for a in _selected(folder) if _place(a) in labels]
    return _accepted(store, found)


def _first_in_store(store: RoundStore) -> list[Atoms]:
    """The structures with labels in the store that were selected in no round."""
    chosen = {_place(a) for index in range(len(store.records()) + 1) for a in _selected(store.round(index))}
    return _accepted(store, [with_label(a, label) for a, label in _stored(store) if _place(a) not in chosen])


def _stored(store: RoundStore) -> list[tuple[Atoms, Label]]:
    try:
        return LabelStore(store.path / "labels.db").labelled()
    except InputError:
        return []


def _selected(folder: RoundFolder) -> list[Atoms]:
    try:
        return read_structures(folder.selected, report=False)
    except InputError:
        return []


def _accepted(store: RoundStore, labelled: list[Atoms]) -> list[Atoms]:
    """Those within the limit on forces that the run had."""
    try:
        limit = read_config(store.path / "config.yaml").get("labelling", {}).get("max_force")
    except InputError:
        limit = None
    return within_limit(labelled, limit)[0]


def _place(atoms: Atoms) -> tuple[bytes, ...]:
    return atoms.numbers.tobytes(), atoms.positions.tobytes(), atoms.cell.array.tobytes()


def _made_again(file: Path, structures: Sequence[Atoms], digest: str) -> bool:
    """Writes a file of structures if that gives the one with the checksum."""
    with tempfile.TemporaryDirectory() as folder:
        candidate = Path(folder) / file.name
        write_structures(candidate, structures)
        if sha256_of(candidate) != digest:
            return False
        log.warning("%s was missing or damaged; made again from other files of the run", file)
        with replaced(file) as temporary:
            shutil.copyfile(candidate, temporary)
        return True


def is_dataset(store: RoundStore, n_rounds: int) -> bool:
    """Whether the data set holds what the rounds have labelled."""
    try:
        found = read_labelled(store.dataset, report=False)
    except InputError:
        return False
    wanted = store.structures(n_rounds)
    return len(found) == len(wanted) and all(_same(a, b) for a, b in zip(found, wanted, strict=True))


def _same(first: Atoms, second: Atoms) -> bool:
    """Whether two structures are the same with all that they carry."""
    parts = [
        {"cell": np.asarray(a.cell), "pbc": a.pbc, **a.arrays, **{f"info.{k}": v for k, v in a.info.items()}}
        for a in (first, second)
    ]
    return parts[0].keys() == parts[1].keys() and all(
        np.array_equal(np.asarray(value), np.asarray(parts[1][key])) for key, value in parts[0].items()
    )


def is_metrics(store: RoundStore) -> bool:
    """Whether ``metrics.csv`` says what the records say."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "metrics.csv"
        write_metrics(wanted, [record["metrics"] for record in store.records()])
        try:
            return _rows(wanted) == _rows(store.path / "metrics.csv")
        except (OSError, ValueError, csv.Error):
            return False


def _rows(file: Path) -> list[list[str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.reader(stream))


def is_json(file: Path) -> bool:
    """Whether a file holds an object of JSON."""
    try:
        return isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError, RecursionError):
        return False
