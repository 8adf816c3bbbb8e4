"""Finished runs in folders that a command line names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ubmd.analysis.comparison import RunResult, is_finished
from ubmd.errors import InputError
from ubmd.runs.continuation import read_config
from ubmd.runs.latest import is_latest
from ubmd.runs.metrics import read_metrics
from ubmd.runs.versions import upgraded

__all__ = ["Found", "add_run", "common_parent", "read_folders", "run_folders"]


@dataclass(frozen=True)
class Found:
    """Runs that can be compared, and what was passed over."""

    runs: list[RunResult]
    skipped: list[tuple[str, str]]
    """Name and reason."""


def run_folders(folders: Iterable[Path]) -> list[Path]:
    """Run folders, each given itself or as one of those in a folder.

    Raises:
        InputError: for something that is not there.
    """
    found: list[Path] = []
    for folder in folders:
        if not folder.exists():
            raise InputError(f"{folder} does not exist; give run folders")
        inside = sorted(f.parent for f in folder.glob("*/config.yaml") if not is_latest(f.parent))
        found += [folder] if (folder / "config.yaml").is_file() or not inside else inside
    # `runs/NAME/*` names the newest run twice
    themselves = {folder.resolve() for folder in found if not is_latest(folder)}
    return [folder for folder in found if not is_latest(folder) or folder.resolve() not in themselves]


def read_folders(folders: Iterable[Path]) -> Found:
    """Finished runs of ``ubmd learn`` in folders, each a run's or one of runs.

    Raises:
        InputError: for something that is not there.
    """
    found = Found([], [])
    for folder in run_folders(folders):
        _read_folder(folder, found)
    return found


def _read_folder(folder: Path, found: Found) -> None:
    name = folder.name or str(folder)
    if not (folder / "config.yaml").is_file():
        found.skipped.append((name, "is not a run's folder, it has no config.yaml"))
    elif not (folder / "metrics.csv").is_file():
        found.skipped.append((name, "has no metrics.csv: not a run of `ubmd learn`, or no round of it is finished"))
    else:
        try:
            config = upgraded(read_config(folder / "config.yaml"))
            add_run(found, name, config, read_metrics(folder / "metrics.csv"), folder)
        except InputError as error:
            found.skipped.append((name, f"cannot be read: {' '.join(str(error).split())}"))


def add_run(found: Found, name: str, config: Any, rounds: list[dict[str, Any]], folder: Path | None = None) -> None:
    """Adds a run if it is finished, or why it is passed over."""
    if not isinstance(config, Mapping):
        found.skipped.append((name, "has a configuration that is no mapping"))
    elif not is_finished(rounds):
        found.skipped.append((name, f"is unfinished, with {len(rounds)} rounds"))
    else:
        found.runs.append(RunResult(name, config, rounds, folder))


def common_parent(runs: Sequence[str]) -> Path:
    """The deepest folder with all runs in it; a folder of runs is one itself."""
    parents = []
    for run in runs:
        path = os.path.abspath(run)
        parents.append(os.path.dirname(path) if os.path.isfile(os.path.join(path, "config.yaml")) else path)
    return Path(os.path.commonpath(parents))
