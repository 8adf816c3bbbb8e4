"""Crystals under pressure, for the tests of dynamics at constant pressure."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT

from ubmd.data.batch import AtomicBatch, collate
from ubmd.dynamics.skin import refresh_neighbours
from ubmd.dynamics.state import WalkerState, evaluate, initial_state
from ubmd.dynamics.walkers import Integrator
from ubmd.models.potential import Memory, Prediction, WalkerPotential

CELL = np.array([[5.2, 0.3, -0.4], [0.0, 4.9, 0.5], [0.0, 0.0, 5.4]])
"""Å, upper triangular, of a crystal of 8 atoms; EMT's cutoff is more than half as long as its vectors."""
TURN = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
"""Some rotation."""
TURN *= np.sign(np.linalg.det(TURN))


class AseWalkers:
    """ASE's own EMT as a potential of walkers, one structure after the other."""

    cutoff = 1.0

    def __init__(self) -> None:
        self.calculator, self.asked = EMT(), 0

    def __call__(self, batch: AtomicBatch, memory: Memory | None = None, *, stress: bool = False) -> Prediction:
        self.asked += 1
        energies, forces, stresses = [], [], []
        for i, positions in enumerate(batch.positions.double().split(batch.n_atoms.tolist())):
            numbers = batch.numbers[batch.system_idx == i].numpy()
            cell = batch.cell[i].double().numpy()
            atoms = Atoms(numbers, positions.numpy(), cell=cell, pbc=batch.pbc[i].numpy())
            atoms.calc = self.calculator
            energies.append(atoms.get_potential_energy())
            forces.append(atoms.get_forces())
            # not of every calculator the stress is the exact derivative; EMT's is
            stresses.append(atoms.get_stress(voigt=False))
        return Prediction(
            energy=torch.tensor(energies, dtype=torch.float64),
            forces=torch.as_tensor(np.concatenate(forces)).to(batch.positions),
            stress=torch.as_tensor(np.array(stresses)) if stress else None,
            memory=memory,
        )


def alloy(cell: np.ndarray = CELL, seed: int = 0) -> Atoms:
    """A distorted crystal of copper and gold, CELL rotated or not."""
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), -1).reshape(-1, 3) / 2
    shift = 0.02 * np.random.default_rng(seed).normal(size=(8, 3))
    return Atoms("CuAuCu2AuCu3", scaled_positions=grid + shift, cell=cell, pbc=True)


def started(structures: list[Atoms], temperature: float | list[float], dtype=torch.float64) -> WalkerState:
    batch = collate(structures, AseWalkers.cutoff, dtype=dtype)
    return initial_state(batch, temperature=temperature, seeds=[3 + i for i in range(len(structures))])


def advance(
    state: WalkerState, potential: WalkerPotential, integrator: Integrator, steps: int, *, skin: float | None = None
) -> Iterator[WalkerState]:
    """The states after each step; no noise, and no neighbours without a ``skin``."""
    state = state if state.evaluated else evaluate(state, potential, stress=True)
    halves, nothing = integrator.prepare(state), torch.zeros(len(state.momenta), 2, 3)
    for _ in range(steps):
        ahead = halves.first_half(state, nothing)
        ahead = ahead if skin is None else refresh_neighbours(ahead, potential.cutoff, skin)
        state = halves.second_half(ahead, potential(ahead.batch, ahead.memory, stress=True), nothing)
        yield state


def last(states: Iterator[WalkerState]) -> WalkerState:
    *_, state = states
    return state


def ase_atoms(structure: Atoms, momenta: torch.Tensor, calculator: Calculator | None = None) -> Atoms:
    atoms = structure.copy()
    atoms.calc = calculator or EMT()
    atoms.set_momenta(momenta.double().numpy() / units.fs)
    return atoms
