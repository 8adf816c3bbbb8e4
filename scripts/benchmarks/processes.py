"""The exploration of a round in this process and by two workers, each with one thread, once they have started."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.rows import Found, Row, Setting, median_ms
from benchmarks.subjects import Subject, configuration, fitted, molecules
from ubmd.commands.parts import potentials
from ubmd.config import build
from ubmd.dynamics.exploration import Exploration
from ubmd.dynamics.processes import PotentialFile, WalkerProcesses
from ubmd.dynamics.stopping import StoppingRules
from ubmd.uncertainty.checkpoint import save_potential

WORKERS = (1, 2)
N_WALKERS, STEPS = 16, 200


def names(*, quick: bool) -> list[str]:
    """Of the rows of this group."""
    return [] if quick else [f"explore_workers_{n}" for n in WORKERS]


def measure(setting: Setting, found: Found) -> None:
    """Adds the rows: 16 biased walkers of alanine dipeptide with the paper's network, in two groups."""
    if (os.cpu_count() or 1) < 2 or setting.device != "cpu":
        found.skipped |= dict.fromkeys(setting.names, "needs two cores")
        return
    subject = fitted(configuration(), molecules(72), 40)
    flop = None if subject.floors is None else subject.floors.of("biased") * len(subject.datamodule.structures[0])
    last: dict[int, Exploration] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = PotentialFile(saved(subject, Path(folder)), build(subject.cfg, "bias"))
        for workers in WORKERS:
            torch.set_num_threads(workers)  # one for each process
            with WalkerProcesses(workers) as processes:
                elsewhere = partial(processes.run, source)

                def job(workers: int = workers, elsewhere: Callable[..., Any] = elsewhere) -> None:
                    last[workers] = explore(subject, workers, elsewhere)

                ms = median_ms(job, repeats=3) / (N_WALKERS * STEPS)
            if (name := f"explore_workers_{workers}") in setting.names:
                details = {"walkers": N_WALKERS, "groups": WORKERS[-1], "workers": workers}
                found.rows.append(Row(name, ms, "walker step", flop, 1, details))
    if not np.array_equal(last[1].positions, last[2].positions):
        raise RuntimeError("two workers have found other structures than one process")


def saved(subject: Subject, folder: Path) -> Path:
    """The file of the potential."""
    configs = potentials(subject.cfg, sorted(set(subject.datamodule.structures[0].symbols))).configs
    uncertainty: Any = subject.uncertainty
    save_potential(folder / "model.ckpt", subject.module.model, uncertainty, **configs)
    return folder / "model.ckpt"


def explore(subject: Subject, workers: int, elsewhere: Callable[..., Any]) -> Exploration:
    """A round whose walkers all take the same number of steps."""
    how = replace(
        subject.dynamics,
        n_walkers=N_WALKERS,
        groups=WORKERS[-1],
        workers=workers,
        stopping=StoppingRules(uncertainty_threshold=None, max_steps=STEPS),
        frame_interval=STEPS,
    )
    starts = subject.datamodule.structures
    return how(subject.potential("biased"), starts, seed=0, round_index=0, elsewhere=elsewhere)
