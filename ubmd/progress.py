"""One live display for a run: which round, which stage, how far."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["BelowWarning", "RunProgress", "StageProgress", "run_progress"]


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
    """Bars of a run, drawn on a terminal and silent elsewhere, notebooks among it."""

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
    """Opens the display."""
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
        yield RunProgress(progress)
