"""Metropolis Monte Carlo on a potential, biased or not: moves of single atoms and of torsions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from ase import Atoms
from torch import Tensor

from ubmd.data.perturb import check_displacement
from ubmd.dynamics.connectivity import Rotation, rotations
from ubmd.dynamics.explore import Explorer
from ubmd.dynamics.settings import check_temperature
from ubmd.dynamics.state import WalkerState
from ubmd.errors import InputError
from ubmd.models.potential import Prediction
from ubmd.units import KB

__all__ = ["Metropolis", "MetropolisStep", "MonteCarlo", "MonteCarloExploration", "rotated"]

ORIGIN = "montecarlo_positions"


@dataclass(frozen=True)
class MonteCarlo:
    """Moves and temperature of a Metropolis Monte Carlo simulation.

    Args:
        temperature: K.
        displacement: standard deviation of each coordinate's shift in a move of one atom, Å.
        angle: half-width of the uniform turn in a torsion move, rad, at most π.
        torsion_fraction: probability that a move is one of a torsion.
        bonds: pairs of atoms, from 0, whose bond may be turned; None takes all bonds of the starting
            structure that are in no ring and have further atoms at both ends.

    Raises:
        InputError: if a value is out of range.
    """

    temperature: float = 300.0
    displacement: float = 0.05
    angle: float = 0.5
    torsion_fraction: float = 0.5
    bonds: Sequence[Sequence[int]] | None = None

    def __post_init__(self) -> None:
        if self.bonds is not None:
            # a YAML list must not look like another setting than a tuple
            object.__setattr__(self, "bonds", tuple(tuple(pair) for pair in self.bonds))
        check_temperature(self.temperature)
        check_displacement(self.displacement)
        if not self.displacement:
            raise InputError(f"displacement must be positive, got {self.displacement} Å")
        if not 0 < self.angle <= math.pi + 1e-9:
            raise InputError(f"angle must be positive and at most π, got {self.angle} rad")
        if not 0 <= self.torsion_fraction <= 1:
            raise InputError(f"torsion_fraction must lie between 0 and 1, got {self.torsion_fraction}")

    def of(self, atoms: Atoms) -> Metropolis:
        """The simulation of molecules that are bonded like ``atoms``.

        Raises:
            InputError: if there are to be torsion moves but no bond that can be turned.
        """
        return Metropolis(self, rotations(atoms, self.bonds) if self.torsion_fraction else ())


@dataclass(frozen=True)
class Metropolis:
    """A Metropolis Monte Carlo simulation of molecules with given bonds; an
    :class:`~ubmd.dynamics.walkers.Integrator`.

    Args:
        settings: of the moves.
        rotations: what a torsion move turns; at least one unless ``settings.torsion_fraction`` is 0.
    """

    settings: MonteCarlo
    rotations: tuple[Rotation, ...] = ()
    needs_stress: ClassVar[bool] = False

    def prepare(self, state: WalkerState) -> MetropolisStep:
        """Tensors for this set of walkers, which must be molecules of the same atoms, the same of them fixed."""
        n_atoms, device = len(state.batch.numbers) // state.n_walkers, state.batch.positions.device
        moved = torch.zeros(len(self.rotations), n_atoms, dtype=torch.bool)
        for row, rotation in enumerate(self.rotations):
            moved[row, list(rotation.moved)] = True
        axes = torch.tensor([rotation.axis for rotation in self.rotations]).view(-1, 2)
        free = torch.arange(n_atoms, device=device) if state.fixed is None else (~state.fixed[:n_atoms]).nonzero()[:, 0]
        return MetropolisStep(self.settings, KB * state.temperature.double(), axes.to(device), moved.to(device), free)


@dataclass(frozen=True)
class MetropolisStep:
    """The two halves of a move: the proposal, and its acceptance after the evaluation.

    Proposals are symmetric and keep volumes in the space of positions: a normal shift, or a turn by an angle
    as likely as its opposite about an axis that the turn itself leaves in place. Hence the acceptance
    min(1, exp(-change / k_B T)) samples exp(-E / k_B T) of the energy E that the potential predicts.

    For a bias whose strength tau_t adapts (Eq. 8) there is no such function. Both ends of a move are then
    compared at the tau_t with which the present state was evaluated, the bias energy being proportional to it,
    and a rejected proposal leaves the bias's memory as it was: a clash that was refused shall not raise tau_t.

    What the proposal started from is in the walkers' ``memory`` between the halves: ``montecarlo_positions``
    [walkers, n, 3].
    """

    settings: MonteCarlo
    kt: Tensor
    """[n_walkers] eV, float64."""
    axes: Tensor
    """[m, 2] atoms of the bonds that are turned."""
    moved: Tensor
    """[m, n] True for the atoms that turn with a bond."""
    free: Tensor
    """[k] atoms that are not fixed, the same in all walkers."""

    def first_half(self, state: WalkerState, noise: Tensor) -> WalkerState:
        """The proposed positions; forces and observables stay those of the present state.

        Args:
            state: evaluated walkers.
            noise: [n_atoms, 2, 3] standard normal numbers. Of a walker's first atom, the second vector decides
                on kind, object and acceptance of the move, and the first number on the angle of a turn; the
                first vector of the atom that moves is its shift.
        """
        positions = state.batch.positions.view(state.n_walkers, -1, 3)
        numbers = noise.view(state.n_walkers, -1, 2, 3)
        n_atoms, n_turns = positions.shape[1], len(self.axes)
        # float64, as no uniform number may round to 1
        kind, place, turn = _uniform(torch.cat([numbers[:, 0, 1, :2], numbers[:, 0, 0, :1]], dim=1)).unbind(1)
        atom = self.free[(place * len(self.free)).long()]
        chosen = torch.arange(n_atoms, device=atom.device) == atom[:, None]
        shift = self.settings.displacement * numbers[:, :, 0]
        proposed = torch.where(chosen[..., None], positions + shift, positions)
        if n_turns:
            which = (place * n_turns).long()
            angle = self.settings.angle * (2 * turn - 1)
            torsion = (kind < self.settings.torsion_fraction)[:, None]
            turned = rotated(positions, self.axes[which], self.moved[which], angle.to(positions))
            proposed = torch.where(torsion[..., None], turned, proposed)
        return state.replace(
            batch=state.batch.replace(positions=proposed.reshape(-1, 3)), memory=state.memory | {ORIGIN: positions}
        )

    def second_half(self, state: WalkerState, prediction: Prediction, noise: Tensor) -> WalkerState:
        """The proposed state where it is accepted, the one before elsewhere; ``step`` counts moves.

        Args:
            state: what :meth:`first_half` returned.
            prediction: of the proposed positions.
            noise: the same numbers.
        """
        after = state.observed(prediction, step=state.step + 1)
        # log of a uniform number, exact where the number is tiny
        log_uniform = torch.special.log_ndtr(noise.view(state.n_walkers, -1, 2, 3)[:, 0, 1, 2].double())
        # NaN compares as False: what cannot be evaluated is refused
        accepted = log_uniform * self.kt <= -_energy_change(state, after)
        atoms = accepted[state.batch.system_idx]
        before = state.batch.replace(positions=state.memory[ORIGIN].reshape(-1, 3))
        memory = {key: value for key, value in after.memory.items() if key != ORIGIN}
        return after.replace(
            batch=before.replace(positions=_either(atoms, state.batch.positions, before.positions)),
            forces=_either(atoms, after.forces, state.forces),
            memory={key: _either(accepted, new, state.memory.get(key)) for key, new in memory.items()},
            energy=_either(accepted, after.energy, state.energy),
            uncertainty=_either(accepted, after.uncertainty, state.uncertainty),
            atomic_uncertainty=_either(atoms, after.atomic_uncertainty, state.atomic_uncertainty),
            tau=_either(accepted, after.tau, state.tau),
            bias_energy=_either(accepted, after.bias_energy, state.bias_energy),
            stress=_either(accepted, after.stress, state.stress),
        )


@dataclass(frozen=True, kw_only=True)
class MonteCarloExploration(Explorer):
    """Explores by Metropolis Monte Carlo of molecules: a step is a move.

    With :class:`~ubmd.bias.biased.BiasedPotential` on E - tau u, else on whatever the potential is. Torsion
    moves jump from one basin to another without the path between them.

    Args:
        integrator: moves and temperature.
    """

    integrator: MonteCarlo

    def begin(self, structures: Sequence[Atoms], seeds: Sequence[int]) -> tuple[Sequence[Atoms], Metropolis]:
        return structures, self.integrator.of(structures[0])

    @property
    def temperature(self) -> float:
        return self.integrator.temperature


def rotated(positions: Tensor, axes: Tensor, moved: Tensor, angle: Tensor) -> Tensor:
    """Positions with some atoms turned about a bond (Rodrigues' formula).

    Args:
        positions: [n_walkers, n, 3] Å.
        axes: [n_walkers, 2] atoms from the first of which to the second the axis points.
        moved: [n_walkers, n] True for the atoms that are turned.
        angle: [n_walkers] rad, counter-clockwise as seen against the axis.

    Returns:
        [n_walkers, n, 3] Å.
    """
    first, second = positions.gather(1, axes[..., None].expand(-1, -1, 3)).unbind(1)
    axis = torch.nn.functional.normalize(second - first, dim=1)[:, None]
    arm = positions - first[:, None]
    cosine, sine = angle.cos()[:, None, None], angle.sin()[:, None, None]
    along = (arm * axis).sum(2, keepdim=True) * axis
    turned = along + cosine * (arm - along) + sine * torch.linalg.cross(axis.expand_as(arm), arm)
    return torch.where(moved[..., None], first[:, None] + turned, positions)


def _uniform(normal: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), float64, from standard normal ones."""
    return torch.special.ndtr(normal.double()).clamp(max=1 - 2**-53)


def _energy_change(before: WalkerState, after: WalkerState) -> Tensor:
    """[n_walkers] eV: what a move costs, with the bias of both ends at the strength that held before it."""
    assert before.energy is not None, "walkers are evaluated before they move"
    assert after.energy is not None
    change = after.energy - before.energy
    if before.bias_energy is None or after.bias_energy is None:
        return change
    bias = after.bias_energy
    if before.tau is not None and after.tau is not None:
        # tau is 0 for a bias without one; equal strengths must not become 1 + rounding
        adapts = (after.tau != before.tau) & (after.tau != 0)
        bias = torch.where(adapts, bias * (before.tau / after.tau), bias)
    return change + bias - before.bias_energy


def _either(accepted: Tensor, new: Tensor | None, old: Tensor | None) -> Tensor | None:
    """``new`` where accepted [first axis], else ``old``."""
    if new is None or old is None:
        return new
    return torch.where(accepted.view(-1, *[1] * (new.ndim - 1)), new, old)
