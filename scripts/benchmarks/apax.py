"""apax, the Gaussian-moment code in JAX, with the same molecule and network sizes: its own commands, timed."""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import ase.io
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from benchmarks.floors import Floors
from benchmarks.rows import Found, Row, product_rate
from benchmarks.subjects import molecules

PAPER = Floors([(910, 512), (512, 512), (512, 1)], projections=512)
BATCH = 32
TIME_STEP = 0.5
"""fs."""


def apax_rows(python: str, *, quick: bool) -> Found:
    """Rows of apax: a training step of 32 structures and a step of one walker, on one core and on two.

    Args:
        python: of the environment that it is installed in.
        quick: fewer structures and steps.
    """
    found = Found()
    n_train, epochs = (64, 3) if quick else (256, 5)
    few, many = (500, 1500) if quick else (2400, 8000)
    structures = molecules(n_train + 2)
    n_atoms = len(structures[0])
    command = str(Path(python).with_name("apax"))
    for threads in (1, 2)[: os.cpu_count()]:
        suffix = "" if threads == 1 else f"_{threads}threads"
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            ms = train(command, folder, structures, n_train, epochs, threads)
            flop = PAPER.training * n_atoms * BATCH
            found.rows.append(Row(f"apax_train_step_{BATCH}{suffix}", ms, "training step", flop, threads))
            # compiling and reading take as long for any number of steps
            seconds = {steps: run(command, folder, steps, threads) for steps in (few, many)}
            ms = 1e3 * (seconds[many] - seconds[few]) / (many - few)
            flop = PAPER.plain * n_atoms
            found.rows.append(
                Row(f"apax_step_plain_1{suffix}", ms, "walker step", flop, threads, {"steps": many - few})
            )
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found.gflops[1] = product_rate()
    torch.set_num_threads(before)
    return found


def train(command: str, folder: Path, structures: list[Atoms], n_train: int, epochs: int, threads: int) -> float:
    """Trains a model and returns ms a batch, a median over the epochs but the first, in which all is compiled."""
    plain = [_with_results(atoms) for atoms in structures]
    ase.io.write(folder / "data.extxyz", plain)
    ase.io.write(folder / "start.extxyz", plain[0])
    config: dict[str, Any] = {
        "n_epochs": epochs,
        "seed": 1,
        "data": {
            "directory": "models",
            "experiment": "apax",
            "data_path": "data.extxyz",
            "n_train": n_train,
            "n_valid": len(structures) - n_train,
            "batch_size": BATCH,
            "valid_batch_size": len(structures) - n_train,
        },
        "model": {
            "name": "gmnn",
            "basis": {"name": "gaussian", "n_basis": 9, "r_min": 0.5, "r_max": 5.0},
            "n_radial": 7,
            "n_contr": 8,
            "nn": [512, 512],
        },
        "loss": [{"name": "energy"}, {"name": "forces", "weight": 4.0}],
        "metrics": [{"name": "energy", "reductions": ["mae"]}, {"name": "forces", "reductions": ["mae"]}],
        "callbacks": [{"name": "csv"}],
        "progress_bar": {"disable_epoch_pbar": True},
    }
    (folder / "train.yaml").write_text(json.dumps(config))
    _call([command, "train", "train.yaml"], folder, threads)
    (log,) = folder.rglob("log.csv")
    with log.open() as file:
        seconds = [float(row["epoch_time"]) for row in csv.DictReader(file)]
    return 1e3 * statistics.median(seconds[1:]) * BATCH / n_train


def run(command: str, folder: Path, steps: int, threads: int) -> float:
    """Seconds that ``apax md`` takes for some steps of one molecule."""
    config = {
        "ensemble": {
            "name": "nvt",
            "dt": TIME_STEP,
            "temperature_schedule": {"name": "constant", "T0": 300},
        },
        "duration": steps * TIME_STEP,
        "n_inner": 100,
        "sampling_rate": 200,
        "dr_threshold": 1.0,
        "initial_structure": "start.extxyz",
        "sim_dir": f"md_{steps}",
        "disable_pbar": True,
    }
    (folder / "md.yaml").write_text(json.dumps(config))
    start = time.perf_counter()
    _call([command, "md", "train.yaml", "md.yaml"], folder, threads)
    return time.perf_counter() - start


def _with_results(atoms: Atoms) -> Atoms:
    """A structure with its labels as ASE's results."""
    out = Atoms(atoms.numbers, atoms.positions)
    out.calc = SinglePointCalculator(out, energy=atoms.info["REF_energy"], forces=atoms.arrays["REF_forces"])
    return out


def _call(command: list[str], folder: Path, threads: int) -> None:
    """Runs apax on as many cores; XLA takes all that it may use.

    Raises:
        RuntimeError: with the last lines that it wrote, if it fails.
    """
    cores = sorted(os.sched_getaffinity(0))[:threads]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    done = subprocess.run(
        ["taskset", "-c", ",".join(map(str, cores)), *command],
        cwd=folder,
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
