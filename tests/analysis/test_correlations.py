"""The sine wave with noise: its fit finds the noise that a simulation was made with."""

from __future__ import annotations

import numpy as np
import pytest

from ubmd.analysis.correlations import fit_sine, sine_correlation
from ubmd.errors import InputError
from ubmd.observables.autocorrelation import autocorrelation


@pytest.mark.parametrize("noise", [0.0, 0.5, 2.0])
def test_noise_of_a_simulated_wave_is_found(noise: float) -> None:
    n, rng = 4000, np.random.default_rng(3)
    runs = [np.sin(np.pi * np.arange(n) / n) + noise * rng.normal(size=n) for _ in range(3)]
    fits = [fit_sine(autocorrelation(run)) for run in runs]
    assert np.mean([fit.noise for fit in fits]) == pytest.approx(noise, rel=0.12, abs=1e-6)
    assert max(fit.residual for fit in fits) < 0.08


def test_correlation_of_half_a_wave_in_closed_form() -> None:
    """∫ sin(πt) sin(π(t + k)) over 0..1-k by hand, less the mean 2/π, at lags k of the length."""
    n, k = 20_000, np.array([0.1, 0.3, 0.5])
    product = ((1 - k) * np.cos(np.pi * k) + np.sin(np.pi * k) / np.pi) / 2
    mean = 2 / np.pi
    # sums of the wave over the first and over the last 1 - k of it are alike
    part = (1 + np.cos(np.pi * k)) / np.pi
    expected = (product - 2 * mean * part + mean**2 * (1 - k)) / (1 - k) / (0.5 - mean**2)
    assert sine_correlation(n)[(k * n).astype(int)] == pytest.approx(expected, abs=1e-3)


def test_nothing_to_fit_is_refused() -> None:
    for wrong in ([1.0, 0.5], [1.0, np.nan, 0.0], [[1.0, 0.5, 0.2]]):
        with pytest.raises(InputError, match="correlation has shape"):
            fit_sine(wrong)
    assert fit_sine([1.0, -0.5, -0.9, 0.3, 0.4, 0.5]).noise == np.inf  # less like the wave than noise alone
