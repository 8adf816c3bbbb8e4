from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ubmd.errors import InputError
from ubmd.models.base import AtomicOutput
from ubmd.models.readout import Readout, ReadoutTrace
from ubmd.uncertainty import FullGradients, LastLayer, SketchedGradients


def shown(trace: ReadoutTrace) -> AtomicOutput:
    return AtomicOutput(trace.output, trace.inputs[-1], trace)


@pytest.fixture
def readout() -> Readout:
    readout = Readout(5, (7, 6), generator=torch.Generator().manual_seed(1)).double()
    for bias in readout.biases:
        torch.nn.init.normal_(bias)
    return readout


def inputs(n: int = 4) -> Tensor:
    return torch.randn(n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def automatic(readout: Readout, x: Tensor, layer: int) -> Tensor:
    """dy_i/d(W, b) of one layer [n, d_out * (d_in + 1)], atom by atom by automatic differentiation."""
    rows = []
    for row in x:
        weight, bias = torch.autograd.grad(
            readout(row[None]).output.sum(), [readout.weights[layer], readout.biases[layer]]
        )
        rows.append(torch.cat([weight, bias[:, None]], 1).flatten())
    return torch.stack(rows)


def test_last_layer_is_the_gradient_by_its_parameters(readout: Readout) -> None:
    features = LastLayer(readout.layer_sizes)
    found = features(shown(readout(inputs())))
    assert features.n_features == found.shape[1] == 7
    torch.testing.assert_close(found, automatic(readout, inputs(), 2), rtol=1e-12, atol=1e-12)
    assert not list(features.buffers())


def test_full_gradients_are_those_of_all_parameters(readout: Readout) -> None:
    features = FullGradients(readout.layer_sizes)
    found = features(shown(readout(inputs())))
    expected = torch.cat([automatic(readout, inputs(), layer) for layer in range(3)], dim=1)
    assert features.n_features == found.shape[1] == sum(p.numel() for p in readout.parameters())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_sketches_keep_inner_products(readout: Readout) -> None:
    """Both sketches, divided by the number of projections, estimate inner products of what they sketch."""
    trace = readout(inputs())
    for sketched, exact in (
        (SketchedGradients(readout.layer_sizes, 16_000), FullGradients(readout.layer_sizes)),
        (LastLayer(readout.layer_sizes, 16_000), LastLayer(readout.layer_sizes)),
    ):
        phi, full = sketched.double()(shown(trace)), exact(shown(trace))
        assert phi.shape[1] == sketched.n_features == 16_000
        products = phi[:, None] * phi[None]
        error = (products.mean(2) - full @ full.T).abs() / (products.std(2) / 16_000**0.5)
        assert error.max() < 4.5


def test_sketch_of_the_last_layer_depends_on_the_seed(readout: Readout) -> None:
    sizes = readout.layer_sizes
    first, again, other = LastLayer(sizes, 3, seed=1), LastLayer(sizes, 3, seed=1), LastLayer(sizes, 3, seed=2)
    assert first.sketch is not None
    assert again.sketch is not None
    assert torch.equal(first.sketch, again.sketch)
    other.load_state_dict(first.state_dict())
    trace = readout(inputs())
    assert torch.equal(other.double()(shown(trace)), first.double()(shown(trace)))


def test_no_projections_are_refused() -> None:
    with pytest.raises(InputError, match=r"n_projections.*0"):
        LastLayer([(3, 1)], n_projections=0)
    assert LastLayer([(3, 1)], n_projections=1).n_features == 1
