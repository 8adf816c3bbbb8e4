"""Constant pressure and temperature: the dynamics of Martyna, Tobias and Klein with Nosé-Hoover chains."""

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
from ubmd.errors import InputError
from ubmd.models.potential import Prediction
from ubmd.units import ACCELERATION

__all__ = ["MTK", "MTKStep"]

_CELL_FREEDOM = {"isotropic": 1, "orthorhombic": 3, "full": 6}

_YOSHIDA = (1 / (2 - 2 ** (1 / 3)), -(2 ** (1 / 3)) / (2 - 2 ** (1 / 3)), 1 / (2 - 2 ** (1 / 3)))
"""Lengths of the parts of a step of fourth order (Yoshida, Phys. Lett. A 150, 262 (1990))."""

_ORDER = 14
"""Terms of a power series that is exact to rounding for strains below 1/2, the largest that a step may have."""


@dataclass(frozen=True)
class MTK:
    """Constant pressure with chains of thermostats on atoms and cell, as chosen in the configuration.

    Martyna, Tobias and Klein, J. Chem. Phys. 101, 4177 (1994), in the splitting of Tuckerman et al., J. Phys. A 39,
    5629 (2006), as ASE's ``MTKNPT`` and ``IsotropicMTKNPT``. It samples the isothermal-isobaric ensemble whose
    centre of mass rests: a volume V has the weight of its configurations times exp(-p V / k_B T), so that an
    ideal gas has <V> = N k_B T / p. In contrast to ASE, which counts 3N degrees of freedom and 9 of the cell,
    there are 3N - 3, as the total momentum is zero, and as many of the cell as it has; cell rates are symmetric.

    Args:
        dt: time step, fs.
        temperature: K; a number, or a list that walkers take in turn. Walkers are started with it; each then
            follows its own state's temperature.
        pressure: MPa; a number, or a list that walkers take in turn.
        thermostat_time: of the chain on the atoms, fs; some 100 steps.
        barostat_time: of the cell and the chain on it, fs; some 1000 steps.
        chain: number of thermostats in each chain.
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
    chain: int = 3
    cell: str = "full"
    needs_stress: ClassVar[bool] = True
    takes_impulses: ClassVar[tuple[str, ...]] = ("forces", "stress")

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperature", temperatures(self.temperature))
        object.__setattr__(self, "pressure", pressures(self.pressure))
        times = {"thermostat_time": self.thermostat_time, "barostat_time": self.barostat_time}
        check_settings(self.dt, self.cell, **times)
        if not isinstance(self.chain, int) or self.chain < 1:
            raise InputError(f"chain must be a whole number of thermostats, at least 1, got {self.chain}")

    def prepare(self, state: WalkerState) -> MTKStep:
        """Coefficients for this set of walkers; they stay valid until the set changes.

        Raises:
            InputError: if walkers have a single atom, or differ in size.
        """
        kt, freedom = thermal_energy(state)
        return MTKStep(
            settings=self,
            masses=state.masses.view(state.n_walkers, -1, 1),
            pressure=target_pressure(self.pressure, state),
            kt=kt,
            times=kt.new_tensor([self.thermostat_time, self.barostat_time]),
            freedoms=kt.new_tensor([freedom, _CELL_FREEDOM[self.cell]]),
        )


@dataclass(frozen=True)
class MTKStep:
    """The two halves of a step; made by :meth:`MTK.prepare`.

    ``extended`` of a state holds, in float64, ``cell`` (Å) and ``strain_rate`` (1/fs) [walkers, 3, 3], ``frame`` of
    the start, and ``chain_rates`` (1/fs) and ``chain_positions`` [walkers, 2, chain] of the thermostats of atoms
    and cell. Masses are those of the references: W = (N_f + 3) / 3 k_B T barostat_time² of the cell; N_f k_B T
    time² of a chain's first thermostat, where N_f are the degrees of freedom that it has to heat, and k_B T time²
    of the others.
    """

    settings: MTK
    masses: Tensor
    """[n_walkers, n, 1] amu."""
    pressure: Tensor
    """[n_walkers] eV/Å³."""
    kt: Tensor
    """[n_walkers] eV."""
    times: Tensor
    """[2] fs, of the chains on atoms and cell."""
    freedoms: Tensor
    """[2] degrees of freedom of a walker's atoms and cell."""

    def first_half(self, state: WalkerState, noise: Tensor) -> WalkerState:
        """Half a step of chains, cell rate and momenta, and a whole one of positions and cell.

        Args:
            state: evaluated walkers, with stress.
            noise: not used.
        """
        if not state.extended:
            state = self.started(state)
        momenta, own = self._chains(self._momenta(state), state.extended)
        rate = self._cell_kick(momenta, own["strain_rate"], own["cell"], state)
        momenta = self._kick(momenta, rate, self._forces(state.forces))
        growth = self.settings.dt * rate
        mean = _exprel(growth)
        strain = growth @ mean
        small, mean = strain.to(momenta.dtype), mean.to(momenta.dtype)
        positions = state.batch.positions.view_as(momenta)
        positions = positions + positions @ small + self.settings.dt * (momenta / self.masses) @ mean
        cell = own["cell"] + own["cell"] @ strain
        return state.replace(
            batch=state.batch.replace(
                positions=unless_torn(positions, strain).reshape(-1, 3), cell=cell.to(state.batch.cell.dtype)
            ),
            momenta=momenta.reshape(-1, 3),
            extended=own | {"cell": cell, "strain_rate": rate},
        )

    def second_half(self, state: WalkerState, prediction: Prediction, noise: Tensor) -> WalkerState:
        """The other half step of momenta, cell rate and chains, from the prediction; ``noise`` is not used."""
        own = state.extended
        momenta = self._kick(self._momenta(state), own["strain_rate"], self._forces(prediction.forces))
        state = state.observed(prediction, step=state.step + 1)
        rate = self._cell_kick(momenta, own["strain_rate"], own["cell"], state)
        momenta, own = self._chains(momenta, own | {"strain_rate": rate})
        return state.replace(momenta=momenta.reshape(-1, 3), extended=own)

    def started(self, state: WalkerState) -> WalkerState:
        """Evaluated walkers with cell and thermostats at rest; their total momentum is removed."""
        momenta, cell = without_drift(self._momenta(state), self.masses), state.batch.cell.double()
        links = torch.zeros(len(cell), 2, self.settings.chain, dtype=torch.float64, device=cell.device)
        return state.replace(
            momenta=momenta.reshape(-1, 3),
            extended={
                "cell": cell,
                "strain_rate": torch.zeros_like(cell),
                "frame": lattice_frame(cell),
                "chain_rates": links,
                "chain_positions": links,
            },
        )

    def conserved_energy(self, state: WalkerState) -> Tensor:
        """[n_walkers] eV, what the exact dynamics of evaluated walkers conserves: the energies of atoms, cell and
        chains, and the work against the pressure.
        """
        if not state.extended:
            state = self.started(state)
        own = state.extended
        assert state.energy is not None, "walkers are evaluated"
        energy = state.energy if state.bias_energy is None else state.energy + state.bias_energy
        atoms, cell = self._twice_kinetic(self._momenta(state), own["strain_rate"]).unbind(1)
        first, others = own["chain_positions"][..., 0], own["chain_positions"][..., 1:].sum(2)
        rates = own["chain_rates"].square()
        kinetic = self.times.square() * (self.freedoms * rates[..., 0] + rates[..., 1:].sum(2)) / 2
        chains = self.kt * (self.freedoms * first + others + kinetic).sum(1)
        volume = torch.linalg.det(own["cell"]).abs()
        return energy + 0.5 * (atoms + cell) + self.pressure * volume + chains

    def _momenta(self, state: WalkerState) -> Tensor:
        return state.momenta.view(len(self.masses), -1, 3)

    def _forces(self, forces: Tensor) -> Tensor:
        """[n_walkers, n, 3] amu Å/fs² of forces [n_atoms, 3] in eV/Å."""
        forces = forces.to(self.masses.dtype).view(len(self.masses), -1, 3)
        return ACCELERATION * without_drift(forces, self.masses)

    @property
    def _inertia(self) -> Tensor:
        """W [n_walkers], eV fs²."""
        return (self.freedoms[0] + 3) / 3 * self.kt * self.settings.barostat_time**2

    def _twice_kinetic(self, momenta: Tensor, rate: Tensor) -> Tensor:
        """[n_walkers, 2] eV, twice the kinetic energies of atoms and cell."""
        atoms = kinetic_tensor(momenta, self.masses).diagonal(dim1=1, dim2=2).sum(1)
        return torch.stack([atoms, self._inertia * rate.square().sum((1, 2))], dim=1)

    def _kick(self, momenta: Tensor, rate: Tensor, forces: Tensor) -> Tensor:
        """Momenta after half a step of dp/dt = F - p (v + tr v / N_f) at a constant cell rate v."""
        half = 0.5 * self.settings.dt
        trace = rate.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
        one = torch.eye(3, dtype=rate.dtype, device=rate.device)
        damping = -half * (rate + trace / self.freedoms[0] * one)
        mean = _exprel(damping)
        change, mean = (damping @ mean).to(momenta.dtype), mean.to(momenta.dtype)
        return momenta + momenta @ change + half * forces @ mean

    def _cell_kick(self, momenta: Tensor, rate: Tensor, cell: Tensor, state: WalkerState) -> Tensor:
        """Cell rate after half a step of W dv/dt = V (P - p) + 2 K / N_f, the part that the cell may follow."""
        assert state.stress is not None, "constant pressure asks the potential for the stress"
        volume = torch.linalg.det(cell).abs()[:, None, None]
        one = torch.eye(3, dtype=cell.dtype, device=cell.device)
        kinetic = kinetic_tensor(momenta, self.masses)
        mean = kinetic.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] / self.freedoms[0]
        push = kinetic - volume * (state.stress.double() + self.pressure[:, None, None] * one) + mean * one
        kind, frame = self.settings.cell, state.extended["frame"]
        return rate + 0.5 * self.settings.dt * allowed(
            push / self._inertia[:, None, None], kind, frame, triangular=False
        )

    def _chains(self, momenta: Tensor, own: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Momenta and extended variables after half a step of both chains, which do not touch each other."""
        # how much hotter than aimed at
        heat = self._twice_kinetic(momenta, own["strain_rate"]) / (self.freedoms * self.kt[:, None])
        rates, places = list(own["chain_rates"].unbind(2)), list(own["chain_positions"].unbind(2))
        scale, last = torch.ones_like(heat), self.settings.chain - 1
        stiffness = self.times**-2

        def kick(link: int, step: float) -> None:
            damping = torch.exp(-0.25 * step * rates[link + 1]) if link < last else None
            if link == 0:
                force = (heat - 1) * stiffness
            else:
                force = rates[link - 1].square() * (self.freedoms if link == 1 else 1) - stiffness
            rate = rates[link] if damping is None else rates[link] * damping
            rate = rate + 0.5 * step * force
            rates[link] = rate if damping is None else rate * damping

        for share in _YOSHIDA:
            step = 0.5 * share * self.settings.dt
            for link in range(last, -1, -1):
                kick(link, step)
            places = [place + step * rate for place, rate in zip(places, rates, strict=True)]
            damping = torch.exp(-step * rates[0])
            scale, heat = scale * damping, heat * damping.square()
            for link in range(last + 1):
                kick(link, step)
        atoms, cell = scale.unbind(1)
        return momenta * atoms[:, None, None].to(momenta.dtype), own | {
            "strain_rate": own["strain_rate"] * cell[:, None, None],
            "chain_rates": torch.stack(rates, dim=2),
            "chain_positions": torch.stack(places, dim=2),
        }


def _exprel(x: Tensor) -> Tensor:
    """(exp(x) - 1) / x of matrices [n, 3, 3] smaller than 1/2, without a wait for the device."""
    one = torch.eye(3, dtype=x.dtype, device=x.device)
    found = one.expand_as(x)
    for k in range(_ORDER, 1, -1):
        found = one + x @ found / k
    return found
