"""Random perturbation as a way to explore: no dynamics, every step is a fresh shift of the start (Eqs. 32-34)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from ase import Atoms
from torch import Tensor

from ubmd.data.perturb import check_displacement
from ubmd.dynamics.explore import Explorer
from ubmd.dynamics.state import WalkerState
from ubmd.errors import InputError
from ubmd.models.potential import Prediction

__all__ = ["PerturbationExploration", "RandomPerturbation"]

POSITIONS = "perturbation_positions"
CELL = "perturbation_cell"


@dataclass(frozen=True)
class RandomPerturbation:
    """Every step perturbs the structure that the walker started from, whatever it was before.

    Coordinates are shifted uniformly (Eq. 32), then cell and positions are strained by (I + 2 eps)^(1/2) with
    eps = (A + A^T) / 2 and A uniform (Eqs. 33, 34), as :func:`ubmd.data.perturb.perturb` does. The starts are in
    the walkers' ``memory``: ``perturbation_positions`` [walkers, n, 3] and ``perturbation_cell`` [walkers, 3, 3].

    Args:
        displacement: half-width of the shift of each coordinate, Å.
        strain: half-width of the entries of A; 0 keeps the cell.

    Raises:
        InputError: if a value is out of range; I + 2 eps is positive for strains below 1/6.
    """

    displacement: float = 0.05
    strain: float = 0.0
    needs_stress: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_displacement(self.displacement)
        if not 0 <= self.strain < 1 / 6:
            raise InputError(f"strain must be at least 0 and below 1/6, got {self.strain}")

    def prepare(self, state: WalkerState) -> RandomPerturbation:
        """Itself: nothing depends on the set of walkers.

        Raises:
            InputError: if a cell is to be strained where there is none, in structures below three atoms, or with
                fixed atoms.
        """
        if self.strain and not bool(state.batch.pbc.all()):
            raise InputError(
                f"strain={self.strain} needs structures that are periodic in three directions; set it to 0"
            )
        if self.strain and bool((state.batch.n_atoms < 3).any()):
            raise InputError("strain needs structures of at least three atoms; use a supercell")
        if self.strain and state.fixed is not None:
            raise InputError(f"strain={self.strain} would move fixed atoms with the cell; set it to 0, or free them")
        return self

    def first_half(self, state: WalkerState, noise: Tensor) -> WalkerState:
        """A fresh perturbation of the start.

        Args:
            state: the walkers, all of the same number of atoms.
            noise: [n_atoms, 2, 3] standard normal numbers: a shift for each atom; the second vectors of the first
                three atoms are the rows of A.
        """
        batch = state.batch
        start, cell = batch.positions.view(state.n_walkers, -1, 3), batch.cell
        start, cell = state.memory.get(POSITIONS, start), state.memory.get(CELL, cell)
        uniform = torch.erf(noise.view(state.n_walkers, -1, 2, 3) * 0.5**0.5)  # in (-1, 1)
        shift = self.displacement * uniform[:, :, 0]
        if state.fixed is not None:
            shift = shift.masked_fill(state.fixed.view(state.n_walkers, -1, 1), 0.0)
        positions, strained = start + shift, cell
        if self.strain:
            a = self.strain * uniform[:, :3, 1]
            deform = _square_root(torch.eye(3, dtype=a.dtype, device=a.device) + a + a.transpose(1, 2))
            positions, strained = positions @ deform, cell @ deform
        return state.replace(
            batch=batch.replace(positions=positions.reshape(-1, 3), cell=strained),
            memory=state.memory | {POSITIONS: start, CELL: cell},
        )

    def second_half(self, state: WalkerState, prediction: Prediction, noise: Tensor) -> WalkerState:
        """Takes over the prediction; ``noise`` is not used."""
        starts = {key: state.memory[key] for key in (POSITIONS, CELL)}
        state = state.observed(prediction, step=state.step + 1)
        return state.replace(memory=state.memory | starts)


@dataclass(frozen=True, kw_only=True)
class PerturbationExploration(Explorer):
    """Explores by random perturbation of the labelled structures: what active learning is without dynamics.

    A walker draws ``stopping.max_steps`` perturbations of its start and keeps every ``frame_interval``-th, which
    is best 1; it stops at the first above the threshold. A bias has no influence; there is no temperature.

    Args:
        integrator: how to perturb.
    """

    integrator: RandomPerturbation

    @property
    def moves_cell(self) -> bool:
        return self.integrator.strain > 0

    def begin(self, structures: Sequence[Atoms], seeds: Sequence[int]) -> tuple[Sequence[Atoms], RandomPerturbation]:
        return structures, self.integrator


def _square_root(matrix: Tensor) -> Tensor:
    """Square root of positive definite matrices [..., 3, 3]."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.sqrt()[..., None, :]) @ vectors.transpose(-1, -2)
