"""Tables as a terminal shows them."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console
from rich.table import Table

from ubmd.analysis import tables
from ubmd.analysis.tables import rounds_table, stage_times_table

ROUND = {
    "round": 12, "n_train": 461, "n_valid": 51, "energy_rmse_mev_per_atom": 1.968,
    "force_rmse_ev_per_ang": 0.07149, "stress_rmse_mpa": 21.46, "coverage": 0.9412,
    "n_candidates": 12345, "n_selected": 32, "n_rejected": 3, "md_steps": 640_000,
    "walkers_stopped_by_uncertainty": 8, "time_fit_s": 1800.0, "time_calibrate_s": 30.5,
    "time_explore_s": 5400.0, "time_select_s": 2.0, "time_label_s": 60.0,
}  # fmt: skip


def lines(table: Table, width: int) -> list[str]:
    """What a terminal of ``width`` columns shows."""
    console = Console(width=width, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


def test_a_round_shows_each_number_in_its_column():
    shown = lines(rounds_table([ROUND]), 80)
    expected = ["12", "512", "1.97", "0.0715", "21.5", "0.94", "12345", "32", "3", "8", "640k", "2h02m"]
    assert shown[-1].split() == expected
    assert "".join(shown[:2]).count("RMSE") == 3
    assert all(unit in shown[1] for unit in ("meV/atom", "eV/Å", "MPa"))


def test_all_columns_fit_into_80_columns_uncut():
    wide = ROUND | {"round": 99, "force_rmse_ev_per_ang": 0.0123, "energy_rmse_mev_per_atom": 0.0432}
    for table in (rounds_table([wide, ROUND]), stage_times_table([wide, ROUND])):
        shown = [line.rstrip() for line in lines(table, 80)]
        assert shown == [line.rstrip() for line in lines(table, 200)]
        assert max(map(len, shown)) <= 80


def test_stress_and_coverage_appear_only_if_some_round_has_them():
    bare = {k: v for k, v in ROUND.items() if k != "coverage"} | {"stress_rmse_mpa": None}
    text = "\n".join(lines(rounds_table([bare]), 80))
    assert "S-RMSE" not in text
    assert "cov." not in text
    both = lines(rounds_table([bare, ROUND]), 80)
    assert "S-RMSE" in both[0]
    assert "cov." in both[1]
    assert both[-2].split()[4:6] == ["–", "–"]


def test_missing_values_are_dashes_and_nan_stays_visible():
    (line,) = lines(rounds_table([{"round": 0, "force_rmse_ev_per_ang": math.nan}]), 80)[3:]
    assert line.split() == ["0", "–", "–", "nan", "–", "–", "–", "–", "–", "–"]


def test_stage_times_add_up_to_totals_and_shares():
    second = {"round": 13, "time_fit_s": 200.0, "time_explore_s": 7.5, "time_label_s": None}
    shown = lines(stage_times_table([ROUND, second]), 80)
    assert shown[2].split() == ["12", "1800.0", "30.5", "5400.0", "2.0", "60.0", "7292.5"]
    assert shown[3].split() == ["13", "200.0", "–", "7.5", "–", "–", "207.5"]
    assert shown[5].split() == ["all", "2000.0", "30.5", "5407.5", "2.0", "60.0", "7500.0"]
    assert shown[6].replace(" %", "").split() == ["share", "26.7", "0.4", "72.1", "0.0", "0.8", "100.0"]


def test_a_run_without_rounds_has_tables_too():
    assert len(lines(rounds_table([]), 80)) == 3
    assert lines(stage_times_table([]), 80)[-1].split() == ["share", "–", "–", "–", "–", "–", "–"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (30.29, "30.3"), (327.4, "327"), (1234.5, "1234"), (9.996, "10.0"), (99.96, "100"),
     (-0.149, "-0.149"), (0.00234, "0.0023"), (4.06e-5, "4e-05")],
)  # fmt: skip
def test_three_significant_digits(value: float, text: str):
    assert tables.significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (9999, "9999"), (10_000, "10.0k"), (98_765, "98.8k"), (999_499, "999k"), (999_500, "1.00M"),
     (12_345_678, "12.3M"), (2.5e9, "2.50G")],
)  # fmt: skip
def test_counts_in_five_characters(value: float, text: str):
    assert tables._count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.04, "0.0s"), (59.94, "59.9s"), (59.96, "1m00s"), (185, "3m05s"), (599.4, "9m59s"), (599.6, "10m"),
     (3569, "59m"), (3571, "1h00m"), (8000, "2h13m"), (36_000, "10h"), (471_600, "131h")],
)  # fmt: skip
def test_durations_in_five_characters(value: float, text: str):
    assert tables.duration(value) == text
