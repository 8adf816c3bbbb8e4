"""Every file of a run's folder damaged in every way, then the same command again.

Runs are killed at chosen moments, so that what serves a continuation is among the files. A damage is then repaired
(with a word, the same results), refused in a sentence, harmless (the same results) or told (other results, with a
word); everything else is a fault, labels that are computed although they were stored included. The processes are forked
from one that has imported everything, so that their start takes no time.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from drills.compared import differences, labels
from drills.counting import LOG
from drills.disks import MODULES, commands, forked

PLACES = {".db": 20, ".ckpt": 6, ".pt": 6, ".h5": 6}
"""Bytes of a binary file that are flipped, one at a time."""


@dataclass(frozen=True)
class Moment:
    """When a run is killed.

    Args:
        command: whose run.
        name: of the moment.
        sign: end of the name of a file; a run is killed as soon as it is written.
        times: so often.
        files: patterns of the files to damage.
        without_say: names of files that no result depends on any more, and that nothing tells.
    """

    command: str
    name: str
    sign: str | None
    times: int
    files: tuple[str, ...]
    without_say: tuple[str, ...] = ()


FIRST = "rounds/000/"
MOMENTS = (
    Moment("learn", "initial", "labels.db", 3, ("labels.db", "run.json")),
    Moment("learn", "fit", f"{FIRST}fit/last.ckpt", 2, (f"{FIRST}**/*", "*.extxyz")),
    Moment("learn", "walkers", f"{FIRST}walkers.pt", 2, (f"{FIRST}**/*", "run.lock", "ubmd.log")),
    Moment("learn", "labels", "labels.db", 6, (f"{FIRST}**/*", "labels.db", "*.extxyz")),
    Moment("learn", "commit", f"{FIRST}unfinished.json", 4, (f"{FIRST}**/*",)),
    Moment("learn", "next", "rounds/001/fit/last.ckpt", 2, ("**/*",)),
    Moment("learn", "end", None, 0, ("*", "figures/*", "rounds/001/*")),
    Moment("train", "fit", "fit/last.ckpt", 2, ("**/*",)),
    Moment("train", "end", None, 0, ("**/*",)),
    Moment("md", "walkers", "walkers.pt", 2, ("**/*",), ("thermo.csv",)),
    Moment("md", "end", None, 0, ("**/*",), ("thermo.csv", "walkers.pt")),
    Moment("label", "labels", "labels.db", 3, ("**/*",)),
    Moment("label", "end", None, 0, ("**/*",)),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--moments", nargs="*", help="only these, as in learn:fit")
    parser.add_argument("--files", nargs="*", help="only files with these names")
    parser.add_argument("--keep", type=Path, help="a folder for the runs in which something was at fault")


def run(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in MODULES:
        importlib.import_module(name)
    folder = Path(tempfile.mkdtemp(prefix="ubmd-damages-"))
    os.environ |= {"UBMD_CACHE": str(folder / "cache"), "WANDB_MODE": "offline", LOG: str(folder / "log")}
    found: list[Outcome] = []
    try:
        for line, _ in commands(folder, argparse.Namespace(sizes=0, others=0, logger="csv")):
            line = [*line, "reference._target_=drills.counting.CountedASE"] if line[0] in ("learn", "label") else line
            _undisturbed(line, folder)
            for moment in MOMENTS:
                if moment.command == line[0] and _is_wanted(moment, options.moments):
                    found += drilled(moment, line, folder, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return report(found)


def _is_wanted(moment: Moment, wanted: Sequence[str] | None) -> bool:
    return not wanted or f"{moment.command}:{moment.name}" in wanted


def _undisturbed(line: Sequence[str], folder: Path) -> None:
    (folder / "log").write_text("")
    code, said = forked([*line, f"hydra.run.dir={folder}/run"], folder / "output")
    if code != 0:
        raise RuntimeError(f"the undisturbed {line[0]} ended with {code}: {said}")
    shutil.copytree(folder / "run", folder / f"undisturbed-{line[0]}")
    shutil.rmtree(folder / "run")


@dataclass(frozen=True)
class Outcome:
    """What came of a damage."""

    moment: str
    file: str
    damage: str
    what: str
    """repaired, refused, harmless, told or FAULT."""
    said: str
    faults: tuple[str, ...] = ()


def drilled(moment: Moment, line: list[str], folder: Path, options: argparse.Namespace) -> Iterator[Outcome]:
    """A run killed at a moment, with each of its files damaged in each way."""
    run, standard = folder / "run", folder / f"undisturbed-{moment.command}"
    killed = folder / f"{moment.command}-{moment.name}"
    line = [*line, f"hydra.run.dir={run}"]
    code, _ = forked(line, folder / "output", before=partial(kill_at, moment.sign, moment.times))
    if code != (0 if moment.sign is None else -signal.SIGKILL):
        raise RuntimeError(f"{moment.command} did not come to {moment.name}, it ended with {code}")
    shutil.copytree(run, killed)
    quiet = continued(line, run, standard, folder)
    if quiet.faults:
        raise RuntimeError(f"{moment.command} killed at {moment.name} and continued: {quiet.faults}")
    for file in sorted({path for pattern in moment.files for path in killed.glob(pattern) if path.is_file()}):
        name = str(file.relative_to(killed))
        if (options.files and file.name not in options.files) or file.name in moment.without_say:
            continue
        for way, damage in ways(file).items():
            shutil.rmtree(run)
            shutil.copytree(killed, run)
            damage(run / name)
            if (run / name).exists() and (run / name).read_bytes() == file.read_bytes():
                continue
            result = continued(line, run, standard, folder, quiet.said)
            outcome = Outcome(f"{moment.command}:{moment.name}", name, way, result.what, result.said, result.faults)
            print(outcome.moment, name, way, outcome.what, *outcome.faults, "|", _last(outcome.said), flush=True)
            if options.keep and outcome.faults:
                place = options.keep / f"{moment.command}-{moment.name}-{name.replace('/', '-')}-{way}"
                shutil.copytree(killed, place, dirs_exist_ok=True)
                damage(place / name)
                (place / "said.txt").write_text("\n".join([outcome.said, *outcome.faults]))
            yield outcome
    shutil.rmtree(run)


def ways(file: Path) -> dict[str, Callable[[Path], None]]:
    """Damages of a file; what is large and binary is flipped in many places."""
    from tests.damage import damages_of, flip

    found = dict(damages_of(file))
    if (n_places := PLACES.get(file.suffix)) and file.stat().st_size:
        del found["flip"]
        found |= {f"flip {n}": partial(flip, place=(n + 0.5) / n_places) for n in range(n_places)}
    return found


def kill_at(sign: str | None, times: int) -> None:
    """Has this process kill itself as soon as a file has been written for the nth time."""
    from ubmd.reference.store import LabelStore

    replace, put = os.replace, LabelStore.put
    left = [times]

    def written(path: object) -> None:
        if sign is not None and str(path).endswith(sign):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def replacing(source: Any, target: Any, **options: Any) -> None:
        replace(source, target, **options)
        written(target)

    def putting(store: LabelStore, *arguments: Any, **options: Any) -> None:
        put(store, *arguments, **options)
        written(store.path)

    os.replace, LabelStore.put = replacing, putting


def continued(line: list[str], run: Path, standard: Path, folder: Path, usual: str = "") -> Outcome:
    """What the same command makes of a damaged folder; ``usual``: what it says without damage."""
    try:
        stored = labels(run / "labels.db")
    except Exception:  # whatever SQLite and ASE say of a damaged file
        stored = {}
    (folder / "log").write_text("")
    code, said = forked(line, folder / "output")
    begun = [entry.split()[1] for entry in (folder / "log").read_text().splitlines() if entry.startswith("begun")]
    new = "\n".join(one for one in said.splitlines() if one not in usual.splitlines())
    paid_twice = sorted({name for name in begun if name in stored})
    what, faults = judged(code, said, new, [] if code else differences(run, standard), paid_twice)
    return Outcome("", "", "", what, new if usual else said, tuple(faults))


def judged(code: int, said: str, new: str, other: list[str], paid_twice: Sequence[str]) -> tuple[str, list[str]]:
    """What came of a damage, and what is wrong about it.

    Args:
        code: of the end of the command.
        said: all that it said.
        new: that which it does not say without the damage.
        other: what differs from the undisturbed run.
        paid_twice: labels that were stored and computed again.
    """
    faults = ["a traceback"] if "Traceback" in said else []
    faults += [f"{name} was paid twice" for name in paid_twice]
    if code not in (0, 2):
        faults.append(f"exit code {code}")
    elif code == 2 and not (said.splitlines() or [""])[-1].startswith("ubmd: error: "):
        faults.append("no sentence")
    elif code == 0 and not new:
        faults += other
    what = "refused" if code else "harmless" if not new else "told" if other else "repaired"
    return "FAULT" if faults else what, faults


def _last(said: str) -> str:
    return (said.splitlines() or [""])[-1][-220:]


def report(found: Sequence[Outcome]) -> int:
    damages = list(dict.fromkeys(outcome.damage for outcome in found if not outcome.damage.startswith("flip ")))
    table = Table(title="what came of it")
    for column in ("moment", "file", *damages, "flips"):
        table.add_column(column)
    for moment, file in dict.fromkeys((outcome.moment, outcome.file) for outcome in found):
        these = [outcome for outcome in found if (outcome.moment, outcome.file) == (moment, file)]
        by_damage = {outcome.damage: outcome.what for outcome in these}
        flips = Counter(outcome.what for outcome in these if outcome.damage.startswith("flip "))
        text = ", ".join(f"{n} {what}" for what, n in flips.items())
        table.add_row(moment, file, *(by_damage.get(damage, "") for damage in damages), text)
    Console(width=190).print(table)
    counts = Counter(outcome.what for outcome in found)
    print(f"damages: {len(found)}; " + ", ".join(f"{what} {n}" for what, n in sorted(counts.items())))
    return 1 if counts["FAULT"] or not found else 0
