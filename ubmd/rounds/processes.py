"""Processes that train together with this one, one for each device.

Lightning's own launcher would run the whole command again in each of them: its checks, its run folder and all
that comes before and after a fit. Here a fit starts them and ends them, so that whatever calls a fit (a round, a
sweep's job, a script) is one process as ever; Lightning's strategy finds them as if a cluster had started them.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, cast

import torch
from lightning.fabric.plugins import ClusterEnvironment

from ubmd import interruption
from ubmd.errors import InputError

__all__ = ["Together", "alone", "take_part", "together"]

READY = "ready"
PATIENCE = 60.0
"""How long a process may take to end behind a fit, s."""


class Together(ClusterEnvironment):
    """Tells Lightning's strategies who this process is among those that train together on this machine.

    Args:
        rank: of this process, from 0.
        size: number of processes.
        port: where the first one is found.
    """

    def __init__(self, rank: int, size: int, port: int):
        super().__init__()
        self._rank, self._size, self._port = rank, size, port

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        return self._port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._size

    def set_world_size(self, size: int) -> None: ...

    def global_rank(self) -> int:
        return self._rank

    def set_global_rank(self, rank: int) -> None: ...

    def local_rank(self) -> int:
        return self._rank

    def node_rank(self) -> int:
        return 0


def alone() -> Together:
    """For a process that trains by itself, whatever a cluster's variables say around it."""
    return Together(0, 1, 0)


@dataclass(frozen=True)
class _Other:
    """Another process that trains."""

    rank: int
    process: subprocess.Popen[bytes]
    link: Connection[Any, Any]

    def said(self) -> str | None:
        """What it has to say, or how it ended; None if it is at work or has done it."""
        with suppress(EOFError, OSError):
            if self.link.poll(1.0):
                return str(self.link.recv())
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        code = self.process.returncode
        return None if code in (None, 0) else f"it died with exit code {code}" + " (killed)" * (code == -signal.SIGKILL)


@contextmanager
def together(n: int, work: Callable[[Together], Any]) -> Iterator[Together]:
    """Starts ``n - 1`` further processes that do ``work`` while the block, the first one's part of it, runs.

    They have no signals of their own: they end with their work, with the block, or with this process, however it ends.
    The CPU threads of this process are divided among all.

    Args:
        n: number of processes; 1 starts none.
        work: what the others do, told who they are; it is sent to them pickled.

    Raises:
        InputError: ``work`` cannot be sent.
    """
    if n == 1:
        yield alone()
        return
    try:
        parcel = pickle.dumps(work)
    except Exception as error:  # of whatever a user's class does
        raise InputError(
            f"the fit cannot be sent to another process ({' '.join(str(error).split())}); use trainer.devices=1, or "
            "define its parts in a module"
        ) from error
    port = _free_port()
    others: list[_Other] = []
    with _divided_threads(n):
        try:
            for rank in range(1, n):
                others.append(_start(rank))
            for other in others:
                with suppress(OSError):  # it has died, of which more below
                    other.link.send((parcel, other.rank, n, port))
            _await(others)
            yield Together(0, n, port)
            for other in others:
                with suppress(subprocess.TimeoutExpired):
                    other.process.wait(PATIENCE)
        except Exception as error:
            for other in others:
                if reason := other.said():
                    error.add_note(f"training process {other.rank + 1} of {n}: {reason}")
            raise
        finally:
            for other in others:
                other.process.kill()
                other.process.wait()
                other.link.close()
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


def _start(rank: int) -> _Other:
    link, end = cast("tuple[Connection[Any, Any], Connection[Any, Any]]", Pipe())
    # a process of its own: a fork of one with threads, or with a GPU, may hang, and multiprocessing's would first run
    # the user's script again
    code = f"import sys; sys.path = {sys.path!r}; from {__name__} import take_part; take_part({end.fileno()})"
    # the first process decides what a signal means, and one from a terminal goes to all
    before = signal.pthread_sigmask(signal.SIG_BLOCK, interruption.SIGNALS)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[end.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        end.close()
    return _Other(rank, process, link)


def _await(others: Sequence[_Other]) -> None:
    """Waits until all are ready: one that cannot be would keep the others waiting for half an hour.

    Raises:
        RuntimeError: one has ended.
    """
    waiting = list(others)
    while waiting:
        ready = wait([other.link for other in waiting], timeout=0.5)
        if interruption.requested():
            interruption.stop()
        for other in [other for other in waiting if other.link in ready]:
            said = other.said()
            if said != READY:
                raise RuntimeError(f"training process {other.rank + 1} could not be started: {said}")
            waiting.remove(other)


def take_part(descriptor: int) -> None:
    """The life of another process, which is told all about it through a link.

    Args:
        descriptor: of its end.
    """
    link = Connection(descriptor)
    warnings.simplefilter("ignore")
    logging.disable()
    try:
        parcel, rank, size, port = link.recv()
        work = pickle.loads(parcel)
        link.send(READY)
        threading.Thread(target=_end_with, args=(link,), daemon=True).start()
        work(Together(rank, size, port))
    except BaseException:
        with suppress(OSError):
            link.send(traceback.format_exc())
        os._exit(1)  # without waiting for the others in any library's last words
    os._exit(0)


def _end_with(link: Connection[Any, Any]) -> None:
    """Ends this process when the first one, which says nothing more, has ended."""
    link.poll(None)
    os._exit(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def _divided_threads(n: int) -> Iterator[None]:
    """Each of ``n`` processes, this one included, has its part of the CPU threads while the block runs."""
    threads, before = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    share = max(threads // n, 1)
    torch.set_num_threads(share)
    os.environ["OMP_NUM_THREADS"] = str(share)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
