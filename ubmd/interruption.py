"""SIGTERM, SIGUSR1 and Ctrl-C: work stops where it can go on, and the exit code says that it was not finished.

A signal raises :class:`Interrupted` wherever the program is, and the ``finally`` blocks on its way end workers and
close files. Work that has a better place to stop asks for the signal itself: inside :func:`shielded` it is only noted,
and :func:`requested` tells of it. A second signal ends the process at once.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

__all__ = ["SENTENCE", "Interrupted", "exposed", "handled", "kept", "reinstall", "requested", "shielded", "stop"]

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""What schedulers send before they kill, and Ctrl-C."""
SENTENCE = "ubmd: interrupted; the same command continues"

_first: tuple[int, float] | None = None
_shields = 0


class Interrupted(BaseException):
    """The process was asked to stop; not an Exception, so that nothing takes it for an error.

    Args:
        signum: the signal.
    """

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum

    @property
    def code(self) -> int:
        """Exit code, as a shell counts it: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signum


@contextmanager
def handled(*, to_the_end: bool = False) -> Iterator[None]:
    """Handles the signals while the block runs.

    Leaves them alone in a thread, where Python allows no handlers, and where somebody else handles them already (a
    notebook's kernel, the launcher of a cluster's job).

    Args:
        to_the_end: the process ends behind the block; a signal that comes then ends it with a word as well, and the
            last moments of the interpreter, which could not say any, are not disturbed.
    """
    global _first
    before = {}
    if to_the_end:
        atexit.register(_ignore)  # called behind all that are registered later
    if threading.current_thread() is threading.main_thread():
        for signum in SIGNALS:
            if signal.getsignal(signum) in (signal.SIG_DFL, signal.default_int_handler):
                before[signum] = signal.signal(signum, _note)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, _end if to_the_end else handler)
        if before:
            _first = None


def reinstall() -> None:
    """Takes the signals back from a library that has put its own handlers in front of :func:`handled`'s."""
    if threading.current_thread() is threading.main_thread():
        for signum in SIGNALS:
            if getattr(signal.getsignal(signum), "signal_handlers", [])[-1:] == [_note]:
                signal.signal(signum, _note)


@contextmanager
def kept() -> Iterator[None]:
    """Leaves the signals to whom they belong before the block, which imports a library that takes them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def shielded() -> Iterator[None]:
    """Only notes a signal while the block runs, and raises :class:`Interrupted` behind it."""
    global _shields
    _shields += 1
    try:
        yield
    finally:
        _shields -= 1
    if _first is not None and not _shields:
        stop()


@contextmanager
def exposed() -> Iterator[None]:
    """Lets a signal raise :class:`Interrupted` at once inside :func:`shielded`, for a part that takes long."""
    global _shields
    if _first is not None:
        stop()
    before, _shields = _shields, 0
    try:
        yield
    finally:
        _shields = before


def requested(seconds: float = 0.0) -> bool:
    """Whether a signal came, at least so many seconds ago."""
    return _first is not None and time.monotonic() - _first[1] >= seconds


def stop() -> None:
    """Raises :class:`Interrupted`; for work that has found :func:`requested` true and left things in order."""
    assert _first is not None
    raise Interrupted(_first[0])


def _note(signum: int, frame: FrameType | None) -> None:
    global _first
    if _first is not None:
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
        return
    _first = signum, time.monotonic()
    if not _shields:
        raise Interrupted(signum)


def _end(signum: int, frame: FrameType | None) -> None:
    """Ends a process that has nothing left to do; an exception would only be printed by what it meets."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(RuntimeError, ValueError, OSError):  # the signal may have come in the midst of a print
            stream.flush()
    os.write(2, f"{SENTENCE}\n".encode())
    os._exit(128 + signum)


def _ignore() -> None:
    for signum in SIGNALS:
        if signal.getsignal(signum) is _end:
            signal.signal(signum, signal.SIG_IGN)
