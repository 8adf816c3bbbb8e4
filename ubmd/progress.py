"""One live display for a run: which round, which stage, how far."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ubmd.errors import InputError

__all__ = ["BelowWarning", "RunProgress", "StageProgress", "line_of", "run_progress"]


class BelowWarning(logging.Filter):
    """Lets pass what is only a note: notes go to standard output, warnings and errors to standard error."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno < logging.WARNING


class StageProgress:
    """The bar of one stage."""

    def __init__(self, progress: Progress, task: TaskID):
        self._progress, self._task = progress, task

    def update(self, completed: float, total: float | None = None, detail: str = "") -> None:
        """Moves the bar; ``detail`` is shown behind it."""
        self._progress.update(self._task, completed=completed, total=total, detail=detail)


class RunProgress:
    """Bars of a run, drawn on a terminal; elsewhere a line now and then, in notebooks neither."""

    def __init__(self, progress: Progress):
        self._progress = progress

    @property
    def console(self) -> Console:
        """Where tables and lines are printed without disturbing the bars."""
        return self._progress.console

    @contextmanager
    def stage(self, name: str, total: float | None = None) -> Iterator[StageProgress]:
        """Shows a bar while the block runs."""
        task = self._progress.add_task(name, total=total, detail="")
        try:
            yield StageProgress(self._progress, task)
        finally:
            self._progress.remove_task(task)


@contextmanager
def run_progress(console: Console | None = None) -> Iterator[RunProgress]:
    """Opens the display.

    Without a terminal a line about the present stage goes to standard error every minute, or every ``UBMD_PROGRESS``
    seconds (0 for none), so that the log of a job tells how far it is.

    Raises:
        InputError: ``UBMD_PROGRESS`` is no number of seconds.
    """
    period = _period()
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    # the time left follows from the whole stage: a single label may take longer than the usual period of 30 s
    console = console or Console()
    with Progress(
        *columns,
        console=console,
        disable=console.is_jupyter,  # bars need widgets there, and without them a warning takes the place of each
        transient=True,
        refresh_per_second=5,
        speed_estimate_period=1e9,
    ) as progress:
        shown = progress.console.is_terminal or progress.console.is_jupyter
        with _lines(progress, 0 if shown else period):
            yield RunProgress(progress)


def _period() -> float:
    text = os.environ.get("UBMD_PROGRESS", "").strip() or "60"
    with suppress(ValueError):
        if 0 <= float(text) < math.inf:
            return float(text)
    raise InputError(f"UBMD_PROGRESS={text} must be the seconds between two lines, or 0 for none")


@contextmanager
def _lines(progress: Progress, period: float) -> Iterator[None]:
    """Writes a line about the innermost stage every ``period`` seconds, also while nothing advances; 0 for none."""
    ended = threading.Event()

    def speak() -> None:
        while not ended.wait(period):
            with suppress(OSError, ValueError, IndexError):  # whoever read it is gone; the stage has just ended
                print(line_of(progress.tasks[-1]), file=sys.stderr, flush=True)

    speaker = threading.Thread(target=speak, name="ubmd-progress", daemon=True)
    if period:
        speaker.start()
    try:
        yield
    finally:
        ended.set()
        if period:
            speaker.join()


def line_of(task: Task) -> str:
    """A stage as text: the time, what is done of how much, how long it took, what is left, and what there is to say."""
    parts = [f"{time.strftime('%H:%M:%S')} {task.description}"]
    if task.total:
        parts.append(f"{task.completed:,.0f}/{task.total:,.0f} ({task.percentage:.0f}%)")
    elif task.completed:
        parts.append(f"{task.completed:,.0f}")
    parts.append(f"{_clock(task.elapsed or 0)} so far")
    if task.total and task.time_remaining is not None and not task.finished:
        parts.append(f"about {_clock(task.time_remaining)} left")
    return ", ".join([*parts, *filter(None, [task.fields.get("detail", "")])])


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
