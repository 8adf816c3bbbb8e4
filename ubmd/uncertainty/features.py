"""Features of an atom: how the model's output reacts to its parameters (Eqs. 17-21)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ubmd.errors import InputError
from ubmd.models.base import AtomicOutput, Layers

__all__ = ["FullGradients", "LastLayer", "SketchedGradients"]

MOST_PROJECTIONS = 16384
"""Of a sketch; the Gram matrix of the features has the second power of them."""


class SketchedGradients(nn.Module):
    """Tensor-sketched gradients of the atomic output with respect to weights and biases (Eq. 20).

    A layer's gradient is an outer product (dz^L/dz^(l+1)) (x) (x^(l), c), for GM-NN (x^(l) / sqrt(d_l), 0.1), so
    a random projection made of outer products needs only the projections of the two factors. The random matrices
    are buffers: they are saved with the model, without which its uncertainties would mean nothing.

    Args:
        layer_sizes: (d_l, d_(l+1)) of every layer.
        n_projections: number of random projections.
        seed: of the random matrices, which depend on nothing else (not on the default dtype either).

    Raises:
        InputError: if ``n_projections`` is not positive.
    """

    needs_layers = True

    def __init__(self, layer_sizes: Sequence[tuple[int, int]], n_projections: int = 512, seed: int = 0):
        super().__init__()
        _check_projections(n_projections)
        self.n_features = n_projections
        self.n_layers = len(layer_sizes)
        generator = torch.Generator().manual_seed(seed)
        for layer, (n_in, n_out) in enumerate(layer_sizes):
            self.register_buffer(f"inner_{layer}", _normal(n_projections, n_in + 1, generator))
            self.register_buffer(f"outer_{layer}", _normal(n_projections, n_out, generator))

    @property
    def projections(self) -> list[tuple[Tensor, Tensor]]:
        """Per layer U_in [n_projections, d_l + 1] (the last column meets the bias) and U_out [., d_(l+1)]."""
        return [(self.get_buffer(f"inner_{k}"), self.get_buffer(f"outer_{k}")) for k in range(self.n_layers)]

    def forward(self, output: AtomicOutput) -> Tensor:
        """Features phi_i [n_atoms, n_projections] of the atoms of a model's output."""
        features: Tensor | None = None
        layers = _layers(output)
        parts = zip(self.projections, layers.inputs, layers.biases, layers.output_gradients(), strict=True)
        for (inner, outer), x, bias, gradient in parts:
            term = (gradient @ outer.T) * _project(x, bias, inner)
            features = term if features is None else features + term
        assert features is not None, "a network has at least one layer"
        return features


class LastLayer(nn.Module):
    """Inputs of the last layer with its bias, for GM-NN (x^(L-1) / sqrt(d_(L-1)), 0.1): the gradient of the output
    with respect to the last layer's weights and bias (last term of Eq. 18). Of a model that shows no layers its
    features, followed by 1.

    Args:
        layer_sizes: (d_l, d_(l+1)) of every layer.
        n_projections: number of random projections (Eq. 19, standard normal), for wide layers; None takes
            the features as they are.
        seed: of the random matrix; without projections nothing is random.

    Raises:
        InputError: if ``n_projections`` is not positive.
    """

    needs_layers = False
    sketch: Tensor | None

    def __init__(self, layer_sizes: Sequence[tuple[int, int]], n_projections: int | None = None, seed: int = 0):
        super().__init__()
        width = layer_sizes[-1][0] + 1
        self.n_features = width if n_projections is None else n_projections
        sketch = None
        if n_projections is not None:
            _check_projections(n_projections)
            sketch = _normal(n_projections, width, torch.Generator().manual_seed(seed))
        self.register_buffer("sketch", sketch)

    def forward(self, output: AtomicOutput) -> Tensor:
        """Features phi_i [n_atoms, n_features] of the atoms of a model's output."""
        layers = output.layers
        if layers is not None:
            x, bias = layers.inputs[-1], layers.biases[-1]
        elif output.features is not None:
            x, bias = output.features, 1.0
        else:
            raise InputError("the model gives no features with this output, although it has n_features")
        return _with_bias(x, bias) if self.sketch is None else _project(x, bias, self.sketch)


class FullGradients(nn.Module):
    """All gradients of the atomic output with respect to weights and biases (Eq. 18), nothing sketched.

    As wide as the network has parameters, so for small networks only: to see what a sketch loses.

    Args:
        layer_sizes: (d_l, d_(l+1)) of every layer.
        seed: of nothing; features of all kinds are called alike.
    """

    needs_layers = True

    def __init__(self, layer_sizes: Sequence[tuple[int, int]], seed: int = 0):
        super().__init__()
        self.n_features = sum((n_in + 1) * n_out for n_in, n_out in layer_sizes)

    def forward(self, output: AtomicOutput) -> Tensor:
        """Features phi_i [n_atoms, n_features]: layer by layer dy/d(W, b) [d_(l+1), d_l + 1], row by row."""
        layers = _layers(output)
        parts = zip(layers.inputs, layers.biases, layers.output_gradients(), strict=True)
        return torch.cat([(g[:, :, None] * _with_bias(x, bias)[:, None]).flatten(1) for x, bias, g in parts], dim=1)


def _layers(output: AtomicOutput) -> Layers:
    if output.layers is None:
        raise InputError("the model gives no layers with this output, although it has layer_sizes")
    return output.layers


def _with_bias(x: Tensor, bias: float) -> Tensor:
    """Eq. 17's x~ [n, d + 1] of a layer's input [n, d] and the factor of its biases."""
    return torch.cat([x, torch.full_like(x[:, :1], bias)], dim=1)


def _project(x: Tensor, bias: float, matrix: Tensor) -> Tensor:
    """``matrix`` [p, d + 1] times x~ of :func:`_with_bias`, [n, p]."""
    # the constant that x~ ends with only ever adds a constant vector
    return torch.addmm(bias * matrix[:, -1], x, matrix[:, :-1].T)


def _normal(n_projections: int, width: int, generator: torch.Generator) -> Tensor:
    """Standard normal numbers [n_projections, width], the same whatever the default dtype is."""
    values = torch.randn(n_projections, width, generator=generator, dtype=torch.float64)
    return values.to(torch.get_default_dtype())


def _check_projections(n_projections: int) -> None:
    if not 1 <= n_projections <= MOST_PROJECTIONS:
        raise InputError(f"features.n_projections={n_projections} must be from 1 to {MOST_PROJECTIONS}")
