"""How fast walkers forget (Eqs. 29-31), and the sine wave with noise that biased crystals resemble (Fig. 7)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ubmd.dynamics.exploration import Exploration
from ubmd.errors import InputError
from ubmd.observables.autocorrelation import autocorrelation

__all__ = ["SineModel", "fit_sine", "position_series", "sine_correlation", "uncertainty_series"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SineModel:
    """A sin(2π t / T₀) + B N(t) with a period of twice the length of the simulation."""

    noise: float
    """B / A, the noise's amplitude; infinite for noise alone."""
    residual: float
    """Root of the mean squared difference to the auto-correlation function that it was fitted to."""


def position_series(explored: Iterable[Exploration], interval: int) -> list[Array]:
    """Positions [f, n, 3] of each walker at regular steps, relative to their centroid: a drift does not count.

    Args:
        explored: what rounds explored, in order.
        interval: steps between regular frames.
    """
    found = [e.positions[own] for e, own in _regular(explored, interval)]
    return [positions - positions.mean(axis=1, keepdims=True) for positions in found]


def uncertainty_series(explored: Iterable[Exploration], interval: int) -> list[Array]:
    """Atomic uncertainties [f, n] of each walker at regular steps; see :func:`position_series`."""
    return [e.atomic_uncertainty[own] for e, own in _regular(explored, interval)]


def sine_correlation(n: int) -> Array:
    """Auto-correlation function (Eq. 29) of half a period of a sine wave, n frames long, [n]."""
    return autocorrelation(np.sin(np.pi * np.arange(n) / n))


def fit_sine(correlation: ArrayLike) -> SineModel:
    """The noise of the model whose auto-correlation function is nearest to a given one, by least squares.

    White noise adds to A(0) alone, so that for k > 0 the model's function is that of the sine wave times the share s of
    its variance in the whole: a line through the origin, whose slope has a closed form.

    Args:
        correlation: [n] the function of a simulation of n frames, from lag 0 on, at all lags.

    Raises:
        InputError: fewer than three lags, or values that are not finite.
    """
    found = np.asarray(correlation, dtype=np.float64)
    if found.ndim != 1 or len(found) < 3 or not np.isfinite(found).all():
        raise InputError(f"correlation has shape {found.shape} or values that are not finite; give [n], n > 2")
    sine = sine_correlation(len(found))
    weight = np.arange(len(found), 0, -1)[1:].astype(np.float64)  # pairs of frames at each lag
    share = np.sum(weight * sine[1:] * found[1:]) / np.sum(weight * sine[1:] ** 2)
    share = float(np.clip(share, 0.0, 1.0))
    residual = np.sqrt(np.average((share * sine[1:] - found[1:]) ** 2, weights=weight))
    variance = float(np.var(np.sin(np.pi * np.arange(len(found)) / len(found))))
    noise = np.sqrt(variance * (1 / share - 1)) if share > 0 else np.inf
    return SineModel(float(noise), float(residual))


def _regular(explored: Iterable[Exploration], interval: int) -> Iterable[tuple[Exploration, NDArray[np.bool_]]]:
    """Per walker its frames at regular steps; the frame at a crossing falls between them."""
    for exploration in explored:
        for walker in np.unique(exploration.walker):
            frames = (exploration.walker == walker) & (exploration.step % interval == 0)
            if frames.any():
                yield exploration, frames
