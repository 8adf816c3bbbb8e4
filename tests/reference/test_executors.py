"""Executors: the same labels everywhere, and what happens to workers that die, hang or break off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.reference.labelling_toys import Trap, atoms
from ubmd.errors import InputError
from ubmd.reference.dask_executors import Dask, Slurm
from ubmd.reference.executors import LabelExecutor, Processes, Serial
from ubmd.reference.labelling import LabelReport, label_structures
from ubmd.reference.store import Failure, LabelStore, label_key


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    (tmp_path / "calls").mkdir()
    return tmp_path / "calls"


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return LabelStore(tmp_path / "labels.db")


def numbers(found: list) -> list[int]:
    return [(a if hasattr(a, "info") else a[0]).info["number"] for a in found]


def reasons(report: LabelReport) -> dict[int, str]:
    return {a.info["number"]: reason for a, reason in report.failed}


def program_runs() -> bool:
    return subprocess.run(["pgrep", "-f", "^sleep 61.25$"], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("make", [Processes, Dask])
def test_workers_that_die_hang_or_break_off(make: Callable[..., LabelExecutor], calls: Path, store: LabelStore) -> None:
    """Tasks are run again, the labels are those of one process, and nothing is stored twice or for no reason."""
    does = {1: ("fail", 1), 3: ("die", 1), 5: ("break", 1), 7: ("program", 2)}
    structures = [atoms(number, *does.get(number, ())) for number in range(10)]
    structures.append(structures[4])  # listed twice
    trap = Trap(calls)
    with make(workers=2, time_limit=2.0, retries=1) as executor:
        report = label_structures(structures, trap, store, executor=executor)
        assert numbers(report.labelled) == [0, 2, 3, 4, 5, 6, 8, 9, 4]
        assert reasons(report) == {1: "SCF not converged", 7: "it took longer than executor.time_limit=2.0 s"}
        assert (report.n_computed, len(store)) == (10, 9)
        assert isinstance(store.get(structures[1], trap.fingerprint()), Failure)
        assert store.get(structures[7], trap.fingerprint()) is None
        assert not program_runs()
        again = label_structures(structures, trap, store, executor=executor)
        assert numbers(again.labelled) == [0, 2, 3, 4, 5, 6, 7, 8, 9, 4]
        assert (again.n_computed, len(store)) == (1, 10)
    made = {file.name: file.read_text().split() for file in calls.iterdir()}
    expected = {*(f"{n}-0" for n in range(10)), "3-1", "5-1", "7-1", "7-2"}
    assert expected <= made.keys()
    # Dask computes again what a worker had done, but not handed over, when it died
    assert all(made[f"{name.split('-')[0]}-0"][0] == made["3-0"][0] for name in made.keys() - expected)
    assert str(os.getpid()) not in {worker for worker, _ in made.values()}
    assert {threads for _, threads in made.values()} == {"1"}

    alone = label_structures(structures, trap, LabelStore(store.path.with_name("alone.db")))
    for left, right in zip(again.labelled, alone.labelled, strict=True):
        assert left.info["REF_energy"] == right.info["REF_energy"]
        assert left.arrays["REF_forces"].tobytes() == right.arrays["REF_forces"].tobytes()


@pytest.mark.slow
def test_a_worker_that_ignores_its_time_limit_dies_of_it(calls: Path, store: LabelStore) -> None:
    with Dask(workers=1, time_limit=0.5, retries=0) as executor:
        report = label_structures([atoms(0, "sleep"), atoms(1)], Trap(calls), store, executor=executor)
    assert numbers(report.labelled) == [1]
    assert reasons(report) == {0: "its worker died, killed, out of memory or over executor.time_limit=0.5 s"}


@pytest.mark.slow
def test_idle_workers_may_die(calls: Path, store: LabelStore) -> None:
    with Processes(workers=1) as executor:
        label_structures([atoms(0)], Trap(calls), store, executor=executor)
        os.kill(int((calls / "0-0").read_text().split()[0]), signal.SIGKILL)
        time.sleep(1)
        assert numbers(label_structures([atoms(1)], Trap(calls), store, executor=executor).labelled) == [1]


@pytest.mark.slow
def test_a_scheduler_that_runs_already(calls: Path, store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        with Dask(address=cluster.scheduler_address) as executor:
            assert numbers(
                label_structures([atoms(n) for n in range(4)], Trap(calls), store, executor=executor).labelled
            )
        assert len(cluster.workers) == 1  # not ours to end
    monkeypatch.setattr("ubmd.reference.dask_executors.PATIENCE", 1.0)
    with Dask(address="tcp://127.0.0.1:1") as executor, pytest.raises(InputError, match=r"executor\.address=tcp://127"):
        executor.submit(abs, 1)


@pytest.mark.slow
def test_a_cluster_on_this_machine_listens_to_it_alone() -> None:
    with Dask(workers=1) as executor:
        executor.submit(os.getpid).result()
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        ports = [c.laddr.ip for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
    assert set(ports) == {"127.0.0.1"}


def test_serial_labels_are_tried_again_too(calls: Path, store: LabelStore) -> None:
    structures = [atoms(0), atoms(1, "break", 2)]
    report = label_structures(structures, Trap(calls), store, executor=Serial(retries=1))
    assert (numbers(report.labelled), reasons(report), len(store)) == ([0], {1: "the disk is full"}, 1)
    assert numbers(label_structures(structures, Trap(calls), store).labelled) == [0, 1]
    assert len(list(calls.iterdir())) == 1 + 3


def test_nothing_came_to_an_end(calls: Path, store: LabelStore) -> None:
    broken = [atoms(1, "break", 9), atoms(2, "break", 9)]
    with pytest.raises(
        InputError, match=r"none of 2 labels came to an end \(the disk is full\); nothing of that is remembered"
    ):
        label_structures(broken, Trap(calls), store)
    assert len(store) == 0


def test_labels_that_are_stored_already_came_to_an_end(calls: Path, store: LabelStore) -> None:
    """A run that was killed after some labels goes on as it would have undisturbed."""
    structures = [atoms(0), atoms(1, "break", 9), atoms(2, "fail")]
    undisturbed = label_structures(structures, Trap(calls), LabelStore(store.path.with_name("undisturbed.db")))
    label_structures(structures[:1], Trap(calls), store)
    for known in (1, 2):  # the label, then the failure too
        assert len(store) == known
        again = label_structures(structures, Trap(calls), store)
        assert (numbers(again.labelled), reasons(again)) == (numbers(undisturbed.labelled), reasons(undisturbed))


def test_results_that_came_with_an_error_are_kept(calls: Path, store: LabelStore) -> None:
    class Both(Serial):
        ahead = 2

    class Picky(Trap):
        def compute(self, atoms):
            if atoms.info["number"] == 0:
                raise InputError("atoms: wrong kind")
            return super().compute(atoms)

    with pytest.raises(InputError, match="wrong kind"):
        label_structures([atoms(0), atoms(1)], Picky(calls), store, executor=Both())
    assert len(store) == 1


def test_progress_counts_what_is_known_and_what_is_listed_twice(calls: Path, store: LabelStore) -> None:
    label_structures([atoms(0)], Trap(calls), store)
    seen = []
    structures = [atoms(1), atoms(0), atoms(2), atoms(1)]
    label_structures(structures, Trap(calls), store, on_label=lambda *a: seen.append(a))
    assert seen == [(1, 4), (3, 4), (4, 4)]


def test_references_are_checked_before_anything_runs() -> None:
    class Absent(Trap):
        def check(self) -> None:
            raise InputError("reference: the program is missing")

    class Unsendable(Trap):
        def __init__(self) -> None:
            self.lock = threading.Lock()

    for executor in (Serial(), Processes()):
        with pytest.raises(InputError, match="the program is missing"):
            executor.check(Absent(Path()))
    Serial().check(Unsendable())
    with pytest.raises(InputError, match=r"Unsendable cannot be sent to another process .*; use executor=serial"):
        Processes().check(Unsendable())
    Processes().check(Trap(Path()))


@pytest.mark.parametrize(
    ("make", "keys", "sentence"),
    [
        (Serial, {"retries": -1}, "executor.retries=-1 must not be negative"),
        (Processes, {"workers": 0}, "executor.workers=0 must be positive"),
        (Processes, {"time_limit": -1.0}, "executor.time_limit=-1.0 must be positive"),
        (Dask, {"threads": 0}, "executor.threads=0 must be positive"),
        (Slurm, {"jobs": 0}, "executor.jobs=0 must be positive"),
    ],
)
def test_impossible_values(make: Callable[..., LabelExecutor], keys: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        make(**keys)


def test_dask_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"dask is not installed; pip install 'ubmd\[dask\]'"):
        Dask()


def test_slurm_jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The job script, as far as it can be seen without SLURM; nobody without the certificate reaches the scheduler."""
    pytest.importorskip("cryptography", reason="pip install 'ubmd[dask]'")
    from distributed import Client
    from distributed.security import Security

    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "dask_jobqueue"]:
        monkeypatch.delitem(sys.modules, name)
    on_interrupt = signal.getsignal(signal.SIGINT)
    executor = Slurm(
        jobs=3,
        threads=4,
        memory="8GB",
        walltime="02:30:00",
        partition="long",
        account="mine",
        prologue=["module load cp2k"],
        directives=["--constraint=fast"],
    )
    assert executor.ahead == 3
    executor._cluster = cluster = executor.cluster()
    assert signal.getsignal(signal.SIGINT) is on_interrupt
    try:
        script = cluster.job_script().splitlines()
        address = cluster.scheduler_address
        (folder,) = tmp_path.iterdir()
        assert (folder.stat().st_mode & 0o77, {f.stat().st_mode & 0o77 for f in folder.iterdir()}) == (0, {0})
        with Client(cluster, timeout=10, set_as_default=False) as client:
            assert client.scheduler_info()["address"] == address
        for intruder, security in ((address.replace("tls", "tcp"), None), (address, Security.temporary())):
            with pytest.raises(OSError):  # noqa: PT011  (the network stack names it)
                Client(intruder, security=security, timeout=1, set_as_default=False)
    finally:
        executor.shutdown()
    assert address.startswith("tls://")
    assert "--tls-ca-file" in script[-1]
    assert not list(tmp_path.iterdir())
    for line in ("-p long", "-A mine", "--cpus-per-task=4", "--mem=8G", "-t 02:30:00", "--constraint=fast"):
        assert f"#SBATCH {line}" in script
    assert script.index("export OMP_NUM_THREADS=4") < script.index("module load cp2k") < len(script) - 1
    assert "--nthreads 1" in script[-1]
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="sbatch is not on this machine"):
        executor.check(Trap(Path()))


def test_keys_of_equal_structures_are_equal() -> None:
    trap = Trap(Path()).fingerprint()
    assert label_key(atoms(1), trap) == label_key(atoms(1, "fail"), trap) != label_key(atoms(2), trap)
    assert not np.allclose(atoms(1).positions, atoms(2).positions)
