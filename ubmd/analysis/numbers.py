"""The numbers behind a figure as a CSV file beside it: columns of numbers, which read back bit by bit."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ubmd.errors import InputError
from ubmd.files import replaced

__all__ = ["read_numbers", "write_numbers"]


def write_numbers(path: Path, columns: Mapping[str, ArrayLike]) -> None:
    """Writes columns [n] by name, replacing the file in one step."""
    values = [np.asarray(column, dtype=np.float64).tolist() for column in columns.values()]
    with replaced(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([repr(value) for value in line] for line in zip(*values, strict=True))


def read_numbers(path: Path, needed: tuple[str, ...] = ()) -> dict[str, NDArray[np.float64]]:
    """What :func:`write_numbers` wrote.

    Args:
        path: the file.
        needed: columns that must be there.

    Raises:
        InputError: the file is missing or damaged, or lacks a column.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *lines = list(csv.reader(file)) or [[]]
        values = np.array([[float(text) for text in line] for line in lines], dtype=np.float64)
        values = values.reshape(len(lines), len(header))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())}); have it made again") from error
    missing = [name for name in needed if name not in header]
    if missing:
        raise InputError(f"{path} lacks the column {missing[0]}; have it made again")
    return dict(zip(header, values.T, strict=True))
