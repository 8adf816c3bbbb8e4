"""A potential in other engines, beside its own calculator: differences, drift of the energy, cost of a step.

    python scripts/engines.py [--potential RUN/model.ckpt --structure my.xyz] [--steps 1000] [--tau 4]
        [--python torch-sim=path/to/bin/python] [--only ASE LAMMPS] [--json FILE]
    python scripts/engines.py --page FILE      (writes the table of a JSON file into docs/howto/engines.md)

Without a potential, one of alanine dipeptide is fitted to 64 structures of ff19SB, in float64 and of size=small, into
``--folder``; a repeated command finds it there. Every engine moves the molecule from the same positions and velocities
of 300 K, without a thermostat, with the potential as it is and with E - tau u (tau in atoms, no windows, so that an
energy is conserved). An engine runs in the interpreter that ``--python`` names for it, or else in this one, and is left
out where it is not installed. The drift is the slope of a straight line through the total energies. The cost is the
CPU time from one evaluation to the next, with all that the engine does between, on one thread (of i-PI both processes).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from benchmarks.report import machine
from benchmarks.subjects import molecules
from engine_runs import ENGINES, EVERY, Job
from rich import box
from rich.console import Console
from rich.table import Table

from ubmd.cli.main import main as ubmd
from ubmd.data.io import write_structures
from ubmd.interfaces.ase import UBMDCalculator
from ubmd.version import __version__

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "howto" / "engines.md"
START, END = "<!-- table of scripts/engines.py -->", "<!-- end of table -->"
FIT = ("size=small", "training=fast", "dtype=float64", "logger=csv", "trainer.accelerator=cpu")
COLUMNS = ("engine", "energy, eV", "forces, eV/Å", "drift, meV/atom/ps", "CPU ms a step")


def fitted(folder: Path) -> tuple[Path, Atoms]:
    """A potential of alanine dipeptide, and a structure."""
    data = folder / "data.extxyz"
    if not data.exists():
        write_structures(data, molecules(64))
    words = ["train", f"data.train={data}", f"paths.run={folder / 'fit'}", *FIT]
    if ubmd(words) != 0:
        raise SystemExit("the fit failed")
    found = ase.io.read(data, index=0)
    assert isinstance(found, Atoms)
    return folder / "fit" / "model.ckpt", found


def with_velocities(atoms: Atoms) -> Atoms:
    """Elements, cell and positions, with velocities of 300 K."""
    # i-PI reads eight decimals
    start = Atoms(atoms.numbers, np.round(atoms.positions, 8), cell=atoms.cell, pbc=atoms.pbc)
    thermalize_momenta(start, temperature_K=300, rng=np.random.default_rng(0))
    Stationary(start)
    return start


def run_engine(name: str, python: str, job: Path) -> dict[str, Any]:
    """What :func:`engine_runs.run` returns in another interpreter."""
    library = Path(python).parent.parent / "lib"  # where mpich of PyPI is
    paths = {"PYTHONPATH": str(ROOT), "LD_LIBRARY_PATH": str(library)}
    env = {key: os.pathsep.join(filter(None, (path, os.environ.get(key)))) for key, path in paths.items()}
    words = [python, str(ROOT / "scripts" / "engine_runs.py"), name, str(job)]
    threads = {"OMP_NUM_THREADS": "1", "OPENMM_CPU_THREADS": "1"}
    try:
        done = subprocess.run(words, env=os.environ | env | threads, capture_output=True, text=True)
    except OSError as error:
        return {"skipped": f"{python} does not run ({error.strerror})"}
    if done.returncode:
        return {"skipped": f"{name} failed: {(done.stderr.strip() or done.stdout).splitlines()[-1]}"}
    return json.loads(done.stdout.splitlines()[-1])


def row(outcome: Mapping[str, Any], job: Job) -> dict[str, float]:
    """Numbers of the table: largest differences to the calculator, drift, cost."""
    atoms = job.atoms
    atoms.calc = UBMDCalculator(job.potential, tau=job.tau, rescale=False)
    totals = np.array(outcome["totals"])
    ps = 1e-3 * job.dt * EVERY * np.arange(len(totals))
    clock = np.array(outcome["clock"])
    return {
        "energy": abs(outcome["energy"] - atoms.get_potential_energy()),
        "forces": float(np.abs(np.array(outcome["forces"]) - atoms.get_forces()).max()),
        "drift": 1e3 * float(np.polyfit(ps, totals, 1)[0]) / len(atoms),
        "ms": 1e3 * float(np.diff(clock)[len(clock) // 10 :].mean()),  # what is compiled first does not count
    }


def measured(job: Job, folder: Path, pythons: Mapping[str, str], engines: Sequence[str]) -> dict[str, Any]:
    """All figures, as plain values."""
    file = folder / "job.json"
    file.write_text(json.dumps(asdict(job)))
    rows: dict[str, Any] = {}
    for name in engines:
        found = run_engine(name, pythons.get(name, sys.executable), file)
        if "skipped" not in found:
            parts = {"plain": row(found["plain"], replace(job, tau=0.0)), "biased": row(found["biased"], job)}
            found = {"version": found["version"], **parts}
        rows[name] = found
    settings = {"steps": job.steps, "dt": job.dt, "tau": job.tau, "formula": job.atoms.get_chemical_formula()}
    return {"version": __version__, "machine": machine(), **settings, "rows": rows}


def lines(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Cells of the table."""
    out = []
    for name, found in figures["rows"].items():
        for kind in ("plain", "biased") if "skipped" not in found else ():
            part = found[kind]
            label = f"{name} {found['version']}" if kind == "plain" else "biased"
            apart = (f"{part[key]:.0e}" if part[key] else "0" for key in ("energy", "forces"))
            numbers = (*apart, f"{part['drift']:+.3f}", f"{part['ms']:.2f}")
            out.append((label, *numbers))
    return out


def caption(figures: Mapping[str, Any]) -> str:
    where = figures["machine"]
    return (
        f"{figures['formula']}, {figures['steps']} steps of {figures['dt']} fs from 300 K, tau = {figures['tau']:g} "
        f"atoms where biased; ubmd {figures['version']}, torch {where['torch']}, one thread of {where['cpu']}."
    )


def show(figures: Mapping[str, Any]) -> None:
    console, table = Console(), Table(box=box.SIMPLE_HEAD)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "engine" else "right")
    for cells in lines(figures):
        table.add_row(*cells)
    console.print(caption(figures))
    console.print(table)
    for name, found in figures["rows"].items():
        if "skipped" in found:
            console.print(f"{name}: left out, {found['skipped']}", highlight=False)


def write_page(figures: Mapping[str, Any], page: Path) -> None:
    """Replaces the table between the marks of a page."""
    before, rest = page.read_text(encoding="utf-8").split(START)
    _, after = rest.split(END)
    head = [f"| {' | '.join(COLUMNS)} |", "| --- | ---: | ---: | ---: | ---: |"]
    text = "\n".join([*head, *(f"| {' | '.join(cells)} |" for cells in lines(figures)), "", caption(figures)])
    page.write_text(f"{before}{START}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--potential", type=Path, help="a model.ckpt; none: one of alanine dipeptide is fitted")
    parser.add_argument("--structure", type=Path, help="a molecule for --potential")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--dt", type=float, default=0.5, help="fs")
    parser.add_argument("--tau", type=float, default=4.0, help="of the bias, in atoms")
    parser.add_argument("--python", nargs="*", default=[], metavar="ENGINE=PYTHON", help="interpreters of engines")
    parser.add_argument("--only", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--folder", type=Path, default=Path("build/engines"), help="for what is fitted and the job")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--page", type=Path, metavar="FILE", help="only write the table of FILE into the page")
    options = parser.parse_args()
    if (options.potential is None) != (options.structure is None):
        parser.error("--potential and --structure go together")
    wrong = [word for word in options.python if word.partition("=")[0] not in ENGINES]
    if wrong:
        parser.error(f"--python {wrong[0]}: write ENGINE=PYTHON, with one of {', '.join(ENGINES)}")
    return options


def main() -> None:
    options = arguments()
    if options.page:
        write_page(json.loads(options.page.read_text(encoding="utf-8")), PAGE)
        return
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if options.potential is None:
        potential, atoms = fitted(folder)
    else:
        potential, atoms = options.potential, ase.io.read(options.structure, index=0)
    assert isinstance(atoms, Atoms)
    ase.io.write(folder / "start.traj", with_velocities(atoms))
    job = Job(str(Path(potential).resolve()), str(folder / "start.traj"), options.dt, options.steps, options.tau)
    pythons = {name: str(Path(path).absolute()) for name, _, path in (word.partition("=") for word in options.python)}
    figures = measured(job, folder, pythons, options.only)
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
