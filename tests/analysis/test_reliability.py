"""Metrics of uncertainties against scipy, plain integrals and cases that are known in closed form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from ase import Atoms
from ase.build import bulk

from ubmd.analysis.by_variable import draw_by_variable, errors_by_variable
from ubmd.analysis.evaluation import Evaluation, error_metrics, errors_by_system, errors_table
from ubmd.analysis.reliability import (
    calibration_curves,
    confidence_levels,
    correlations,
    miscalibration_area,
    uncertainty_metrics,
)
from ubmd.observables import Torsion, Volume
from ubmd.units import MPA


def evaluation(sizes: list[int], seed: int = 0, *, stress: bool = True) -> Evaluation:
    """Random structures of hydrogen and oxygen whose errors are normal with known standard deviations."""
    rng = np.random.default_rng(seed)
    n, n_atoms = len(sizes), sum(sizes)
    sigma, total = rng.uniform(0.1, 2.0, n_atoms), rng.uniform(0.001, 0.02, n)
    labels, forces = rng.normal(size=n), rng.normal(size=(n_atoms, 3))
    errors = total * rng.normal(size=n) * sizes
    tensors = rng.normal(size=(2, n, 3, 3))
    tensors[1, 0] = np.nan
    return Evaluation(
        numbers=np.where(rng.random(n_atoms) < 0.5, 1, 8).astype(np.int64),
        n_atoms=np.array(sizes),
        energy=np.stack([labels + errors, labels]),
        forces=np.stack([forces + sigma[:, None] * rng.normal(size=(n_atoms, 3)), forces]),
        stress=tensors if stress else None,
        # bounds of 90 %: of |x|, and of the root mean square of three components
        uncertainty=total * scipy.stats.norm.ppf(0.95),
        atomic_uncertainty=sigma * np.sqrt(scipy.stats.chi2.ppf(0.9, 3) / 3),
    )


def test_errors_by_system_are_those_of_its_structures_alone() -> None:
    found, parts = evaluation([3, 1, 4, 2]), {"a": [0, 2], "b": [3]}
    structures = [Atoms("H", info={"system": name} if name else {}) for name in ("a", None, "a", "b")]
    by_system = errors_by_system(structures, found)
    assert list(by_system) == ["a", "b"]
    forces = found.per_structure(np.square(found.forces[0] - found.forces[1]))
    for name, places in parts.items():
        own = by_system[name]
        assert own["n_structures"] == len(places)
        energy = 1e3 * (found.energy[0] - found.energy[1])[places] / found.n_atoms[places]
        assert own["energy_rmse_mev_per_atom"] == pytest.approx(np.sqrt(np.mean(energy**2)))
        mean = np.concatenate([forces[place] for place in places]).mean()
        assert own["force_rmse_ev_per_ang"] == pytest.approx(np.sqrt(mean))
    assert [by_system[name]["n_structures_with_stress"] for name in parts] == [1, 1]
    assert errors_by_system(structures[:3], evaluation([3, 1, 4])) == {}


def test_levels_of_normal_errors_are_uniform() -> None:
    found = evaluation([20] * 500)
    for error, bound, components in (
        (found.atomic_error, found.atomic_uncertainty, 3),
        (found.total_error, found.uncertainty, 1),
    ):
        levels = confidence_levels(error, bound, 0.1, components)
        assert scipy.stats.kstest(levels, "uniform").pvalue > 0.01
        assert np.mean(levels <= 0.9) == np.mean(error <= bound)
        assert miscalibration_area(levels) < 0.03
        wrong = miscalibration_area(confidence_levels(error, 3 * bound, 0.1, components))
        assert 0.2 < wrong < 0.5
    assert confidence_levels([0, 1, 1], [0, 0, np.inf], 0.1, 1).tolist() == [0, 1, 0]
    assert confidence_levels([2.0], [2.0], 0.3, 3) == pytest.approx([0.7])


@pytest.mark.parametrize("n", [1, 2, 7, 400])
def test_area_is_the_integral(n: int) -> None:
    rng = np.random.default_rng(n)
    for levels in (rng.random(n), rng.random(n) ** 3, np.repeat(rng.random(), n)):
        p = (np.arange(200_000) + 0.5) / 200_000
        curve = np.searchsorted(np.sort(levels), p, side="right") / n
        assert miscalibration_area(levels) == pytest.approx(np.abs(curve - p).mean(), abs=1e-5)
    assert miscalibration_area(np.zeros(n)) == miscalibration_area(np.ones(n)) == 0.5
    # in the middle of n equal steps: 2 n triangles of sides 1 / (2 n)
    assert miscalibration_area((np.arange(n) + 0.5) / n) == pytest.approx(1 / (4 * n))


def test_correlations_are_scipys() -> None:
    rng = np.random.default_rng(0)
    for u in (rng.random(60), rng.integers(4, size=60).astype(float)):
        e = u * rng.random(60)
        pearson, spearman = correlations(u, e)
        assert pearson == pytest.approx(scipy.stats.pearsonr(u, e).statistic, abs=1e-9)
        assert spearman == pytest.approx(scipy.stats.spearmanr(u, e).statistic, abs=1e-5)
    assert correlations([1.0], [2.0]) == correlations([1, 1, 1], [1, 2, 3]) == (None, None)
    assert correlations([1, np.inf], [1, 2]) == (None, None)


def test_metrics_of_uncertainties() -> None:
    found = evaluation([5, 9, 3] * 20)
    metrics = uncertainty_metrics(found, 0.1)
    assert metrics["pearson_atom"] == pytest.approx(
        scipy.stats.pearsonr(found.atomic_uncertainty, found.atomic_error).statistic
    )
    assert metrics["spearman_total"] == pytest.approx(
        scipy.stats.spearmanr(found.uncertainty, found.total_error).statistic, abs=1e-5
    )
    # the standard deviations that errors were drawn with
    sigma = found.atomic_uncertainty / np.sqrt(scipy.stats.chi2.ppf(0.9, 3) / 3)
    total = 1e3 * found.uncertainty / scipy.stats.norm.ppf(0.95)
    assert metrics["sharpness_atom_ev_per_ang"] == pytest.approx(np.sqrt(np.mean(sigma**2)))
    assert metrics["sharpness_total_mev_per_atom"] == pytest.approx(np.sqrt(np.mean(total**2)))
    assert metrics["miscalibration_area_atom"] < 0.05
    figure = calibration_curves(found, 0.1)
    (shares,) = [p.get_data() for p in figure.axes[0].patches if "forces" in str(p.get_label())]
    assert shares.values[-1] == 1
    assert len(shares.values) == len(found.numbers) + 1


@pytest.mark.parametrize("stress", [True, False])
def test_errors_of_all_kinds(stress: bool) -> None:
    found = evaluation([5, 9, 3], stress=stress)
    metrics = error_metrics(found)
    force = np.abs(found.forces[0] - found.forces[1])
    parts = {
        "energy_{}_mev_per_atom": 1e3 * found.total_error,
        "force_{}_ev_per_ang": force,
        **({"stress_{}_mpa": (found.stress[0] - found.stress[1])[1:] / MPA} if found.stress is not None else {}),
    }
    for name, errors in parts.items():
        expected = {"mae": np.abs(errors).mean(), "rmse": np.sqrt((errors**2).mean()), "max": np.abs(errors).max()}
        for kind, value in expected.items():
            assert metrics[name.format(kind)] == pytest.approx(value, rel=1e-12)
    for symbol, number in (("H", 1), ("O", 8)):
        errors = force[found.numbers == number]
        assert metrics["force_mae_ev_per_ang_by_species"][symbol] == pytest.approx(errors.mean())
        assert metrics["force_rmse_ev_per_ang_by_species"][symbol] == pytest.approx(np.sqrt((errors**2).mean()))
        assert metrics["force_max_ev_per_ang_by_species"][symbol] == errors.max()
    assert stress == any(name.startswith("stress") for name in metrics)
    assert errors_table({"a": metrics | uncertainty_metrics(found, 0.1), "b": metrics}).row_count > 10


def test_errors_by_volume(tmp_path: Path) -> None:
    lengths = [3.5, 3.6, 3.6, 3.65, 4.0]
    structures = [bulk("Cu", cubic=True, a=a) for a in lengths]
    found = evaluation([4] * 5)
    rows = errors_by_variable(found, structures, {"volume": Volume()})["volume"]
    edges, volumes = rows["edges"], np.array(lengths) ** 3
    np.testing.assert_allclose(edges, np.linspace(volumes.min(), volumes.max(), 9))
    squares = (found.total_error * 1e3) ** 2
    for k in range(8):
        inside = [edges[k] <= v < edges[k + 1] or (k == 7 and v > edges[7]) for v in volumes]
        assert rows["n_structures"][k] == sum(inside)
        value = rows["energy_rmse_mev_per_atom"][k]
        assert value == (pytest.approx(np.sqrt(squares[inside].mean())) if any(inside) else None)
    assert sum(rows["n_structures"]) == 5
    assert rows["stress_rmse_mpa"][0] is None, "its only structure has no stress"
    assert draw_by_variable(found, structures, {"volume": Volume()}, tmp_path) == ["error_by_volume.png"]
    assert (tmp_path / "error_by_volume.png").stat().st_size > 0


def test_errors_by_a_torsion_and_by_what_does_not_change() -> None:
    """A whole period is the range, whose end is its beginning; of equal values there is one range."""
    planar = Atoms("HOOH", positions=[[0, 1, 0], [0, 0, 0], [1, 0, 0], [1, -1, 0]])
    found = evaluation([4] * 2, stress=False)
    rows = errors_by_variable(found, [planar, planar], {"phi": Torsion(atoms=[0, 1, 2, 3])})["phi"]
    assert rows["edges"][0] == pytest.approx(-np.pi)
    assert len(rows["edges"]) == 9
    assert sum(rows["n_structures"]) == 2
    crystal = bulk("Cu", cubic=True)
    rows = errors_by_variable(found, [crystal, crystal], {"volume": Volume()})["volume"]
    assert rows["n_structures"] == [2]
    assert "stress_rmse_mpa" not in rows
