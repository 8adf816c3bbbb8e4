"""Worker processes, each of which runs a group of walkers at a time.

Nothing goes from one to another, so a group finds the same wherever it runs. Workers are spawned when the first group
comes and stay until the ``with`` block is left, since each takes seconds to load what it needs. They stop with the
process that has started them: asked by it, with their walkers saved, or at once if it is gone.

Worker processes import this module before anything else, hence only the standard library is imported here:
how many threads a numerical library takes is settled when it is loaded.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from logging.handlers import QueueHandler
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ubmd import interruption
from ubmd.errors import InputError
from ubmd.reference.executors import limit_threads

if TYPE_CHECKING:
    import torch

    from ubmd.dynamics.exploration import Exploration
    from ubmd.models.potential import WalkerPotential

__all__ = ["GroupTask", "OnProgress", "PotentialFile", "SharedProgress", "WalkerProcesses", "check_sendable"]

OnProgress = Callable[[int, int, float], None]

STOP = b"stop"
PATIENCE = 60.0
"""Seconds that workers have for a step and to save their walkers; then they are killed."""


class GroupTask(Protocol):
    """A group of walkers that is to run; it can be sent to another process."""

    @property
    def device(self) -> torch.device | str:
        """Where its walkers are."""
        ...

    def __call__(self, potential: WalkerPotential, on_progress: OnProgress, /) -> Exploration: ...


@dataclass(frozen=True)
class PotentialFile:
    """A potential that any process can load, safely: :func:`~ubmd.uncertainty.checkpoint.load_potential`."""

    path: Path
    """Of the trained potential."""
    bias: Callable[..., WalkerPotential]
    """Makes the biased potential of a ``potential`` and its ``uncertainty``."""
    allow: str | Sequence[str] = ()
    """What the file may name besides ubmd's own parts."""

    def load(self, device: torch.device | str) -> WalkerPotential:
        """The biased potential."""
        from ubmd.uncertainty.checkpoint import load_potential

        trained = load_potential(self.path, device=device, allow=self.allow)
        biased: Any = self.bias(potential=trained.potential, uncertainty=trained.uncertainty)
        return biased.to(device)


class SharedProgress:
    """The progress of groups together.

    Args:
        on_progress: called with steps done, walkers running and the highest uncertainty of all groups together.
        n_groups: number of groups.
    """

    def __init__(self, on_progress: OnProgress | None, n_groups: int):
        self._on_progress = on_progress
        self._groups: list[tuple[int, int, float]] = [(0, 0, math.nan)] * n_groups

    def update(self, group: int, steps: int, running: int, highest: float) -> None:
        """Takes in how far a group is."""
        self._groups[group] = steps, running, highest
        if self._on_progress is not None:
            known = [h for _, _, h in self._groups if not math.isnan(h)]
            steps, running = (sum(values) for values in list(zip(*self._groups, strict=True))[:2])
            self._on_progress(steps, running, max(known, default=math.nan))

    def finish(self, group: int, found: Exploration) -> None:
        """Takes in that a group has ended."""
        self._groups[group] = found.md_steps, 0, math.nan


@dataclass
class _Worker:
    process: Any
    connection: Any
    group: int | None = None
    """That it is running."""

    def message(self) -> tuple[str, Any]:
        """What it says next, a word and what that is about; "gone" if it has ended."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return "gone", None


class WalkerProcesses:
    """Processes on this machine for groups of walkers; the CPU threads of this process are divided among them.

    Args:
        workers: number of processes; with one, none is started.
    """

    def __init__(self, workers: int):
        self.workers = workers
        self._workers: list[_Worker] = []

    def __enter__(self) -> WalkerProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self._end(PATIENCE if self._busy() else 0.0)

    def run(
        self, source: PotentialFile, tasks: Sequence[GroupTask], on_progress: OnProgress | None = None
    ) -> list[Exploration]:
        """Runs groups of walkers, as many at a time as there are workers.

        When a signal asks this process to stop, or a group fails, the others save their walkers and stop.

        Args:
            source: their potential.
            tasks: the groups.
            on_progress: called now and then with steps done, walkers running and the highest uncertainty.

        Raises:
            InputError: a worker died, or what a task needs cannot be sent to another process.
            Exception: what a task raised.
        """
        messages = [check_sendable(source, task) for task in tasks]
        shared, found = SharedProgress(on_progress, len(tasks)), {}
        with interruption.shielded():
            try:
                self._start(min(self.workers, len(tasks)))
                waiting = list(reversed(range(len(tasks))))
                while len(found) < len(tasks):
                    for worker in self._workers:
                        if worker.group is None and waiting:
                            worker.group = waiting.pop()
                            worker.connection.send_bytes(messages[worker.group])
                    for worker in self._ready(0.5):
                        self._receive(worker, shared, found)
                    if interruption.requested():
                        interruption.stop()
            except BaseException:
                self._end(PATIENCE)
                raise
        return [found[group] for group in range(len(tasks))]

    def _start(self, n: int) -> None:
        import torch

        context, threads = get_context("spawn"), max(torch.get_num_threads() // self.workers, 1)
        resource_tracker.ensure_running()  # else the start of the first process would unblock the signals
        while len(self._workers) < n:
            ours, theirs = context.Pipe()
            level = logging.getLogger().level
            process = context.Process(target=_serve, args=(theirs, threads, level), name="walkers", daemon=True)
            # a signal to all processes of a terminal waits until the new one can deal with it
            before = signal.pthread_sigmask(signal.SIG_BLOCK, interruption.SIGNALS)
            try:
                process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
            self._workers.append(_Worker(process, ours))

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.group is not None]

    def _ready(self, seconds: float) -> list[_Worker]:
        """Busy workers that have said something, or died; none if none has within some time."""
        of = {worker.connection: worker for worker in self._busy()}
        return [of[connection] for connection in wait(list(of), seconds)]  # pyright: ignore

    def _receive(self, worker: _Worker, shared: SharedProgress, found: dict[int, Exploration]) -> None:
        group = worker.group
        assert group is not None
        kind, content = worker.message()
        if kind == "progress":
            shared.update(group, *content)
        elif kind == "log":
            logging.getLogger(content.name).handle(content)
        elif kind == "done":
            worker.group, found[group] = None, content
            shared.finish(group, content)
        elif kind == "failed":
            raise content
        elif not interruption.requested():  # somebody else has asked it to stop, or it has ended
            worker.process.join(PATIENCE)
            raise InputError(
                f"dynamics.workers={self.workers}: a worker process of the walkers was ended from outside, perhaps for "
                f"want of memory (exit code {worker.process.exitcode}); the same command continues, also with fewer"
            )

    def _end(self, patience: float) -> None:
        """Ends all workers, those that run walkers with these saved if they can do so in time (s)."""
        for worker in self._workers:
            if worker.group is None:
                worker.connection.close()
            else:
                with suppress(OSError):
                    worker.connection.send_bytes(STOP)
        until = time.monotonic() + patience
        while self._busy() and time.monotonic() < until:
            for worker in self._ready(0.1):
                if worker.message()[0] in ("done", "failed", "stopped", "gone"):
                    worker.group = None
                    worker.connection.close()
        for worker in self._workers:
            worker.process.join(0 if worker.group is not None else PATIENCE)
            worker.process.kill()
            worker.process.join()
            worker.connection.close()
        self._workers = []


def check_sendable(*parts: object) -> bytes:
    """Parts as they are sent to another process; InputError if they cannot be."""
    try:
        return pickle.dumps(parts)
    except Exception as error:
        raise InputError(
            f"dynamics or bias cannot be sent to another process ({error}); set dynamics.workers=1"
        ) from error


class _Reports(QueueHandler):
    """Hands log records over to the process that has started this one."""

    def enqueue(self, record: logging.LogRecord) -> None:
        self.queue.send(("log", record))  # pyright: ignore


def _serve(connection: Connection, threads: int, level: int) -> None:
    """What a worker does: one group after the other, until its connection ends or it is asked to stop."""
    limit_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: it is for the process that has started this one
    tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    with interruption.handled(), suppress(interruption.Interrupted), interruption.shielded():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, interruption.SIGNALS)
        threading.Thread(target=_listen, args=(connection, tasks), daemon=True).start()
        logging.getLogger().addHandler(_Reports(connection))  # pyright: ignore[reportArgumentType]
        logging.getLogger().setLevel(level)
        while True:
            with interruption.exposed():
                message = tasks.get()
            try:
                with interruption.exposed():  # what is loaded takes seconds, and there is nothing to save
                    source, task = pickle.loads(message)
                    potential = source.load(task.device)
                answer = ("done", task(potential, lambda *progress: connection.send(("progress", progress))))
            except interruption.Interrupted:
                connection.send(("stopped", None))
                raise
            except Exception as error:
                answer = ("failed", _portable(error))
            connection.send(answer)


def _listen(connection: Connection, tasks: queue.SimpleQueue[bytes]) -> None:
    """Hands tasks to the main thread; a signal stops its work where it can go on."""
    try:
        while True:
            message = connection.recv_bytes()
            if message != STOP:
                tasks.put(message)
            elif not interruption.requested():  # a second signal would end it at once
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    except (EOFError, OSError):
        os._exit(1)  # nobody is there any more who would want to know


def _portable(error: Exception) -> Exception:
    """An error that another process can raise, with a note of where it comes from."""
    import traceback

    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"in a worker process of the walkers:\n{text}")
    return error
