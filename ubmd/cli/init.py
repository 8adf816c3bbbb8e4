"""``ubmd init``: an experiment of one's own to start from, in ``conf/experiment`` of a folder."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from ubmd.arguments import Parser
from ubmd.cli import templates
from ubmd.errors import InputError
from ubmd.paths import config_dir

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["Counts", "init", "written"]

KINDS = ("molecule", "crystal", "dataset")

FIT_SECONDS = 1.0e-4
"""Of an atom in a training step of ``size=small``, on one core: the demo's fits (README), 250 s for 14,000 steps of
eight structures of 22 atoms."""
WALKER_SECONDS = 5.0e-5
"""Of an atom in a biased walker step, likewise: ``small_posterior_biased_8`` of docs/speed.md, 1.09 ms for 22 atoms."""


@dataclass(frozen=True)
class Counts:
    """How much an experiment is to do at most; what is 0 is not done at all."""

    n_atoms: int
    steps: int
    """Of a fit."""
    batch: int
    """Structures in a step of it."""
    initial: int = 0
    """Structures that are labelled before the first round."""
    structures: int = 0
    """At which the run ends."""
    acquired: int = 0
    """Structures that a round acquires."""
    walkers: int = 0
    walker_steps: int = 0
    tested: int = 0
    """Labels of the test set."""

    @property
    def rounds(self) -> int:
        """Of active learning, if each acquires as many structures as it may; a single fit is one."""
        return 1 + math.ceil((self.structures - self.initial) / self.acquired) if self.acquired else 1

    def told(self) -> str:
        """The counts and what they take, in sentences."""
        fits = self.rounds * self.steps * self.batch * self.n_atoms * FIT_SECONDS
        if not self.acquired:
            size = f"if structures have some {self.n_atoms} atoms"
            return f"One fit of {self.steps:,} steps, about {_time(fits)} on one core {size}."
        walks = (self.rounds - 1) * self.walkers * self.walker_steps * self.n_atoms * WALKER_SECONDS
        tests = f" and {self.tested} for the test set" if self.tested else ""
        return (
            f"{self.rounds} fits of {self.steps:,} steps, about {_time(fits)} on one core; {self.rounds - 1} times "
            f"{self.walkers} walkers of up to {self.walker_steps:,} steps, {_time(walks)} if none stops early; "
            f"{self.structures} labels{tests}, which take what the reference takes."
        )


def _time(seconds: float) -> str:
    """Seconds in words, to one or two digits."""
    for unit, name in ((3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.2g} {name}"
    return f"{max(seconds, 1.0):.0f} seconds"


def init(argv: Sequence[str]) -> int:
    """Runs ``ubmd init``; returns the exit code.

    Raises:
        InputError: the file is there already, or the structures that are named do not fit.
        OSError: the file cannot be written.
    """
    parser = Parser(
        prog="ubmd init",
        description="Writes an experiment with comments, conf/experiment/my_<KIND>.yaml, to start from: a molecule, a "
        "crystal, or a fit to a data set of labelled structures. Nothing is overwritten.",
        epilog="example: ubmd init molecule my_project --file my.xyz",
        allow_abbrev=False,
    )
    parser.add_argument("kind", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument(
        "folder", nargs="?", default=".", metavar="FOLDER", help="where runs are started (default: here)"
    )
    parser.add_argument("--file", metavar="FILE", help="the structure, or the data set; by default an example")
    options = parser.parse_args(list(argv))
    if options.kind not in KINDS:
        raise InputError(f"KIND={options.kind} must be one of {', '.join(KINDS)}, e.g. ubmd init molecule")
    folder = Path(options.folder).expanduser()
    file, counts = written(options.kind, folder, Path(options.file).expanduser() if options.file else None)
    command = "train" if options.kind == "dataset" else "learn"
    there = "" if folder.resolve() == Path.cwd() else f"cd {folder}; "
    print(f"{file}: {counts.told()}")
    print(f"{there}ubmd {command} experiment={file.stem}")
    return 0


def written(kind: str, folder: Path, file: Path | None) -> tuple[Path, Counts]:
    """Writes an experiment; returns its file, and what the run is to do."""
    structures = [] if file is None else _structures(kind, file)
    n_atoms = round(sum(map(len, structures)) / len(structures)) if structures else templates.ATOMS[kind]
    counts = Counts(n_atoms, **templates.COUNTS[kind])
    words = {f"<{name}>": str(number) for name, number in templates.COUNTS[kind].items()}
    by_emt = all(templates.EMT.issuperset(atoms.get_chemical_symbols()) for atoms in structures)
    words |= templates.BY_EMT if by_emt else templates.BY_XTB
    words["STRUCTURE\n"] = templates.EXAMPLES[kind]
    if file is not None:
        words["STRUCTURE\n"] = templates.GIVEN[kind].replace("FILE", _as_yaml(file, folder))
    words["# ESTIMATE"] = textwrap.fill(counts.told(), 118, initial_indent="# ", subsequent_indent="# ")
    text = templates.TEXTS[kind]
    for word, meaning in words.items():
        text = text.replace(word, meaning)
    conf = folder / "conf"
    if (conf / "learn.yaml").exists() and conf.resolve() != config_dir().resolve():
        raise InputError(
            f"{conf} holds the configurations of another package, and is not looked into; choose another folder"
        )
    out = conf / "experiment" / f"my_{kind}.yaml"
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with out.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise InputError(f"{out} is there already; rename or remove it, or choose another folder") from None
    return out, counts


def _as_yaml(file: Path, folder: Path) -> str:
    """A path as a value in YAML, as it is called from a folder, where runs are started."""
    inside = file.resolve().is_relative_to(folder.resolve())
    path = str(file.resolve().relative_to(folder.resolve()) if inside else os.path.abspath(file))
    if "${" in path:
        raise InputError(f"--file {file} has ${{ in its name, which means something else in a configuration; rename it")
    return (
        yaml.safe_dump(path, allow_unicode=True, width=10**6, default_flow_style=True).removesuffix("\n...\n").strip()
    )


def _structures(kind: str, file: Path) -> list[Atoms]:
    """The structure, or those of a data set, which have to be of the kind."""
    from ubmd.data.io import is_labelled, read_structures

    structures = read_structures(file, report=False)
    if kind == "dataset" and not any(map(is_labelled, structures)):
        raise InputError(
            f"--file {file} has no labels that can be read without more words; name them with data.keys (ubmd train "
            "--help data.keys) in a file that ubmd init dataset writes without --file"
        )
    if kind == "molecule" and structures[0].pbc.any():
        raise InputError(f"--file {file} is periodic; use ubmd init crystal")
    if kind == "crystal" and not structures[0].pbc.all():
        raise InputError(f"--file {file} is not periodic along all directions; use ubmd init molecule")
    return structures if kind == "dataset" else structures[:1]
