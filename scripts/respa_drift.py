"""Drift of the energy of biased dynamics whose bias acts at every n-th step, without friction.

    python scripts/respa_drift.py [--size small] [--ps 1.0]

Eight walkers of alanine dipeptide at 300 K with tau = 0.25 for all atoms, not rescaled, so that an energy is conserved:
that of the potential less tau times the uncertainty, plus the kinetic energy. A row for each ``bias.every``: the drift,
which is the slope of a straight line through a walker's energy (mean of their sizes), and the fluctuation about it.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from benchmarks.subjects import Subject, configuration, fitted, molecules
from rich.console import Console
from rich.progress import track

from ubmd.dynamics.integrators.langevin import Langevin
from ubmd.dynamics.respa import Evaluations
from ubmd.dynamics.skin import rebuild_neighbours, refresh_neighbours
from ubmd.dynamics.state import WalkerState, evaluate
from ubmd.units import ACCELERATION

WALKERS, SKIN, DT = 8, 1.0, 0.5
EVERY = (1, 2, 4, 8)
BIAS = ("bias.rescale=false", "bias.species_weights.H=1.0")


def total_energy(state: WalkerState) -> torch.Tensor:
    """[n_walkers] eV, of a state with its bias evaluated."""
    assert state.energy is not None
    assert state.bias_energy is not None
    kinetic = state.batch.sum_atoms(state.momenta.double().square().sum(1) / state.masses) / (2 * ACCELERATION)
    return state.energy + state.bias_energy + kinetic


@torch.no_grad()
def energies(subject: Subject, every: int, steps: int) -> np.ndarray:
    """[steps / 8, n_walkers] eV, of every eighth step."""
    potential = subject.potential("biased", *BIAS, f"bias.every={every}")
    integrator = Langevin(dt=DT, friction=0.0, temperature=300.0)
    start = rebuild_neighbours(subject.walkers(subject.datamodule.structures, WALKERS), potential.cutoff, SKIN)
    state = evaluate(start, potential)
    evaluations, halves = Evaluations(potential, state), integrator.prepare(state)
    noise = torch.zeros(len(state.masses), 2, 3, dtype=state.momenta.dtype)
    found = []
    for step in track(range(1, steps + 1), f"every {every}"):
        ahead = refresh_neighbours(halves.first_half(state, noise), potential.cutoff, SKIN)
        state = halves.second_half(ahead, evaluations.next()(ahead.batch, ahead.memory, stress=False), noise)
        if step % max(EVERY) == 0:
            found.append(total_energy(state).numpy())
    return np.stack(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--size", default="small", help="of the network: small or paper")
    parser.add_argument("--ps", type=float, default=1.0, help="time of each walker")
    options = parser.parse_args()
    subject = fitted(configuration(f"size={options.size}"), molecules(200), 1500, batch_size=8)
    n_atoms, steps = len(subject.datamodule.structures[0]), round(1e3 * options.ps / DT)
    console = Console()
    console.print("every  drift, meV/atom/ps  fluctuation, meV/atom")
    for every in EVERY:
        values = 1e3 * energies(subject, every, steps) / n_atoms
        times = 1e-3 * DT * max(EVERY) * np.arange(1, len(values) + 1)
        lines = np.polynomial.polynomial.polyfit(times, values, 1)
        left = values - (lines[0] + np.outer(times, lines[1]))
        console.print(f"{every:5d}  {np.abs(lines[1]).mean():19.4f}  {left.std():21.4f}")


if __name__ == "__main__":
    main()
