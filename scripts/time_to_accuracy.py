"""Time that a fit needs to a force RMSE of 0.10 eV/Å on test structures, by the way of training.

    python scripts/time_to_accuracy.py training=default training=fast --seeds 3 --json build/accuracy.json

250 labelled structures of alanine dipeptide from 1200 K dynamics of ff19SB, made once with a known seed, and 500 more
to test on. Learning rates decay to zero at the end of a fit, so that none can be stopped where it is good: for each
way and seed, fits of growing length are made until one is good enough. Its time is that of the processor, of one
thread, without validation. Each fit is recorded as it ends, and the same command goes on behind the last one.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from ase import Atoms
from ase.io import read, write
from benchmarks.subjects import configuration, trained
from rich.console import Console

from ubmd.data.batch import collate
from ubmd.models.potential import Potential
from ubmd.systems.sampling import sample_ff19sb

SEED, TRAINING, TEST = 42, 250, 500
TARGET = 0.10
"""Force RMSE, eV/Å."""
LADDER = (500, 700, 1000, 1400, 2000, 2800, 4000, 5600, 8000, 11200)
"""Steps of fits."""


@dataclass(frozen=True)
class Fit:
    """One fit."""

    training: str
    seed: int
    steps: int
    seconds: float
    rmse: float
    """Of forces on the test set, eV/Å."""


def structures(path: Path) -> list[Atoms]:
    """Those of training and then those of the test, half a picosecond apart."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        n = TRAINING + TEST
        write(path, sample_ff19sb(n, duration_ps=0.5 * n, temperature=1200.0, seed=SEED))
    return list(read(path, ":"))  # pyright: ignore[reportArgumentType]


def force_rmse(potential: Potential, atoms: list[Atoms], cutoff: float) -> float:
    """On labelled structures, eV/Å."""
    squares, count = 0.0, 0
    for start in range(0, len(atoms), 50):
        batch = collate(atoms[start : start + 50], cutoff)
        assert batch.forces is not None
        squares += float((potential(batch).forces - batch.forces).square().sum())
        count += batch.forces.numel()
    return (squares / count) ** 0.5


def one_fit(training: str, seed: int, steps: int, atoms: list[Atoms]) -> Fit:
    """Trains and tests."""
    cfg = configuration(*training.split())
    start = time.process_time()
    module, data, _ = trained(cfg, atoms[:TRAINING], steps, batch_size=cfg.data.batch_size, seed=seed)
    seconds = time.process_time() - start
    return Fit(training, seed, steps, round(seconds, 1), force_rmse(module.potential, atoms[TRAINING:], data.cutoff))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("trainings", nargs="+", help="words of a configuration, as one argument each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=LADDER[0], help="shortest fit that is tried, steps")
    parser.add_argument("--json", type=Path, default=Path("build/accuracy.json"), help="record of all fits")
    options = parser.parse_args()
    torch.set_num_threads(1)
    atoms = structures(options.json.with_name("accuracy.extxyz"))
    fits = [Fit(**row) for row in json.loads(options.json.read_text())] if options.json.exists() else []
    console = Console()
    for training in options.trainings:
        for seed in range(options.seeds):
            for steps in (n for n in LADDER if n >= options.first):
                done = [f for f in fits if (f.training, f.seed, f.steps) == (training, seed, steps)]
                if not done:
                    done = [one_fit(training, seed, steps, atoms)]
                    fits += done
                    options.json.write_text(json.dumps([asdict(fit) for fit in fits], indent=1))
                fit = done[0]
                console.print(f"{training}  seed {seed}  {steps} steps  {fit.seconds} s  {fit.rmse:.4f} eV/Å")
                if fit.rmse <= TARGET:
                    break


if __name__ == "__main__":
    main()
