"""How ``metrics.csv`` names what was explored of a variable: ``volume_min_ang3`` and ``volume_max_ang3``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["RangeColumns", "range_columns"]

_SPELT = {"Å": "ang", "²": "2", "³": "3", "°": "deg"}
_COLUMN = re.compile(r"(?P<name>.+)_min(?:_(?P<unit>[a-z0-9]+))?")


@dataclass(frozen=True)
class RangeColumns:
    """The columns of the lowest and the highest value of a variable explored so far."""

    name: str
    """Of the variable."""
    unit: str
    """As it is written: Å³; empty for a plain number."""

    @property
    def low(self) -> str:
        """Column of the lowest value."""
        return self._column("min")

    @property
    def high(self) -> str:
        """Column of the highest value."""
        return self._column("max")

    def _column(self, end: str) -> str:
        spelt = "".join(_SPELT.get(c, c) for c in self.unit).lower()
        suffix = re.sub(r"[^a-z0-9]", "", spelt)
        return f"{self.name}_{end}_{suffix}" if suffix else f"{self.name}_{end}"


def range_columns(rounds: Iterable[Mapping[str, object]]) -> list[RangeColumns]:
    """The ranges that rows of ``metrics.csv`` tell of, in the order of the columns."""
    rounds = list(rounds)
    found = []
    for column in dict.fromkeys(key for row in rounds for key, value in row.items() if value is not None):
        match = _COLUMN.fullmatch(column)
        if match is None:
            continue
        unit = match["unit"] or ""
        for plain, spelt in _SPELT.items():
            unit = unit.replace(spelt, plain)
        columns = RangeColumns(match["name"], unit)
        if any(row.get(columns.high) is not None for row in rounds):
            found.append(columns)
    return found
