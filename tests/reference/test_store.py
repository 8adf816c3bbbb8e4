"""The label store: exact, keyed by structure and settings, indifferent to being killed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sqlite3
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import ase.db
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.db.sqlite import SQLite3Database

from ubmd.errors import InputError
from ubmd.reference.base import Label
from ubmd.reference.store import Failure, LabelStore

SETTINGS = {"class": "x.Y", "cutoff": 0.1, "nested": {"a": [1, None, True]}}


def make_label(seed: int, n_atoms: int = 2, *, stress: bool = True) -> Label:
    rng = np.random.default_rng(seed)
    return Label(rng.normal(), rng.normal(size=(n_atoms, 3)), rng.normal(size=(3, 3)) if stress else None)


def molecule(seed: int) -> Atoms:
    return Atoms("CO", positions=np.random.default_rng([seed, 1]).normal(size=(2, 3)))


def same_bits(a: float, b: float) -> bool:
    return struct.pack("<d", a) == struct.pack("<d", b)


def assert_identical(found: Label | Failure | None, expected: Label) -> None:
    assert isinstance(found, Label)
    assert type(found.energy) is float
    assert same_bits(found.energy, expected.energy)
    assert found.forces.dtype == np.float64
    assert found.forces.tobytes() == expected.forces.tobytes()
    if expected.stress is None:
        assert found.stress is None
    else:
        assert found.stress is not None
        assert found.stress.shape == (3, 3)
        assert found.stress.tobytes() == expected.stress.tobytes()


@pytest.mark.parametrize("energy", [0.1 + 0.2, -0.0, 7.0, 1e-320, -1.2345678901234567e300])
@pytest.mark.parametrize("stress", [False, True])
def test_round_trip_is_bit_exact(tmp_path, energy, stress):
    path = tmp_path / "labels.db"
    random_label = make_label(0, stress=stress)
    forces = random_label.forces.copy()
    forces[0] = [-0.0, 5e-324, 1 / 3]
    label = Label(energy, forces, random_label.stress)
    LabelStore(path).put(molecule(0), SETTINGS, label)
    found = LabelStore(path).get(molecule(0), SETTINGS)
    assert_identical(found, label)
    assert isinstance(found, Label)
    found.forces[0] = 1.0  # writable


def test_key_is_structure_and_settings(tmp_path):
    store = LabelStore(tmp_path / "labels.db")
    atoms = bulk("Cu", cubic=True)
    label = make_label(1, 4)
    store.put(atoms, SETTINGS, label)

    same = atoms.copy()
    same.info["note"] = "ignored"
    same.set_tags(3)
    assert_identical(store.get(same, dict(reversed(SETTINGS.items()))), label)

    moved, stretched, open_, alloy, magnetic = (atoms.copy() for _ in range(5))
    moved.positions[0, 0] = np.nextafter(moved.positions[0, 0], 1.0)
    stretched.cell.array[0, 0] *= 1 + 1e-15
    open_.pbc[2] = False
    alloy.numbers[1] = 47
    magnetic.set_initial_magnetic_moments([1, 0, 0, 0])
    for other in (moved, stretched, open_, alloy, magnetic):
        assert store.get(other, SETTINGS) is None
    for settings in ({**SETTINGS, "cutoff": 0.2}, {"class": "x.Y"}):
        assert store.get(atoms, settings) is None
    assert len(store) == 1


def test_failures_are_remembered(tmp_path):
    store = LabelStore(tmp_path / "labels.db")
    failure = Failure('SCF: "not" converged\nin 50 steps, ΔE = 1 Ä')
    store.put(molecule(0), SETTINGS, failure)
    assert LabelStore(store.path).get(molecule(0), SETTINGS) == failure
    assert len(store) == 1


def test_what_was_stored_first_stays(tmp_path):
    store = LabelStore(tmp_path / "labels.db")
    store.put(molecule(0), SETTINGS, make_label(0))
    store.put(molecule(0), SETTINGS, make_label(1))
    store.put(molecule(0), SETTINGS, Failure("late"))
    assert_identical(store.get(molecule(0), SETTINGS), make_label(0))
    assert len(store) == 1


def test_nothing_is_created_before_the_first_label(tmp_path):
    store = LabelStore(tmp_path / "run" / "labels.db")
    assert store.get(molecule(0), SETTINGS) is None
    assert len(store) == 0
    assert list(tmp_path.iterdir()) == []
    store.put(molecule(0), SETTINGS, make_label(0))
    assert [p.name for p in store.path.parent.iterdir()] == ["labels.db"]


def test_file_is_readable_by_ase(tmp_path):
    store = LabelStore(tmp_path / "labels.db")
    atoms = bulk("Cu", cubic=True)
    stress = make_label(3).stress
    assert stress is not None
    label = Label(1.5, make_label(3, 4).forces, stress + stress.T)
    store.put(atoms, SETTINGS, label)
    store.put(molecule(1), SETTINGS, Failure("no"))
    (row,) = ase.db.connect(store.path).select(failed=False)
    read = row.toatoms()
    assert read.get_potential_energy() == 1.5
    np.testing.assert_array_equal(read.get_forces(), label.forces)
    np.testing.assert_array_equal(read.get_stress(voigt=False), label.stress)
    np.testing.assert_array_equal(read.cell, atoms.cell)


def test_other_files_are_input_errors(tmp_path):
    (tmp_path / "notes.db").write_text("these are not the labels you are looking for")
    with pytest.raises(InputError, match="SQLite"):
        LabelStore(tmp_path / "notes.db")
    with pytest.raises(InputError, match=r"\.db"):
        LabelStore(tmp_path / "labels.json")


COLUMNS = ("unique_id", "numbers", "positions", "cell", "pbc", "initial_magmoms", "energy", "forces", "stress", "data")


def flip(path: Path, column: str) -> None:
    """Changes one bit of a row's column, as a disk may, which knows of no index."""
    connection = sqlite3.connect(path)
    (value,) = connection.execute(f"SELECT {column} FROM systems WHERE id=2").fetchone()
    raw = bytearray(value if isinstance(value, bytes) else repr(value).encode())
    raw[len(raw) // 2] ^= 1
    new = bytes(raw) if isinstance(value, bytes) else type(value)(raw.decode())
    connection.execute("DROP INDEX unique_id_index")
    connection.execute(f"UPDATE systems SET {column}=? WHERE id=2", (new,))
    connection.commit()
    connection.close()


@pytest.mark.parametrize("column", COLUMNS)
def test_one_bit_of_a_row(column: str, tmp_path: Path) -> None:
    """Noticed when the file is opened, and when the label is read from one that is open already."""
    store, atoms = LabelStore(tmp_path / "labels.db"), bulk("Cu", cubic=True)
    atoms.set_initial_magnetic_moments([1, 0, 0, 0])
    store.put(molecule(0), SETTINGS, make_label(0))
    store.put(atoms, SETTINGS, make_label(1, 4))
    LabelStore(store.path)
    flip(store.path, column)
    with pytest.raises(InputError, match=r"labels\.db is damaged \(1 of its rows are not what was stored\); restore"):
        LabelStore(store.path)
    assert_identical(store.get(molecule(0), SETTINGS), make_label(0))
    if column != "unique_id":
        with pytest.raises(InputError, match=r"labels\.db holds a label that is not what was stored; restore it"):
            store.get(atoms, SETTINGS)


def test_one_bit_of_the_file(tmp_path: Path) -> None:
    """Refused in a sentence, or the labels as they were; of headers, names of columns, text that is no UTF-8."""

    def known() -> list[object]:
        store = LabelStore(path)
        found = [store.get(molecule(seed), SETTINGS) for seed in range(3)]
        return [repr(found), repr(store.labelled()), store.last_fingerprint(), len(store)]

    path = tmp_path / "labels.db"
    for seed, result in enumerate((make_label(0), Failure("no"), make_label(2))):
        LabelStore(path).put(molecule(seed), SETTINGS, result)
    content, right, n_refused = path.read_bytes(), known(), 0
    places = [place for place, byte in enumerate(content) if byte][::37]
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        try:
            assert known() == right, place
        except InputError:
            n_refused += 1
    assert len(places) / 2 < n_refused < len(places)


def test_rows_of_earlier_versions(tmp_path: Path) -> None:
    """They have a checksum of their label alone, or none."""
    store, label = LabelStore(tmp_path / "labels.db"), make_label(1)
    assert label.stress is not None
    content = f"{json.dumps(SETTINGS, sort_keys=True, separators=(',', ':'))!r}\0None\0{label.energy!r}\0".encode()
    digest = hashlib.sha256(content + label.forces.tobytes() + b"\0" + label.stress.tobytes() + b"\0").hexdigest()
    for checksum, right in ((digest, True), (None, True), (digest[::-1], False)):
        store.path.unlink(missing_ok=True)
        store.put(molecule(1), SETTINGS, label)
        with SQLite3Database(str(store.path), use_lock_file=False) as database:
            assert database.connection is not None
            database.connection.execute("DROP TABLE checksums")
            data = dict(database.get(id=1).data)
            database.update(1, data=data if checksum is None else data | {"sha256": checksum})
        if not right:
            with pytest.raises(InputError, match="not what was stored"):
                LabelStore(store.path).get(molecule(1), SETTINGS)
            continue
        assert_identical(LabelStore(store.path).get(molecule(1), SETTINGS), label)
        store.put(molecule(2), SETTINGS, make_label(2))
        assert_identical(LabelStore(store.path).get(molecule(2), SETTINGS), make_label(2))


def test_failures_are_forgotten(tmp_path: Path) -> None:
    store = LabelStore(tmp_path / "labels.db")
    store.put(molecule(0), SETTINGS, Failure("no"))
    store.put(molecule(1), SETTINGS, make_label(1))
    assert store.forget_failures() == 1
    assert LabelStore(store.path).get(molecule(0), SETTINGS) is None
    store.put(molecule(0), SETTINGS, make_label(0))
    for seed in (0, 1):
        assert_identical(LabelStore(store.path).get(molecule(seed), SETTINGS), make_label(seed))


def test_moments_of_whole_numbers(tmp_path: Path) -> None:
    """ASE's database reads them as if they were floats."""
    store, atoms = LabelStore(tmp_path / "labels.db"), molecule(0)
    atoms.set_array("initial_magmoms", np.array([2, 1]))
    store.put(atoms, SETTINGS, make_label(0))
    assert_identical(store.get(atoms, SETTINGS), make_label(0))
    (row,) = ase.db.connect(store.path).select()
    assert row.toatoms().get_initial_magnetic_moments().tolist() == [2.0, 1.0]


def test_an_empty_file_is_filled(tmp_path):
    path = tmp_path / "labels.db"
    path.touch()
    store = LabelStore(path)
    assert store.get(molecule(0), SETTINGS) is None
    assert path.stat().st_size == 0
    store.put(molecule(0), SETTINGS, make_label(0))
    assert_identical(store.get(molecule(0), SETTINGS), make_label(0))


def assert_intact(path) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_a_killed_writer_loses_nothing_that_was_acknowledged(tmp_path):
    script = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_store import SETTINGS, LabelStore, make_label, molecule
        store = LabelStore({str(tmp_path / "labels.db")!r})
        for seed in range(100000):
            store.put(molecule(seed), SETTINGS, make_label(seed))
            print(seed, flush=True)
        """
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    assert writer.stdout is not None
    for line in writer.stdout:
        if int(line) == 20:
            writer.send_signal(signal.SIGKILL)
            break
    acknowledged = 21 + len(writer.stdout.read().split())
    assert writer.wait() == -signal.SIGKILL
    writer.stdout.close()

    store = LabelStore(tmp_path / "labels.db")
    assert len(store) in (acknowledged, acknowledged + 1)
    for seed in range(acknowledged):
        assert_identical(store.get(molecule(seed), SETTINGS), make_label(seed))
    store.put(molecule(10**6), SETTINGS, Failure("afterwards"))
    assert_intact(store.path)


def test_killed_at_any_moment_the_store_stays_usable(tmp_path):
    """Children die at random times, many of them while the tables are made or a label is written."""
    rng = random.Random(0)
    moments: list[float | None] = [rng.uniform(0.0, 0.04) for _ in range(15)]
    moments += [0.0, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008]
    moments += [None]  # once there is a label, however slow the machine is
    seen = 0
    for index, moment in enumerate(moments):
        path = tmp_path / f"labels{index}.db"
        child = os.fork()
        if child == 0:
            store = LabelStore(path)
            for seed in range(10**6):
                store.put(molecule(seed), SETTINGS, make_label(seed))
        if moment is None:
            while not (path.exists() and len(LabelStore(path))):
                time.sleep(0.01)
        else:
            time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

        store = LabelStore(path)
        stored = len(store)
        seen += stored
        for seed in range(stored):
            assert_identical(store.get(molecule(seed), SETTINGS), make_label(seed))
        assert store.get(molecule(stored), SETTINGS) is None
        store.put(molecule(stored), SETTINGS, make_label(stored))
        assert_identical(store.get(molecule(stored), SETTINGS), make_label(stored))
        assert len(store) == stored + 1
        assert_intact(path)
    assert seen > 0


def test_two_writers_share_a_store(tmp_path):
    path = tmp_path / "labels.db"
    child = os.fork()
    if child == 0:
        store = LabelStore(path)
        for seed in range(40):
            store.put(molecule(seed), SETTINGS, make_label(seed))
        os._exit(0)
    store = LabelStore(path)
    for seed in range(39, -1, -1):
        store.put(molecule(seed), SETTINGS, make_label(seed))
    assert os.waitpid(child, 0)[1] == 0
    assert len(store) == 40
    for seed in range(40):
        assert_identical(store.get(molecule(seed), SETTINGS), make_label(seed))


def test_failures_are_listed_with_their_structures(tmp_path: Path) -> None:
    store = LabelStore(tmp_path / "labels.db")
    assert store.failures() == []
    store.put(molecule(0), SETTINGS, make_label(0))
    store.put(molecule(1), SETTINGS, Failure("no convergence"))
    ((atoms, failure),) = store.failures()
    assert failure == Failure("no convergence")
    assert atoms.positions.tobytes() == molecule(1).positions.tobytes()
    assert len(store.labelled()) == 1
