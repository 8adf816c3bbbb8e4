from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor

from ubmd.errors import InputError
from ubmd.uncertainty import Posterior


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def dense_covariance(train: Tensor, a: Tensor, b: Tensor, regularisation: float) -> Tensor:
    """Eq. 25 as it is written, after rescaling to a mean squared norm of 1."""
    factor = train.square().sum(1).mean().sqrt()
    train, a, b = train / factor, a / factor, b / factor
    eye = torch.eye(train.shape[1], dtype=train.dtype)
    return regularisation**2 * a @ torch.linalg.inv(train.T @ train + regularisation**2 * eye) @ b.T


@pytest.mark.parametrize(("n_train", "regularisation"), [(50, 0.01), (50, 0.7), (3, 0.01), (3, 0.1)])
def test_equals_dense_formula(n_train: int, regularisation: float) -> None:
    train, features, others = 30 * normal(n_train, 6), 30 * normal(9, 6, seed=1), 30 * normal(4, 6, seed=2)
    posterior = Posterior(6, regularisation).double()
    posterior.fit(train)
    expected = dense_covariance(train, features, features, regularisation).diagonal().sqrt()
    torch.testing.assert_close(posterior(features), expected, rtol=1e-10, atol=1e-10)
    covariance = posterior.whiten(features) @ posterior.whiten(others).T
    dense = dense_covariance(train, features, others, regularisation)
    torch.testing.assert_close(covariance, dense, rtol=1e-10, atol=1e-10)


def test_unit_is_the_training_features_root_mean_square_norm() -> None:
    """A direction never seen keeps its rescaled norm; a common factor of all features drops out."""
    train = torch.zeros(8, 4, dtype=torch.float64)
    train[:, :2] = 5 * normal(8, 2)
    posterior = Posterior(4).double()
    posterior.fit(train)
    unseen = torch.tensor([[0.0, 0.0, 3.0, 4.0]], dtype=torch.float64)
    norm = train.square().sum(1).mean().sqrt()
    torch.testing.assert_close(posterior(unseen), 5 / norm[None])
    features = normal(3, 4, seed=1)
    before = posterior(features)
    posterior.fit(1000 * train)
    torch.testing.assert_close(posterior(1000 * features), before)


def test_seen_less_uncertain_than_unseen() -> None:
    train = normal(5, 40)
    posterior = Posterior(40).double()
    posterior.fit(train)
    assert posterior(train).max() < 0.02 * posterior(normal(20, 40, seed=1)).min()


def test_fit_of_parts_equals_fit() -> None:
    train = normal(30, 5)
    whole, parts = Posterior(5).double(), Posterior(5).double()
    whole.fit(train)
    parts.fit_chunks(part for part in (train[:10], train[10:]))
    torch.testing.assert_close(parts.whitening, whole.whitening, rtol=1e-9, atol=1e-12)


def test_gradient_is_finite_at_zero() -> None:
    posterior = Posterior(5).double()
    posterior.fit(normal(30, 5))
    features = normal(3, 5, seed=1)
    features[1] = 0
    features.requires_grad_()
    posterior(features).sum().backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()
    assert (features.grad[1] == 0).all()
    assert (features.grad[0] != 0).all()


def test_non_finite_rows_stay_alone() -> None:
    posterior = Posterior(5).double()
    posterior.fit(normal(30, 5))
    features = normal(3, 5, seed=1)
    expected = posterior(features)
    features[1] = torch.nan
    out = posterior(features)
    assert torch.equal(out[[0, 2]], expected[[0, 2]])
    assert out[1].isnan()


def test_state_round_trip() -> None:
    posterior = Posterior(5)
    posterior.fit(normal(30, 5, dtype=torch.float32))
    file = io.BytesIO()
    torch.save(posterior.state_dict(), file)
    file.seek(0)
    restored = Posterior(5)
    restored.load_state_dict(torch.load(file, weights_only=True))
    features = normal(4, 5, seed=1, dtype=torch.float32)
    assert torch.equal(restored(features), posterior(features))
    unfitted = Posterior(5)
    restored.load_state_dict(unfitted.state_dict())
    with pytest.raises(RuntimeError, match="not been fitted"):
        restored(features)


def test_before_fit() -> None:
    with pytest.raises(RuntimeError, match="not been fitted"):
        Posterior(3)(torch.ones(1, 3))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_regularisation(value: float) -> None:
    with pytest.raises(InputError, match="regularisation"):
        Posterior(3, value)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(0, 3), "at least one"),
        (torch.zeros(4, 3), "norm 0.0"),
        (torch.full((4, 3), torch.nan), "norm nan"),
    ],
)
def test_bad_features(features: Tensor, message: str) -> None:
    posterior = Posterior(3)
    with pytest.raises(InputError, match=message):
        posterior.fit(features)
    assert not posterior.fitted


def test_numerically_singular() -> None:
    with pytest.raises(InputError, match=r"regularisation=1e-30 is too small"):
        Posterior(6, 1e-30).double().fit(normal(2, 6))
