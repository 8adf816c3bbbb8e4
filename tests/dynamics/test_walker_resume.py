from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.dynamics.walker_toys import SlowToy, Toy, assert_same, cluster, gas, walkers
from ubmd.dynamics.exploration import Exploration
from ubmd.dynamics.integrators.langevin import Langevin
from ubmd.dynamics.integrators.melchionna import Melchionna
from ubmd.dynamics.integrators.mtk import MTK
from ubmd.dynamics.state import WalkerState
from ubmd.dynamics.stopping import StoppingRules, StopReason
from ubmd.dynamics.walkers import run_walkers
from ubmd.errors import InputError

ROOT = Path(__file__).parents[2]


def burst(batch, forces, atomic):
    return forces * torch.nan, atomic


def molecules(dtype=torch.float64) -> tuple[WalkerState, Toy, StoppingRules]:
    """Walkers that stop at different times for different reasons, in a potential that remembers."""
    state = walkers([cluster(6, i) for i in range(5)], temperature=500.0, dtype=dtype, fuse=[10**6] * 3 + [77, 10**6])
    return state, Toy(drive=0.02, fault=burst), StoppingRules(uncertainty_threshold=4.0, max_steps=150)


def slowly_biased(dtype=torch.float64) -> tuple[WalkerState, Toy, StoppingRules]:
    """The same, whose bias and uncertainty are evaluated every fifth step; one breaks down between."""
    state, _, _ = molecules(dtype)
    return state, SlowToy(drive=0.01, fault=burst), StoppingRules(uncertainty_threshold=4.0, max_steps=150)


def crystals() -> tuple[WalkerState, Toy, StoppingRules]:
    """Periodic walkers that need new neighbours every few steps."""
    state = walkers([gas(1), gas(2)], temperature=2000.0, cutoff=3.2, fuse=[10**6, 101])
    toy = Toy(cutoff=3.2, epsilon=0.1, sigma=2.4, tether=0.0, drive=0.01, fault=burst)
    return state, toy, StoppingRules(None, max_steps=150)


def pressed(dtype=torch.float64) -> tuple[WalkerState, Toy, StoppingRules]:
    """The same, whose cells follow the pressure until one of them has collapsed."""
    state = walkers(
        [gas(i) for i in range(4)], temperature=2000.0, cutoff=3.2, fuse=[10**6, 10**6, 61, 10**6], dtype=dtype
    )
    toy = Toy(cutoff=3.2, epsilon=0.1, sigma=2.4, tether=0.0, drive=0.01, fault=burst)
    return state, toy, StoppingRules(None, max_steps=150, max_volume_factor=1.15)


LANGEVIN = Langevin(dt=1.0, friction=0.01)
CHAINED = MTK(1.0, pressure=[3000, 12000], thermostat_time=40, barostat_time=400)
PRESSED = Melchionna(1.0, pressure=[3000, 12000], thermostat_time=40, barostat_time=100)


def explore(case, integrator=LANGEVIN, **options) -> Exploration:
    state, toy, rules = case
    return run_walkers(state, toy, integrator, rules, frame_interval=25, skin=0.4, **options)


class Interrupted(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize(
    ("case", "integrator"),
    [
        (molecules(), LANGEVIN),
        (molecules(torch.float32), LANGEVIN),
        (slowly_biased(), LANGEVIN),
        (slowly_biased(torch.float32), LANGEVIN),
        (crystals(), LANGEVIN),
        (pressed(), PRESSED),
        (pressed(torch.float32), PRESSED),
        (pressed(torch.float32), CHAINED),
    ],
)
def test_interrupted_run_equals_the_uninterrupted_one(tmp_path, case, integrator):
    whole = explore(case, integrator)
    assert len(set(whole.reasons)) > 1
    assert len(set(whole.steps)) > 1
    file, lives, calls = tmp_path / "walkers.pt", 0, 0

    def die_later(*_) -> None:
        # each life is one call longer than the last, so that it dies at another distance from the last saving
        nonlocal calls
        calls += 1
        if calls > lives + 2:
            raise Interrupted

    while True:
        calls = 0
        try:
            options = {"checkpoint": file, "checkpoint_interval": 11, "progress_interval": 7}
            found = explore(case, integrator, on_progress=die_later, **options)
            break
        except Interrupted:
            lives += 1
    assert lives > 3
    assert_same(found, whole)
    assert not list(tmp_path.glob(".*"))  # no half-written files


def test_finished_run_is_not_run_again(tmp_path):
    case = molecules()
    whole = explore(case, checkpoint=tmp_path / "walkers.pt")
    case[1].sizes.clear()
    assert_same(explore(case, checkpoint=tmp_path / "walkers.pt"), whole)
    assert case[1].sizes == []


def test_saving_leaves_no_trace_in_the_result(tmp_path):
    assert_same(explore(molecules(), checkpoint=tmp_path / "a.pt", checkpoint_interval=1), explore(molecules()))


CHILD = """
import time, sys
from tests.dynamics.test_walker_resume import explore, molecules
explore(molecules(), checkpoint=sys.argv[1], checkpoint_interval=3, progress_interval=1,
        on_progress=lambda *_: time.sleep(0.02))
"""


def test_killed_process_continues(tmp_path):
    file = tmp_path / "walkers.pt"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    rounds = 0
    for _ in range(2):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(file)], env=environment, cwd=ROOT)
        deadline = time.monotonic() + 120
        while child.poll() is None and time.monotonic() < deadline and progress(file) < rounds + 25:
            time.sleep(0.01)
        assert child.poll() is None, "the child should still have been running"
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert progress(file) > rounds
        rounds = progress(file)
    case = molecules()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found, whole = explore(case, checkpoint=file), explore(molecules())
    finally:
        torch.set_num_threads(threads)
    assert len(case[1].sizes) < 150 - 40  # it did not start afresh
    assert_same(found, whole)
    assert StopReason.UNCERTAINTY in found.reasons


def progress(file: Path) -> int:
    """Steps in the checkpoint; whatever moment we look, it is whole and of plain types."""
    return torch.load(file, weights_only=True)["values"]["rounds"] if file.exists() else 0


def test_another_runs_checkpoint_is_refused(tmp_path):
    file = tmp_path / "walkers.pt"
    state, toy, rules = molecules()
    explore((state, toy, rules), checkpoint=file)
    others = {
        "seeds": (state.replace(seed=state.seed + 1), rules),
        "temperature": (state.replace(temperature=state.temperature + 1), rules),
        "positions": (state.replace(batch=state.batch.replace(positions=state.batch.positions + 1e-9)), rules),
        "rules": (state, StoppingRules(uncertainty_threshold=4.0, max_steps=151)),
    }
    for name, (start, limits) in others.items():
        with pytest.raises(InputError, match="another run"):
            explore((start, toy, limits), checkpoint=file)
        assert file.exists(), name
    with pytest.raises(InputError, match="another run"):
        run_walkers(state, toy, Langevin(dt=0.9, friction=0.01), rules, frame_interval=25, skin=0.4, checkpoint=file)


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_walkers_of_a_damaged_checkpoint_start_afresh(tmp_path, damage, caplog):
    file = tmp_path / "walkers.pt"
    whole = explore(molecules(), checkpoint=file)
    file.write_bytes(file.read_bytes()[:-1000] if damage is None else damage)
    again = explore(molecules(), checkpoint=file)
    assert f"{file} is damaged; the walkers start afresh" in caplog.text
    assert_same(again, whole)
