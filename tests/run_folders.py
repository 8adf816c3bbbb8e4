"""What is in the folder of the runs of a name."""

from __future__ import annotations

from pathlib import Path


def runs_in(folder: Path) -> list[Path]:
    """The folders of runs, without the link to the newest of them."""
    return [path for path in folder.iterdir() if not path.is_symlink()]
