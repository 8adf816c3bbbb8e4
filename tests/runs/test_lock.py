"""One process at a time for a run's folder; a process that is gone stands in nobody's way."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ubmd.errors import InputError
from ubmd.runs import lock as runlock
from ubmd.runs.lock import LOCK, Holder, held, holder

HOLD = """
import sys, time
from pathlib import Path
from ubmd.runs.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""

Start = Callable[[], subprocess.Popen[str]]


@pytest.fixture
def other(tmp_path: Path) -> Start:
    """Starts another process that holds the folder."""

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    return start


def test_the_second_process_is_told_who_holds_the_folder(other: Start, tmp_path: Path) -> None:
    with other() as process:
        try:
            with pytest.raises(InputError) as caught, held(tmp_path):
                pass
        finally:
            process.kill()
    message = str(caught.value)
    assert f"process {process.pid} on " in message
    assert "since 20" in message
    assert "\n" not in message


def test_a_killed_process_holds_nothing(other: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with other() as process:
        (tmp_path / ".file.0123.tmp.txt").touch()
        process.send_signal(signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.read()  # its end, although nobody has asked for its exit code yet
        assert (tmp_path / LOCK).stat().st_size > 0
        with caplog.at_level(logging.WARNING), held(tmp_path):
            assert not (tmp_path / ".file.0123.tmp.txt").exists()
            assert holder(tmp_path) is not None
    assert f"process {process.pid} " in caplog.text
    assert "taking over" in caplog.text
    assert holder(tmp_path) is None


def test_a_folder_is_released_and_stays_usable(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), held(tmp_path):
            raise KeyboardInterrupt
        assert [p.name for p in tmp_path.iterdir()] == [LOCK]
    assert caplog.text == ""


def test_another_thread_of_the_same_process_is_refused_too(tmp_path: Path) -> None:
    def enter() -> None:
        with held(tmp_path):
            pass

    with ThreadPoolExecutor(1) as pool:
        with held(tmp_path), pytest.raises(InputError, match=f"process {os.getpid()} on "):
            pool.submit(enter).result()
        pool.submit(enter).result()


def test_a_block_inside_a_block_holds_nothing_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    with held(tmp_path / "run"):
        with held(tmp_path / "link"):
            pass
        assert holder(tmp_path / "run") is not None
    assert holder(tmp_path / "run") is None


ME = runlock._myself()


@pytest.mark.parametrize(
    ("before", "refused"),
    [
        (replace(ME, pid=1, started=1), None),  # the number belongs to another process now
        (replace(ME, pid=2**22 + 1), None),
        (replace(ME, pid=ME.pid), "wait for it"),  # where the file system has no locks
        (replace(ME, host="elsewhere"), "wait for it"),  # another container of this machine
        (replace(ME, boot="earlier"), None),
        (replace(ME, host="elsewhere", boot="other"), "cannot be seen from here"),
        (replace(ME, host="elsewhere", boot="", started=0), None if not ME.boot else "cannot be seen from here"),
    ],
)
def test_what_is_written_counts_where_there_are_no_locks(before: Holder, refused: str | None, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(json.dumps(asdict(before)))
    if refused is None:
        with held(tmp_path):
            pass
        assert holder(tmp_path) is None
        return
    with pytest.raises(InputError, match=refused), held(tmp_path):
        pass
    assert holder(tmp_path) == before


@pytest.mark.parametrize(("restart", "works"), [("1", True), ("0", False)])
def test_a_job_that_slurm_has_moved(restart: str, works: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / LOCK).write_text(json.dumps(asdict(replace(ME, host="elsewhere", boot="other", job="7.0"))))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
    if works:
        with held(tmp_path):
            pass
    else:
        with pytest.raises(InputError, match="remove"), held(tmp_path):
            pass


@pytest.mark.parametrize(
    "text", ["", "x", "[1]", '{"pid": 1}', "\xff", json.dumps(asdict(ME) | {"pid": "1"}), "[" * 4000]
)
def test_a_lock_that_cannot_be_read_blocks_nobody(text: str, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_bytes(text.encode("latin-1"))
    with held(tmp_path):
        pass


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / LOCK).symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic"), held(tmp_path):
        pass
    assert not (tmp_path / "target").exists()
