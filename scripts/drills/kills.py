"""Runs that are killed at random moments again and again: nothing lost, paid twice, left over or different.

Two demos, serial and with worker processes; a signal goes to the first process or to all of them. A label counts as
paid twice if it is computed after it was stored; one that is under way at the kill may be computed again. Results are
compared bit by bit: data set, selections, labels, weights, trajectories, and metrics but for times.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from drills.compared import differences, labels, stores
from drills.counting import LOG
from drills.processes import Ending, run_until
from drills.small import COUNTED, DEMOS

SIGNALS = {"kills": signal.SIGKILL, "terms": signal.SIGTERM, "interrupts": signal.SIGINT}
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
SENTENCE = "the same command continues"
ENDING = 3.0
"""CPU seconds that a process may take to end."""
AHEAD = {"serial": 1, "processes": 4}
"""Labels that may be under way, done but not stored yet, when a process is killed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, default=60, help="SIGKILLs at least")
    parser.add_argument("--terms", type=int, default=20, help="SIGTERMs at least")
    parser.add_argument("--interrupts", type=int, default=10, help="SIGINTs at least")
    parser.add_argument("--minutes", type=float, default=60.0, help="after which no further run is started")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--output", type=Path, default=Path("kills.jsonl"), help="a line for each signal and run")
    parser.add_argument("--keep", action="store_true", help="keep the folders of runs in which something failed")


@dataclass
class Drill:
    """What the runs share and report to."""

    options: argparse.Namespace
    root: Path
    standards: dict[str, Path] = field(default_factory=dict)
    length: dict[str, float] = field(default_factory=dict)
    """CPU seconds of the undisturbed run."""
    starting: dict[str, float] = field(default_factory=dict)
    """Those until its folder was there."""
    counts: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    failures: list[str] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def wanted(self) -> bool:
        late = time.monotonic() > self.started + 60 * self.options.minutes
        return not late and any(self.counts[name] < getattr(self.options, name) for name in SIGNALS)

    def note(self, line: dict[str, Any]) -> None:
        with self.lock, self.options.output.open("a") as file:
            self.lines.append(line)
            self.failures += [f"run {line['run']}: {fault}" for fault in line["faults"]]
            file.write(json.dumps(line) + "\n")


def run(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job hands on that it is ignored
    drill = Drill(options, Path(tempfile.mkdtemp(prefix="ubmd-kills-")))
    options.output.unlink(missing_ok=True)
    for demo in DEMOS:
        undisturbed(drill, demo)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda _: worker(drill), range(options.jobs)))
    if not (options.keep and drill.failures):
        shutil.rmtree(drill.root)
    return report(drill)


def worker(drill: Drill) -> None:
    """Runs, until there were signals enough."""
    while True:
        with drill.lock:
            if not drill.wanted():
                return
            index, drill.runs = drill.runs, drill.runs + 1
        killed_run(drill, index)


def command(demo: str, folder: Path, executor: str) -> list[str]:
    return ["learn", *DEMOS[demo], COUNTED[demo], f"executor={executor}", f"hydra.run.dir={folder}/run"]


def environment(folder: Path) -> dict[str, str]:
    return {"UBMD_CACHE": str(folder / "cache"), LOG: str(folder / "log"), "OMP_NUM_THREADS": "1"}


def undisturbed(drill: Drill, demo: str) -> None:
    """The standard, which also tells how long a run and its start are."""
    folder = drill.root / f"standard-{demo}"
    sign = folder / "run" / "config.yaml"
    ending = run_until(command(demo, folder, "serial"), folder, sign=sign, **environment(folder))
    assert ending.code == 0, ending.stderr
    assert ending.starting is not None
    drill.length[demo], drill.starting[demo] = ending.cpu, ending.starting
    begun = Counter(line.split()[1] for line in (folder / "log").read_text().splitlines() if line.startswith("begun"))
    assert max(begun.values()) == 1, "the undisturbed run computed a label twice"
    drill.standards[demo] = folder


def killed_run(drill: Drill, index: int) -> None:
    """One run, interrupted until it is through."""
    random = np.random.default_rng(np.random.SeedSequence([drill.options.seed, index]))
    demo, executor = list(DEMOS)[index % 2], ("serial", "serial", "processes")[index // 2 % 3]
    folder, standard = drill.root / f"run-{index:03d}", drill.standards[demo]
    weights = np.array([getattr(drill.options, name) for name in SIGNALS], dtype=float)
    known: dict[str, Any] = {}
    for continues in itertools.chain([False], itertools.repeat(True)):
        number = list(SIGNALS.values())[random.choice(len(SIGNALS), p=weights / weights.sum())]
        # the start of a process that continues has been met often enough by its second half
        moment = random.uniform(drill.starting[demo] / 2 if continues else 0.0, drill.length[demo])
        everyone = bool(random.integers(2))
        before, left = noted(folder), temporary(folder)
        ending = run_until(
            command(demo, folder, executor),
            folder,
            moment=moment,
            number=number,
            everyone=everyone,
            **environment(folder),
        )
        stored = {name: label for file in stores(folder) for name, label in labels(file).items()}
        computed = noted(folder)[len(before) :]
        faults = label_faults(known, stored, computed, AHEAD[executor]) + ending_faults(ending, moment, number)
        if number != signal.SIGKILL and ending.interrupted:
            faults += [f"{file} is left behind by {number.name}" for file in temporary(folder) if file not in left]
        finished = ending.code == 0
        line = {"run": index, "demo": demo, "executor": executor, "signal": number.name if ending.interrupted else None}
        line |= {"moment": round(moment, 3), "everyone": everyone, "code": ending.code, "stage": None}
        line |= {"said": ending.stderr.strip()[-200:], "rounds": len(list((folder / "run").rglob("round.json")))}
        line |= {"latency": round(ending.latency, 2), "lingering": round(ending.lingering, 2), "faults": faults}
        if ending.interrupted:
            line["stage"] = "start" if moment < drill.starting[demo] else stage(folder / "run")
            with drill.lock:
                drill.counts[{v: k for k, v in SIGNALS.items()}[number]] += 1
        known = stored
        if finished:
            line["faults"] = faults + differences(folder / "run", standard / "run")
            line["faults"] += [f"cache: {text}" for text in differences(folder / "cache", standard / "cache")]
            line["faults"] += [f"{file} is left over" for file in temporary(folder)]
        drill.note(line)
        if finished or (not ending.interrupted and ending.code != 0):
            break
    if not (drill.options.keep and any(line["faults"] for line in drill.lines if line["run"] == index)):
        shutil.rmtree(folder)


def noted(folder: Path) -> list[tuple[str, str]]:
    """(begun or done, structure), as the references noted them."""
    file = folder / "log"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(what, structure) for what, structure, *_ in map(str.split, lines)]


def label_faults(
    known: dict[str, Any], stored: dict[str, Any], computed: list[tuple[str, str]], ahead: int
) -> list[str]:
    """Labels that were lost or paid twice.

    Args:
        known: labels stored before the process started.
        stored: after it had ended.
        computed: its references' notes.
        ahead: labels that may be under way.
    """
    faults = [f"label {name} was lost" for name in known.keys() - stored.keys()]
    faults += [f"label {name} was changed" for name in known.keys() & stored.keys() if known[name] != stored[name]]
    faults += [
        f"label {name} was paid twice: it was stored" for what, name in computed if what == "begun" and name in known
    ]
    done = Counter(name for what, name in computed if what == "done")
    faults += [f"label {name} was computed {n} times by one process" for name, n in done.items() if n > 1]
    unstored = done.keys() - stored.keys()
    return faults + ([f"{len(unstored)} labels were done and not stored"] if len(unstored) > ahead else [])


def ending_faults(ending: Ending, moment: float, number: signal.Signals) -> list[str]:
    """What is wrong about the way a process ended."""
    faults = [f"{ending.orphans} orphans"] if ending.orphans else []
    last = ending.stderr.strip().splitlines()[-1:] or [""]
    if not ending.interrupted:
        return faults + ([f"exit code {ending.code} undisturbed: {last[0]}"] if ending.code else [])
    if number == signal.SIGKILL:
        return faults
    if ending.code == 0:  # it was through, as the comparison of the results will tell
        return [*faults, f"went on after {number.name}"] if ending.cpu > moment + ENDING else faults
    if ending.code == -number and not ending.stderr:
        return faults  # the first word could not be said yet
    if ending.code != CODES[number]:
        faults.append(f"exit code {ending.code} after {number.name}: {last[0]}")
    if SENTENCE not in ending.stderr:
        faults.append(f"no word after {number.name}")
    if "Traceback" in ending.stderr:
        faults.append(f"a traceback after {number.name}")
    return faults


def temporary(folder: Path) -> list[str]:
    """Files that writers leave if they do not end."""
    inside = [path for part in ("run", "cache") for path in (folder / part).rglob(".*.tmp*")]
    return [str(path.relative_to(folder)) for path in [*inside, *(folder / "tmp").rglob("*")] if path.is_file()]


def stage(run: Path) -> str:
    """What a killed run was at, from the files that it left."""
    if not (run / "dataset.extxyz").exists():
        return "initial"
    folder = max((run / "rounds").glob("*"), default=None)
    if folder is None or (folder / "round.json").exists():
        return "between"
    for name, before in (("labelled.extxyz", "label"), ("selected.extxyz", "select"), ("trajectory.h5", "explore")):
        if (folder / name).exists():
            return {"label": "commit", "select": "label", "explore": "select"}[before]
    return "explore" if (folder / "model.ckpt").exists() else "fit"


def report(drill: Drill) -> int:
    hits = [line for line in drill.lines if line["signal"]]
    stages = ("start", "initial", "fit", "explore", "select", "label", "commit", "between")
    table = Table(title="signals by the stage that they met")
    for column in ("demo", "executor", "signal", *stages, "all", "slowest end / s"):
        table.add_column(column, justify="left" if column in ("demo", "executor", "signal") else "right")
    for key in sorted({(line["demo"], line["executor"], line["signal"]) for line in hits}):
        these = [line for line in hits if (line["demo"], line["executor"], line["signal"]) == key]
        met = Counter(line["stage"] for line in these)
        slowest = max(line["latency"] + line["lingering"] for line in these)
        table.add_row(*key, *(str(met[name]) for name in stages), str(len(these)), f"{slowest:.1f}")
    console = Console(width=140)
    console.print(table)
    for fault in drill.failures:
        console.print(fault, style="red", highlight=False, soft_wrap=True, markup=False)
    ended = [line for line in drill.lines if line["code"] == 0]
    equal = sum(not line["faults"] for line in ended)
    missing = [name for name in SIGNALS if drill.counts[name] < getattr(drill.options, name)]
    count = {name: sum(name in fault for fault in drill.failures) for name in ("lost", "paid twice", "orphans", "left")}
    console.print(
        f"kills: seed {drill.options.seed}, {drill.runs} runs, "
        + ", ".join(f"{drill.counts[name]} {number.name}" for name, number in SIGNALS.items())
        + f"; labels lost {count['lost']}, paid twice {count['paid twice']}, orphans {count['orphans']}, "
        f"left over {count['left']}, {equal} of {drill.runs} runs equal to the undisturbed one, "
        f"faults {len(drill.failures)}",
        soft_wrap=True,
        highlight=False,
    )
    return 0 if not drill.failures and equal == drill.runs and not missing else 1
