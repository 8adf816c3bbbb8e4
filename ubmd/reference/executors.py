"""Where labels are computed: in this process, or in others of this machine.

All executors are those of :mod:`concurrent.futures` with a few words about themselves, so that
:func:`ubmd.reference.labelling.label_structures` treats them alike. They start when the first task comes and
end when the ``with`` block that they are used in is left.

Worker processes import this module before anything else, hence only the standard library is imported here:
how many threads a numerical library takes is settled when it is loaded.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from ubmd import interruption
from ubmd.errors import InputError

if TYPE_CHECKING:
    from pebble import ProcessPool

    from ubmd.reference.base import Reference

__all__ = ["LabelExecutor", "Processes", "Serial", "limit_threads"]

MOST_PROCESSES = 1024
"""Workers of a machine, or threads of a worker."""


class LabelExecutor(Executor):
    """What labelling wants to know of an executor.

    Args:
        retries: how often a task that did not finish (:meth:`unfinished`) is run again.

    Raises:
        InputError: ``retries`` is negative.
    """

    this_process = False
    """Whether tasks run in the process that submits them."""
    this_machine = True
    """Whether the programs of this machine are those that tasks find."""

    def __init__(self, retries: int) -> None:
        if retries < 0:
            raise InputError(f"executor.retries={retries} must not be negative")
        self.retries = retries

    @property
    def ahead(self) -> int:
        """Tasks that are worth having under way at a time."""
        raise NotImplementedError

    def unfinished(self, error: Exception) -> str | None:
        """Why a task came to no end, if that is what the error says; None for an error of the task itself."""
        return None

    def check(self, reference: Reference) -> None:
        """Refuse, before anything is computed, a reference that cannot run here.

        Raises:
            InputError: a program is missing, or the reference cannot be sent to another process.
        """
        if self.this_machine:
            reference.check()
        if not self.this_process:
            try:
                pickle.dumps(reference)
            except Exception as error:
                raise InputError(
                    f"reference: {type(reference).__name__} cannot be sent to another process ({error}); "
                    "use executor=serial"
                ) from error


class Serial(LabelExecutor):
    """One task after another in this process; there is no limit to the time that one takes.

    Args:
        retries: how often a label that broke off is tried again.
    """

    this_process = True

    def __init__(self, *, retries: int = 1) -> None:
        super().__init__(retries)

    @property
    def ahead(self) -> int:
        return 1

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            with interruption.exposed():
                result = fn(*args, **kwargs)
            future.set_result(result)
        except Exception as error:
            future.set_exception(error)
        return future


class Processes(LabelExecutor):
    """Worker processes on this machine.

    A worker that dies is replaced, one whose task takes too long is ended with the programs it has started.

    Args:
        workers: number of processes.
        threads: CPU threads of each.
        time_limit: of a task, s; None for no limit.
        retries: how often a task is run again whose worker died or that took too long or broke off.

    Raises:
        InputError: a number is not positive.
    """

    def __init__(
        self, workers: int = 2, *, threads: int = 1, time_limit: float | None = None, retries: int = 1
    ) -> None:
        super().__init__(retries)
        check_positive(workers=workers, threads=threads, time_limit=time_limit)
        self.workers, self.threads, self.time_limit = workers, threads, time_limit
        self._pool: ProcessPool | None = None

    @property
    def ahead(self) -> int:
        return 2 * self.workers  # the pool itself runs one task for each worker

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        from pebble import ProcessPool

        if self._pool is not None and not self._pool.active:
            self.shutdown()  # its workers died when there was nothing to do
        if self._pool is None:
            # spawned: a fork of a process with threads, or with a GPU, may hang
            context: Any = get_context("spawn")
            self._pool = ProcessPool(self.workers, initializer=start_worker, initargs=(self.threads,), context=context)
        return self._pool.schedule(fn, args, kwargs, timeout=self.time_limit)

    def unfinished(self, error: Exception) -> str | None:
        from pebble import ProcessExpired

        if isinstance(error, ProcessExpired | BrokenProcessPool):
            return "its worker process died, killed or out of memory"
        if isinstance(error, TimeoutError):
            return f"it took longer than executor.time_limit={self.time_limit} s"
        return None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the workers, whatever they are doing."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None


def start_worker(threads: int) -> None:
    """Sets a worker process up: its threads, and that it takes its programs with it when it is ended."""
    limit_threads(threads)
    exit_at_once = os._exit
    # the pool takes a worker that ends with 0 for one that was told to, and would wait for its task for ever
    os._exit = lambda status: exit_at_once(status or 1)
    os.setpgrp()
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))


def limit_threads(threads: int) -> None:
    """Limits the CPU threads of numerical libraries in a process that has not used them yet."""
    for library in ("OMP", "MKL", "OPENBLAS"):
        os.environ[f"{library}_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:  # the main module of the user has loaded it
        sys.modules["torch"].set_num_threads(threads)


def check_positive(**values: float | None) -> None:
    """Raises InputError for an option of the executor that is given and not positive."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise InputError(f"executor.{name}={value} must be positive")
        if name in ("workers", "threads") and value is not None and value > MOST_PROCESSES:
            raise InputError(f"executor.{name}={value} must be at most {MOST_PROCESSES}")
