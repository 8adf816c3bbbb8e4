"""``metrics.csv``: one row for each finished round; a contract that other programs read."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from ubmd.errors import InputError
from ubmd.files import replaced

__all__ = ["COLUMNS", "STAGES", "read_metrics", "write_metrics"]

STAGES: tuple[str, ...] = ("fit", "calibrate", "explore", "select", "label")
"""Stages of a round in their order; their times are the columns ``time_<stage>_s``."""

COLUMNS: tuple[str, ...] = (
    "round",
    "n_train",
    "n_valid",
    "energy_rmse_mev_per_atom",
    "force_rmse_ev_per_ang",
    "stress_rmse_mpa",
    "coverage",
    "act_position_ps",
    "act_uncertainty_ps",
    "conformal_scale_atom",
    "conformal_scale_total",
    "n_candidates",
    "n_selected",
    "n_rejected",
    "md_steps",
    "walkers_stopped_by_uncertainty",
    *(f"time_{stage}_s" for stage in STAGES),
)
"""Columns of the contract in their order; their units are in their names. Further columns may follow."""


def write_metrics(path: str | Path, rows: Sequence[Mapping[str, float | int | None]]) -> None:
    """Write all rows, replacing the file in one step.

    The contract's columns come first, those that only the rows name after them, in order of appearance.
    Numbers are written so that they read back bit by bit; None, or a column that a row lacks, is written as
    nothing.

    Args:
        path: the file; missing folders are created.
        rows: one mapping from column to number for each finished round.

    Raises:
        InputError: a value that is not a number.
    """
    extra = dict.fromkeys(column for row in rows for column in row if column not in COLUMNS)
    columns = [*COLUMNS, *extra]
    lines = [[_to_text(column, row.get(column)) for column in columns] for row in rows]
    with replaced(Path(path)) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(lines)


def read_metrics(path: str | Path) -> list[dict[str, float | int | None]]:
    """Rows of a metrics file; an empty field is None, whole numbers are int, the others float.

    Args:
        path: the file.

    Returns:
        One mapping from column to value for each row, with the file's order of columns.

    Raises:
        InputError: no such file, a missing column of the contract, a line of wrong length, or a field that is
            not a number.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"metrics is {path}, which is not a file; give the metrics.csv of a run")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *lines = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())}); restore it") from error
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise InputError(f"{path} lacks the column {missing[0]!r}; give a metrics.csv that a run has written")
    if len(set(header)) < len(header):
        raise InputError(f"{path} names a column twice; give a metrics.csv that a run has written")
    rows = []
    for number, line in enumerate(lines, start=2):
        if len(line) != len(header):
            raise InputError(f"{path}, line {number} has {len(line)} fields, not {len(header)}; restore the line")
        where = f"{path}, line {number}"
        rows.append({column: _to_number(where, column, text) for column, text in zip(header, line, strict=True)})
    return rows


def _to_text(column: str, value: object) -> str:
    """A number as text that reads back to the same number and type; None as nothing."""
    if value is None:
        return ""
    # numpy and torch scalars become the Python numbers that they stand for.
    plain = value.item() if hasattr(value, "item") else value  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(plain, bool) or not isinstance(plain, int | float):
        raise InputError(f"{column} is {value!r}; give a number, or None where it does not apply")
    return repr(plain)


def _to_number(where: str, column: str, text: str) -> float | int | None:
    """The inverse of :func:`_to_text`."""
    if text == "":
        return None
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{where}: {column} is {text!r}; give a number or nothing") from None
