"""Langevin dynamics at constant volume and temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ubmd.dynamics.settings import check_time_step, temperatures
from ubmd.dynamics.state import WalkerState, evaluate
from ubmd.errors import InputError
from ubmd.models.potential import Prediction, WalkerPotential
from ubmd.units import ACCELERATION, ASE_TIME_PER_FS, KB

__all__ = ["Langevin", "LangevinStep", "langevin_step"]


@dataclass(frozen=True)
class LangevinStep:
    """The two halves of a step, around the one evaluation of the potential; made by :meth:`Langevin.prepare`.

    The scheme is Eq. 23 of Vanden-Eijnden and Ciccotti, Chem. Phys. Lett. 429, 310 (2006), written for
    momenta, with the coefficients c1 ... c5 of ASE's ``Langevin`` (``fixcm=False``). It is quasi-symplectic
    and of second order in the time step.
    """

    dt_over_mass: Tensor
    """[n_atoms, 1] fs/amu."""
    impulse: float
    """Momentum that half a step gives per force, amu Å/fs per eV/Å: c1."""
    kept: float
    """Share of the momentum that half a step keeps: 1 - c2."""
    kick_xi: Tensor
    """[n_atoms, 1] amu Å/fs: m c3."""
    kick_eta: Tensor
    """[n_atoms, 1] amu Å/fs: -m c4."""
    jump: Tensor
    """[n_atoms, 1] Å: c5."""

    def _half_kick(self, momenta: Tensor, forces: Tensor, noise: Tensor) -> Tensor:
        xi, eta = noise.unbind(1)
        momenta = torch.addcmul(momenta * self.kept, self.kick_xi, xi)
        return torch.addcmul(momenta, self.kick_eta, eta).add(forces, alpha=self.impulse)

    def first_half(self, state: WalkerState, noise: Tensor) -> WalkerState:
        """Half a step in momentum, a whole one in position; forces and observables stay those of the start.

        Args:
            state: evaluated walkers at the start of the step.
            noise: [n_atoms, 2, 3] standard normal numbers.
        """
        momenta = self._half_kick(state.momenta, state.forces, noise)
        positions = torch.addcmul(state.batch.positions, momenta, self.dt_over_mass)
        positions = torch.addcmul(positions, self.jump, noise[:, 1])
        return state.replace(batch=state.batch.replace(positions=positions), momenta=momenta)

    def second_half(self, state: WalkerState, prediction: Prediction, noise: Tensor) -> WalkerState:
        """The other half step in momentum, with the prediction at the new positions and the same noise."""
        momenta = self._half_kick(state.momenta, state.moving_forces(prediction), noise)
        return state.observed(prediction, momenta=momenta, step=state.step + 1)


@dataclass(frozen=True)
class Langevin:
    """Langevin dynamics as chosen in the configuration.

    Args:
        dt: time step, fs.
        friction: 1/fs; the default is 0.02 in ASE's inverse time unit. Zero conserves energy.
        temperature: K, with which walkers are started; a number, or a list that walkers take in turn. Each then
            follows its own state's temperature.

    Raises:
        InputError: if a value is out of range.
    """

    dt: float = 0.5
    friction: float = 0.02 * ASE_TIME_PER_FS
    temperature: float | Sequence[float] = 300.0
    needs_stress: ClassVar[bool] = False
    takes_impulses: ClassVar[tuple[str, ...]] = ("forces",)

    def __post_init__(self) -> None:
        check_time_step(self.dt)
        if not (self.friction >= 0 and self.friction * self.dt < 1):
            raise InputError(f"friction must lie between 0 and 1/dt = {1 / self.dt:g} (1/fs), got {self.friction}")
        object.__setattr__(self, "temperature", temperatures(self.temperature))

    def prepare(self, state: WalkerState) -> LangevinStep:
        """Coefficients for this set of walkers; they stay valid until the set changes."""
        dt, friction = self.dt, self.friction
        mass = state.masses.double()
        kelvin = state.temperature.double()[state.batch.system_idx]
        sigma = torch.sqrt(2 * KB * ACCELERATION * friction * kelvin / mass)  # Å/fs^1.5
        if state.fixed is not None:
            sigma = sigma.masked_fill(state.fixed, 0.0)  # without noise and forces there is no momentum
        c3 = sigma * (math.sqrt(dt) / 2 - dt**1.5 * friction / 8)
        c5 = sigma * (dt**1.5 / (2 * math.sqrt(3)))

        def column(values: Tensor) -> Tensor:
            return values[:, None].to(state.momenta.dtype)

        return LangevinStep(
            dt_over_mass=column(dt / mass),
            impulse=(dt / 2 - dt**2 * friction / 8) * ACCELERATION,
            kept=1 - (dt * friction / 2 - (dt * friction) ** 2 / 8),
            kick_xi=column(mass * c3),
            kick_eta=column(-mass * (friction / 2) * c5),
            jump=column(c5),
        )

    def __call__(self, state: WalkerState, potential: WalkerPotential, noise: Tensor) -> WalkerState:
        """One step of every walker; see :func:`langevin_step`."""
        step = self.prepare(state)
        if not state.evaluated:
            state = evaluate(state, potential)
        moved = step.first_half(state, noise)
        return step.second_half(moved, potential(moved.batch, moved.memory), noise)


def langevin_step(
    state: WalkerState, potential: WalkerPotential, *, dt: float, friction: float, noise: Tensor
) -> WalkerState:
    """One Langevin step of every walker, each at its own temperature, with one evaluation of the potential.

    The neighbour matrix is used as it is: see :func:`~ubmd.dynamics.skin.refresh_neighbours`.

    Args:
        state: the walkers; evaluated first if they are not yet.
        potential: biased or not.
        dt: time step, fs.
        friction: 1/fs.
        noise: [n_atoms, 2, 3] standard normal numbers, e.g. from :class:`~ubmd.dynamics.noise.WalkerNoise`.

    Raises:
        InputError: if the time step or friction is out of range.
    """
    return Langevin(dt=dt, friction=friction)(state, potential, noise)
