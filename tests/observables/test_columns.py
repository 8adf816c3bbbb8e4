from __future__ import annotations

import pytest

from ubmd.observables.columns import RangeColumns, range_columns


@pytest.mark.parametrize(
    ("name", "unit", "low"),
    [
        ("volume", "Å³", "volume_min_ang3"),
        ("d_min", "Å", "d_min_min_ang"),
        ("cn", "", "cn_min"),
        ("area", "Å²", "area_min_ang2"),
        ("theta", "rad", "theta_min_rad"),
    ],
)
def test_columns_are_read_as_they_are_written(name: str, unit: str, low: str) -> None:
    columns = RangeColumns(name, unit)
    assert columns.low == low
    row = {"round": 0, "coverage": 0.5, columns.low: 1.0, columns.high: 2.0}
    assert range_columns([{"round": 0, columns.low: None}, row]) == [columns]


def test_nothing_else_is_a_range() -> None:
    row = {"time_fit_s": 1.0, "force_rmse_ev_per_ang": 0.1, "alone_min_ang": 1.0, "none_min": None, "none_max": None}
    assert range_columns([row]) == []
