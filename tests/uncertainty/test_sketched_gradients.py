from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor

from ubmd.data.batch import AtomicBatch, collate
from ubmd.errors import InputError
from ubmd.models.base import AtomicOutput
from ubmd.models.gmnn import GMNN
from ubmd.models.readout import Readout, ReadoutTrace
from ubmd.uncertainty import SketchedGradients


def shown(trace: ReadoutTrace) -> AtomicOutput:
    return AtomicOutput(trace.output, trace.inputs[-1], trace)


@pytest.fixture
def readout() -> Readout:
    readout = Readout(5, (7, 6), generator=torch.Generator().manual_seed(1)).double()
    for bias in readout.biases:
        torch.nn.init.normal_(bias)
    return readout


def parameter_gradients(readout: Readout, x: Tensor) -> list[Tensor]:
    """Per layer dy_i/d(W, b) [n, d_out, d_in + 1], atom by atom by automatic differentiation."""
    rows = []
    for row in x:
        parameters = [*readout.weights, *readout.biases]
        gradients = torch.autograd.grad(readout(row[None]).output.sum(), parameters)
        weights, biases = gradients[: len(readout.weights)], gradients[len(readout.weights) :]
        rows.append([torch.cat([w, b[:, None]], 1) for w, b in zip(weights, biases, strict=True)])
    return [torch.stack(layer) for layer in zip(*rows, strict=True)]


def test_equals_explicit_gradients_times_explicit_sketch(readout: Readout) -> None:
    """Eq. 20 is Eq. 19 with the rows of U made of outer products, one a layer."""
    features = SketchedGradients(readout.layer_sizes, n_projections=11, seed=3).double()
    x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    sketch = torch.cat(
        [(outer[:, :, None] * inner[:, None, :]).flatten(1) for inner, outer in features.projections], dim=1
    )
    gradients = torch.cat([g.flatten(1) for g in parameter_gradients(readout, x)], dim=1)
    assert gradients.shape[1] == sum(p.numel() for p in readout.parameters())
    expected = gradients @ sketch.T
    torch.testing.assert_close(features(shown(readout(x))), expected, rtol=1e-10, atol=1e-10)


def test_inner_products_are_those_of_the_gradients_on_average(readout: Readout) -> None:
    """E[phi . phi'] / P is the inner product of the gradients: every layer and the bias count."""
    features = SketchedGradients(readout.layer_sizes, n_projections=16_000).double()
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    gradients = torch.cat([g.flatten(1) for g in parameter_gradients(readout, x)], dim=1)
    exact = gradients @ gradients.T
    phi = features(shown(readout(x)))
    products = phi[:, None] * phi[None]
    error = (products.mean(2) - exact).abs() / (products.std(2) / 16_000**0.5)
    assert error.max() < 4.5, "the sketch is biased"


def test_depends_on_the_seed_alone() -> None:
    sizes = [(3, 2), (2, 1)]
    first = SketchedGradients(sizes, 4, seed=5)
    torch.manual_seed(99)
    again = SketchedGradients(sizes, 4, seed=5)
    other = SketchedGradients(sizes, 4, seed=6)
    try:
        torch.set_default_dtype(torch.float64)
        precise = SketchedGradients(sizes, 4, seed=5)
    finally:
        torch.set_default_dtype(torch.float32)
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
        assert torch.equal(value, precise.state_dict()[key].float())
        assert not torch.equal(value, other.state_dict()[key])


def test_matrices_are_standard_normal_and_independent() -> None:
    features = SketchedGradients([(300, 300), (300, 1)], n_projections=300)
    (inner, outer), (inner_2, _) = features.projections
    for matrix in (inner, outer, inner_2):
        assert matrix.mean().abs() < 5 / matrix.numel() ** 0.5
        assert (matrix.square().mean() - 1).abs() < 5 * (2 / matrix.numel()) ** 0.5
    for a, b in ((inner[:, :300], outer), (inner, inner_2), (inner[:, 1:], inner[:, :-1])):
        assert (a * b).mean().abs() < 5 / a.numel() ** 0.5


def test_no_projections_are_refused() -> None:
    with pytest.raises(InputError, match=r"n_projections.*0"):
        SketchedGradients([(3, 1)], n_projections=0)
    assert SketchedGradients([(3, 1)], n_projections=1).n_features == 1


def molecule() -> Atoms:
    rng = np.random.default_rng(0)
    return Atoms("OCHHN", positions=1.5 * rng.normal(size=(5, 3)) + 2 * np.arange(5)[:, None] / 3)


def model_features(atoms: Atoms) -> Tensor:
    model = GMNN(["H", "C", "N", "O"], n_basis=3, hidden=(16, 16), seed=1).double()
    features = SketchedGradients(model.readout.layer_sizes, n_projections=20).double()
    batch = collate([atoms], model.cutoff, dtype=torch.float64)
    return features(model(batch.vectors(), batch)).detach()


def test_invariant_under_motion_and_permutation() -> None:
    atoms = molecule()
    before = model_features(atoms)
    moved = atoms.copy()
    moved.rotate(71, (1, 2, -1))
    moved.positions = moved.positions * [1, 1, -1] + [3.0, -2.0, 8.0]
    torch.testing.assert_close(model_features(moved), before, rtol=1e-9, atol=1e-9)
    order = [3, 1, 4, 0, 2]
    torch.testing.assert_close(model_features(atoms[order]), before[order], rtol=1e-9, atol=1e-9)
    assert (before[2] - before[3]).norm() > 1e-3 * before[2].norm(), "atoms must differ for this to mean much"


def test_differentiable_by_pair_vectors() -> None:
    model = GMNN(["H", "C", "N", "O"], n_basis=3, hidden=(16, 16), seed=1).double()
    features = SketchedGradients(model.readout.layer_sizes, n_projections=6).double()
    batch: AtomicBatch = collate([molecule()[:3]], model.cutoff, dtype=torch.float64)

    def function(positions: Tensor) -> Tensor:
        moved = replace(batch, positions=positions)
        return features(model(moved.vectors(), moved))

    assert torch.autograd.gradcheck(function, batch.positions.clone().requires_grad_(), atol=1e-6, rtol=1e-5)
