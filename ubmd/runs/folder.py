"""The files of a round, and what of them is whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ubmd.runs.records import checksums, read_record, write_record

__all__ = ["INITIAL", "RoundFolder"]

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
    def walker_files(self) -> list[Path]:
        """:attr:`walkers`, or those of its groups, as far as they are there."""
        return sorted(self.path.glob("walkers*.pt"))

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

    @property
    def unfinished(self) -> Path:
        """What is done of a round that has no record yet."""
        return self.path / "unfinished.json"

    @property
    def stages(self) -> tuple[Path, ...]:
        """The files that the record vouches for, in the order in which they are made."""
        return self.model, self.trajectory, self.selected, self.labelled

    @property
    def remedy(self) -> str:
        """What to do about a file that cannot be made again from others."""
        return (
            f"restore it, or remove {self.path} and the rounds behind it, which are then computed again (their labels "
            "are kept in labels.db)"
        )

    def done(self) -> dict[str, Any]:
        """What :meth:`note` has noted: ``metrics`` and ``files``."""
        return read_record(self.unfinished) or {"metrics": {}, "files": {}}

    def note(self, *paths: Path, metrics: Mapping[str, Any] | None = None) -> None:
        """Notes files that are whole now, with their checksums, and numbers of an unfinished round."""
        before = self.done()
        content = {
            "metrics": before["metrics"] | dict(metrics or {}),
            "files": before["files"] | checksums(*paths),
        }
        write_record(self.unfinished, content)

    def drop(self, paths: Sequence[Path]) -> None:
        """Removes files of an unfinished round and what is noted about them."""
        content = self.done()
        names = {path.name for path in paths}
        content["files"] = {name: digest for name, digest in content["files"].items() if name not in names}
        if self.model.name in names:
            content["metrics"] = {}
        write_record(self.unfinished, content)
        for path in paths:
            path.unlink(missing_ok=True)
