"""Tables of a run for the terminal: what each round has reached, and where its time has gone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from rich import box
from rich.table import Table

from ubmd.runs.metrics import STAGES

__all__ = ["duration", "rounds_table", "significant", "stage_times_table", "systems_table"]

Row = Mapping[str, float | int | None]

_ABSENT = "–"
_TIMES = tuple(f"time_{stage}_s" for stage in STAGES)


def rounds_table(rounds: Sequence[Row]) -> Table:
    """One line for each round: size of the data, errors, coverage, candidates, walkers and wall time.

    Columns for stress and coverage appear if any round has them. 80 terminal columns suffice for everything.

    Args:
        rounds: rows of ``metrics.csv`` (:mod:`ubmd.runs.metrics`); missing values show as a dash.
    """
    columns: dict[str, Callable[[Row], str]] = {
        "\nround": lambda row: _cell(row.get("round"), _integer),
        "struct-\nures": lambda row: _cell(_sum((row.get("n_train"), row.get("n_valid"))), _integer),
        "E-RMSE\nmeV/atom": lambda row: _cell(row.get("energy_rmse_mev_per_atom"), significant),
        "F-RMSE\neV/Å": lambda row: _cell(row.get("force_rmse_ev_per_ang"), significant),
        "S-RMSE\nMPa": lambda row: _cell(row.get("stress_rmse_mpa"), significant),
        "CV\ncov.": lambda row: _cell(row.get("coverage"), lambda share: f"{share:.2f}"),
        "candi-\ndates": lambda row: _cell(row.get("n_candidates"), _integer),
        "se-\nlected": lambda row: _cell(row.get("n_selected"), _integer),
        "re-\njected": lambda row: _cell(row.get("n_rejected"), _integer),
        "unc.\nstops": lambda row: _cell(row.get("walkers_stopped_by_uncertainty"), _integer),
        "MD\nsteps": lambda row: _cell(row.get("md_steps"), _count),
        "\ntime": lambda row: _cell(_sum(row.get(name) for name in _TIMES), duration),
    }
    for header, source in (("S-RMSE\nMPa", "stress_rmse_mpa"), ("CV\ncov.", "coverage")):
        if all(row.get(source) is None for row in rounds):
            del columns[header]
    table = _empty_table()
    for header in columns:
        table.add_column(header, justify="right", no_wrap=True)
    for row in rounds:
        table.add_row(*(text(row) for text in columns.values()))
    return table


def stage_times_table(rounds: Sequence[Row]) -> Table:
    """Wall time of each stage, in seconds, for each round and in all, and each stage's share of the whole.

    Args:
        rounds: rows of ``metrics.csv`` with ``time_<stage>_s`` columns; missing times show as a dash and
            count as nothing.
    """
    totals = [_sum(row.get(name) for row in rounds) for name in _TIMES]
    whole = _sum(totals)
    table = _empty_table(footer=True)
    table.add_column("round", "all\nshare", justify="right", no_wrap=True)
    for header, total in zip((*STAGES, "total"), (*totals, whole), strict=True):
        share = None if total is None or not whole else 100 * total / whole
        footer = f"{_cell(total, _seconds)}\n{_cell(share, lambda percent: f'{percent:.1f} %')}"
        table.add_column(f"{header} / s", footer, justify="right", no_wrap=True)
    for row in rounds:
        times = [row.get(name) for name in _TIMES]
        table.add_row(_cell(row.get("round"), _integer), *(_cell(t, _seconds) for t in (*times, _sum(times))))
    return table


def systems_table(row: Row, systems: Sequence[str]) -> Table:
    """One line for each system: its structures, and its errors on the test set and on the validation structures.

    Args:
        row: the columns of a round in ``metrics.csv``.
        systems: their names.
    """
    errors = {
        "E-RMSE\nmeV/atom": "energy_rmse_mev_per_atom",
        "F-RMSE\neV/Å": "force_rmse_ev_per_ang",
        "S-RMSE\nMPa": "stress_rmse_mpa",
    }
    columns = {f"{kind}\n{head}": f"{kind}_{key}" for kind in ("test", "valid") for head, key in errors.items()}
    columns = {head: key.removeprefix("test_") for head, key in columns.items()}
    told = {head: key for head, key in columns.items() if any(row.get(f"{key}_{name}") is not None for name in systems)}
    table = _empty_table()
    for header in ("\n\nsystem", "\nstruct-\nures", *told):
        table.add_column(header, justify="left" if header.endswith("system") else "right", no_wrap=True)
    for name in systems:
        size = _cell(row.get(f"n_structures_{name}"), _integer)
        table.add_row(name, size, *(_cell(row.get(f"{key}_{name}"), significant) for key in told.values()))
    return table


def _empty_table(*, footer: bool = False) -> Table:
    """The shared look: a rule below the header and above a footer, no frame, one blank between columns."""
    rules = box.SIMPLE if footer else box.SIMPLE_HEAD
    return Table(box=rules, show_edge=False, show_footer=footer, padding=0, header_style="bold", footer_style="bold")


def _sum(values: Iterable[float | None]) -> float | None:
    """Sum of the values that exist; None if none does."""
    known = [value for value in values if value is not None]
    return math.fsum(known) if known else None


def _cell(value: float | None, text: Callable[[float], str]) -> str:
    """``text(value)``; a dash for no value; nan and inf as they are, because they tell of a failure."""
    if value is None:
        return _ABSENT
    return text(value) if math.isfinite(value) else str(float(value))


def _integer(value: float) -> str:
    return f"{value:.0f}"


def _seconds(value: float) -> str:
    return f"{value:.1f}"


def significant(value: float) -> str:
    """Three significant digits in at most six characters: 4e-05, 0.0023, 0.0712, 1.97, 30.3, 1234."""
    rounded = float(f"{value:.2e}")  # 9.996 is 10.0, not 10.00
    if rounded == 0 or abs(rounded) >= 100:
        return f"{value:.0f}"
    if abs(rounded) < 1e-3:
        return f"{value:.0e}"
    return f"{rounded:.{min(4, 2 - math.floor(math.log10(abs(rounded))))}f}"


def _count(value: float) -> str:
    """A large count in at most five characters: 9876, 98.8k, 1.23M."""
    if value < 10_000:
        return _integer(value)
    for unit, suffix in ((1e3, "k"), (1e6, "M")):
        if value < 999.5 * unit:
            return significant(value / unit) + suffix
    return significant(value / 1e9) + "G"


def duration(value: float) -> str:
    """Wall time in at most five characters: 4.2s, 3m05s, 45m, 2h13m, 131h."""
    if value < 59.95:
        return f"{value:.1f}s"
    if value < 599.5:
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes}m{seconds:02d}s"
    hours, minutes = divmod(round(value / 60), 60)
    if hours == 0:
        return f"{minutes}m"
    return f"{hours}h{minutes:02d}m" if hours < 10 else f"{round(value / 3600)}h"
