"""The benchmark in ``scripts`` measures what its figures say."""

from __future__ import annotations

import json
import runpy
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])


def test_floors_of_the_papers_network() -> None:
    from benchmarks.floors import Floors

    floors = Floors([(910, 512), (512, 512), (512, 1)], projections=512)
    found = [floors.of(kind) for kind in ("plain", "uncertain", "biased", "training")]
    assert [round(flop * 1e-6, 1) for flop in found] == [2.9, 6.5, 11.5, 8.7]
    assert floors.of("biased", every=4) == (floors.biased + 3 * floors.plain) / 4


def test_rows_have_names_of_their_own() -> None:
    groups = runpy.run_path(str(ROOT / "scripts" / "benchmark.py"))["GROUPS"]
    names = [name for group in groups for name in import_module(f"benchmarks.{group}").names(quick=False)]
    quick = [name for group in groups for name in import_module(f"benchmarks.{group}").names(quick=True)]
    assert len(set(names)) == len(names)
    assert set(quick) < set(names)
    kinds = ("plain_1", "plain_8", "uncertain_8", "biased_1", "biased_8", "biased_every4_8")
    steps = {f"step_{kind}" for kind in kinds}
    assert {*steps, "train_step_32", "train_step_32_2threads", "walkers_demo"} <= set(quick)


def test_springs_of_benchmarked_crystals_pull_along_the_energys_slope() -> None:
    from benchmarks.crystals import smallest
    from benchmarks.subjects import shaken

    cell = smallest("copper").repeat(2)
    low, middle, high = (shaken(cell, 1, width)[0] for width in (0.0499, 0.05, 0.0501))
    slope = (high.info["REF_energy"] - low.info["REF_energy"]) / 0.0002
    direction = (high.positions - low.positions) / 0.0002
    assert np.sum(middle.arrays["REF_forces"] * direction) == pytest.approx(-slope, rel=1e-4)


@pytest.mark.slow
def test_rows_of_walkers(tmp_path: Path) -> None:
    from benchmarks.report import as_json
    from benchmarks.rows import Found
    from benchmarks.subjects import configuration, fitted, molecules
    from benchmarks.walking import Walk, walk_rows

    structures = molecules(10)
    subject = fitted(configuration("size=small"), structures, 4, batch_size=4)
    assert len(subject.step_ms) > 0
    kinds = ("plain", "uncertain", "biased")
    walks = [Walk(kind, kind, structures, n_walkers=2, steps=2, repeats=2) for kind in kinds]
    found = Found(gflops={1: 50.0})
    walk_rows(subject, walks, found, passes=1, threads=1, device="cpu")
    assert not found.skipped
    figures = as_json({"walkers": found}, {})
    assert [row["name"] for row in figures["rows"]] == list(kinds)
    for row in figures["rows"]:
        assert row["ms"] > 0
        assert row["floor_ms"] == pytest.approx(subject.floors.of(row["name"]) * 22 / 50e6, rel=1e-3)  # pyright: ignore
        assert row["ratio"] == pytest.approx(row["ms"] / row["floor_ms"], rel=1e-2)


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, page = tmp_path / "speed.json", tmp_path / "speed.md"
    words = ["benchmark.py", "--quick", "--only", "select_max_diag_*", "neighbours_copper_500", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(ROOT / "scripts" / "benchmark.py"))["main"]()
    figures = json.loads(file.read_text())
    rows = {row["name"]: row for row in figures["rows"]}
    assert set(rows) == {"select_max_diag_1000", "select_max_diag_10000", "neighbours_copper_500"}
    assert all(row["ms"] > 0 and {"floor_ms", "ratio", "threads", "per"} <= set(row) for row in rows.values())
    assert figures["gflops"]["1"] > 0
    assert {"cpu", "cores", "flags", "torch"} <= set(figures["machine"])
    assert figures["growth"]["select_max_diag"]["to"] == 10_000
    assert figures["peak_mib"]["others"] > 0
    page.write_text((ROOT / "docs" / "speed.md").read_text())
    from benchmarks.report import write_page

    figures["skipped"] = {"label_tblite": "not installed"}
    for _ in range(2):  # what is there is replaced
        write_page(figures, page)
    assert page.read_text().count("`neighbours_copper_500`") == 1
    assert page.read_text().count("- `label_tblite`: not installed") == 1
