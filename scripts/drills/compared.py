"""Whether two run folders hold the same results, bit by bit, and what their label stores know."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ase.db
import h5py
import numpy as np
import torch

from drills.counting import name_of


def differences(run: Path, standard: Path) -> list[str]:
    """What of a run's results differs from the undisturbed run's; times and the logs of processes may."""
    ours, theirs = files(run), files(standard)
    found = [f"{name} is left over" for name in sorted(ours - theirs)]
    found += [f"{name} is missing" for name in sorted(theirs - ours)]
    for name in sorted(ours & theirs):
        read = READERS.get(Path(name).suffix)
        if Path(name).suffix == ".db":
            same = labels(run / name) == labels(standard / name)
        else:
            same = read is None or equal(read(run / name), read(standard / name))
        found += [] if same else [f"{name} differs"]
    return found


def files(folder: Path) -> set[str]:
    """Names of the files below a folder, but for logs, of which a continued run has more."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if not name.startswith(("csv/", ".hydra/", "ubmd.log"))}


def labels(path: Path) -> dict[str, tuple[float, bytes, bytes]]:
    """Labels of a store by structure; empty if it holds none, or a killed process has just created it."""
    if not path.exists():
        return {}
    connection = sqlite3.connect(path)
    try:
        found = connection.execute("SELECT COUNT(*) FROM sqlite_master WHERE name='systems'").fetchone()
    finally:
        connection.close()
    out = {}
    for row in ase.db.connect(path, use_lock_file=False).select() if found[0] else ():
        stress = row.data["stress"]
        forces = np.asarray(row.data["forces"]).tobytes()
        out[name_of(row.toatoms())] = (row.data["energy"], forces, b"" if stress is None else stress.tobytes())
    return out


def equal(a: Any, b: Any) -> bool:
    """Equality of nested plain values, arrays and tensors; two NaN are equal."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, torch.Tensor):
        a, b = a.numpy(), b.numpy()
    if isinstance(a, np.ndarray):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return a.tolist() == b.tolist() if a.dtype == object else a.tobytes() == b.tobytes()
    return a == b or (a != a and b != b)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("time_")} for row in csv.DictReader(file)]


def _metrics(path: Path) -> Any:
    record = json.loads(path.read_text())
    return {k: v for k, v in record.get("metrics", {}).items() if not k.startswith("time_")}


def _frames(path: Path) -> dict[str, Any]:
    out: dict[str, Any] = {}
    with h5py.File(path, "r") as file:
        file.visititems(lambda name, item: out.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    return out


READERS: dict[str, Any] = {
    ".csv": _rows,
    ".json": lambda path: _metrics(path) if path.name == "round.json" else None,
    ".ckpt": lambda path: torch.load(path, map_location="cpu", weights_only=True),
    ".h5": _frames,
    ".extxyz": Path.read_bytes,
}


def stores(*folders: Path) -> Iterator[Path]:
    """The label stores in folders."""
    for folder in folders:
        yield from sorted(folder.rglob("labels.db"))
