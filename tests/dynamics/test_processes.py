"""Groups of walkers, in one process and in several."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from tests.dynamics.walker_toys import EXPLORATION_FIELDS, Toy, assert_same, cluster
from ubmd.dynamics.explore import WalkerExploration, group_files
from ubmd.dynamics.integrators.langevin import Langevin
from ubmd.dynamics.processes import SharedProgress, WalkerProcesses, _portable
from ubmd.dynamics.stopping import StoppingRules
from ubmd.errors import InputError, system_refusal

ROOT = Path(__file__).parents[2]
RULES = StoppingRules(uncertainty_threshold=3.5, max_steps=40)
WAY = {"stopping": RULES, "integrator": Langevin(dt=1.0, friction=0.01, temperature=600.0), "frame_interval": 10}
STARTS = [cluster(6, i) for i in range(3)]


def exploration(**options) -> WalkerExploration:
    return WalkerExploration(**WAY | {"n_walkers": 5, "checkpoint_interval": 5} | options)


def explore(how: WalkerExploration, toy: Toy | None = None, **options):
    return how(toy or Toy(drive=0.02), STARTS, seed=3, round_index=1, dtype=torch.float64, **options)


@dataclass(frozen=True)
class Source:
    """Stands for a potential's file."""

    slow: float = 0.0
    dies: bool = False
    folder: str = ""

    def load(self, device):
        if self.folder:
            Path(self.folder, f"{os.getpid()}.begun").touch()
        logging.getLogger("tests").warning("%s threads in %s", torch.get_num_threads(), os.getpid())
        if self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        potential = Toy(drive=0.02)
        if self.slow:
            potential = partial(slowly, self.slow, potential)
            potential.cutoff = 6.0
        return potential


def slowly(seconds, potential, *args, **kwargs):
    time.sleep(seconds)
    return potential(*args, **kwargs)


def test_groups_are_batches_of_their_own(tmp_path: Path) -> None:
    calls, toy = [], Toy(drive=0.02)
    whole = explore(exploration())
    assert len(set(whole.steps)) > 1
    options = {"checkpoint": tmp_path / "walkers.pt", "on_progress": lambda *call: calls.append(call)}
    found = explore(exploration(groups=2), toy, **options)
    assert toy.sizes[0] == 3  # walkers 0, 2 and 4
    assert 2 in toy.sizes
    for name in EXPLORATION_FIELDS:
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-9, atol=1e-9, err_msg=name)
    assert len(found.inherited) == 5
    files = group_files(tmp_path / "walkers.pt", 2)
    assert [file.name for file in files] == ["walkers-0.pt", "walkers-1.pt"]
    assert sorted(tmp_path.iterdir()) == files
    toy.sizes.clear()
    assert_same(explore(exploration(groups=2), toy, **options), found)
    assert toy.sizes == []  # both were finished


def test_progress_of_groups_together() -> None:
    calls = []
    progress = SharedProgress(lambda *call: calls.append(call), 2)
    progress.update(0, 100, 3, 0.5)
    progress.update(1, 40, 2, float("nan"))
    progress.update(1, 60, 1, 0.7)
    progress.finish(1, explore(exploration(n_walkers=1)))
    progress.update(0, 200, 2, 0.6)
    assert calls[:3] == [(100, 3, 0.5), (140, 5, 0.5), (160, 4, 0.7)]
    assert calls[3][1:] == (2, 0.6)
    assert calls[3][0] in range(201, 241)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"groups": 6}, "dynamics.groups=6 must be at most dynamics.n_walkers=5"),
        ({"groups": 0}, "dynamics.groups=0 must be a whole number"),
    ],
)
def test_refuses_groups_and_workers(wrong: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        exploration(**wrong)


def test_refuses_what_cannot_be_in_groups() -> None:
    with pytest.raises(InputError, match=r"dynamics.workers=2 must be at most dynamics.groups=1"):
        exploration(workers=2).check_bias(Toy())
    how, bias = exploration(groups=2, workers=2), Toy()
    how.check_bias(bias)
    with pytest.raises(InputError, match=r"dynamics.workers=2 needs processes"):
        explore(how)
    bias.fault = lambda batch: batch
    with pytest.raises(InputError, match=r"cannot be sent to another process .*set dynamics.workers=1"):
        how.check_bias(bias)
    bias.fault, bias.shared = None, True  # pyright: ignore
    with pytest.raises(InputError, match=r"dynamics.groups=2: walkers that share their hills"):
        how.check_bias(bias)


@pytest.mark.slow
def test_workers_find_the_same(caplog: pytest.LogCaptureFixture) -> None:
    how = exploration(groups=3, workers=2)
    alone = explore(exploration(groups=3))
    others = set(psutil.Process().children())  # of other tests
    with WalkerProcesses(2) as processes:
        assert_same(explore(how, elsewhere=partial(processes.run, Source())), alone)  # pyright: ignore
        workers = {child.pid for child in set(psutil.Process().children()) - others}
        told = [record.getMessage().split(" threads in ") for record in caplog.records]
        assert {threads for threads, _ in told} == {str(max(torch.get_num_threads() // 2, 1))}
        assert {int(pid) for _, pid in told} <= workers
        explore(how, elsewhere=partial(processes.run, Source()))  # pyright: ignore
        assert {int(record.getMessage().split()[-1]) for record in caplog.records} <= workers  # they stay
        with pytest.raises(InputError, match=r"workers=2: a worker process of the walkers was ended .*code -9\)"):
            explore(how, elsewhere=partial(processes.run, Source(dies=True)))  # pyright: ignore
        # at most the one that looks after their resources
        assert len({child.pid for child in psutil.Process().children()} & workers) <= 1


def test_errors_are_those_of_the_worker() -> None:
    class Own(Exception):  # noqa: N818
        pass

    def raised(error: Exception) -> Exception:
        try:
            raise error
        except Exception as caught:
            return pickle.loads(pickle.dumps(_portable(caught)))

    full = raised(OSError(errno.ENOSPC, "No space left on device", "walkers-0.pt"))
    assert str(system_refusal(full)).startswith("walkers-0.pt: no space left on device; free some space")
    assert str(raised(InputError("no potential"))) == "no potential"
    other = raised(Own("what"))
    assert str(other) == "Own: what"
    assert "in raised" in other.__notes__[0]


CHILD = """
import sys
from pathlib import Path
from tests.dynamics.test_processes import Source, exploration, explore
from functools import partial
from ubmd import interruption
from ubmd.dynamics.processes import WalkerProcesses
interval, file = int(sys.argv[1]), Path(sys.argv[2])
how = exploration(groups=2, workers=2, checkpoint_interval=interval)
try:
    with interruption.handled(), WalkerProcesses(2) as processes:
        explore(how, elsewhere=partial(processes.run, Source(slow=0.1, folder=str(file.parent))), checkpoint=file)
except interruption.Interrupted as stopped:
    sys.exit(stopped.code)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "interval", "code"), [(signal.SIGTERM, 1000, 143), (signal.SIGKILL, 1, -9)])
def test_stopped_processes_leave_saved_walkers_and_no_workers(tmp_path: Path, signum, interval, code) -> None:
    """Asked to stop they save where they are, whatever the interval; they do not outlive a process that is killed."""
    file, environment = tmp_path / "walkers.pt", os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, str(interval), str(file)]
    with subprocess.Popen(command, env=environment, cwd=ROOT) as child:
        begun, deadline = "*.begun" if interval > 1 else "walkers-*.pt", time.monotonic() + 120
        while child.poll() is None and time.monotonic() < deadline and len(list(tmp_path.glob(begun))) < 2:
            time.sleep(0.05)
        time.sleep(0.5)
        workers = psutil.Process(child.pid).children()
        child.send_signal(signum)
        assert child.wait(60) == code
    assert len(workers) == 3  # with what looks after their resources
    _, alive = psutil.wait_procs(workers, 20)
    assert not alive
    files = group_files(file, 2)
    saved = [torch.load(part, weights_only=True)["values"]["rounds"] for part in files]
    assert all(0 < rounds < 40 for rounds in saved)
    toy = Toy(drive=0.02)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        how = exploration(groups=2, checkpoint_interval=interval)
        assert_same(explore(how, toy, checkpoint=file), explore(exploration(groups=2)))
    finally:
        torch.set_num_threads(threads)
