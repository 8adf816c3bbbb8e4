"""Settings that are one number for all walkers, or several that they take in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real

import torch
from torch import Tensor

from ubmd.errors import InputError

__all__ = ["check_temperature", "check_time_step", "in_turn", "pressures", "temperatures"]

HOTTEST = 1e6
"""K, far beyond where atoms are atoms."""
HIGHEST_PRESSURE = 1e7
"""MPa, beyond that in the middle of a planet."""
LONGEST_TIME_STEP = 100.0
"""fs, the longest period of a bond's vibration and more."""


def check_time_step(dt: float) -> None:
    """Raises InputError for a time step, fs, that is not positive or so long that nothing is integrated."""
    if not 0 < dt <= LONGEST_TIME_STEP:
        raise InputError(f"dt must be a positive time step in fs, at most {LONGEST_TIME_STEP:g}, got {dt}")


def check_temperature(temperature: float) -> None:
    """Raises InputError for a temperature, K, that is not positive or that no atoms have."""
    if not 0 < temperature <= HOTTEST:
        raise InputError(f"temperature must be positive, at most {HOTTEST:g} K, got {temperature}; give e.g. 300")


def temperatures(value: float | Sequence[float]) -> float | tuple[float, ...]:
    """The temperature of all walkers, K, or those that they take in turn; InputError for one that no atoms have."""
    return _per_walker("temperature", value, lambda kelvins: 0 < kelvins <= HOTTEST, f"above 0 and up to {HOTTEST:g} K")


def pressures(value: float | Sequence[float]) -> float | tuple[float, ...]:
    """The pressure of all walkers, MPa, or those that they take in turn; InputError for one that nothing withstands."""
    limit = HIGHEST_PRESSURE
    return _per_walker("pressure", value, lambda pressure: abs(pressure) <= limit, f"from {-limit:g} to {limit:g} MPa")


def _per_walker(
    name: str, value: float | Sequence[float], right: Callable[[float], bool], which: str
) -> float | tuple[float, ...]:
    """A setting that is a number, or several for the walkers in turn, in a form with a plain ``repr``."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    if not values or not all(isinstance(v, Real) and right(float(v)) for v in values):
        raise InputError(f"{name}={value} must be {which}, or a list of such numbers for the walkers in turn")
    return tuple(map(float, values)) if isinstance(value, Sequence) else float(value)


def in_turn(value: float | Sequence[float], walkers: Tensor) -> Tensor:
    """[n_walkers] float64: the values in turn, as walkers with identities 0, 1, ... [n_walkers] get them."""
    values = torch.as_tensor(value, dtype=torch.float64, device=walkers.device).reshape(-1)
    return values[walkers % len(values)]
