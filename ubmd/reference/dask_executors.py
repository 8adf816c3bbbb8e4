"""Labels on a Dask cluster: of this machine, of a scheduler that runs already, or of SLURM jobs."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ubmd import interruption
from ubmd.errors import InputError
from ubmd.reference.base import UnfinishedError
from ubmd.reference.executors import LabelExecutor, check_positive

if TYPE_CHECKING:
    from distributed import Client
    from distributed.deploy.cluster import Cluster
    from distributed.security import Security

    from ubmd.reference.base import Reference

__all__ = ["Dask", "Slurm"]

GRACE = 5.0
"""Time between the end of a task's programs and that of a worker that does not notice, s."""
PATIENCE = 10.0
"""Longest wait for a scheduler that should be running, s."""
SETTINGS = {
    # tasks are tried again by who submits them, who knows about time limits and broken computations too
    "distributed.scheduler.allowed-failures": 0,
    # a worker that died comes back when the machine has time for it: one given up for lost never would
    "distributed.deploy.lost-worker-timeout": "1000h",
}
"""Of a cluster that is started here."""


class Dask(LabelExecutor):
    """Dask workers, each of which runs one task at a time: a cluster on this machine, or one that runs already.

    Workers of a cluster that runs already need ubmd, and the programs of the reference; their number, threads
    and memory are that cluster's own.

    Args:
        address: of a running scheduler, such as ``tcp://node:8786``; None starts a cluster on this machine.
        workers: number of worker processes on this machine.
        threads: CPU threads of each.
        time_limit: of a task, s; None for no limit. At the limit the programs that the task has started are
            ended, and the worker itself if that does not end the task.
        retries: how often a task is run again whose worker died or that took too long or broke off.

    Raises:
        InputError: Dask is not installed, or a number is not positive.
    """

    def __init__(
        self,
        *,
        address: str | None = None,
        workers: int = 2,
        threads: int = 1,
        time_limit: float | None = None,
        retries: int = 1,
    ) -> None:
        super().__init__(retries)
        check_positive(workers=workers, threads=threads, time_limit=time_limit)
        _need("distributed", "dask")
        self.address, self.workers, self.threads, self.time_limit = address, workers, threads, time_limit
        self.this_machine = address is None
        self._cluster: Cluster | None = None
        self._client: Client | None = None
        self._settings = ExitStack()

    @property
    def ahead(self) -> int:
        if self.address is not None and self._client is not None:
            threads: Any = self._client.nthreads()
            return max(sum(threads.values()), 1)
        return self.workers

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self._client is None:
            self._client = self._connect()
        executor = self._client.get_executor(pure=False)
        return executor.submit(run_limited, self.time_limit, fn, *args, **kwargs)

    def unfinished(self, error: Exception) -> str | None:
        from distributed import KilledWorker

        if isinstance(error, KilledWorker):
            limit = "" if self.time_limit is None else f" or over executor.time_limit={self.time_limit} s"
            return f"its worker died, killed, out of memory{limit}"
        return "the cluster lost it" if isinstance(error, CancelledError) else None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the cluster if it was started here, whatever it is doing."""
        for part in (self._client, self._cluster):
            if part is not None:
                part.close()
        self._client = self._cluster = None
        self._settings.close()

    def _connect(self) -> Client:
        from dask import config
        from distributed import Client

        if self.address is not None:
            try:
                return Client(self.address, timeout=PATIENCE, set_as_default=False)
            except (OSError, ValueError) as error:
                raise InputError(
                    f"executor.address={self.address} cannot be reached ({error}); start a scheduler there, or "
                    "leave it out for a cluster on this machine"
                ) from error
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # a scheduler in this process tells its every step
        self._settings.enter_context(config.set(SETTINGS))
        self._cluster = self._start()
        return Client(self._cluster, set_as_default=False)

    def _start(self) -> Cluster:
        from distributed import LocalCluster

        return LocalCluster(
            host="127.0.0.1",  # who reaches it runs code as this user
            n_workers=self.workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
            env={f"{library}_NUM_THREADS": str(self.threads) for library in ("OMP", "MKL", "OPENBLAS")},
        )


class Slurm(Dask):
    """Dask workers in SLURM jobs that are submitted when there are tasks, and end when there are none.

    What they speak with the process that submits them is encrypted, by a certificate that is made for this. Its
    files are in a folder of the user's alone in the home folder, which the nodes have to see.

    Args:
        jobs: largest number of jobs; each runs one task at a time.
        threads: cores of a job, and CPU threads of its task.
        memory: of a job, such as ``4GB``.
        walltime: of a job, ``hours:minutes:seconds``.
        partition: to submit to; None takes the cluster's default.
        account: to charge; None takes the user's default.
        prologue: shell commands before the worker starts, such as ``module load cp2k``.
        directives: further ``#SBATCH`` options, such as ``--constraint=fast``.
        time_limit: of a task, s; None for no limit but that of the job.
        retries: how often a task is run again whose job ended or that took too long or broke off.

    Raises:
        InputError: dask-jobqueue is not installed, or a number is not positive.
    """

    def __init__(
        self,
        *,
        jobs: int = 4,
        threads: int = 1,
        memory: str = "4GB",
        walltime: str = "24:00:00",
        partition: str | None = None,
        account: str | None = None,
        prologue: Sequence[str] = (),
        directives: Sequence[str] = (),
        time_limit: float | None = None,
        retries: int = 1,
    ) -> None:
        check_positive(jobs=jobs)
        super().__init__(workers=jobs, threads=threads, time_limit=time_limit, retries=retries)
        _need("dask_jobqueue", "dask-jobqueue")
        self._certificates: Path | None = None
        self.this_machine = False
        self.memory, self.walltime, self.partition, self.account = memory, walltime, partition, account
        self.prologue, self.directives = list(prologue), list(directives)

    def check(self, reference: Reference) -> None:
        if shutil.which("sbatch") is None:
            raise InputError("executor: sbatch is not on this machine; run this where SLURM jobs are submitted")
        _need("cryptography", "cryptography")
        super().check(reference)

    def cluster(self) -> Cluster:
        """A cluster without jobs, which are still to be asked for.

        Whoever speaks to its scheduler runs code as this user, and the scheduler has to listen where the jobs' nodes
        reach it. So it speaks to nobody but those who have the certificate that is made for it here.
        """
        with interruption.kept():  # its import has Ctrl-C end the program without a word
            from dask_jobqueue.slurm import SLURMCluster

        # in the home folder, as that is the one that all nodes of a cluster share
        self._certificates = Path(tempfile.mkdtemp(prefix=".ubmd-slurm-", dir=Path.home()))
        threads = [f"export {library}_NUM_THREADS={self.threads}" for library in ("OMP", "MKL", "OPENBLAS")]
        return SLURMCluster(
            queue=self.partition,
            account=self.account,
            cores=1,  # threads of the Dask worker: tasks at a time
            job_cpu=self.threads,
            processes=1,
            memory=self.memory,
            walltime=self.walltime,
            job_name="ubmd-label",
            job_script_prologue=[*threads, *self.prologue],
            job_extra_directives=self.directives,
            scheduler_options={"dashboard_address": "127.0.0.1:0"},
            protocol="tls://",
            security=_certified(self._certificates),
        )

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait, cancel_futures=cancel_futures)
        if self._certificates is not None:
            shutil.rmtree(self._certificates, ignore_errors=True)
            self._certificates = None

    def _start(self) -> Cluster:
        cluster = self.cluster()
        # a job is given back after ten minutes without a task
        cluster.adapt(minimum=0, maximum=self.workers, target_duration="1s", interval="10s", wait_count=60)
        return cluster


def _certified(folder: Path) -> Security:
    """A certificate for a cluster of its own, in files of the user's alone: who has them is let in, and nobody else."""
    from distributed.security import Security

    made, files = Security.temporary().get_tls_config_for_role("worker"), {}
    for name in ("cert", "key"):
        files[name] = folder / f"{name}.pem"
        files[name].touch(0o600)
        files[name].write_text(made[name])
    roles = {f"tls_{role}_{name}": str(files[name]) for role in ("client", "scheduler", "worker") for name in files}
    return Security(require_encryption=True, tls_ca_file=str(files["cert"]), **roles)


def run_limited(limit: float | None, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Runs a task in a worker, which dies of it rather than let it exceed its time by more than ``GRACE``.

    Args:
        limit: s; None for no limit.
        function: the task.
        args: of the task.
        kwargs: of the task.

    Raises:
        UnfinishedError: the task exceeded the limit, and ended with its programs.
    """
    if limit is None:
        return function(*args, **kwargs)
    expired, done = threading.Event(), threading.Event()

    def end() -> None:
        import psutil

        expired.set()
        for child in psutil.Process().children(recursive=True):
            child.kill()
        if not done.wait(GRACE):
            os._exit(1)

    timer = threading.Timer(limit, end)
    timer.daemon = True
    timer.start()
    try:
        return function(*args, **kwargs)
    finally:
        timer.cancel()
        done.set()
        if expired.is_set():
            raise UnfinishedError(f"it took longer than executor.time_limit={limit} s")


def _need(module: str, package: str) -> None:
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise InputError(f"executor: {package} is not installed; pip install 'ubmd[dask]'")
