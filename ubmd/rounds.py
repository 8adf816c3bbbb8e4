"""A run's folder: what is written when, and how an interrupted run finds its place again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ase import Atoms

from ubmd.analysis.metrics import write_metrics
from ubmd.config import provenance
from ubmd.data.io import read_labelled, write_structures
from ubmd.errors import InputError
from ubmd.files import replaced

__all__ = ["RoundFolder", "RoundStore"]

INITIAL = -1
"""``round`` of the structures that were labelled before the first round."""


@dataclass(frozen=True)
class RoundFolder:
    """The files of one round."""

    path: Path
    index: int

    @property
    def fit(self) -> Path:
        """Checkpoints of the fit in progress; removed when the round is finished."""
        return self.path / "fit"

    @property
    def walkers(self) -> Path:
        """State of the exploration in progress; removed when the round is finished."""
        return self.path / "walkers.pt"

    @property
    def model(self) -> Path:
        return self.path / "model.ckpt"

    @property
    def trajectory(self) -> Path:
        return self.path / "trajectory.h5"

    @property
    def selected(self) -> Path:
        return self.path / "selected.extxyz"

    @property
    def labelled(self) -> Path:
        return self.path / "labelled.extxyz"

    @property
    def record(self) -> Path:
        return self.path / "round.json"


class RoundStore:
    """The run folder. A round counts as finished once its ``round.json`` is there, which is written last.

    Args:
        path: the run folder; created if need be.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def open(self, config: Mapping[str, Any], *, ignore: Sequence[str] = ()) -> None:
        """Creates the folder, or checks that it belongs to the same configuration.

        Args:
            config: the resolved configuration.
            ignore: keys, with all that is in them, that may differ between the runs that share a folder.

        Raises:
            InputError: if the folder holds a run with another configuration.
        """
        file = self.path / "config.yaml"
        if file.exists():
            self._check_same(file, config, ignore)
            self._tidy()
        else:
            self.path.mkdir(parents=True, exist_ok=True)
            _write(self.path / "provenance.json", json.dumps(provenance(), indent=2))
            _write(file, yaml.safe_dump(dict(config), sort_keys=False))

    def _check_same(self, file: Path, config: Mapping[str, Any], ignore: Sequence[str]) -> None:
        before, now = _flatten(yaml.safe_load(file.read_text())), _flatten(config)
        different = sorted(
            key
            for key in before.keys() | now.keys()
            if before.get(key) != now.get(key) and not any(f"{key}.".startswith(f"{part}.") for part in ignore)
        )
        if different:
            key = different[0]
            raise InputError(
                f"{self.path} holds a run with {key}={before.get(key)}, now it is {now.get(key)}; "
                "restore that setting, choose another name=... or remove the folder"
            )

    def folder(self, index: int) -> RoundFolder:
        """The folder of a round, created if need be."""
        path = self.path / "rounds" / f"{index:03d}"
        path.mkdir(parents=True, exist_ok=True)
        return RoundFolder(path, index)

    @property
    def dataset(self) -> Path:
        return self.path / "dataset.extxyz"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def structures(self, index: int) -> list[Atoms]:
        """All structures that were labelled before the given round, in the order of their labelling."""
        if not self.dataset.exists():
            return []
        return [a for a in read_labelled(self.dataset, report=False) if a.info["round"] < index]

    def add_structures(self, structures: Sequence[Atoms], index: int) -> None:
        """Appends the structures labelled in a round to ``dataset.extxyz``; doing it twice changes nothing."""
        for atoms in structures:
            atoms.info["round"] = index
        write_structures(self.dataset, [*self.structures(index), *structures])

    def records(self) -> list[dict[str, Any]]:
        """The records of the finished rounds, in order."""
        out = []
        for index in range(10**6):
            file = self.path / "rounds" / f"{index:03d}" / "round.json"
            if not file.exists():
                return out
            out.append(json.loads(file.read_text()))
        return out

    def commit(self, index: int, record: Mapping[str, Any]) -> None:
        """Finishes a round: its record, then ``metrics.csv``; what only served the resumption goes."""
        folder = self.folder(index)
        _write(folder.record, json.dumps(record, indent=2))
        self._tidy()

    def _tidy(self) -> None:
        """Brings everything in line with the records; also after a kill right behind the last one."""
        records = self.records()
        if not records:
            return
        write_metrics(self.path / "metrics.csv", [record["metrics"] for record in records])
        for index in range(len(records)):
            folder = self.folder(index)
            folder.walkers.unlink(missing_ok=True)
            shutil.rmtree(folder.fit, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    with replaced(path) as temporary:
        temporary.write_text(text)


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        out |= _flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return out
