"""Runs of the command line in processes of their own, interrupted at a moment and watched to their last descendant."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "UBMD_DRILL"
"""The environment variable by which a run's processes are recognised, whatever session they have moved to."""
TICK = 0.1
"""Seconds between two looks at a process."""
PATIENCE = 90.0
"""Seconds after which a process that was told to end counts as one that does not."""
GRACE = 15.0
"""Seconds that descendants have to follow their parent."""


@dataclass(frozen=True)
class Ending:
    """How a process ended."""

    code: int
    stderr: str
    cpu: float
    """Seconds of the CPU that it and its descendants took."""
    starting: float | None
    """Those before its sign."""
    interrupted: bool
    """Whether the signal found it running."""
    latency: float = 0.0
    """Seconds from the signal to the end of the process."""
    orphans: int = 0
    """Descendants that were still there after the grace; they are ended then."""
    lingering: float = 0.0
    """Seconds that the last descendant took."""


def run_until(
    command: Sequence[str],
    folder: Path,
    *,
    moment: float | None = None,
    number: signal.Signals = signal.SIGKILL,
    everyone: bool = False,
    sign: Path | None = None,
    **environment: str,
) -> Ending:
    """Runs ``python -m ubmd`` and sends it a signal at a moment, if it runs so long.

    Moments are seconds of the CPU that the run's processes took: how far it has come, however busy the machine is.

    Args:
        command: the arguments.
        folder: for its output and its temporary files.
        moment: CPU seconds; None: it is left alone.
        number: the signal.
        everyone: send it to all processes of the run, as a batch system or a terminal does, or to the first only.
        sign: a file that says, by being there, that the start is over.
        environment: further variables.
    """
    mark = secrets.token_hex(8)
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    env = os.environ | {"TMPDIR": str(folder / "tmp"), MARK: mark, **environment}
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "ubmd", *command], env=env, stdout=out, stderr=err, start_new_session=True
        )
        interrupted, cpu, starting = False, 0.0, None
        while process.poll() is None and not interrupted:
            time.sleep(TICK)
            cpu = max(cpu, cpu_time(process.pid))
            starting = cpu if starting is None and sign is not None and sign.exists() else starting
            interrupted = moment is not None and cpu >= moment
        sent = time.monotonic()
        if interrupted:
            for one in marked(mark) if everyone else [process]:
                send(one, number)
        while process.poll() is None and time.monotonic() < sent + PATIENCE:
            time.sleep(TICK)
            cpu = max(cpu, cpu_time(process.pid))
        process.kill()
        process.wait()
    ended = time.monotonic()
    while (left := marked(mark)) and time.monotonic() < ended + GRACE:
        time.sleep(0.05)
    lingering = time.monotonic() - ended
    for one in left:
        send(one, signal.SIGKILL)
    stderr = (folder / "stderr").read_text(errors="replace")
    return Ending(process.returncode, stderr, cpu, starting, interrupted, ended - sent, len(left), lingering)


def cpu_time(pid: int) -> float:
    """Seconds of the CPU that a process and its descendants took, those included that have ended; 0 if it has."""
    total = 0.0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                times = one.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total


def marked(mark: str) -> list[psutil.Process]:
    """The living processes with a mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def send(process: psutil.Process | subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
