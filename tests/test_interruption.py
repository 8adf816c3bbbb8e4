"""Signals: where they stop work, what is kept, and what the process says at its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.dynamics.test_walker_resume import LANGEVIN, assert_same, crystals, molecules
from tests.reference.test_labelling import Spring, pairs
from ubmd.cli import main as cli
from ubmd.dynamics.walkers import run_walkers
from ubmd.interruption import SENTENCE, Interrupted, exposed, handled, requested, shielded
from ubmd.reference.labelling import label_structures
from ubmd.reference.store import LabelStore


def send(signum: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_raised_at_once(signum: int, code: int) -> None:
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted) as stopped, handled():
        send(signum)
    assert stopped.value.code == code
    assert signal.getsignal(signum) == before
    assert not requested()


def interrupted(work: Callable[[], None]) -> None:
    with pytest.raises(Interrupted), handled():
        work()


def test_shielded_work_ends_first() -> None:
    done = []

    def work() -> None:
        with shielded():
            with shielded():
                send()
                done.append(requested())
            done.append(requested(100))
        done.append("not reached")

    interrupted(work)
    assert done == [True, False]


def test_what_takes_long_is_exposed() -> None:
    done = []

    def before() -> None:
        with shielded():
            send()
            with exposed():
                done.append("not reached")

    def within() -> None:
        with shielded():
            with exposed():
                done.append("begun")
                send()
            done.append("not reached")

    interrupted(before)
    interrupted(within)
    assert done == ["begun"]


def test_handlers_of_others_and_threads_are_left_alone() -> None:
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("other"))
    try:
        with handled():
            send()
            assert not requested()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == ["other"]
    found = []
    thread = threading.Thread(target=lambda: found.append(cli.main(["--version"])))
    thread.start()
    thread.join()
    assert found == [0]


def test_the_second_signal_kills() -> None:
    program = (
        "import os, signal, time\nfrom ubmd.interruption import handled, shielded\n"
        "with handled(), shielded():\n    [os.kill(os.getpid(), signal.SIGTERM) for _ in range(2)]\n    time.sleep(60)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGTERM


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("moment", ["behind the work", "at exit", "at last"])
def test_signals_of_the_end(moment: str, signum: int, code: int) -> None:
    """They end the process with a word, where it can still say one; else its work was done, and its code stands."""
    send, end = f"lambda: os.kill(os.getpid(), {signum})", "handled(to_the_end=True)"
    parts = {
        "behind the work": f"with {end}:\n    print('done')\n({send})()",
        "at exit": f"with {end}:\n    print('done')\natexit.register({send})",
        "at last": f"atexit.register({send})\nwith {end}:\n    print('done')",
    }
    program = f"import atexit, os, signal\nfrom ubmd.interruption import handled\n{parts[moment]}"
    process = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert process.stdout == "done\n"
    assert process.returncode == (0 if moment == "at last" else code)
    assert process.stderr == ("" if moment == "at last" else f"{SENTENCE}\n")


@pytest.mark.parametrize("case", [molecules, crystals])
def test_walkers_are_saved_where_they_are(tmp_path: Path, case) -> None:
    state, toy, rules = case()
    options = {"frame_interval": 25, "skin": 0.4}
    whole = run_walkers(state, toy, LANGEVIN, rules, **options)
    calls = []

    def potential(*args, **kwargs):
        calls.append(1)
        if len(calls) == 60:
            send()
        return toy(*args, **kwargs)

    potential.cutoff = toy.cutoff
    options |= {"checkpoint": tmp_path / "walkers.pt", "checkpoint_interval": 10**6}
    with pytest.raises(Interrupted), handled():
        run_walkers(state, potential, LANGEVIN, rules, **options)
    assert len(calls) == 60
    steps = len(calls)
    assert_same(run_walkers(state, potential, LANGEVIN, rules, **options), whole)
    assert len(calls) - steps < 150 - 50


@pytest.mark.parametrize("moment", ["while it is computed", "when it is computed"])
def test_labels_that_are_computed_are_stored(tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, reference = LabelStore(tmp_path / "labels.db"), Spring()
    if moment == "while it is computed":
        compute = reference.compute

        def interrupted(atoms):
            if reference.calls == 2:
                send()
            return compute(atoms)

        reference.compute = interrupted
    else:
        put = store.put

        def late(*args):
            if reference.calls == 2:
                send()
            put(*args)

        monkeypatch.setattr(store, "put", late)
    structures = pairs(1.2, 0.9, 1.1, 1.0)
    with pytest.raises(Interrupted), handled():
        label_structures(structures, reference, store)
    monkeypatch.undo()
    again = Spring()
    assert len(label_structures(structures, again, store).labelled) == 4
    assert again.calls == 2


def children(pid: int) -> list[int]:
    """Processes below a process, and theirs."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *children(child)]
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["serial", "processes"])
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_command_ends_with_its_workers(tmp_path: Path, executor: str, signum: int, code: int) -> None:
    """Labels that sleep are given up, the line is printed and no process is left."""
    (tmp_path / "slow.py").write_text(
        "import subprocess, time\nfrom ase.calculators.emt import EMT\n"
        "class Slow(EMT):\n    def calculate(self, *args):\n"
        "        with subprocess.Popen(['sleep', '97']) as program:\n"  # whose start is over when it has begun
        "            try:\n                open('begun', 'w').close()\n                program.wait()\n"
        "            finally:\n                program.kill()\n"
        "        super().calculate(*args)\n"
    )
    (tmp_path / "two.xyz").write_text("2\n\nCu 0 0 0\nCu 0 0 2.5\n" * 2)
    command = ["label", "structures=two.xyz", "reference.calculator._target_=slow.Slow", f"executor={executor}"]
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}", "UBMD_RUNS": "runs"}
    process = subprocess.Popen(
        [sys.executable, "-m", "ubmd", *command], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "begun").exists() and process.poll() is None:
        time.sleep(0.1)
    below = children(process.pid)
    assert below
    process.send_signal(signum)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert said.splitlines()[-1] == "ubmd: interrupted; the same command continues"
    assert "Traceback" not in said
    time.sleep(1)
    assert not [pid for pid in below if alive(pid)]


@pytest.fixture
def learning(
    toy_conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet_logging: None
) -> Callable[..., None]:
    """Puts a function in the place of ``ubmd learn``'s."""
    monkeypatch.setenv("UBMD_RUNS", str(tmp_path / "runs"))
    return lambda function: monkeypatch.setattr("ubmd.commands.learn.learn", function)


def test_a_signal_that_breaks_off_an_import_is_no_error(
    learning: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Compiled modules raise ImportError of whatever reaches them while they are loaded."""

    def learn(cfg: object) -> None:
        try:
            send()
        except Interrupted as error:
            raise ImportError("initialization failed") from error

    learning(learn)
    assert cli.main(["learn"]) == 143
    assert capsys.readouterr().err == "ubmd: interrupted; the same command continues\n"


def test_a_signal_of_the_start_waits_for_the_end_of_the_imports(
    learning: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ubmd import config

    validate, done = config.validate, []

    def interrupted_validate(*arguments: object) -> None:
        if not done:
            send(signal.SIGINT)
        validate(*arguments)  # pyright: ignore
        done.append("validated")

    learning(lambda cfg: done.append("not reached"))
    monkeypatch.setattr(config, "validate", interrupted_validate)
    assert cli.main(["learn"]) == 130
    assert set(done) == {"validated"}
    assert capsys.readouterr().err == "ubmd: interrupted; the same command continues\n"
