"""Commands on disks that fill up at many points, then continued with more space.

Needs root, because each disk is mounted: a tmpfs as large as the run may become, or one that is filled as soon as a
certain file is written, each file that the undisturbed run writes in turn. The processes are forked from one that has
imported everything, so that their start takes no time.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

MODULES = ("ubmd.cli.app", "ubmd.commands.learn", "ubmd.commands.train", "ubmd.commands.md", "ase.calculators.emt")
"""What is imported before the first fork."""
PAGE = 4096
SMALLEST = 20_000
"""Bytes of the smallest disk."""
ROOMY = "256M"
FILLED = "16M"
FILLER = "filler"
MODEL = ("size=small", "model.n_basis=2", "model.n_gauss=4", "model.hidden=[8]", "data.batch_size=4")
FIT = ("trainer.max_epochs=-1", "trainer.max_steps=30", "trainer.check_val_every_n_epoch=3")
DYNAMICS = (
    *("dynamics.n_walkers=2", "dynamics.frame_interval=5", "dynamics.checkpoint_interval=10"),
    *("dynamics.stopping.max_steps=40", "dynamics.stopping.uncertainty_threshold=1000", "dynamics.integrator.dt=0.5"),
)
EMT = "reference.calculator._target_=ase.calculators.emt.EMT"
LEARN = (
    *("learn", EMT, *MODEL, *FIT, *DYNAMICS, "labelling.max_force=50", "bias.window=10", "threads=1"),
    *("system.n_initial=4", "learning.batch_size=3", "learning.max_structures=100", "learning.max_rounds=2"),
    *("learning.checkpoint_epochs=4", "uncertainty.features.n_projections=8"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", type=int, default=16, help="disks for ubmd learn")
    parser.add_argument("--others", type=int, default=3, help="disks for each of the other commands")
    parser.add_argument("--logger", default="csv", choices=["csv", "wandb", "both"])


def run(options: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        print("disks: only root can mount them", file=sys.stderr)
        return 1
    for name in MODULES:
        importlib.import_module(name)
    folder = Path(tempfile.mkdtemp(prefix="ubmd-disks-"))
    os.environ |= {"UBMD_CACHE": str(folder / "cache"), "WANDB_MODE": "offline"}
    n = n_full = n_faults = 0
    try:
        for command, n_sizes in commands(folder, options):
            for where, code, said, faults in drill(command, folder, n_sizes):
                n, n_full, n_faults = n + 1, n_full + (code != 0), n_faults + len(faults)
                last = said.replace(str(folder), "").splitlines()[-1:]
                print(f"{command[0]:6} {where}: {code}", *last, *(f"FAULT: {f}" for f in faults), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"disks: {n} drills, {n_full} of them on a full disk, {n_faults} faults")
    return 1 if n_faults or not n_full else 0


def commands(folder: Path, options: argparse.Namespace) -> Iterator[tuple[list[str], int]]:
    """The command lines, each with the number of disks; those behind the first use its undisturbed run."""
    from ase import Atoms
    from ase.io import write

    structure = folder / "cu4.xyz"
    write(structure, Atoms("Cu4", [[0, 0, 0], [2.4, 0, 0], [1.2, 2.1, 0], [1.2, 0.7, 2.0]]), format="extxyz")
    yield [*LEARN, f"system.structure={structure}", f"logger={options.logger}"], options.sizes
    done = shutil.copytree(folder / "undisturbed-learn", folder / "done")
    data, potential = done / "dataset.extxyz", done / "rounds/001/model.ckpt"
    yield ["train", f"data.train={data}", *MODEL, *FIT, f"logger={options.logger}"], options.others
    yield ["md", f"potential={potential}", f"system.structure={structure}", *DYNAMICS], options.others
    yield ["label", f"structures={data}", EMT, "labelling.max_force=50"], options.others


def drill(command: Sequence[str], folder: Path, n_sizes: int) -> Iterator[tuple[str, int, str, list[str]]]:
    """A command on disks of several sizes, and on one that is filled when a file is written.

    Yields:
        the size or the file, the exit code, what it said and what was wrong.
    """
    standard, place = folder / f"undisturbed-{command[0]}", folder / "disk"
    line, names = [*command, f"hydra.run.dir={place}/run"], folder / f"written-{command[0]}"
    with disk(place, ROOMY), watched(place) as used:
        code, said = forked(line, folder / "output", partial(at_each_file, partial(note, names)))
        if code != 0:
            raise RuntimeError(f"the undisturbed {command[0]} ended with {code}: {said}")
        shutil.copytree(place / "run", standard)
    for number in range(n_sizes):
        size = SMALLEST + number * (used[0] - SMALLEST) // n_sizes // PAGE * PAGE
        with disk(place, str(size)):
            code, said = forked(line, folder / "output")
            faults = [*ending_faults(code, said, place), *half_written(place)]
            subprocess.run(["mount", "-o", f"remount,size={ROOMY}", place], check=True)
            yield f"{size / 1000:.0f} kB", code, said, faults + continued(line, folder)
    for name in dict.fromkeys(names.read_text().splitlines()) if n_sizes else ():
        with disk(place, FILLED):
            code, said = forked(line, folder / "output", partial(at_each_file, partial(fill, place, name)))
            faults = [*ending_faults(code, said, place), *half_written(place)]
            (place / FILLER).unlink(missing_ok=True)
            yield name.removeprefix(f"{place}/run/"), code, said, faults + continued(line, folder)


def continued(line: Sequence[str], folder: Path) -> list[str]:
    """What is wrong about the same command with space enough."""
    from drills.compared import differences

    code, said = forked(line, folder / "output")
    if code:
        return [f"continued: {code} {said}"]
    return differences(folder / "disk" / "run", folder / f"undisturbed-{line[0]}")


def at_each_file(act: Callable[[str], None]) -> None:
    """Has this process do something whenever it begins to write a file or a label."""
    from ubmd import files
    from ubmd.reference.store import LabelStore

    open_new, put = files.open_new, LabelStore.put

    def opening(path: Path) -> int:
        descriptor = open_new(path)
        act(re.sub(r"/\.([^/]+)\.[0-9a-f]+\.tmp(\.[^/]*)?$", r"/\1\2", str(path)))
        return descriptor

    def putting(store: LabelStore, *arguments: Any, **options: Any) -> None:
        act(str(store.path))
        put(store, *arguments, **options)

    files.open_new, LabelStore.put = opening, putting


def note(names: Path, name: str) -> None:
    with names.open("a") as file:
        file.write(f"{name}\n")


def fill(place: Path, wanted: str, name: str) -> None:
    """Leaves no space, if it is the file wanted."""
    if name != wanted:
        return
    with contextlib.suppress(OSError), (place / FILLER).open("ab", buffering=0) as file:
        while True:
            file.write(bytes(PAGE))


@contextlib.contextmanager
def disk(place: Path, size: str) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@contextlib.contextmanager
def watched(place: Path) -> Iterator[list[int]]:
    """The largest number of bytes that were used on a disk, while the block runs."""
    used, ended = [0], threading.Event()

    def look() -> None:
        while not ended.wait(0.005):
            state = os.statvfs(place)
            used[0] = max(used[0], (state.f_blocks - state.f_bfree) * state.f_frsize)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield used
    finally:
        ended.set()
        thread.join()


def forked(command: Sequence[str], output: Path, before: Callable[[], object] = lambda: None) -> tuple[int, str]:
    """Exit code and standard error of ``ubmd`` in a fork of this process, which does ``before`` first."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            for number in (1, 2):
                os.dup2(os.open(f"{output}.{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            from ubmd.cli.main import main

            before()
            code = main(list(command))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    started = time.monotonic()
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        time.sleep(0.02)
        if time.monotonic() - started > 300:
            os.kill(pid, 9)
    return os.waitstatus_to_exitcode(ended[1]), Path(f"{output}.2").read_text(errors="replace").strip()


def ending_faults(code: int, said: str, place: Path) -> list[str]:
    """What is wrong with the end of a command on a full disk; one that had enough has none."""
    if code == 0:
        return []
    faults = [] if code == 2 else [f"exit code {code}"]
    faults += ["traceback"] if "Traceback" in said else []
    last = said.splitlines()[-1] if said else ""
    if "no space left" not in last.lower() or str(place) not in last:
        faults.append("no sentence with the place")
    return faults


def half_written(place: Path) -> list[str]:
    """Files that are left over or that cannot be read."""
    from drills.compared import READERS
    from ubmd.files import leftovers

    faults = [f"{path.name} is left" for path in leftovers(place)]
    for path in place.rglob("*.*"):
        if path.suffix in READERS and path.is_file() and "csv" not in path.parts and "wandb" not in path.parts:
            try:
                READERS[path.suffix](path)
            except Exception as error:  # whatever the reader says of half a file
                faults.append(f"{path.name} is half-written ({error!r})")
    return faults
