"""Constant pressure and temperature: Nosé-Hoover dynamics with a flexible cell in the form of Melchionna."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ubmd.dynamics.integrators.barostat import (
    allowed,
    check_settings,
    kinetic_tensor,
    lattice_frame,
    target_pressure,
    thermal_energy,
    unless_torn,
    without_drift,
)
from ubmd.dynamics.settings import pressures, temperatures
from ubmd.dynamics.state import WalkerState
from ubmd.models.potential import Prediction
from ubmd.units import ACCELERATION, GPA

__all__ = ["Melchionna", "MelchionnaStep"]


@dataclass(frozen=True)
class Melchionna:
    """Nosé-Hoover dynamics at constant pressure as chosen in the configuration; the dynamics of the paper.

    Melchionna, Ciccotti and Holian, Mol. Phys. 78, 533 (1993), and Melchionna, Phys. Rev. E 61, 6165 (2000), the
    paper's Refs. 50 and 51, integrated by centred differences (Holian et al., Phys. Rev. A 41, 4552 (1990)) as in
    ASE's ``MelchionnaNPT``, with which it agrees. For row vectors, with friction zeta and strain rate eta,

        dr/dt = p/m + r eta         dp/dt = F - p (eta + zeta)         dh/dt = h eta
        dzeta/dt = (K / K_0 - 1) (N - 1) / (N ttime²)       deta/dt = V (P - p_ext) / (V_0 B ptime²)

    where K_0 = 3/2 (N - 1) k_B T, V_0 is the volume at the start and P the internal pressure tensor. eta is upper
    triangular in the axes that make the starting cell so, lest the cell turn; any cell will do, and positions,
    momenta and cells keep the user's axes. The centre of mass rests. The volume of N atoms is distributed as
    V^-1 times the configuration integral times exp(-p_ext V / k_B T): of an ideal gas, <V> = (N - 1) k_B T / p_ext.

    Args:
        dt: time step, fs.
        temperature: K; a number, or a list that walkers take in turn. Walkers are started with it; each then
            follows its own state's temperature.
        pressure: MPa; a number, or a list that walkers take in turn.
        thermostat_time: ttime, fs.
        barostat_time: ptime, fs; the cell oscillates at about this time scale if B is right.
        bulk_modulus: B, an estimate in GPa that makes a mass of ``barostat_time`` (ASE's ``pfactor`` is
            ptime² B): some 10 for soft frameworks and molecular crystals, 100 for metals.
        cell: how it may change: ``full``; ``orthorhombic``, where the lengths along three axes at right angles
            change; or ``isotropic``.

    Raises:
        InputError: if a value is out of range.
    """

    dt: float = 0.5
    temperature: float | Sequence[float] = 300.0
    pressure: float | Sequence[float] = 0.0
    thermostat_time: float = 100.0
    barostat_time: float = 1000.0
    bulk_modulus: float = 10.0
    cell: str = "full"
    needs_stress: ClassVar[bool] = True
    # a strain rate follows from the last but one: an impulse would reach every other step's alone
    takes_impulses: ClassVar[tuple[str, ...]] = ("forces",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperature", temperatures(self.temperature))
        object.__setattr__(self, "pressure", pressures(self.pressure))
        check_settings(
            self.dt,
            self.cell,
            thermostat_time=self.thermostat_time,
            barostat_time=self.barostat_time,
            bulk_modulus=self.bulk_modulus,
        )

    def prepare(self, state: WalkerState) -> MelchionnaStep:
        """Coefficients for this set of walkers; they stay valid until the set changes.

        Raises:
            InputError: if walkers have a single atom, or differ in size.
        """
        kt, freedom = thermal_energy(state)
        return MelchionnaStep(
            settings=self,
            masses=state.masses.view(state.n_walkers, -1, 1),
            pressure=target_pressure(self.pressure, state),
            kt=kt,
            freedom=freedom,
        )


@dataclass(frozen=True)
class MelchionnaStep:
    """The two halves of a step; made by :meth:`Melchionna.prepare`.

    ``extended`` of a state holds, in float64, ``cell`` and ``cell_past`` (Å), ``strain_rate`` and
    ``strain_rate_past`` (1/fs) [walkers, 3, 3], ``friction``, ``friction_past`` (1/fs) and ``friction_integral``
    [walkers]; ``frame`` and ``volume`` of the start; and ``drift`` [walkers, n, 3] (Å), what atoms move towards
    the next step in fractional coordinates, times the present cell.
    """

    settings: Melchionna
    masses: Tensor
    """[n_walkers, n, 1] amu."""
    pressure: Tensor
    """[n_walkers] eV/Å³."""
    kt: Tensor
    """[n_walkers] eV."""
    freedom: int
    """Degrees of freedom of a walker."""

    def first_half(self, state: WalkerState, noise: Tensor) -> WalkerState:
        """Cell, positions, strain rate and friction a step later, the latter from the present stress and momenta.

        Args:
            state: evaluated walkers, with stress.
            noise: not used.
        """
        if not state.extended:
            state = self.started(state)
        old, dt = state.extended, self.settings.dt
        cell = old["cell_past"] + 2 * dt * old["cell"] @ old["strain_rate"]
        strain_rate = old["strain_rate_past"] + 2 * dt * self._strain_acceleration(state)
        friction = old["friction_past"] + 2 * dt * self._friction_rate(state)
        # in terms of the small change of the cell, which float32 resolves better than fractional coordinates
        strain = torch.linalg.inv_ex(old["cell"]).inverse @ (cell - old["cell"])
        small = strain.to(state.momenta.dtype)
        drift = old["drift"] + old["drift"] @ small
        positions = state.batch.positions.view_as(drift)
        positions = unless_torn(positions + positions @ small + drift, strain)
        return state.replace(
            batch=state.batch.replace(positions=positions.reshape(-1, 3), cell=cell.to(state.batch.cell.dtype)),
            extended=old
            | {
                "cell": cell,
                "cell_past": old["cell"],
                "strain_rate": strain_rate,
                "strain_rate_past": old["strain_rate"],
                "friction": friction,
                "friction_past": old["friction"],
                "friction_integral": old["friction_integral"] + 0.5 * dt * (old["friction"] + friction),
                "drift": drift,
            },
        )

    def second_half(self, state: WalkerState, prediction: Prediction, noise: Tensor) -> WalkerState:
        """Momenta from the prediction at the new positions; ``noise`` is not used."""
        new, dt = state.extended, self.settings.dt
        one = torch.eye(3, dtype=torch.float64, device=state.momenta.device)
        damping = dt * (new["strain_rate"] + 0.5 * new["friction"][:, None, None] * one)
        before = new["drift"]
        ahead = before - before @ damping.to(before.dtype) + dt * self._impulse(prediction.forces) / self.masses
        ahead = ahead @ torch.linalg.inv_ex(one + damping).inverse.to(before.dtype)
        return state.observed(
            prediction,
            momenta=(self.masses * (before + ahead) / (2 * dt)).reshape(-1, 3),
            step=state.step + 1,
            extended=new | {"drift": ahead},
        )

    def started(self, state: WalkerState) -> WalkerState:
        """Evaluated walkers with thermostat and barostat at rest; their total momentum is removed."""
        momenta = without_drift(state.momenta.view_as(self.masses.expand(-1, -1, 3)), self.masses)
        cell, dt = state.batch.cell.double(), self.settings.dt
        zeros = torch.zeros_like(self.kt)
        state = state.replace(
            momenta=momenta.reshape(-1, 3),
            extended={
                "cell": cell,
                "cell_past": cell,
                "strain_rate": torch.zeros_like(cell),
                "friction": zeros,
                "friction_integral": zeros,
                "frame": lattice_frame(cell),
                "volume": torch.linalg.det(cell).abs(),
                "drift": dt * (momenta + 0.5 * self._impulse(state.forces)) / self.masses,
            },
        )
        past = {
            "strain_rate_past": -dt * self._strain_acceleration(state),
            "friction_past": -dt * self._friction_rate(state),
        }
        return state.replace(extended=state.extended | past)

    def conserved_energy(self, state: WalkerState) -> Tensor:
        """[n_walkers] eV, what the exact dynamics of evaluated walkers conserves.

        E + K + p_ext V + 3/2 N k_B T (ttime zeta)² + 3 (N - 1) k_B T int zeta dt + 1/2 B V_0 (ptime)² |eta|²
        """
        if not state.extended:
            state = self.started(state)
        own, settings = state.extended, self.settings
        assert state.energy is not None, "walkers are evaluated"
        energy = state.energy if state.bias_energy is None else state.energy + state.bias_energy
        kinetic = 0.5 * self._kinetic_tensor(state).diagonal(dim1=1, dim2=2).sum(1)
        volume = torch.linalg.det(own["cell"]).abs()
        friction = (settings.thermostat_time * own["friction"]).square() * (self.freedom + 3) / 2
        bath = self.kt * (friction + self.freedom * own["friction_integral"])
        inertia = GPA * settings.bulk_modulus * settings.barostat_time**2 * own["volume"]
        return (
            energy + kinetic + self.pressure * volume + bath + 0.5 * inertia * own["strain_rate"].square().sum((1, 2))
        )

    def _impulse(self, forces: Tensor) -> Tensor:
        """[n_walkers, n, 3] amu Å/fs that forces [n_atoms, 3] give in a time step."""
        forces = forces.to(self.masses.dtype).view(len(self.masses), -1, 3)
        return self.settings.dt * ACCELERATION * without_drift(forces, self.masses)

    def _kinetic_tensor(self, state: WalkerState) -> Tensor:
        return kinetic_tensor(state.momenta.view_as(self.masses.expand(-1, -1, 3)), self.masses)

    def _friction_rate(self, state: WalkerState) -> Tensor:
        """Change of the friction with time [n_walkers], 1/fs²."""
        excess = self._kinetic_tensor(state).diagonal(dim1=1, dim2=2).sum(1) - self.freedom * self.kt
        return excess / ((self.freedom + 3) * self.kt * self.settings.thermostat_time**2)

    def _strain_acceleration(self, state: WalkerState) -> Tensor:
        """Change of the strain rate with time [n_walkers, 3, 3], 1/fs²."""
        own, settings = state.extended, self.settings
        assert state.stress is not None, "constant pressure asks the potential for the stress"
        volume = torch.linalg.det(own["cell"]).abs()[:, None, None]
        one = torch.eye(3, dtype=torch.float64, device=volume.device)
        excess = self._kinetic_tensor(state) - volume * (state.stress.double() + self.pressure[:, None, None] * one)
        inertia = GPA * settings.bulk_modulus * settings.barostat_time**2 * own["volume"]
        return allowed(excess / inertia[:, None, None], settings.cell, own["frame"], triangular=True)
