"""The contract of metrics.csv, read back by the csv module and by ours."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import numpy as np
import pytest

from ubmd.errors import InputError
from ubmd.runs import metrics
from ubmd.runs.metrics import COLUMNS, read_metrics, write_metrics

CONTRACT = """round, n_train, n_valid, energy_rmse_mev_per_atom,
force_rmse_ev_per_ang, stress_rmse_mpa, coverage, act_position_ps, act_uncertainty_ps, conformal_scale_atom,
conformal_scale_total, n_candidates, n_selected, n_rejected, md_steps, walkers_stopped_by_uncertainty,
time_fit_s, time_calibrate_s, time_explore_s, time_select_s, time_label_s"""


def test_columns_are_those_of_the_contract_in_its_order():
    assert list(COLUMNS) == [name.strip() for name in CONTRACT.split(",")]


def test_file_has_the_contract_first_then_extra_columns_and_nothing_for_none(tmp_path: Path):
    path = tmp_path / "run" / "metrics.csv"
    rows = [
        {"gpu_j": 5, "coverage": 0.1 + 0.2, "round": 0, "stress_rmse_mpa": None},
        {"round": 1, "extra": 2.5},
    ]
    write_metrics(path, rows)
    with path.open(newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == [*COLUMNS, "gpu_j", "extra"]
    first = dict(zip(lines[0], lines[1], strict=True))
    assert first["coverage"] == "0.30000000000000004"
    assert (first["round"], first["gpu_j"], first["extra"], first["stress_rmse_mpa"]) == ("0", "5", "", "")
    assert b"\r" not in path.read_bytes()


def test_everything_reads_back_with_its_bits_and_type(tmp_path: Path):
    path = tmp_path / "metrics.csv"
    row = {name: float(v) for name, v in zip(COLUMNS, np.random.default_rng(0).normal(size=21), strict=True)}
    row |= {"round": 3, "md_steps": 10**17 + 1, "coverage": 1.0, "act_position_ps": None, "tiny": 5e-324}
    write_metrics(path, [row, row])
    assert read_metrics(path) == [row, row]
    back = read_metrics(path)[1]
    assert {k: type(v) for k, v in back.items()} == {k: type(v) for k, v in row.items()}
    assert list(back) == list(row)


def test_numpy_scalars_and_numbers_that_are_not_finite_survive(tmp_path: Path):
    path = tmp_path / "metrics.csv"
    values = {
        "round": np.int64(2),
        "coverage": np.float32(0.1),
        "act_position_ps": math.nan,
        "time_fit_s": -math.inf,
    }
    write_metrics(path, [values])
    (back,) = read_metrics(path)
    assert back["round"] == 2
    assert isinstance(back["round"], int)
    assert back["coverage"] == float(np.float32(0.1))
    assert isinstance(back["act_position_ps"], float)
    assert math.isnan(back["act_position_ps"])
    assert back["time_fit_s"] == -math.inf


def test_no_rows_leave_the_header(tmp_path: Path):
    write_metrics(tmp_path / "metrics.csv", [])
    assert (tmp_path / "metrics.csv").read_text() == ",".join(COLUMNS) + "\n"
    assert read_metrics(tmp_path / "metrics.csv") == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "metrics.csv"
    write_metrics(path, [{"round": 0}])
    before = path.read_bytes()
    with pytest.raises(InputError, match="coverage is 'high'"):
        write_metrics(path, [{"round": 0}, {"round": 1, "coverage": "high"}])  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="coverage is True"):
        write_metrics(path, [{"coverage": True}])

    def full_disk(fd: int) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="no space"):
            write_metrics(path, [{"round": 7}])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["metrics.csv"]


def test_a_reader_keeps_the_rows_that_it_has_opened(tmp_path: Path):
    path = tmp_path / "metrics.csv"
    write_metrics(path, [{"round": 0}])
    before = path.read_text()
    with path.open() as reader:
        write_metrics(path, [{"round": 0}, {"round": 1}])
        assert reader.read() == before
    assert len(read_metrics(path)) == 2


def test_the_file_has_the_permissions_of_any_new_file(tmp_path: Path):
    write_metrics(tmp_path / "metrics.csv", [])
    (tmp_path / "plain").touch()
    assert (tmp_path / "metrics.csv").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "lacks the column 'round'"),
        (lambda text: text.replace(",coverage", ",covered"), "lacks the column 'coverage'"),
        (lambda text: text + "1,2\n", "line 3 has 2 fields, not 21"),
        (lambda text: text + "one" + "," * 20 + "\n", "line 3: round is 'one'"),
    ],
)
def test_refuses_files_that_break_the_contract(tmp_path: Path, change, message: str):
    path = tmp_path / "metrics.csv"
    write_metrics(path, [{"round": 0}])
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=message):
        read_metrics(path)


def test_refuses_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(InputError, match="which is not a file"):
        read_metrics(tmp_path)


def test_stages_are_the_columns_of_times():
    assert [f"time_{stage}_s" for stage in metrics.STAGES] == [c for c in COLUMNS if c.startswith("time_")]
