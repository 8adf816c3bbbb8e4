"""Settings that are one number for all walkers, or several that they take in turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from ubmd.errors import InputError

__all__ = ["in_turn", "per_walker"]


def per_walker(name: str, value: float | Sequence[float], *, positive: bool) -> float | tuple[float, ...]:
    """A setting that is a number, or one of several numbers for each walker in turn, in a form with a plain ``repr``.

    Raises:
        InputError: for an empty list, or a number that is not finite or, if it must be, not positive.
    """
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    lowest = 0.0 if positive else -math.inf
    if not values or not all(isinstance(v, Real) and lowest < v < math.inf for v in values):
        kind = "positive" if positive else "finite"
        raise InputError(f"{name} must be a {kind} number, or a list of such for the walkers in turn, got {value}")
    return tuple(map(float, values)) if isinstance(value, Sequence) else float(value)


def in_turn(value: float | Sequence[float], walkers: Tensor) -> Tensor:
    """[n_walkers] float64: the values in turn, as walkers with identities 0, 1, ... [n_walkers] get them."""
    values = torch.as_tensor(value, dtype=torch.float64, device=walkers.device).reshape(-1)
    return values[walkers % len(values)]
