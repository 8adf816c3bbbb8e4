from __future__ import annotations

import io
import re
import threading
import time

import pytest
from rich.console import Console

from ubmd.errors import InputError
from ubmd.progress import run_progress


def test_a_line_now_and_then_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UBMD_PROGRESS", "0.05")
    with run_progress(Console(file=io.StringIO())) as progress, progress.stage("round 3 walkers", 4000) as stage:
        stage.update(1000, 4000, "6 running")
        time.sleep(0.4)
    first, *further = capsys.readouterr().err.splitlines()
    form = r"\d\d:\d\d:\d\d round 3 walkers, 1,000/4,000 \(25%\), 0:00:0\d so far,( about 0:00:0\d left,)? 6 running"
    assert re.fullmatch(form, first)
    assert further  # although nothing advances
    assert not [thread for thread in threading.enumerate() if thread.name == "ubmd-progress"]


@pytest.mark.parametrize(("terminal", "period"), [(True, "0.01"), (False, "0")])
def test_a_terminal_has_bars(
    terminal: bool, period: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UBMD_PROGRESS", period)
    console = Console(file=io.StringIO(), force_terminal=terminal)
    with run_progress(console) as progress, progress.stage("fit", 2):
        time.sleep(0.1)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("text", ["soon", "-1", "inf", "nan"])
def test_seconds(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UBMD_PROGRESS", text)
    with pytest.raises(InputError, match="UBMD_PROGRESS"), run_progress():
        pass
