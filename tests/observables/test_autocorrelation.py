"""Correlation functions against the sum over pairs, closed forms, and TensorFlow Probability's values."""

from __future__ import annotations

import numpy as np
import pytest

from ubmd.errors import InputError
from ubmd.observables import autocorrelation as module
from ubmd.observables.autocorrelation import act, autocorrelation, effective_sample_size


def ar1(rho: float, n: int, seed: int) -> np.ndarray:
    """Stationary auto-regressive process of order 1, [n], with A(k) = rho^k and unit variance."""
    noise = np.random.default_rng(seed).normal(size=n) * np.sqrt(1 - rho**2)
    values = np.empty(n)
    if n == 0:
        return values
    values[0] = noise[0] / np.sqrt(1 - rho**2)
    for i in range(1, n):
        values[i] = rho * values[i - 1] + noise[i]
    return values


def covariance(x: list[float], k: int) -> float:
    """Covariance at lag k as Eq. 29 writes it, one pair after the other."""
    mean = sum(x) / len(x)
    return sum((x[i] - mean) * (x[i + k] - mean) for i in range(len(x) - k)) / (len(x) - k)


def direct_act(x: list[float]) -> float:
    """Eq. 30, ended before the first negative term."""
    total = 0.5
    for k in range(1, len(x)):
        a = covariance(x, k) / covariance(x, 0)
        if a < 0:
            break
        total += a * (1 - k / len(x))
    return total


def test_one_component_agrees_with_the_sum_over_pairs():
    x = ar1(0.8, 101, seed=0) + 5
    expected = [covariance(x.tolist(), k) / covariance(x.tolist(), 0) for k in range(101)]
    np.testing.assert_allclose(autocorrelation(x), expected, atol=1e-9)
    np.testing.assert_allclose(autocorrelation(x, max_lag=7), expected[:8], atol=1e-12)
    assert act(x, 1.0) == pytest.approx(direct_act(x.tolist()), rel=1e-10)


def test_components_share_numerator_and_denominator_of_the_function(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_FFT_ELEMENTS", 300)  # several blocks
    x = np.stack([ar1(0.9, 60, 1), 3 * ar1(0.2, 60, 2), ar1(0.5, 60, 3), np.full(60, 2.0)], axis=1)
    columns = x.T.tolist()
    variance = sum(covariance(c, 0) for c in columns)
    expected = [sum(covariance(c, k) for c in columns) / variance for k in range(60)]
    np.testing.assert_allclose(autocorrelation(x.reshape(60, 2, 2)), expected, atol=1e-9)


def test_turning_a_vector_leaves_its_function_unchanged():
    x = np.stack([ar1(0.9, 80, 1), 3 * ar1(0.2, 80, 2)], axis=1)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    np.testing.assert_allclose(autocorrelation(x @ turn.T), autocorrelation(x), atol=1e-9)


def test_time_of_many_components_is_the_mean_over_those_that_vary():
    x = np.stack([ar1(0.9, 90, 4), ar1(0.2, 90, 5), np.full(90, 0.1)], axis=1)
    expected = (direct_act(x[:, 0].tolist()) + direct_act(x[:, 1].tolist())) / 2
    assert act(x, 0.25) == pytest.approx(0.25 * expected, rel=1e-10)
    assert effective_sample_size(x) == pytest.approx(90 / (2 * expected), rel=1e-10)


def test_size_is_that_of_tensorflow_probability():
    k = np.arange(400.0)
    series = [
        np.sin(0.05 * k) + 0.3 * np.cos(1.7 * k * k),
        np.cumsum(np.sin(k * k)),
        np.sin(3 * k) + 0.01 * k,
    ]
    # tfp.mcmc.effective_sample_size of tensorflow_probability 0.25.0 (numpy substrate, default arguments)
    expected = [11.085609687840442, 14.188930879239237, 4.207650944106021]
    np.testing.assert_allclose([effective_sample_size(x) for x in series], expected, rtol=1e-9)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, -0.5])
def test_autoregressive_process_has_its_closed_form(rho: float):
    times = [act(ar1(rho, 10_000, seed), 2.0) for seed in range(8)]
    # For rho < 0 the first term is negative already, and the sum stops at the 1/2 of uncorrelated frames.
    expected = 2.0 * (1 + rho) / (2 * (1 - rho)) if rho >= 0 else 1.0
    # Var(sum) is about 2 (2 M + 1) ACT² / N with M of some correlation times; 8 series shrink it further.
    tolerance = 0.15 if rho > 0.8 else 0.06
    assert np.mean(times) == pytest.approx(expected, rel=tolerance)
    np.testing.assert_allclose(autocorrelation(ar1(rho, 60_000, 99), max_lag=3), rho ** np.arange(4.0), atol=0.03)


def test_walkers_of_different_lengths_are_joined_end_to_end():
    walkers = [ar1(0.7, n, n).reshape(-1, 1) * np.array([1.0, 2.0]) for n in (40, 0, 17, 1)]
    joined = np.concatenate(walkers)
    assert act(walkers, 0.1) == act(joined, 0.1)
    assert effective_sample_size(walkers) == effective_sample_size(joined)
    np.testing.assert_array_equal(autocorrelation(walkers), autocorrelation(joined))


@pytest.mark.parametrize(
    "series",
    [
        np.full(50, 0.1),
        np.full((50, 3), -7.3),
        np.array([1.0, 2.0]),
        np.zeros(0),
        np.zeros((20, 0)),
        [],
        np.array([1.0, np.nan, 2.0, 3.0]),
        [np.arange(5.0), np.array([np.inf])],
    ],
)
def test_nothing_to_correlate_is_nan(series):
    assert np.isnan(act(series, 1.0))
    assert np.isnan(effective_sample_size(series))
    assert np.isnan(autocorrelation(series)).all()


def test_integers_and_a_large_offset_do_not_matter():
    x = np.random.default_rng(2).integers(0, 9, 50)
    assert act(x + 10**6, 1.0) == pytest.approx(act(x.astype(float), 1.0), rel=1e-6)


@pytest.mark.parametrize("spacing", [0.0, -1.0, np.nan, np.inf])
def test_refuses_a_spacing_that_is_no_time(spacing: float):
    with pytest.raises(InputError, match="spacing is"):
        act(np.arange(9.0), spacing)


def test_refuses_series_that_do_not_fit():
    with pytest.raises(InputError, match=r"series\[1\] has frames"):
        act([np.zeros((5, 3)), np.zeros((5, 2))], 1.0)
    with pytest.raises(InputError, match=r"series\[0\] is a number"):
        act([1.0, 2.0, 3.0], 1.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="max_lag is -1"):
        autocorrelation(np.arange(9.0), max_lag=-1)
