"""The drills in ``scripts`` must find what they look for."""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase.build import molecule

from ubmd.data.io import write_structures
from ubmd.runs.metrics import COLUMNS, write_metrics

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a table and a data set."""
    folder = tmp_path / "run"
    write_metrics(folder / "metrics.csv", [dict.fromkeys(COLUMNS, 0.5)])
    write_structures(folder / "dataset.extxyz", [molecule("H2O"), molecule("CO2")])
    return folder


def test_label_faults() -> None:
    from drills.kills import label_faults

    once = [("begun", "a"), ("done", "a"), ("begun", "b")]
    assert label_faults({}, {"a": 1.0}, once, ahead=1) == []
    assert label_faults({"c": 1.0}, {"c": 1.0}, [*once, ("begun", "b"), ("done", "b")], ahead=2) == []
    for known, stored, computed, word in [
        ({"c": 1.0}, {}, [], "lost"),
        ({"c": 1.0}, {"c": 2.0}, [], "changed"),
        ({"a": 1.0}, {"a": 1.0}, once, "paid twice"),
        ({}, {"a": 1.0}, once * 2, "2 times by one process"),
        ({}, {}, [*once, ("done", "b")], "not stored"),
    ]:
        (fault,) = label_faults(known, stored, computed, ahead=1)
        assert word in fault


@pytest.mark.parametrize(
    ("number", "code", "stderr", "cpu", "word"),
    [
        (signal.SIGTERM, 143, "ubmd: ended; the same command continues", 1.0, None),
        (signal.SIGTERM, 0, "", 1.0, None),
        (signal.SIGTERM, -15, "", 1.0, None),
        (signal.SIGTERM, 0, "", 9.0, "went on"),
        (signal.SIGTERM, -15, "half a word", 1.0, "exit code -15"),
        (signal.SIGINT, -2, "all words", 1.0, "exit code -2"),
        (signal.SIGINT, 130, "", 1.0, "no word"),
        (signal.SIGINT, 130, "Traceback: the same command continues", 1.0, "traceback"),
        (signal.SIGKILL, -9, "anything", 1.0, None),
    ],
)
def test_ending_faults(number: signal.Signals, code: int, stderr: str, cpu: float, word: str | None) -> None:
    from drills.kills import ending_faults
    from drills.processes import Ending

    faults = ending_faults(Ending(code, stderr, cpu, None, interrupted=True), 0.5, number)
    assert [word in fault for fault in faults[:1]] == ([] if word is None else [True])


def test_differences(tmp_path: Path, run: Path) -> None:
    from drills.compared import differences

    other = tmp_path / "other"
    shutil.copytree(run, other)
    assert differences(other, run) == []
    write_metrics(other / "metrics.csv", [dict.fromkeys(COLUMNS, 0.5) | {"time_fit_s": 9.0}])
    assert differences(other, run) == []
    frames = ase.io.read(run / "dataset.extxyz", index=":")
    frames[0].positions[0, 0] += 1e-7
    write_structures(other / "dataset.extxyz", frames)
    write_metrics(other / "metrics.csv", [dict.fromkeys(COLUMNS, 0.5) | {"coverage": 0.6}])
    (other / ".metrics.1.tmp.csv").touch()
    (run / "more").touch()
    assert set(differences(other, run)) == {
        *("dataset.extxyz differs", "metrics.csv differs", ".metrics.1.tmp.csv is left over", "more is missing")
    }


@pytest.mark.parametrize(
    ("code", "said", "other", "paid_twice", "what"),
    [
        (0, "", [], [], "harmless"),
        (0, "made again", [], [], "repaired"),
        (0, "made again", ["metrics.csv differs"], [], "told"),
        (2, "ubmd: error: restore it", [], [], "refused"),
        (0, "", ["metrics.csv differs"], [], "FAULT"),
        (0, "made again", [], ["a label"], "FAULT"),
        (2, "Traceback\nubmd: error: restore it", [], [], "FAULT"),
        (2, "no sentence", [], [], "FAULT"),
        (1, "ubmd: error: restore it", [], [], "FAULT"),
        (-9, "", [], [], "FAULT"),
    ],
)
def test_what_came_of_a_damage(code: int, said: str, other: list[str], paid_twice: list[str], what: str) -> None:
    from drills.damages import judged

    assert judged(code, said, said, other, paid_twice)[0] == what


def test_damage_follows_from_the_seed() -> None:
    from drills.mutations import changed, damaged

    def some(seed: int) -> tuple[bytes, Any]:
        random = np.random.default_rng(seed)
        return damaged(b"3\nwater\n", random, [b"other"]), changed({"a": [1, 2], "b": {"c": 3}}, random)

    assert [repr(some(seed)) for seed in range(50)] == [repr(some(seed)) for seed in range(50)]
    assert len({repr(some(seed)) for seed in range(50)}) > 40


def test_a_drift_is_found_in_noise() -> None:
    from drills.soak import drift

    noise = np.random.default_rng(0).normal(size=400)
    rise, error = drift(noise)
    assert abs(rise) < 3 * error
    rise, error = drift(noise + np.linspace(0.0, 5.0, 400))
    assert rise > 3 * error
    assert rise == pytest.approx(5.0, abs=1.0)
