"""Damaged files and words: everything that reads has to take them or refuse them in a sentence (InputError).

Every input follows from the seed, its target and its number. Inputs run in a child process, which is replaced when it
dies; each has a limit of CPU time. What was found is saved, the first inputs of each kind of fault.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from rich.console import Console
from rich.table import Table

LIMIT = 20.0
"""Seconds of CPU time after which an input counts as one that hangs."""
SILENCE = 300.0
"""Seconds of wall time after which a child that finishes no input is ended."""
MEMORY = 12 * 2**30
"""Bytes of address space of a child."""
SAVED = 3
"""Inputs that are saved of each kind of fault."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--inputs", type=int, default=100_000, help="in all")
    parser.add_argument("--targets", nargs="*", help="only these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="children side by side")
    parser.add_argument("--output", type=Path, default=Path("fuzz"), help="folder for the inputs that were at fault")
    parser.add_argument("--first", type=int, default=0, help="number of the first input of each target")


@dataclass
class Found:
    """What came of a target's inputs."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """Numbers of inputs: taken, refused, crashed, hung, died."""
    faults: Counter[str] = field(default_factory=Counter)
    """Numbers of inputs by kind of fault."""
    seconds: float = 0.0


class Hung(BaseException):
    """The limit of CPU time has passed; no Exception, so that nothing takes it for a fault of the file."""


def run(options: argparse.Namespace) -> int:
    from drills.targets import TARGETS

    names = options.targets or list(TARGETS)
    shares = {name: TARGETS[name].share for name in names}
    numbers = {name: -(-options.inputs * share // sum(shares.values())) for name, share in shares.items()}
    options.output.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        slowest_first = sorted(names, key=lambda name: shares[name])
        jobs = {name: pool.submit(fuzz, options, name, int(numbers[name])) for name in slowest_first}
        return report(options, {name: job.result() for name, job in jobs.items()})


def fuzz(options: argparse.Namespace, name: str, number: int) -> Found:
    """One target, in as many children as it takes."""
    found, started = Found(), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix=f"ubmd-fuzz-{name}-"))
    place = Place(folder / "place")
    context = multiprocessing.get_context("spawn")
    try:
        following, last = options.first, options.first + number
        while following < last:
            place.write(following, 0)
            arguments = (name, options.seed, following, last, folder, options.output)
            child = context.Process(target=work, args=arguments)
            child.start()
            watch(child, place)
            index, done = place.read()
            for line in (folder / "lines").read_text().splitlines() if (folder / "lines").exists() else ():
                outcome, fault = json.loads(line)
                found.outcomes[outcome] += 1
                if fault:
                    found.faults[fault] += 1
            (folder / "lines").unlink(missing_ok=True)
            if not done:  # the child died at this input
                what = "hung in compiled code" if child.exitcode == -signal.SIGKILL else f"died of {child.exitcode}"
                found.outcomes["hung" if child.exitcode == -signal.SIGKILL else "died"] += 1
                found.faults[what] += 1
                keep(folder / "inputs", options.output, name, what, index)
            following = index + 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found.seconds = time.monotonic() - started
    return found


class Place:
    """Where a child is, in memory that outlives it: the number of its input, and whether that is done."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(16))
        with path.open("r+b") as file:
            self.memory = mmap.mmap(file.fileno(), 16)

    def write(self, index: int, done: int) -> None:
        self.memory[:] = index.to_bytes(8, "little") + done.to_bytes(8, "little")

    def read(self) -> tuple[int, int]:
        return int.from_bytes(self.memory[:8], "little"), int.from_bytes(self.memory[8:], "little")


def watch(child: Any, place: Place) -> None:
    """Waits for a child, and ends one that comes no further."""
    before, since = place.read(), time.monotonic()
    while child.is_alive():
        child.join(1.0)
        if (now := place.read()) != before:
            before, since = now, time.monotonic()
        if time.monotonic() - since > SILENCE:
            child.kill()
            child.join()


def work(name: str, seed: int, first: int, last: int, folder: Path, output: Path) -> None:
    """What a child does: inputs ``first`` to ``last``, until one of them ends it."""
    from drills.targets import TARGETS

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPROF, hang)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    place, target = Place(folder / "place"), TARGETS[name]
    (folder / "inputs").mkdir(exist_ok=True)
    seeds = target.prepare(folder / "seeds")
    digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    with (folder / "lines").open("a", buffering=1) as lines:
        for index in range(first, last):
            place.write(index, 0)
            shutil.rmtree(folder / "inputs")
            (folder / "inputs").mkdir()
            random = np.random.default_rng(np.random.SeedSequence([seed, digest, index]))
            made = target.make(seeds, random, folder / "inputs")
            signal.setitimer(signal.ITIMER_PROF, LIMIT)
            outcome, fault = tried(target, made)
            signal.setitimer(signal.ITIMER_PROF, 0)
            lines.write(json.dumps([outcome, fault]) + "\n")
            if fault:
                keep(folder / "inputs", output, name, fault, index)
            place.write(index, 1)


def hang(*_: Any) -> NoReturn:
    raise Hung


def tried(target: Any, made: Any) -> tuple[str, str | None]:
    """What the target says to an input, and the kind of fault if it is one."""
    from ubmd.errors import InputError

    try:
        target.take(made)
    except InputError as error:
        long = len(str(error).splitlines()) > 2 or not str(error).strip()
        return "refused", "refused without one clear sentence" if long else None
    except Hung:
        return "hung", "hung"
    except BaseException as error:
        return "crashed", kind(error)
    return "taken", None


def kind(error: BaseException) -> str:
    """A name for what went wrong: the error and where in the package it went through last."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f"{Path(f.filename).name}:{f.name}" for f in frames if "/ubmd/" in f.filename]
    last = frames[-1]
    return f"{type(error).__name__} by {ours[-1] if ours else '?'} from {Path(last.filename).name}:{last.name}"


def keep(inputs: Path, output: Path, name: str, fault: str, index: int) -> None:
    """Saves an input, if it is one of the first of its kind."""
    folder = output / name / hashlib.sha256(fault.encode()).hexdigest()[:8]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fault.txt").write_text(fault + "\n")
    if len(list(folder.iterdir())) <= SAVED:
        shutil.copytree(inputs, folder / str(index), dirs_exist_ok=True)


def report(options: argparse.Namespace, found: dict[str, Found]) -> int:
    outcomes = ("taken", "refused", "crashed", "hung", "died")
    table = Table(title=f"seed {options.seed}")
    for column in ("target", "inputs", *outcomes, "kinds", "s"):
        table.add_column(column, justify="left" if column == "target" else "right")
    for name, one in sorted(found.items()):
        numbers = [str(one.outcomes[outcome]) for outcome in outcomes]
        table.add_row(name, str(one.outcomes.total()), *numbers, str(len(one.faults)), f"{one.seconds:.0f}")
    console = Console(width=120)
    console.print(table)
    for name, one in sorted(found.items()):
        for fault, number in one.faults.most_common():
            console.print(f"{name}: {number} x {fault}", highlight=False, soft_wrap=True, markup=False)
    total = sum((one.outcomes for one in found.values()), Counter())
    faults = sum(one.faults.total() for one in found.values())
    console.print(
        f"fuzz: seed {options.seed}, {total.total()} inputs, crashes {total['crashed']}, hangs {total['hung']}, "
        f"deaths {total['died']}, faults {faults}; saved below {options.output}",
        soft_wrap=True,
    )
    return 1 if faults else 0
