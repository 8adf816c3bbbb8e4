"""When and why a walker stops."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from ubmd.data.batch import AtomicBatch
from ubmd.dynamics.state import WalkerState, degrees_of_freedom, kinetic_temperature
from ubmd.errors import InputError

__all__ = ["StopReason", "StoppingRules", "stop_reasons"]


class StopReason(IntEnum):
    """Why a walker stopped; of several reasons the greatest number counts.

    A state that is not physical is no candidate for labelling, whatever its uncertainty, so those come last.
    """

    RUNNING = 0
    MAX_STEPS = 1
    UNCERTAINTY = 2
    TEMPERATURE = 3
    CLOSE_CONTACT = 4
    NAN = 5
    CELL = 6

    @property
    def unphysical(self) -> bool:
        """Whether the last state is useless."""
        return self >= StopReason.TEMPERATURE

    @property
    def description(self) -> str:
        """For people, e.g. in a table of walkers."""
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {
    StopReason.RUNNING: "still running",
    StopReason.MAX_STEPS: "reached the step limit",
    StopReason.UNCERTAINTY: "crossed the uncertainty threshold",
    StopReason.TEMPERATURE: "kinetic temperature ran away",
    StopReason.CLOSE_CONTACT: "two atoms came too close",
    StopReason.NAN: "numbers became infinite or NaN",
    StopReason.CELL: "the cell collapsed, grew or sheared too far",
}


@dataclass(frozen=True)
class StoppingRules:
    """Limits on a walker; None switches a rule off.

    Args:
        uncertainty_threshold: highest uncertainty of a free atom's force, eV/Å; a walker above it has found a
            candidate and stops.
        max_steps: number of steps.
        min_distance: Å between any two atoms, periodic images included. The shortest bond there is (H-H) has
            0.74 Å and rarely vibrates below 0.6 Å.
        max_temperature_factor: limit on kinetic / target temperature. With N free atoms the limit is this
            factor times 1 + 2/N, because the temperature of one or two atoms fluctuates manifold in equilibrium.
        max_volume_factor: limit on volume / volume at the start and on its inverse, for dynamics that move the cell.
        min_height_factor: limit on the distance between opposite faces of the cell / that at the start. A shear
            lowers it at constant volume: sheared by gamma, a cube has faces at 1 / sqrt(1 + gamma²) of the distance.

    Raises:
        InputError: if a value is out of range.
    """

    uncertainty_threshold: float | None = 1.5
    max_steps: int = 20000
    min_distance: float | None = 0.5
    max_temperature_factor: float | None = 10.0
    max_volume_factor: float | None = 4.0
    min_height_factor: float | None = 0.3

    def __post_init__(self) -> None:
        for name, unit in (("uncertainty_threshold", "eV/Å"), ("min_distance", "Å")):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InputError(f"{name} must be positive ({unit}) or null to switch it off, got {value}")
        if not isinstance(self.max_steps, int) or self.max_steps < 1:
            raise InputError(f"max_steps must be a positive whole number, got {self.max_steps}")
        for name in ("max_temperature_factor", "max_volume_factor"):
            factor = getattr(self, name)
            if factor is not None and not (factor > 1 and math.isfinite(factor)):
                raise InputError(f"{name} must exceed 1 or be null to switch it off, got {factor}")
        factor = self.min_height_factor
        if factor is not None and not 0 < factor < 1:
            raise InputError(f"min_height_factor must lie between 0 and 1 or be null to switch it off, got {factor}")


def stop_reasons(state: WalkerState, rules: StoppingRules) -> Tensor:
    """Why each walker has to stop, [n_walkers] int8 values of :class:`StopReason`, on the state's device.

    Args:
        state: evaluated walkers. The rule on uncertainty does nothing where none was predicted.
        rules: the limits.
    """
    batch, temperature, highest = state.batch, kinetic_temperature(state), state.max_uncertainty()
    # one sum that is finite only if all numbers are; forces have already entered the momenta
    probe = batch.sum_atoms(batch.positions.sum(1)) + temperature
    reasons = torch.zeros_like(state.step, dtype=torch.int8)
    reasons = reasons.masked_fill(state.step >= rules.max_steps, int(StopReason.MAX_STEPS))
    if highest is not None:
        probe = probe + highest
        if rules.uncertainty_threshold is not None:
            above = highest > rules.uncertainty_threshold
            reasons = reasons.masked_fill(above, int(StopReason.UNCERTAINTY))
    if rules.max_temperature_factor is not None:
        free = degrees_of_freedom(state) / 3
        limit = state.temperature * (rules.max_temperature_factor * (1 + 2 / free))
        reasons = reasons.masked_fill(temperature > limit, int(StopReason.TEMPERATURE))
    if rules.min_distance is not None:
        close = batch.max_atoms(-_nearest_squared(batch)) > -(rules.min_distance**2)
        reasons = reasons.masked_fill(close, int(StopReason.CLOSE_CONTACT))
    if state.energy is not None:
        probe = probe + state.energy
    reasons = reasons.masked_fill(~torch.isfinite(probe), int(StopReason.NAN))
    # most walkers keep their cell for life, and a tensor that is still the same one needs no look
    if batch.cell is not state.start_cell:
        reasons = reasons.masked_fill(_misshapen(state, rules), int(StopReason.CELL))
    return reasons


def _misshapen(state: WalkerState, rules: StoppingRules) -> Tensor:
    """[n_walkers] whether the cell is beyond the limits; False where there is none."""
    (volume, heights), (volume_before, heights_before) = (_shape(c) for c in (state.batch.cell, state.start_cell))
    beyond = torch.zeros_like(volume, dtype=torch.bool)
    if rules.max_volume_factor is not None:
        most = rules.max_volume_factor
        beyond = beyond | (volume > most * volume_before) | (volume * most < volume_before)
    if rules.min_height_factor is not None:
        beyond = beyond | (heights < rules.min_height_factor * heights_before).any(1)
    return beyond


def _shape(cell: Tensor) -> tuple[Tensor, Tensor]:
    """Volume [n] (Å³) of cells [n, 3, 3] and the distances between their opposite faces [n, 3] (Å)."""
    faces = torch.linalg.cross(cell.roll(-1, 1), cell.roll(1, 1))
    volume = (cell[:, 0] * faces[:, 0]).sum(1).abs()
    return volume, volume[:, None] / faces.norm(dim=2)


def _nearest_squared(batch: AtomicBatch) -> Tensor:
    """[n_atoms] Å², squared distance to the nearest listed neighbour."""
    # twice as fast as square().sum(2), and this is the most expensive rule
    x, y, z = batch.vectors().unbind(2)
    return torch.addcmul(torch.addcmul(x * x, y, y), z, z).amin(1)
