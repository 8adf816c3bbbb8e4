"""What `ubmd train` and `ubmd evaluate` leave behind alike: the calibration drawn, tables of errors, digests."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ase import Atoms
from rich.console import Console

from ubmd.analysis.evaluation import Evaluation, errors_table, scatter_of_worst_atoms, worst_atoms
from ubmd.analysis.figures import save_figure
from ubmd.analysis.numbers import write_numbers
from ubmd.files import write_text

__all__ = ["content_digests", "draw_calibration", "report_errors", "write_json"]

log = logging.getLogger(__name__)


def draw_calibration(found: Evaluation, alpha: float, folder: Path, half: Evaluation | None = None) -> None:
    """Draws the calibration, where there is something to draw, and writes its numbers beside it."""
    figure = scatter_of_worst_atoms(found, alpha, half)
    if figure is None:
        log.warning("figures/calibration.png is not drawn: no structure has both an error and an uncertainty of forces")
    else:
        save_figure(figure, folder / "figures" / "calibration.png")
        write_numbers(folder / "figures" / "calibration.csv", worst_atoms(found, half))


def report_errors(columns: dict[str, dict[str, Any]], written: str, console: Console) -> None:
    """Prints errors by structures' name, and where the results were ``written``."""
    console.print(errors_table(columns))
    console.print(written, highlight=False, soft_wrap=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a mapping as JSON, all at once."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def content_digests(parts: dict[str, Sequence[Atoms]] | dict[str, list[Atoms]]) -> dict[str, str]:
    """The contents of structure files, whose names alone would not tell one data set from another."""
    out = {}
    for name, structures in parts.items():
        digest = hashlib.sha256()
        for atoms in structures:
            for values in (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, atoms.arrays["REF_forces"]):
                digest.update(values.tobytes())
            stress = atoms.info.get("REF_stress")
            digest.update(repr((float(atoms.info["REF_energy"]), None if stress is None else stress.tolist())).encode())
        out[f"{name}_sha256"] = digest.hexdigest()
    return out
