"""A potential small enough to check by hand, and walkers in it, for the tests of the dynamics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from ubmd.data.batch import AtomicBatch, collate
from ubmd.dynamics.state import WalkerState, initial_state
from ubmd.models.potential import Memory, Prediction


class Toy:
    """Lennard-Jones pairs (truncated smoothly unless ``plain``), a spring to the origin, and a drive with memory.

    The drive pushes along x in proportion to a running mean of the walker's energy, so that a run which loses
    or mixes up its memory differs. ``memory["fuse"]`` [walkers], if there is one, counts evaluations down; at
    zero the walker gets the ``fault``: a function of batch, forces and atomic uncertainties [n_atoms] that
    returns new forces and uncertainties; it applies to that walker from then on.
    """

    def __init__(
        self, *, cutoff=6.0, epsilon=0.02, sigma=1.3, tether=0.5, drive=0.0, scale=1.0, fault=None, plain=False
    ):
        self.cutoff, self.epsilon, self.sigma, self.tether = cutoff, epsilon, sigma, tether
        self.drive, self.scale, self.fault, self.plain = drive, scale, fault, plain
        self.sizes: list[int] = []  # walkers in each evaluation

    def __call__(self, batch: AtomicBatch, memory: Memory | None = None, /, *, stress: bool = False) -> Prediction:
        self.sizes.append(batch.n_systems)
        energy, forces = self.energy_and_forces(batch)
        memory = dict(memory or {})
        if self.drive:
            mean = memory.get("mean", torch.zeros_like(energy))
            memory["mean"] = 0.9 * mean + 0.1 * energy
            forces = forces.clone()
            forces[:, 0] += self.drive * memory["mean"][batch.system_idx].to(forces.dtype)
        atomic = self.scale * forces.norm(dim=1)
        if "fuse" in memory:
            memory["fuse"] = memory["fuse"] - 1
            burnt = (memory["fuse"] <= 0)[batch.system_idx]
            bad_forces, bad_atomic = self.fault(batch, forces, atomic)
            forces = torch.where(burnt[:, None], bad_forces, forces)
            atomic = torch.where(burnt, bad_atomic, atomic)
        bias = -0.25 * batch.sum_atoms(atomic).double()
        return Prediction(
            energy=energy + bias,
            forces=forces,
            uncertainty=batch.sum_atoms(atomic) / batch.n_atoms,
            atomic_uncertainty=atomic,
            tau=torch.full_like(atomic[: batch.n_systems], 0.25),
            bias_energy=bias,
            stress=self.stress(batch) if stress else None,
            memory=memory,
        )

    def energy_and_forces(self, batch: AtomicBatch) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            positions = batch.positions.detach().requires_grad_()
            energy = self.energy(batch.replace(positions=positions))
            (gradient,) = torch.autograd.grad(energy.sum(), positions)
        return energy.detach(), -gradient

    def stress(self, batch: AtomicBatch) -> Tensor:
        with torch.enable_grad():
            strain = torch.zeros_like(batch.cell).requires_grad_()
            shift = torch.einsum("na,nab->nb", batch.positions, strain[batch.system_idx])
            strained = batch.replace(positions=batch.positions + shift, cell=batch.cell + batch.cell @ strain)
            (gradient,) = torch.autograd.grad(self.energy(strained).sum(), strain)
        return 0.5 * (gradient + gradient.mT) / batch.volume[:, None, None]

    def energy(self, batch: AtomicBatch) -> Tensor:
        r2 = batch.vectors().square().sum(2)
        s6 = (self.sigma**2 / r2) ** 3
        pair = 4 * self.epsilon * (s6 * s6 - s6)
        if not self.plain:
            pair = pair * (1 - r2 / self.cutoff**2) ** 2
        pair = torch.where((r2 < self.cutoff**2) & batch.mask, pair, 0.0)
        atomic = 0.5 * pair.sum(1) + 0.5 * self.tether * batch.positions.square().sum(1)
        return batch.sum_atoms(atomic.double())


class SlowToy(Toy):
    """The toy whose drive and uncertainty are evaluated at every fifth step only; its fuse burns at all steps."""

    every = 5

    def between(self, batch: AtomicBatch, memory: Memory | None = None, /, *, stress: bool = False) -> Prediction:
        self.sizes.append(batch.n_systems)
        energy, forces = self.energy_and_forces(batch)
        memory = dict(memory or {})
        if "fuse" in memory:
            memory["fuse"] = memory["fuse"] - 1
            bad_forces, _ = self.fault(batch, forces, forces[:, 0])
            forces = torch.where((memory["fuse"] <= 0)[batch.system_idx, None], bad_forces, forces)
        return Prediction(energy, forces, self.stress(batch) if stress else None, memory=memory)


class Plain:
    """The toy without uncertainties."""

    def __init__(self, toy: Toy):
        self.toy, self.cutoff = toy, toy.cutoff

    def __call__(self, batch: AtomicBatch, memory: Memory | None = None, /, *, stress: bool = False) -> Prediction:
        energy, forces = self.toy.energy_and_forces(batch)
        return Prediction(energy, forces, self.toy.stress(batch) if stress else None, memory=memory)


def cluster(n_atoms: int, seed: int = 0, symbol: str = "CHON") -> Atoms:
    """Atoms on a jiggled grid around the origin, about 1.5 Å apart, all within 6 Å of each other."""
    side = int(np.ceil(n_atoms ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)[:n_atoms] * 1.5
    points = grid - grid.mean(0) + 0.05 * np.random.default_rng(seed).normal(size=grid.shape)
    return Atoms([symbol[i % len(symbol)] for i in range(n_atoms)], positions=points)


def gas(seed: int = 0) -> Atoms:
    """A periodic gas in a skewed cell that is not much larger than the cutoff."""
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3) / 3
    cell = np.array([[8.0, 0.0, 0.0], [1.5, 8.5, 0.0], [-1.0, 0.7, 9.0]])
    points = grid @ cell + 0.1 * np.random.default_rng(seed).normal(size=(27, 3))
    return Atoms("C27", positions=points, cell=cell, pbc=True)


def walkers(
    structures: Sequence[Atoms], *, temperature=300.0, cutoff=6.0, dtype=torch.float64, fuse=None
) -> WalkerState:
    batch = collate(list(structures), cutoff, dtype=dtype)
    state = initial_state(batch, temperature=temperature, seeds=[11 + 7 * i for i in range(len(structures))])
    return state if fuse is None else state.replace(memory={"fuse": torch.tensor(fuse)})


EXPLORATION_FIELDS = (
    *("numbers", "pbc", "walker", "step", "positions", "cell", "energy", "uncertainty", "atomic_uncertainty"),
    *("tau", "walkers", "reasons", "steps", "temperature", "max_uncertainty"),
)


RECORDED_FIELDS = ("time", "momenta", "forces", "stress", "bias_energy")


def assert_same(found, expected) -> None:
    """Two explorations agree bit by bit."""
    for name in (*EXPLORATION_FIELDS, *RECORDED_FIELDS):
        a, b = getattr(found, name), getattr(expected, name)
        if name in RECORDED_FIELDS and (a is None or b is None):
            assert a is b, name
            continue
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)
