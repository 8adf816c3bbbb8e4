"""A run's folder: what is written when, and how an interrupted run finds its place again."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ase import Atoms

from ubmd.data.io import read_labelled, write_structures
from ubmd.errors import InputError
from ubmd.runs.folder import INITIAL, RoundFolder
from ubmd.runs.metrics import write_metrics
from ubmd.runs.records import checksums, read_record, write_record

__all__ = ["INITIAL", "RoundFolder", "RoundStore"]

log = logging.getLogger(__name__)


class RoundStore:
    """The run folder. A round counts as finished once its ``round.json`` is there, which is written last.

    Args:
        path: the run folder; created if need be.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @property
    def record(self) -> Path:
        """Of what does not belong to a round: the configuration, and the files that :meth:`keep` was given."""
        return self.path / "run.json"

    def keep(self, *paths: Path) -> None:
        """Takes the checksums of files in the run folder that are whole now."""
        content = read_record(self.record) or {}
        write_record(self.record, content | {"files": content.get("files", {}) | checksums(*paths)})

    def release(self, path: Path) -> None:
        """Takes a file that :meth:`keep` was given for unfinished again."""
        content = read_record(self.record) or {}
        files = {name: digest for name, digest in content.get("files", {}).items() if name != path.name}
        write_record(self.record, content | {"files": files})

    def keeps(self, path: Path) -> bool:
        """Whether :meth:`keep` was given a file, so that it is finished."""
        return path.name in (read_record(self.record) or {}).get("files", {})

    def is_begun(self) -> bool:
        """Whether there is a run."""
        marks = (self.path / "config.yaml", self.record, self.initial, self.round(0).record)
        return any(mark.exists() for mark in marks)

    def config_checksum(self) -> str | None:
        """That of the configuration with which the run began; None if it is not known."""
        try:
            digest = (read_record(self.record) or {}).get("config")
        except InputError:
            return None
        return digest if isinstance(digest, str) else None

    def folder(self, index: int) -> RoundFolder:
        """The folder of a round, created if need be."""
        folder = self.round(index)
        folder.path.mkdir(parents=True, exist_ok=True)
        return folder

    def round(self, index: int) -> RoundFolder:
        """The folder of a round, whether it is there or not."""
        return RoundFolder(self.path / "rounds" / f"{index:03d}", index)

    @property
    def initial(self) -> Path:
        """The structures that were labelled before the first round."""
        return self.path / "initial.extxyz"

    @property
    def dataset(self) -> Path:
        """All labelled structures; made of those of the rounds, for other programs to read."""
        return self.path / "dataset.extxyz"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def structures(self, index: int) -> list[Atoms]:
        """All structures that were labelled before the given round, in the order of their labelling."""
        parts = [(INITIAL, self.initial), *((i, self.round(i).labelled) for i in range(index))]
        out = []
        for number, file in parts if index > INITIAL else []:
            for atoms in read_labelled(file, report=False) if file.exists() and file.stat().st_size else []:
                atoms.info["round"] = number
                out.append(atoms)
        return out

    def add_initial(self, structures: Sequence[Atoms]) -> None:
        """Keeps the structures that were labelled before the first round."""
        write_structures(self.initial, structures)
        self.keep(self.initial)
        self.write_dataset(0)

    def write_dataset(self, index: int) -> None:
        """Writes ``dataset.extxyz``: all structures that were labelled before the given round."""
        write_structures(self.dataset, self.structures(index))

    def records(self) -> list[dict[str, Any]]:
        """The records of the finished rounds, in order.

        Raises:
            InputError: one of them is damaged.
        """
        out = []
        for index in range(10**6):
            folder = self.round(index)
            try:
                record = read_record(folder.record)
            except InputError as error:
                raise InputError(f"{error}; {folder.remedy}") from error
            if record is None:
                return out
            if not isinstance(record.get("metrics"), dict):
                raise InputError(f"{folder.record} is damaged (it has no metrics); {folder.remedy}")
            out.append(record)
        return out

    def commit(self, index: int, metrics: Mapping[str, Any]) -> None:
        """Finishes a round: its record, then ``metrics.csv`` and the data set; what only served the resumption goes."""
        folder = self.folder(index)
        noted = folder.done()["files"]
        # what was noted when it was written counts, not what may have become of it
        write_record(folder.record, {"metrics": dict(metrics), "files": checksums(*folder.stages) | noted})
        shutil.rmtree(self.figures, ignore_errors=True)  # they show an earlier end of the run
        self._write_derived(index + 1)
        self.tidy(index + 1)

    def reopen(self, index: int) -> None:
        """Takes back the record of the last round, whose model stays, so that it acquires structures after all."""
        folder = self.folder(index)
        record = self.records()[index]
        files = {name: digest for name, digest in record["files"].items() if name == folder.model.name}
        write_record(folder.unfinished, {"metrics": record["metrics"], "files": files})
        folder.record.unlink()

    def _write_derived(self, n_rounds: int) -> None:
        """Writes what other programs read and the records say."""
        write_metrics(self.path / "metrics.csv", [record["metrics"] for record in self.records()])
        self.write_dataset(n_rounds)

    def tidy(self, n_rounds: int) -> None:
        """Removes what only served the resumption of finished rounds; also after a kill right behind the last one."""
        for index in range(n_rounds):
            folder = self.folder(index)
            for file in folder.walker_files:
                file.unlink(missing_ok=True)
            folder.unfinished.unlink(missing_ok=True)
            shutil.rmtree(folder.fit, ignore_errors=True)
