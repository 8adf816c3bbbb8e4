"""The table of engines in ``scripts`` says what the engines do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch

from tests.interfaces.test_ase import molecules, save

ROOT = Path(__file__).parents[1]


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
    import engines  # pyright: ignore[reportMissingImports]

    return engines


def job(engines: Any, folder: Path, tau: float) -> Any:
    save(folder / "model.ckpt", torch.float64)
    ase.io.write(folder / "start.traj", engines.with_velocities(molecules(1, 0)[0]))
    return engines.Job(str(folder / "model.ckpt"), str(folder / "start.traj"), 0.25, 40, tau)


@pytest.mark.parametrize("engine", ["ASE", "OpenMM"])
def test_an_engine_moves_the_atoms_as_it_should(engines: Any, engine: str, tmp_path: Path) -> None:
    from engine_runs import run  # pyright: ignore[reportMissingImports]

    given = job(engines, tmp_path, tau=2.0)
    found = run(engine, given)
    assert found["version"]
    assert found["plain"]["energy"] != found["biased"]["energy"]
    row = engines.row(found["biased"], given)
    assert row["energy"] < 1e-10
    assert row["forces"] < 1e-10
    assert row["ms"] > 0
    assert len(found["biased"]["totals"]) == 4
    start = given.atoms
    start.calc = given.calculator([])
    total = start.get_total_energy()  # that of the velocities that were given
    assert np.ptp([total, *found["biased"]["totals"]]) < 0.02 * start.get_kinetic_energy()


def test_drift_is_the_slope_of_the_energy(engines: Any, tmp_path: Path) -> None:
    given = job(engines, tmp_path, tau=0.0)
    atoms = given.atoms
    atoms.calc = given.calculator([])
    outcome = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces().tolist()}
    times = 0.00025 * engines.EVERY * np.arange(4)  # ps
    outcome |= {"totals": (3.0 + 0.002 * len(atoms) * times).tolist(), "clock": [0.0, 0.004, 0.008, 0.012]}
    row = engines.row(outcome, given)
    assert row == pytest.approx({"energy": 0.0, "forces": 0.0, "drift": 2.0, "ms": 4.0})


def test_what_is_not_there_is_left_out(engines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "does not run" in engines.run_engine("ASE", str(tmp_path / "python"), tmp_path)["skipped"]
    from engine_runs import run  # pyright: ignore[reportMissingImports]

    monkeypatch.setitem(sys.modules, "torch_sim", None)
    monkeypatch.setattr("importlib.metadata.version", lambda _: "1")
    assert "pip install torch-sim-atomistic" in run("torch-sim", job(engines, tmp_path, 0.0))["skipped"]


def test_the_page(engines: Any, tmp_path: Path) -> None:
    part = {"energy": 1e-12, "forces": 2e-12, "drift": 0.1, "ms": 3.0}
    rows = {"ASE": {"version": "3", "plain": part, "biased": part}, "LAMMPS": {"skipped": "not there"}}
    where = {"cpu": "a processor", "torch": "2"}
    figures = {"version": "1", "machine": where, "steps": 40, "dt": 0.5, "tau": 2.0, "formula": "C2", "rows": rows}
    page = tmp_path / "engines.md"
    page.write_text(engines.PAGE.read_text())
    for _ in range(2):  # what is there is replaced
        engines.write_page(figures, page)
    text = page.read_text()
    assert text.count("| ASE 3 | 1e-12 | 2e-12 | +0.100 | 3.00 |") == 1
    assert "a processor" in text
