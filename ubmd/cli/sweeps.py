"""What has become of each job of a sweep, kept in the folders of the jobs whatever launcher ran them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ubmd.errors import InputError
from ubmd.runs import records

__all__ = ["JobRecord", "finished_before", "print_summary", "read_record", "write_record"]


@dataclass(frozen=True)
class JobRecord:
    """How far a job came, in ``.hydra/job.json`` of its folder."""

    state: Literal["running", "finished", "failed"]
    attempt: str
    """Which start of a command it belongs to."""
    digest: str
    """Of its configuration, :func:`~ubmd.runs.continuation.config_digest`."""
    result: float | None = None
    """What the command returned: a force RMSE, eV/Å."""
    error: str | None = None


def write_record(folder: Path, record: JobRecord) -> None:
    """Puts a job's record into its folder."""
    records.write_record(folder / ".hydra" / "job.json", asdict(record))


def read_record(folder: Path) -> JobRecord | None:
    """The record in a job's folder; None without one, or with one that cannot be read."""
    try:
        content = records.read_record(folder / ".hydra" / "job.json", sealed=True)
        return None if content is None else JobRecord(**content)
    except (OSError, InputError, TypeError):
        return None


def finished_before(folder: Path, digest: str) -> JobRecord | None:
    """The record of a job that has finished with this very configuration, if there is one."""
    record = read_record(folder)
    return record if record is not None and record.state == "finished" and record.digest == digest else None


def print_summary(jobs: Mapping[Path, str], attempt: str) -> None:
    """Prints a line for each job of a sweep: how it ended, how many rounds it has, and its last error.

    Args:
        jobs: their folders and what to call them, whether they have been started or not.
        attempt: the start of the command that the summary is about.
    """
    if not jobs:
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    records = [read_record(folder) for folder in jobs]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, header_style="bold")
    table.add_column("job", overflow="fold")
    for header in ("status", "rounds", "F-RMSE eV/Å"):
        table.add_column(header, justify="left" if header == "status" else "right", no_wrap=True)
    for (folder, name), record in zip(jobs.items(), records, strict=True):
        rounds, error = _progress(folder)
        if error is None and record is not None and record.result is not None:
            error = f"{record.result:.3f}"
        cells = ["–" if not rounds else str(rounds), error or "–"]
        table.add_row(name, _status(record, attempt), *cells)
    console.print(table)
    for (folder, name), record in zip(jobs.items(), records, strict=True):
        if record is not None and record.attempt == attempt and record.error:
            console.print(f"{name} failed: {record.error}", highlight=False, soft_wrap=True, markup=False)
            console.print(f"  see {folder / 'ubmd.log'}", highlight=False, soft_wrap=True, markup=False)


def _status(record: JobRecord | None, attempt: str) -> str:
    if record is None:
        return "not started"
    if record.state == "running":  # the sweep is over, so nobody runs it any more
        return "interrupted"
    if record.attempt == attempt:
        return record.state
    return "finished before" if record.state == "finished" else "not started"


def _progress(folder: Path) -> tuple[int, str | None]:
    """Finished rounds of a run of active learning and its last force error, eV/Å, on the test set or else on validation
    structures; 0 and None for other jobs.
    """
    from ubmd.runs.metrics import read_metrics

    try:
        rows = read_metrics(folder / "metrics.csv")
    except InputError:
        return 0, None
    last = rows[-1] if rows else {}
    for name, mark in (("force_rmse_ev_per_ang", ""), ("valid_force_rmse_ev_per_ang", " (validation)")):
        if last.get(name) is not None:
            return len(rows), f"{last[name]:.3f}{mark}"
    return len(rows), None
