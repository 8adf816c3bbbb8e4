"""The label store: every label ever paid for, in one SQLite file that ASE can read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.db.core import now
from ase.db.row import AtomsRow
from ase.db.sqlite import VERSION, SQLite3Database
from ase.stress import full_3x3_to_voigt_6_stress

from ubmd.data.electronic import ELECTRONIC
from ubmd.errors import InputError
from ubmd.reference.base import Label, Plain

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A structure that the reference could not label."""

    message: str


class LabelStore:
    """Labels and failures by structure and settings, each committed as it arrives.

    A structure is its numbers, positions, cell and periodicity, and what else the reference reads of it
    (``Reference.reads``) where it has that, bit by bit; settings are a reference's fingerprint. What was stored
    first stays. A process that is killed while it writes loses at most the label it was writing.

    The file is an ``ase.db`` database (``ase db labels.db`` lists it). Exact values are in ``data`` of its
    rows, the columns of energy, forces and stress are for other programs. A table of its own holds a checksum of
    each row, structure, key and label, as SQLite has none.

    Versions of packages are recorded with each label. In a run's own store they tell nothing apart, as an
    upgrade must not discard labels; that a label is of other versions is said once.

    Args:
        path: the file, ending in ``.db``; it is created with the first label.
        shared: several runs share the file, in which versions tell labels apart
            (:func:`ubmd.reference.base.shared_fingerprint`).

    Raises:
        InputError: ``path`` has another ending, or is no SQLite database or a damaged one, down to one bit of a label.
    """

    def __init__(self, path: str | os.PathLike[str], *, shared: bool = False) -> None:
        self.path, self.shared = Path(path), shared
        self._told: set[str] = set()
        if self.path.suffix != ".db":
            raise InputError(f"path: label store {self.path} should end in .db; rename it")
        if not self._is_empty_or_sqlite():
            raise InputError(f"path: {self.path} is not an SQLite database; {_REMEDY}")
        fault = None
        if self.path.exists():
            with closing(sqlite3.connect(self.path, timeout=20)) as connection:
                fault = fault_of(connection)
        if fault is not None:
            raise InputError(f"path: {self.path} is damaged ({fault}); {_REMEDY}")

    def get(
        self,
        atoms: Atoms,
        fingerprint: Mapping[str, Plain],
        reads: Sequence[str] = ELECTRONIC,
        versions: Mapping[str, str] | None = None,
    ) -> Label | Failure | None:
        """What is known about a structure under these settings; None if nothing is.

        Args:
            atoms: the structure.
            fingerprint: the settings.
            reads: names of what else counts of the structure.
            versions: of the packages, as they are now; None: no word about others.
        """
        if not self._has_tables():
            return None
        key = label_key(atoms, fingerprint, reads)
        with closing(sqlite3.connect(self.path, timeout=20)) as connection:
            if n_changed(connection, key):
                raise self._changed()
        rows = list(self._connect().select(unique_id=key))
        if not rows:
            return None
        data = rows[0].data
        if not _is_right(data):
            raise self._changed()
        if versions is not None:
            self._tell_of_versions(data.get("versions") or {}, versions)
        if data["failure"] is not None:
            return Failure(data["failure"])
        stress = data["stress"]
        return Label(data["energy"], data["forces"].copy(), None if stress is None else stress.copy())

    def put(
        self,
        atoms: Atoms,
        fingerprint: Mapping[str, Plain],
        result: Label | Failure,
        reads: Sequence[str] = ELECTRONIC,
        versions: Mapping[str, str] | None = None,
    ) -> None:
        """Store a label or failure, durably when the call returns; one that is there already stays."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        row, data = _row(atoms, fingerprint, result, reads)
        data["versions"] = dict(versions or {})
        try:
            with self._transaction() as database:
                index = database.write(row, data=data, failed=isinstance(result, Failure))
                assert database.connection is not None
                _note_checksum(database.connection, index)
        except sqlite3.IntegrityError:
            # The unique key is there: another process, or an earlier call, was first.
            if self.get(atoms, fingerprint, reads) is None:
                raise

    def labelled(self) -> list[tuple[Atoms, Label]]:
        """Structures with what was computed for them, in the order of their storing; failures are left out.

        The structures are their numbers, positions, cell and periodicity alone.
        """
        if not self._has_tables():
            return []
        found = []
        for row in self._connect().select(sort="id"):
            if row.data["failure"] is None and _is_right(row.data):
                label = Label(row.data["energy"], row.data["forces"].copy(), row.data["stress"])
                found.append((_bare_structure(row), label))
        return found

    def failures(self) -> list[tuple[Atoms, Failure]]:
        """What could not be labelled, as bare as what :meth:`labelled` returns, in the order of storing."""
        rows = self._connect().select(sort="id") if self._has_tables() else ()
        return [(_bare_structure(r), Failure(r.data["failure"])) for r in rows if r.data["failure"] is not None]

    def last_fingerprint(self) -> dict[str, Plain] | None:
        """The settings of what was stored last; None of an empty store."""
        if not self._has_tables():
            return None
        rows = list(self._connect().select(sort="-id", limit=1))
        return json.loads(rows[0].data["fingerprint"]) if rows else None

    def _tell_of_versions(self, before: Mapping[str, str], now: Mapping[str, str]) -> None:
        other = [name for name in before if name in now and before[name] != now[name]]
        text = ", ".join(f"{name} {before[name]:.12} (now {now[name]:.12})" for name in other)
        if text and text not in self._told:
            self._told.add(text)
            log.warning("labels in %s are of %s; they are taken as they are", self.path, text)

    def forget_failures(self) -> int:
        """Removes the failures, so that their structures are computed again; returns how many there were."""
        if not self._has_tables():
            return 0
        with self._transaction() as database:
            failures = [row.id for row in database.select() if row.data["failure"] is not None]
            database.delete(failures)
        return len(failures)

    def __len__(self) -> int:
        """Number of labels and failures."""
        return self._connect().count() if self._has_tables() else 0

    def _changed(self) -> InputError:
        return InputError(f"path: {self.path} holds a label that is not what was stored; {_REMEDY}")

    def _connect(self) -> SQLite3Database:
        # ASE's lock file outlives a killed process and would block every later one; SQLite's locks do not.
        return SQLite3Database(str(self.path), use_lock_file=False)

    @contextmanager
    def _transaction(self) -> Generator[SQLite3Database]:
        with self._connect() as database:
            # ASE creates its tables statement by statement; inside a transaction a kill leaves all or none.
            assert database.connection is not None
            database.connection.execute("BEGIN IMMEDIATE")
            yield database

    def _is_empty_or_sqlite(self) -> bool:
        if not self.path.exists():
            return True
        with self.path.open("rb") as file:
            return file.read(16) in (b"", b"SQLite format 3\x00")

    def _has_tables(self) -> bool:
        """Whether there is anything to read; ASE would create the tables when asked to read without them."""
        if not self.path.exists():
            return False
        with closing(sqlite3.connect(self.path, timeout=20)) as connection:
            return _has_table(connection, "systems")


def label_key(atoms: Atoms, fingerprint: Mapping[str, Plain], reads: Sequence[str] = ELECTRONIC) -> str:
    """Hash of a structure and of the settings, equal for what the store takes for the same.

    Args:
        atoms: the structure.
        fingerprint: of the reference.
        reads: what else than numbers, positions, cell and periodicity the reference reads of a structure.
    """
    digest = hashlib.sha256(hashlib.sha256(_canonical(fingerprint).encode()).digest())
    for array, dtype in (
        (atoms.numbers, "<i8"),
        (atoms.positions, "<f8"),
        (atoms.cell.array, "<f8"),
        (atoms.pbc, "u1"),
    ):
        digest.update(np.ascontiguousarray(array, dtype=dtype).tobytes())
    for name in reads:
        if name in atoms.arrays:
            array = np.ascontiguousarray(atoms.arrays[name])
            numeric = array.astype("<f8") if array.dtype.kind in "biuf" else array
            digest.update(name.encode() + numeric.tobytes())
        if name in atoms.info:
            digest.update(f"info:{name}:{_entry(atoms.info[name])}".encode())
    return digest.hexdigest()


def _entry(value: object) -> str:
    """An entry of ``info`` as text, the same for 1, 1.0 and an array of it, as files may turn one into another."""
    array = np.asarray(value)
    return repr(array.astype("<f8").ravel().tolist()) if array.dtype.kind in "biuf" else repr(array.ravel().tolist())


def _bare_structure(row: Any) -> Atoms:
    return Atoms(row.numbers, row.positions, cell=row.cell, pbc=row.pbc)


_REMEDY = (
    "restore it, or move it away: a run then takes the labels of its structures from its other files, the others are "
    "computed again"
)


_COLUMNS = ", ".join(SQLite3Database.columnnames)
_FORMATS = {str(version) for version in range(5, VERSION + 1)}
"""Versions of ``ase.db`` that can be read."""


def _has_table(connection: sqlite3.Connection, name: str) -> bool:
    return connection.execute("SELECT COUNT(*) FROM sqlite_master WHERE name=?", (name,)).fetchone()[0] > 0


def fault_of(connection: sqlite3.Connection) -> str | None:
    """What is wrong with a store: by SQLite, by what ASE expects, and by the checksums of rows; None for nothing.

    Raises:
        sqlite3.OperationalError: of a place that cannot be read, which says nothing about the contents.
    """
    connection.text_factory = _text
    try:
        answer = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if answer != "ok":
            return " ".join(answer.split())[:100]
        if not _has_table(connection, "systems"):
            return None
        if dict(connection.execute("SELECT name, value FROM information")).get("version") not in _FORMATS:
            return "it tells no version of its format"
        connection.execute(f"SELECT {_COLUMNS} FROM systems LIMIT 1").fetchall()
        n_wrong = n_changed(connection)
    except UnicodeDecodeError:  # of a message of SQLite itself
        return "its tables cannot be read"
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise
        return str(error)
    return f"{n_wrong} of its rows are not what was stored" if n_wrong else None


def n_changed(connection: sqlite3.Connection, key: str | None = None) -> int:
    """Number of rows that are not what their checksums say; rows of earlier versions have none.

    Args:
        connection: to the store.
        key: of the only structure to look at.
    """
    connection.text_factory = _text
    if not (_has_table(connection, "systems") and _has_table(connection, "checksums")):
        return 0
    where, values = ("", ()) if key is None else (" WHERE unique_id=?", (key,))
    found = connection.execute(f"SELECT sha256, {_COLUMNS} FROM systems JOIN checksums USING (id){where}", values)
    return sum(checksum != _row_checksum(row) for checksum, *row in found)


def _note_checksum(connection: sqlite3.Connection, index: int) -> None:
    """Stores the checksum of a row as SQLite gives it back: of the bytes, before anything interprets them."""
    (row,) = connection.execute(f"SELECT {_COLUMNS} FROM systems WHERE id=?", (index,))
    connection.execute("CREATE TABLE IF NOT EXISTS checksums (id INTEGER PRIMARY KEY, sha256 TEXT)")
    connection.execute("INSERT OR REPLACE INTO checksums VALUES (?, ?)", (index, _row_checksum(row)))


def _row_checksum(row: Sequence[object]) -> str:
    return hashlib.sha256(ascii(tuple(row)).encode()).hexdigest()


def _text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")  # it may be damaged


def _is_right(data: Mapping[str, object]) -> bool:
    """Whether a row of an earlier version, with a checksum of the label alone, says what was stored."""
    digest = hashlib.sha256()
    for name in ("fingerprint", "failure", "energy", "forces", "stress"):
        value = data[name]
        digest.update(b"%s\0" % (value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()))
    return data.get("sha256") in (None, digest.hexdigest())


def _canonical(fingerprint: Mapping[str, Plain]) -> str:
    return json.dumps(fingerprint, sort_keys=True, separators=(",", ":"))


def _row(
    atoms: Atoms, fingerprint: Mapping[str, Plain], result: Label | Failure, reads: Sequence[str]
) -> tuple[AtomsRow, dict[str, object]]:
    """Row for ASE's database and its ``data``, which :meth:`LabelStore.get` reads back."""
    columns: dict[str, object] = {
        "unique_id": label_key(atoms, fingerprint, reads),
        "numbers": atoms.numbers,
        "positions": atoms.positions,
        "cell": atoms.cell.array,
        "pbc": atoms.pbc,
        "ctime": now(),
        "user": None,
        **{
            name: np.asarray(atoms.arrays[name], dtype=np.float64)
            for name in ("initial_magmoms", "initial_charges")
            if name in atoms.arrays
        },
    }
    data: dict[str, object] = {
        "fingerprint": _canonical(fingerprint),
        "reads": {name: _entry(atoms.info[name]) for name in reads if name in atoms.info},
        "failure": None,
        "energy": None,
        "forces": None,
        "stress": None,
    }
    if isinstance(result, Failure):
        data["failure"] = result.message
        return AtomsRow(columns), data
    forces = np.asarray(result.forces, dtype=np.float64)
    data |= {"energy": float(result.energy), "forces": forces}
    columns |= {
        "calculator": str(fingerprint.get("class", "unknown")).rsplit(".", 1)[-1].lower(),
        "calculator_parameters": dict(fingerprint),
        "energy": result.energy,
        "forces": forces,
    }
    if result.stress is not None:
        stress = np.asarray(result.stress, dtype=np.float64)
        data["stress"] = stress
        columns["stress"] = full_3x3_to_voigt_6_stress(stress)
    return AtomsRow(columns), data
