"""How fast a trajectory forgets: auto-correlation function and time, effective sample size (Eqs. 29-31)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ubmd.errors import InputError

__all__ = ["Series", "act", "autocorrelation", "effective_sample_size"]

_Trajectory = NDArray[np.floating] | NDArray[np.integer]
Series = _Trajectory | Sequence[_Trajectory]
"""One observable along time, [n, ...], or several trajectories of it, [n_i, ...] each, joined end to end."""

_FEWEST_FRAMES = 3
"""Two frames always give A(1) = -1, whatever the observable."""

_CONSTANT = 1e-10
"""A component whose standard deviation is below this times its largest magnitude varies by rounding alone."""

_FFT_ELEMENTS = 2**22
"""Components are transformed in blocks of about this many numbers, which bounds the memory."""


def autocorrelation(series: Series, *, max_lag: int | None = None) -> NDArray[np.float64]:
    """Auto-correlation function A(k), Eq. 29, for k = 0..max_lag.

    The expectation values run over the frames and, for an observable of many components, over the components:
    A(k) = Σ_c C_c(k) / Σ_c C_c(0) with C_c(k) = Σ_i (O_ic - m_c)(O_{i+k,c} - m_c) / (N - k), where m_c is the
    component's mean over the whole series. A component thus counts in proportion to its variance, and the
    result does not depend on the orientation of the axes of a vector. Trajectories are joined end to end, as
    in the paper; pairs of frames that straddle a seam count like any other.

    Args:
        series: [n, ...] or a list of [n_i, ...]; any unit.
        max_lag: largest k in frames; all n lags if None.

    Returns:
        [min(max_lag + 1, n)], beginning with 1; all nan if the series is shorter than 3 frames, constant, or
        not finite.

    Raises:
        InputError: trajectories that do not fit together or a negative ``max_lag``.
    """
    frames = _joined(series)
    if max_lag is not None and max_lag < 0:
        raise InputError(f"max_lag is {max_lag}; give 0 or more frames")
    n_lags = len(frames) if max_lag is None else min(max_lag + 1, len(frames))
    if not _usable(frames):
        return np.full(n_lags, np.nan)
    total = np.zeros(n_lags)
    for covariance in _autocovariances(frames[:, _varying(frames)]):
        total += covariance[:n_lags].sum(axis=1)
    return total / total[0]


def act(series: Series, spacing: float) -> float:
    """Auto-correlation time, Eq. 30: 1/2 + Σ_k A(k) (1 - k/N), in the unit of ``spacing``.

    The sum ends before the first negative A(k), as in TensorFlow Probability's ``effective_sample_size`` with
    its default ``filter_threshold=0``, from which the paper takes its numbers by Eq. 31. For an observable of
    many components the sum is taken for each component on its own, and the result is the mean over the
    components that vary. Atomic positions should be aligned before if rotations and translations are not
    meant to count.

    Args:
        series: [n, ...] or a list of [n_i, ...], joined end to end; any unit.
        spacing: time between two frames, > 0.

    Returns:
        At least ``spacing``/2, the value of uncorrelated frames; nan if the series is shorter than 3 frames,
        constant, or not finite.

    Raises:
        InputError: trajectories that do not fit together or a spacing that is not positive.
    """
    if not spacing > 0 or not np.isfinite(spacing):
        raise InputError(f"spacing is {spacing}; give the time between two frames, above 0")
    return spacing * _mean_act(_joined(series))


def effective_sample_size(series: Series) -> float:
    """Number of independent frames, Eq. 31: N / (2 ACT).

    For one component this is TensorFlow Probability's value. For many components ACT is their mean
    (see :func:`act`), so that this is the harmonic mean of the components' sizes: slow components decide.

    Args:
        series: [n, ...] or a list of [n_i, ...], joined end to end; any unit.

    Returns:
        At most n; nan if the series is shorter than 3 frames, constant, or not finite.

    Raises:
        InputError: trajectories that do not fit together.
    """
    frames = _joined(series)
    return len(frames) / (2.0 * _mean_act(frames))


def _mean_act(frames: NDArray[np.float64]) -> float:
    """Auto-correlation time in frames, mean over the components of ``frames`` [n, c] that vary."""
    if not _usable(frames):
        return float("nan")
    n = len(frames)
    weight = 1.0 - np.arange(1, n) / n
    times = []
    for covariance in _autocovariances(frames[:, _varying(frames)]):
        correlation = covariance[1:] / covariance[0]
        positive = np.logical_and.accumulate(correlation >= 0, axis=0)
        times.append(0.5 + weight @ np.where(positive, correlation, 0.0))
    return float(np.concatenate(times).mean())


def _autocovariances(frames: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """Yield C_c(k) = Σ_i δ_ic δ_{i+k,c} / (N - k) for blocks of components, [n, block], k by rows."""
    n, n_components = frames.shape
    padded = 1 << (2 * n - 1).bit_length()  # so that the circular sum does not wrap around
    pairs = np.arange(n, 0, -1)[:, None]
    block = max(1, _FFT_ELEMENTS // padded)
    for start in range(0, n_components, block):
        part = frames[:, start : start + block]
        spectrum = np.fft.rfft(part - part.mean(axis=0), padded, axis=0)
        power = spectrum.real**2 + spectrum.imag**2
        yield np.fft.irfft(power, padded, axis=0)[:n] / pairs


def _usable(frames: NDArray[np.float64]) -> bool:
    """Whether there is something to correlate: enough frames, all finite, some component that varies."""
    return len(frames) >= _FEWEST_FRAMES and bool(np.isfinite(frames).all()) and bool(_varying(frames).any())


def _varying(frames: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[c] which components of ``frames`` [n, c] vary by more than rounding."""
    return frames.std(axis=0) > _CONSTANT * np.abs(frames).max(axis=0, initial=0.0)


def _joined(series: Series) -> NDArray[np.float64]:
    """All trajectories end to end, components flattened: [n, c]."""
    parts = [np.asarray(s, dtype=np.float64) for s in ([series] if isinstance(series, np.ndarray) else series)]
    if not parts:
        return np.zeros((0, 1))
    for index, part in enumerate(parts):
        if part.ndim == 0:
            raise InputError(f"series[{index}] is a number; give an array [n, ...], or a list of such arrays")
        if part.shape[1:] != parts[0].shape[1:]:
            raise InputError(
                f"series[{index}] has frames of shape {part.shape[1:]}, series[0] of {parts[0].shape[1:]}; "
                "give trajectories of one observable"
            )
    joined = np.concatenate(parts)
    return joined.reshape(len(joined), int(np.prod(joined.shape[1:], dtype=int)))
