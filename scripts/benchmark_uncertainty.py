"""Cost of each uncertainty in a walker step, relative to energy and forces alone.

    python scripts/benchmark_uncertainty.py [--walkers 8] [--threads 1] [--repeats 15] [--device cpu]

Alanine dipeptide, the paper's network (910 features, 512 x 512, 512 projections) and the demo's (360, 64 x 64,
128). "with" computes energy, forces and both uncertainties, "biased" their gradient too. All kinds are timed in
turn in one process; the table shows medians. A ratio compares with energy and forces of one network.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from timing import medians

from ubmd.bias.biased import BiasedPotential
from ubmd.cli.app import compose
from ubmd.config import build
from ubmd.data.batch import AtomicBatch, collate
from ubmd.models.potential import Potential
from ubmd.reference.alanine_dipeptide import initial_structure

SIZES = ("paper", "small")
UNCERTAINTIES = {
    **{kind: (f"uncertainty={kind}",) for kind in ("posterior", "distance")},
    **{
        f"{kind}, last layer": (f"uncertainty={kind}", "uncertainty/features=last_layer")
        for kind in ("posterior", "distance")
    },
    "ensemble": ("uncertainty=ensemble", "model=ensemble"),
}
N_TRAINING = 60
"""Structures; 1320 atoms are more than the distance keeps."""
CUTOFF, SKIN = 5.0, 1.0


def structures(n: int, device: str) -> AtomicBatch:
    out = []
    for seed in range(n):
        atoms = initial_structure()
        atoms.rattle(0.15, seed=seed)
        out.append(atoms)
    return collate(out, CUTOFF + SKIN, device=device)


def steps(size: str, walkers: AtomicBatch, training: AtomicBatch) -> dict[tuple[str, str], Callable[[], Any]]:
    """What is timed, by (uncertainty, what is computed)."""
    found: dict[tuple[str, str], Callable[[], Any]] = {}
    for uncertainty_name, overrides in UNCERTAINTIES.items():
        cfg = compose("learn", [f"size={size}", *overrides, "selection=random", "system=ala2", "reference=ff19sb"])
        model = build(cfg, "model")(species=["H", "C", "N", "O"], seed=0).to(walkers.positions.device)
        uncertainty = build(cfg, "uncertainty")(model=model, seed=0)
        uncertainty.fit(model, [training])
        potential = Potential(model)
        name = "none" if model.n_members == 1 else f"none, {model.n_members} networks"
        found.setdefault((name, "E, F"), partial(potential, walkers))
        for what, tau in (("with", 0.0), ("biased", 0.25)):
            found[uncertainty_name, what] = partial(BiasedPotential(potential, uncertainty, tau), walkers)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--walkers", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    walkers, training = structures(options.walkers, options.device), structures(N_TRAINING, options.device)
    title = f"{options.walkers} walkers of 22 atoms, {options.device}, {options.threads} thread(s)"
    table = Table(title=title)
    for column in ("network", "uncertainty", "computed", "ms a step", "ratio"):
        table.add_column(column, justify="right" if column in ("ms a step", "ratio") else "left")
    for size in SIZES:
        found = medians(steps(size, walkers, training), options.repeats)
        alone = found["none", "E, F"]
        for (name, what), value in found.items():
            table.add_row(size, name, what, f"{value:.2f}", f"{value / alone:.2f}")
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main()
