from __future__ import annotations

import io
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.uncertainty.test_feature_uncertainty import batch_of, explicit_features
from ubmd.bias.biased import BiasedPotential
from ubmd.data.batch import AtomicBatch
from ubmd.models.gmnn import GMNN
from ubmd.models.potential import Potential, differentiate
from ubmd.uncertainty import DistanceUncertainty, FeaturesFactory, FullGradients, LastLayer, SketchedGradients

FEATURES: dict[str, FeaturesFactory] = {
    "sketched": partial(SketchedGradients, n_projections=12),
    "last layer": LastLayer,
    "full": FullGradients,
}


@pytest.fixture
def model() -> GMNN:
    return GMNN(["H", "C", "O"], n_basis=2, hidden=(8, 8), seed=1).double()


def fitted(model: GMNN, features: FeaturesFactory, max_points: int | None = None) -> DistanceUncertainty:
    uncertainty = DistanceUncertainty(features, model, max_points=max_points)
    uncertainty.fit(model, (batch_of(model, sizes, seed=s) for s, sizes in enumerate([[3, 6, 4], [5]], start=1)))
    return uncertainty


def evaluate(uncertainty: DistanceUncertainty, model: GMNN, batch: AtomicBatch) -> tuple[Tensor, Tensor, Tensor]:
    output, vectors = Potential(model).atoms(batch)
    return *uncertainty(model, output, vectors, batch), vectors


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES.keys())
def test_equals_brute_force_for_structures_of_different_sizes(model: GMNN, features: FeaturesFactory) -> None:
    uncertainty = fitted(model, features)
    uncertainty.atomic_scale.copy_(torch.arange(119))
    uncertainty.total_scale.fill_(2.0)
    test = batch_of(model, [4, 7, 2], seed=3)
    train = [
        p for s, n in ((1, [3, 6, 4]), (2, [5])) for p in explicit_features(uncertainty, model, batch_of(model, n, s))
    ]  # pyright: ignore
    atoms = explicit_features(uncertainty, model, test)  # pyright: ignore[reportArgumentType]
    total, atomic, _ = evaluate(uncertainty, model, test)
    expected = torch.stack([(torch.cat(train) - phi).norm(dim=1).min() for phi in torch.cat(atoms)])
    torch.testing.assert_close(atomic, test.numbers * expected)
    means = torch.stack([phi.mean(0) for phi in train])
    torch.testing.assert_close(total, 2 * torch.stack([(means - phi.mean(0)).norm(dim=1).min() for phi in atoms]))


def test_total_knows_all_structures_whatever_the_limit_for_atoms(model: GMNN) -> None:
    features, test = FEATURES["sketched"], batch_of(model, [4, 7, 2], seed=3)
    exact, limited = fitted(model, features), fitted(model, features, max_points=3)
    assert len(limited.atomic.points) == 3
    assert torch.equal(evaluate(exact, model, test)[0], evaluate(limited, model, test)[0])
    assert (evaluate(limited, model, test)[1] > evaluate(exact, model, test)[1]).any()


@pytest.mark.parametrize("which", [0, 1])
def test_gradient_against_differences(model: GMNN, which: int) -> None:
    uncertainty, batch = fitted(model, FEATURES["sketched"]), batch_of(model, [5, 4], seed=7)

    def value(positions: Tensor) -> tuple[Tensor, Tensor]:
        found = evaluate(uncertainty, model, batch.replace(positions=positions))
        return (found[0] if which == 0 else batch.sum_atoms(found[1])), found[2]

    slope, _ = differentiate(*value(batch.positions), batch)
    direction = torch.randn(batch.positions.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ahead, behind = (value(batch.positions + h * direction)[0].detach() for h in (1e-6, -1e-6))
    expected = batch.sum_atoms((slope * direction).sum(1))
    torch.testing.assert_close((ahead - behind) / 2e-6, expected, rtol=1e-5, atol=1e-7)


def test_biases_walkers(model: GMNN) -> None:
    uncertainty, batch = fitted(model, FEATURES["last layer"]), batch_of(model, [5, 4], seed=7)
    found = BiasedPotential(Potential(model), uncertainty, tau=0.5, rescale=False)(batch)
    total, _, vectors = evaluate(uncertainty, model, batch)
    torch.testing.assert_close(
        found.forces, Potential(model)(batch).forces + 0.5 * differentiate(total, vectors, batch)[0]
    )


def test_state_round_trip(model: GMNN) -> None:
    uncertainty, batch = fitted(model, FEATURES["sketched"], max_points=7), batch_of(model, [3, 4], seed=9)
    uncertainty.atomic_scale.fill_(7.0)
    file = io.BytesIO()
    torch.save(uncertainty.state_dict(), file)
    file.seek(0)
    restored = DistanceUncertainty(FEATURES["sketched"], model, max_points=7, seed=2)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for a, b in zip(evaluate(restored, model, batch)[:2], evaluate(uncertainty, model, batch)[:2], strict=True):
        assert torch.equal(a, b)
