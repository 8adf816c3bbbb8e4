"""A run's folder: what is written when, and how an interrupted run finds its place again."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from ase import Atoms

from ubmd.config import circumstances
from ubmd.data.io import read_labelled, write_structures
from ubmd.errors import InputError
from ubmd.files import write_text
from ubmd.runs.continuation import MAY_GROW, NOT_CHECKED, config_digest, differences, read_config
from ubmd.runs.folder import INITIAL, RoundFolder
from ubmd.runs.integrity import is_json, repair
from ubmd.runs.metrics import write_metrics
from ubmd.runs.records import checksums, read_record, write_record
from ubmd.runs.versions import upgraded
from ubmd.secrecy import hidden

__all__ = ["INITIAL", "RoundFolder", "RoundStore"]

log = logging.getLogger(__name__)


class RoundStore:
    """The run folder. A round counts as finished once its ``round.json`` is there, which is written last.

    Args:
        path: the run folder; created if need be.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def open(self, config: Mapping[str, Any]) -> None:
        """Creates the folder, or checks that it belongs to the same configuration and is as it was left.

        What can be made again from other files of the folder is made again.

        Args:
            config: the resolved configuration, which is kept without its secrets. It may differ in what
                :mod:`ubmd.runs.continuation` lists.

        Raises:
            InputError: the folder holds a run with another configuration, or a file that was damaged and cannot be
                made again.
        """
        config = hidden(config)
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._is_begun():
            write_text(self.path / "provenance.json", json.dumps(circumstances(config), indent=2))
            write_record(self.record, {"config": config_digest(config, leave_out=NOT_CHECKED), "files": {}})
            write_text(self.path / "config.yaml", _as_yaml(config))
            return
        grown = self._compare(config)
        repair(self)
        self._tell_changes(config, grown)
        self._tidy(len(self.records()))

    @property
    def record(self) -> Path:
        """Of what does not belong to a round: the configuration, and the files that :meth:`keep` was given."""
        return self.path / "run.json"

    def keep(self, *paths: Path) -> None:
        """Takes the checksums of files in the run folder that are whole now."""
        content = read_record(self.record) or {}
        write_record(self.record, content | {"files": content.get("files", {}) | checksums(*paths)})

    def keeps(self, path: Path) -> bool:
        """Whether :meth:`keep` was given a file, so that it is finished."""
        return path.name in (read_record(self.record) or {}).get("files", {})

    def _is_begun(self) -> bool:
        """Whether there is a run."""
        marks = (self.path / "config.yaml", self.record, self.initial, self.round(0).record)
        return any(mark.exists() for mark in marks)

    def _compare(self, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Raises InputError for another configuration; writes the present one if the file was damaged or has grown.

        Returns:
            the limits that have grown, by key: the value before, and now.
        """
        file, known = self.path / "config.yaml", self.config_checksum()
        same = None if known is None else known == config_digest(config, leave_out=NOT_CHECKED)
        self._check_limits(config)
        try:
            before = read_config(file)
            whole = known is None or known == config_digest(before, leave_out=NOT_CHECKED)
            fault = f"{file} was changed since it was written"
        except InputError as error:
            before, whole, fault = {}, False, str(error)
        if not whole:
            if not same:
                raise InputError(
                    f"{fault}, and the configuration given now is not the run's, or it cannot be told; restore the "
                    "file or choose another name=..."
                )
            log.warning("%s; written anew, since the configuration given now is the run's", fault)
            write_text(file, _as_yaml(config))
            return {}
        different = differences(upgraded(before), config)
        grown = {key: different.pop(key) for key in MAY_GROW if key in different}
        if different:
            key, (old, new) = next(iter(different.items()))
            raise InputError(
                f"{self.path} holds a run with {key}={old}, now it is {new}; "
                "restore that setting, choose another name=... or remove the folder"
            )
        if grown:
            write_text(file, _as_yaml(config))
        return grown

    def config_checksum(self) -> str | None:
        """That of the configuration with which the run began; None if it is not known."""
        try:
            digest = (read_record(self.record) or {}).get("config")
        except InputError:
            return None
        return digest if isinstance(digest, str) else None

    def _check_limits(self, config: Mapping[str, Any]) -> None:
        """Refuses limits that the run has passed already."""
        rounds = [record["metrics"] for record in self.records()]
        if not rounds or "learning" not in config:
            return
        n_rounds, limit = len(rounds), config["learning"]["max_rounds"]
        if limit is not None and limit < n_rounds:
            raise InputError(
                f"learning.max_rounds={limit} is below the {n_rounds} rounds that {self.path} has finished; give at "
                f"least {n_rounds}, or choose another name=..."
            )
        acquired = (rounds[-1].get("n_selected") or 0) - (rounds[-1].get("n_rejected") or 0)
        n = rounds[-1].get("n_train", 0) + rounds[-1].get("n_valid", 0) + acquired
        limit = config["learning"]["max_structures"]
        if limit < n:
            raise InputError(
                f"learning.max_structures={limit} is below the {n} structures that {self.path} has labelled; give at "
                f"least {n}, or choose another name=..."
            )

    def _tell_changes(self, config: Mapping[str, Any], grown: Mapping[str, tuple[Any, Any]]) -> None:
        """Says with what other limits, versions and machine the run goes on, and adds it to ``provenance.json``."""
        file, now = self.path / "provenance.json", circumstances(config)
        if is_json(file):
            told = json.loads(file.read_text(encoding="utf-8"))
        else:
            log.warning("%s is missing or damaged; written anew with the versions of now", file)
            told = dict(now)
            write_text(file, json.dumps(told, indent=2))
        changes = told.get("changes")
        changes = changes if isinstance(changes, list) else []
        before = changes[-1] if changes else {}
        before = before.get("versions") if isinstance(before, dict) else None
        before = before if isinstance(before, dict) else told
        other = [key for key in now if key != "platform" and key in before and before[key] != now[key]]
        if not grown and not other:
            return
        change = {"time": datetime.now().astimezone().isoformat(timespec="seconds"), "versions": now}
        change["settings"] = {key: {"before": old, "now": new} for key, (old, new) in grown.items()}
        write_text(file, json.dumps(told | {"changes": [*changes, change]}, indent=2))
        for key, (old, new) in grown.items():
            log.info("%s: continues with %s=%s, which was %s", self.path, key, new, old)
        if other:
            text = ", ".join(f"{key} {before[key]} (now {now[key]})" for key in other)
            log.warning("%s was computed with %s; results agree only up to rounding from here on", self.path, text)

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
        self._tidy(index + 1)

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

    def _tidy(self, n_rounds: int) -> None:
        """Removes what only served the resumption of finished rounds; also after a kill right behind the last one."""
        for index in range(n_rounds):
            folder = self.folder(index)
            folder.walkers.unlink(missing_ok=True)
            folder.unfinished.unlink(missing_ok=True)
            shutil.rmtree(folder.fit, ignore_errors=True)


def _as_yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
