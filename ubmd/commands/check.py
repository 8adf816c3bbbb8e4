"""``ubmd check``: whether the files of a run's folder are what was written."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from rich import box
from rich.console import Console
from rich.table import Table

from ubmd.arguments import Parser
from ubmd.errors import InputError
from ubmd.files import leftovers
from ubmd.reference.store import fault_of
from ubmd.runs.continuation import NOT_CHECKED, config_digest, read_config
from ubmd.runs.integrity import is_dataset, is_json, is_metrics
from ubmd.runs.records import faults, is_sealed, read_record
from ubmd.runs.store import RoundFolder, RoundStore
from ubmd.torch_files import DamagedFileError, read_torch_file

__all__ = ["Finding", "check", "inspect"]


@dataclass(frozen=True)
class Finding:
    """What was found about one file."""

    file: str
    """Relative to the run's folder."""
    state: str
    ok: bool = True


def check(argv: Sequence[str]) -> int:
    """Runs ``ubmd check``; returns the exit code: 0 if every file is right, 2 otherwise.

    Raises:
        InputError: for something that is no run's folder.
    """
    parser = Parser(
        prog="ubmd check",
        description="Compares the files of a run's folder with their checksums; nothing is written.",
        epilog="example: ubmd check runs/ala2_demo/default",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder")
    console, right = Console(), True
    for run in parser.parse_args(list(argv)).runs:
        found = inspect(Path(run))
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, title=run, title_justify="left")
        table.add_column("file", no_wrap=True)
        table.add_column("state", overflow="fold")
        for finding in found:
            table.add_row(finding.file, finding.state, style=None if finding.ok else "bold red")
        console.print(table, markup=False)
        right = right and all(finding.ok for finding in found)
    return 0 if right else 2


def inspect(path: Path) -> list[Finding]:
    """What is to be said about each file of a run's folder; nothing is written.

    Raises:
        InputError: the folder is no run's.
    """
    store = RoundStore(path)
    if not any((path / name).exists() for name in ("config.yaml", "run.json")):
        raise InputError(
            f"{path} is not a run's folder, it has neither config.yaml nor run.json; give the folders of runs"
        )
    found = [*_inspect_run(store), *_inspect_rounds(store)]
    found += [Finding(str(file.relative_to(path)), "left by a process that was killed") for file in leftovers(path)]
    return found


def _inspect_run(store: RoundStore) -> Iterable[Finding]:
    try:
        digest = config_digest(read_config(store.path / "config.yaml"), leave_out=NOT_CHECKED)
    except InputError as error:
        yield Finding("config.yaml", str(error), ok=False)
    else:
        known = store.config_checksum()
        yield Finding("config.yaml", *_judged(None if known is None else known == digest))
    whole = is_json(store.path / "provenance.json")
    yield Finding("provenance.json", "readable" if whole else "missing or damaged; no result depends on it", whole)
    try:
        record = read_record(store.record)
    except InputError:
        record = {}
        yield Finding("run.json", "damaged", ok=False)
    else:
        old = record is None and not _has_checksums(store)
        yield Finding("run.json", "right") if record else Finding("run.json", _OLD if old else "missing", old)
    yield from _inspect_files(store, store.path, (record or {}).get("files", {}))
    yield from _inspect_labels(store)


def _has_checksums(store: RoundStore) -> bool:
    """Whether a round was finished by a version that takes checksums."""
    try:
        return any(is_sealed(record) for record in store.records())
    except InputError:
        return True


_OLD = "written before there were checksums"


def _judged(right: bool | None) -> tuple[str, bool]:
    if right is None:
        return _OLD, True
    return ("right", True) if right else ("changed since it was written", False)


def _inspect_files(store: RoundStore, folder: Path, files: dict[str, str]) -> Iterable[Finding]:
    wrong = faults(folder, files)
    for name in files:
        state = {None: "right", "missing": "missing", "changed": "changed since it was written"}[wrong.get(name)]
        yield Finding(str((folder / name).relative_to(store.path)), state, ok=name not in wrong)


def _inspect_labels(store: RoundStore) -> Iterable[Finding]:
    file = store.path / "labels.db"
    if not file.exists():
        if store.initial.exists():
            yield Finding("labels.db", "missing", ok=False)
        return
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True, timeout=20)) as database:
            fault = fault_of(database)
            rows = database.execute("SELECT COUNT(*) FROM sqlite_master WHERE name='systems'").fetchone()[0]
    except sqlite3.Error as error:
        fault, rows = str(error)[:100], 0
    if fault is not None:
        yield Finding("labels.db", f"damaged ({fault})", ok=False)
    elif not rows and store.initial.exists():
        yield Finding("labels.db", "empty", ok=False)
    else:
        yield Finding("labels.db", "right")


def _inspect_rounds(store: RoundStore) -> Iterable[Finding]:
    indices = sorted(int(f.name) for f in (store.path / "rounds").glob("[0-9]*") if f.is_dir() and f.name.isdecimal())
    finished, whole = [], True
    for index in range(max(indices, default=-1) + 1):
        folder = store.round(index)
        try:
            record = read_record(folder.record)
        except InputError:
            whole = False
            yield Finding(str(folder.record.relative_to(store.path)), "damaged", ok=False)
            continue
        if record is None:
            last = index == max(indices)
            if not last:
                whole = False
                yield Finding(str(folder.record.relative_to(store.path)), "missing", ok=False)
            else:
                yield from _inspect_unfinished(store, folder)
            continue
        finished.append(record)
        state = "right" if is_sealed(record) else _OLD
        yield Finding(str(folder.record.relative_to(store.path)), state)
        yield from _inspect_files(store, folder.path, record.get("files", {}))
    if whole and store.initial.exists():
        try:
            right = is_dataset(store, len(finished))
        except InputError:  # of a labelled.extxyz, which is among the findings
            right = False
        yield Finding("dataset.extxyz", "right" if right else "not what the rounds have labelled", right)
    if whole and finished:
        right = is_metrics(store)
        yield Finding("metrics.csv", "right" if right else "not what the records say", right)


def _inspect_unfinished(store: RoundStore, folder: RoundFolder) -> Iterable[Finding]:
    try:
        noted = folder.done()["files"]
    except InputError:
        yield Finding(str(folder.unfinished.relative_to(store.path)), "damaged", ok=False)
        return
    yield Finding(str(folder.path.relative_to(store.path)), "in progress")
    yield from _inspect_files(store, folder.path, noted)
    for file in (*folder.walker_files, *sorted(folder.fit.glob("*.ckpt"))):
        if file.exists():
            right = _is_whole(file)
            yield Finding(str(file.relative_to(store.path)), "right" if right else "damaged", right)


def _is_whole(file: Path) -> bool:
    try:
        read_torch_file(file)
    except (DamagedFileError, OSError):
        return False
    return True
