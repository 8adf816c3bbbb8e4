"""The reproduction of the paper: command lines of every size are right, and the smallest makes figures of real runs."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ubmd.cli import app
from ubmd.cli import main as cli
from ubmd.cli.command import find

FOLDER = Path(__file__).parents[1] / "scripts" / "reproduce"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What ``python scripts/reproduce`` defines."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("command_lines", "fig2_files"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return runpy.run_path(str(FOLDER / "__main__.py"), run_name="reproduce")


def inside(script: dict[str, Any]) -> Callable[..., int]:
    """The script's work, with commands that run in this process."""
    reproduce: Any = script["_reproduce"]
    reproduce.__globals__["_run"] = cli.main
    return reproduce


@pytest.mark.slow
@pytest.mark.parametrize("size", ["smoke", "desk", "paper"])
def test_command_lines_are_right(size: str, script: dict[str, Any], tmp_path: Path) -> None:
    parts = [part for part in script["parts_of"](list(script["FIGURES"])) if part != "fits"]
    steps = [step for part in parts for step in script["learning_steps"](part, size)]
    files = [(tmp_path / "a.extxyz", tmp_path / "b.extxyz")]
    steps += script["fit_steps"](size, files, tmp_path / "c.extxyz", crystal=True)
    for step in steps:
        command, *words = step.words
        folder = words[words.index("--config-dir") + 1] if "--config-dir" in words else None
        overrides = [word for word in words if "=" in word]
        with app.open_hydra(folder) as hydra:  # of a sweep the first job
            cfg = app.compose_checked(hydra, find(command), app.sweep_points(app.parse(hydra, overrides))[0])
        assert cfg.name == step.folder


@pytest.mark.slow
def test_the_smallest_size_makes_figures_and_goes_on_where_it_was(
    script: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, folder in (("UBMD_RUNS", "runs"), ("UBMD_CACHE", "cache")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    reproduce, more = inside(script), ["logger=csv"]
    figures = ["fig2", "table1"]
    assert reproduce("tiny", figures, None, None, more) == 0
    out = tmp_path / "runs" / "reproduce_tiny"
    assert {file.name for file in out.iterdir()} == {
        *(f"fig2.{ending}" for ending in ("pdf", "png", "txt")),
        *(f"table1.{ending}" for ending in ("csv", "md", "tex", "txt")),
    }
    assert "biased MD (300 K, τ = 0.25, w/o. H)" in (out / "table1.md").read_text()
    assert "ensemble, 9 + 3: " in (out / "fig2.txt").read_text()
    before = (out / "table1.csv").read_bytes()
    capfd.readouterr()
    assert reproduce("tiny", ["table1"], None, None, more) == 0
    assert "round 0" not in capfd.readouterr().err  # nothing is computed again
    assert (out / "table1.csv").read_bytes() == before
