"""One process at a time for a run's folder."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from ubmd.errors import InputError
from ubmd.files import remove_leftovers

__all__ = ["LOCK", "Holder", "held", "holder"]

log = logging.getLogger(__name__)

LOCK = "run.lock"
"""In a run's folder. It stays there, empty, when nobody holds the folder."""


_EXITING = 0x4
"""PF_EXITING of Linux, among the flags of a process."""
_OURS: ContextVar[frozenset[Path]] = ContextVar("_OURS", default=frozenset())
"""Folders that an outer block of this thread holds."""


@dataclass(frozen=True)
class Holder:
    """The process that a lock belongs to."""

    host: str
    boot: str
    """Of the machine since it was started; empty where the system does not tell."""
    pid: int
    started: int
    """When the process was started, in ticks of its machine; 0 where the system does not tell."""
    since: str
    job: str
    """Of SLURM with the number of its restart; empty outside."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds a run's folder while the block runs, and clears what killed processes left half-written.

    Inside another such block of the same thread it does nothing, so that a command and the function behind it, which
    notebooks call as well, can both ask for it.

    The lock of the file system ends with the process, however that ends. What is written into the file tells others
    who holds it; it counts alone where the file system has no locks, and for processes on other machines, of which
    nobody here can say whether they still run.

    Raises:
        InputError: another process holds the folder, or did so on another machine.
    """
    if folder.resolve() in _OURS.get():
        yield
        return
    path = folder / LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        free = _locked(descriptor)
        before = _read(descriptor)
        if not free:
            raise InputError(
                f"{folder} is in use by {before or 'another process'}; wait for it or choose another name=..."
            )
        if before is not None:
            _take_over(folder, before)
        _write(descriptor, _myself())
        token = _OURS.set(_OURS.get() | {folder.resolve()})
        try:
            remove_leftovers(folder)
            yield
        finally:
            _OURS.reset(token)
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def holder(folder: Path) -> Holder | None:
    """Who holds a folder, or held it when it was killed; None if nobody does."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        return _read(descriptor)
    finally:
        os.close(descriptor)


def _take_over(folder: Path, before: Holder) -> None:
    """Says that the folder of a process that is gone is taken over; refuses that of one that may still run."""
    me = _myself()
    if before.boot == me.boot if before.boot and me.boot else before.host == me.host:
        gone = _started(before.pid) != before.started if before.started else not _exists(before.pid)
    else:  # the machine was started again since, or SLURM has moved the job
        gone = before.host == me.host or _same_job(before.job, me.job)
        if not gone:
            raise InputError(
                f"{folder} is in use by {before}, which cannot be seen from here ({me.host}); wait for it, or, if it "
                f"is gone, remove {folder / LOCK}"
            )
    if not gone:
        raise InputError(f"{folder} is in use by {before}; wait for it or choose another name=...")
    log.warning("%s was held by %s, which is gone; taking over", folder, before)


def _same_job(before: str, now: str) -> bool:
    """Whether a job of SLURM has been restarted: the same number, but not the same life."""
    return bool(now) and before != now and before.partition(".")[0] == now.partition(".")[0]


def _locked(descriptor: int) -> bool:
    """Takes the file system's lock; False if somebody else has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # where there are no locks, the record has to do
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def _read(descriptor: int) -> Holder | None:
    """What is written in a lock; None if nothing that can be read is."""
    try:
        holder = Holder(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError, RecursionError):
        return None
    right = {name: type(value) for name, value in asdict(_myself()).items()}
    return holder if all(type(getattr(holder, name)) is kind for name, kind in right.items()) else None


def _write(descriptor: int, mine: Holder) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(mine)).encode(), 0)
    os.fsync(descriptor)


def _myself() -> Holder:
    job = os.environ.get("SLURM_JOB_ID", "")
    return Holder(
        host=socket.gethostname(),
        boot=_boot(),
        pid=os.getpid(),
        started=_started(os.getpid()),
        since=datetime.now().astimezone().isoformat(timespec="seconds"),
        job=f"{job}.{os.environ.get('SLURM_RESTART_COUNT', '0')}" if job else "",
    )


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _started(pid: int) -> int:
    """When a process was started, by which another one that got its number later is told from it; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ending = fields[0] in "ZX" or int(fields[6]) & _EXITING  # it has lost its locks, but not yet its number
        return 0 if ending else int(fields[19])
    except (OSError, ValueError, IndexError):
        return 0


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
