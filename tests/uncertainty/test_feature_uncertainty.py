from __future__ import annotations

import io
from functools import partial

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor, nn

from ubmd.bias.biased import BiasedPotential
from ubmd.data.batch import AtomicBatch, collate
from ubmd.errors import InputError
from ubmd.models.gmnn import GMNN
from ubmd.models.potential import Potential
from ubmd.uncertainty import (
    CalibrationData,
    ConformalCalibration,
    FeatureUncertainty,
    LastLayer,
    SketchedGradients,
    calibrate,
)

N_PROJECTIONS = 12


def structures(sizes: list[int], seed: int) -> list[Atoms]:
    rng = np.random.default_rng(seed)
    return [
        Atoms(
            ("HCO" * n)[:n],
            positions=1.1 * np.arange(n)[:, None] ** [1, 0.5, 0] + 0.2 * rng.normal(size=(n, 3)),
        )
        for n in sizes
    ]


@pytest.fixture
def model() -> GMNN:
    return GMNN(["H", "C", "O"], n_basis=2, hidden=(8, 8), seed=1).double()


def batch_of(model: GMNN, sizes: list[int], seed: int = 0) -> AtomicBatch:
    return collate(structures(sizes, seed), model.cutoff, dtype=torch.float64)


def new(model: GMNN, seed: int = 0, regularisation: float = 0.01) -> FeatureUncertainty:
    features = partial(SketchedGradients, n_projections=N_PROJECTIONS)
    return FeatureUncertainty(features, model, seed=seed, regularisation=regularisation)


def evaluate(uncertainty: FeatureUncertainty, model: GMNN, batch: AtomicBatch) -> tuple[Tensor, Tensor]:
    vectors = batch.vectors()
    with torch.no_grad():
        return uncertainty(model, model(vectors, batch), vectors, batch)


def explicit_features(uncertainty: FeatureUncertainty, model: GMNN, batch: AtomicBatch) -> list[Tensor]:
    """Atomic features of each structure computed alone."""
    out = []
    for index in range(batch.n_systems):
        alone = batch.select(torch.tensor([index]))
        with torch.no_grad():
            out.append(uncertainty.features(model(alone.vectors(), alone)))
    return out


def dense(train: Tensor, phi: Tensor, regularisation: float) -> Tensor:
    factor = train.square().sum(1).mean().sqrt()
    train, phi = train / factor, phi / factor
    matrix = train.T @ train + regularisation**2 * torch.eye(train.shape[1], dtype=train.dtype)
    return (regularisation**2 * (phi @ torch.linalg.inv(matrix) * phi).sum(1)).sqrt()


def test_equals_dense_formula_for_structures_of_different_sizes(model: GMNN) -> None:
    uncertainty = new(model, regularisation=0.1)
    parts = [batch_of(model, [3, 6, 4], seed=1), batch_of(model, [5], seed=2)]
    test = batch_of(model, [4, 7, 2], seed=3)
    uncertainty.fit(model, parts)
    train = [phi for part in parts for phi in explicit_features(uncertainty, model, part)]
    atoms = explicit_features(uncertainty, model, test)
    total, atomic = evaluate(uncertainty, model, test)
    expected_atomic = dense(torch.cat(train), torch.cat(atoms), 0.1)
    means = torch.stack([phi.mean(0) for phi in atoms])
    expected_total = dense(torch.stack([phi.mean(0) for phi in train]), means, 0.1)
    torch.testing.assert_close(atomic, expected_atomic, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(total, expected_total, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(uncertainty.total_features(model, test), means)


def test_follows_dtype_of_the_model(model: GMNN) -> None:
    uncertainty = new(model)
    assert {b.dtype for b in uncertainty.buffers()} == {torch.float64}
    assert not list(uncertainty.parameters()), "the model must not be a part of it"


def test_state_round_trip(model: GMNN) -> None:
    uncertainty, batch = new(model, seed=1), batch_of(model, [3, 4])
    uncertainty.fit(model, [batch])
    uncertainty.total_scale.fill_(3.0)
    uncertainty.atomic_scale.fill_(7.0)
    file = io.BytesIO()
    torch.save(uncertainty.state_dict(), file)
    file.seek(0)
    restored = new(model, seed=2)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for a, b in zip(evaluate(restored, model, batch), evaluate(uncertainty, model, batch), strict=True):
        assert torch.equal(a, b)


def test_before_fit(model: GMNN) -> None:
    with pytest.raises(RuntimeError, match="not been fitted"):
        evaluate(new(model), model, batch_of(model, [3]))


def test_model_without_readout() -> None:
    with pytest.raises(InputError, match="the model Linear shows no features"):
        FeatureUncertainty(SketchedGradients, nn.Linear(2, 2))
    model = nn.Linear(2, 2)
    model.n_features = 5  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="the model Linear shows no layers"):
        FeatureUncertainty(SketchedGradients, model)
    assert FeatureUncertainty(LastLayer, model).n_features == 6


def test_calibrated_uncertainties_cover_the_errors(model: GMNN) -> None:
    """Prediction, errors, factors: afterwards exactly k of n errors lie within their uncertainty."""
    uncertainty = new(model, regularisation=0.1)
    uncertainty.fit(model, [batch_of(model, [4, 5], seed=1)])
    potential = BiasedPotential(Potential(model), uncertainty, tau=0)
    batch = batch_of(model, [4, 5, 3] * 7, seed=2)
    generator = torch.Generator().manual_seed(0)
    labels = {
        "energy": torch.randn(batch.n_systems, generator=generator, dtype=torch.float64),
        "forces": torch.randn(len(batch.numbers), 3, generator=generator, dtype=torch.float64),
    }
    batch = batch.replace(**labels)
    halves = [batch.select(torch.arange(0, 10)), batch.select(torch.arange(10, 21))]
    data = CalibrationData.cat([CalibrationData.of(potential(half), half) for half in halves])
    calibrate(uncertainty, data, atomic=ConformalCalibration(0.2), total=ConformalCalibration(0.1))
    prediction = potential(batch)
    assert prediction.uncertainty is not None
    assert prediction.atomic_uncertainty is not None
    error = (prediction.energy - labels["energy"]).abs() / batch.n_atoms
    # 22 * 0.9 = 19.8; the k-th ratio itself lies on the edge
    assert (error <= prediction.uncertainty * (1 + 1e-9)).sum() == 20
    force_error = ((prediction.forces - labels["forces"]).square().sum(1) / 3).sqrt()
    n_atoms = len(batch.numbers)
    assert (force_error <= prediction.atomic_uncertainty * (1 + 1e-9)).sum() == np.ceil(0.8 * (n_atoms + 1))
    uncertainty.fit(model, [batch])
    assert uncertainty.total_scale == 1
    assert (uncertainty.atomic_scale == 1).all()


def test_calibration_data_needs_labels_and_uncertainties(model: GMNN) -> None:
    batch = batch_of(model, [3])
    prediction = Potential(model)(batch)
    with pytest.raises(InputError, match="labels"):
        CalibrationData.of(prediction, batch)
    labelled = batch.replace(energy=prediction.energy, forces=prediction.forces)
    with pytest.raises(InputError, match="uncertainties"):
        CalibrationData.of(prediction, labelled)
