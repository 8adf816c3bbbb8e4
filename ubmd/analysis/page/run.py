"""What a run's folder holds for its page; what is missing or damaged is known by its absence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ubmd.analysis.comparison import is_finished
from ubmd.errors import InputError
from ubmd.runs.continuation import read_config
from ubmd.runs.metrics import read_metrics
from ubmd.runs.records import read_record
from ubmd.runs.store import RoundStore
from ubmd.runs.versions import upgraded

__all__ = ["RunPage"]

_LARGEST = 2**20
"""Bytes of a record that is shown."""


@dataclass(frozen=True)
class RunPage:
    """A run of ``ubmd learn``, finished or not."""

    path: Path
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, float | int | None]]
    """Of ``metrics.csv``; none if no round is finished."""
    provenance: Mapping[str, Any]
    overrides: Sequence[str]
    """The words behind ``ubmd learn`` on the command line, as far as they are known."""
    allow: Sequence[str] = ()
    """What potentials may name."""

    @classmethod
    def read(cls, path: Path, allow: Sequence[str] = ()) -> RunPage:
        """Reads a run's folder.

        Args:
            path: of the folder.
            allow: what potentials may name, see :func:`~ubmd.uncertainty.checkpoint.load_potential`.

        Raises:
            InputError: it is no folder of ``ubmd learn``, or its ``config.yaml`` or ``metrics.csv`` is damaged.
        """
        if not (path / "config.yaml").is_file():
            raise InputError(f"{path} is not a run's folder, it has no config.yaml; give the folder of a run")
        config = upgraded(read_config(path / "config.yaml"))
        if not isinstance(config.get("learning"), Mapping):
            raise InputError(f"{path} is no run of `ubmd learn`, of which alone there are reports; give one of those")
        rows = read_metrics(path / "metrics.csv") if (path / "metrics.csv").is_file() else []
        overrides = _read(path / ".hydra" / "overrides.yaml", yaml.safe_load)
        overrides = [str(word) for word in overrides] if isinstance(overrides, list) else []
        provenance = _read(path / "provenance.json", json.loads)
        return cls(path, config, rows, provenance if isinstance(provenance, dict) else {}, overrides, allow)

    @property
    def title(self) -> str:
        """Its name and that of its folder."""
        return f"{self.config.get('name', 'run')} / {self.path.resolve().name}"

    @property
    def finished(self) -> bool:
        """Whether its last round did not acquire anything more."""
        return is_finished(self.rows)

    @property
    def n_structures(self) -> int | None:
        """Labelled structures; None if no round is finished."""
        if not self.rows:
            return None
        row = self.rows[-1]
        n_acquired = (row.get("n_selected") or 0) - (row.get("n_rejected") or 0)
        return int((row.get("n_train") or 0) + (row.get("n_valid") or 0) + n_acquired)

    @property
    def alpha(self) -> float | None:
        """That uncertainties of atoms are calibrated with."""
        alpha = self.value("calibration.atomic.alpha")
        return float(alpha) if isinstance(alpha, int | float) else None

    def value(self, key: str) -> Any:
        """A value of the configuration by its dotted key; None without it."""
        found: Any = self.config
        for name in key.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
        return found

    def unfinished(self) -> str | None:
        """A sentence about a round that was begun and has no record; None if there is none."""
        folder = RoundStore(self.path).round(len(self.rows))
        if not folder.path.is_dir():
            return None
        try:
            done = list((read_record(folder.unfinished) or {}).get("files", {}))
        except InputError:
            done = []
        what = f"of it there are {', '.join(map(str, done))}" if done else "nothing of it is there yet"
        return f"Round {folder.index} was begun and is not finished: {what}."


def _read(file: Path, parse: Any) -> Any:
    """What a small file holds; None if it is not there or not what it should be."""
    try:
        return parse(file.read_text(encoding="utf-8")) if file.stat().st_size < _LARGEST else None
    except Exception:  # PyYAML's readers of values raise anything
        return None
