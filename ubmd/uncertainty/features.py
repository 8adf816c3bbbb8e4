"""Features of an atom: how the network's output reacts to its parameters (Eqs. 17-21)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ubmd.errors import InputError
from ubmd.models.readout import BIAS_FACTOR, Readout, ReadoutTrace

__all__ = ["SketchedGradients"]


class SketchedGradients(nn.Module):
    """Tensor-sketched gradients of the atomic output with respect to weights and biases (Eq. 20).

    A layer's gradient is an outer product (dz^L/dz^(l+1)) (x) (x^(l) / sqrt(d_l), 0.1), so a random
    projection made of outer products needs only the projections of the two factors. The random matrices
    are buffers: they are saved with the model, without which its uncertainties would mean nothing.

    Args:
        layer_sizes: (d_l, d_(l+1)) of every layer.
        n_projections: number of random projections.
        seed: of the random matrices, which depend on nothing else (not on the default dtype either).

    Raises:
        InputError: if ``n_projections`` is not positive.
    """

    def __init__(self, layer_sizes: Sequence[tuple[int, int]], n_projections: int = 512, seed: int = 0):
        super().__init__()
        if n_projections < 1:
            raise InputError(f"features.n_projections must be at least 1, got {n_projections}")
        self.n_features = n_projections
        self.n_layers = len(layer_sizes)
        generator = torch.Generator().manual_seed(seed)

        def draw(width: int) -> Tensor:
            values = torch.randn(n_projections, width, generator=generator, dtype=torch.float64)
            return values.to(torch.get_default_dtype())

        for layer, (n_in, n_out) in enumerate(layer_sizes):
            self.register_buffer(f"inner_{layer}", draw(n_in + 1))
            self.register_buffer(f"outer_{layer}", draw(n_out))

    @property
    def projections(self) -> list[tuple[Tensor, Tensor]]:
        """Per layer U_in [n_projections, d_l + 1] (the last column meets the bias) and U_out [., d_(l+1)]."""
        return [(self.get_buffer(f"inner_{k}"), self.get_buffer(f"outer_{k}")) for k in range(self.n_layers)]

    def forward(self, readout: Readout, trace: ReadoutTrace) -> Tensor:
        """Features phi_i [n_atoms, n_projections] of the atoms that ``trace`` was computed for."""
        features: Tensor | None = None
        gradients = readout.output_gradients(trace)
        for (inner, outer), x, gradient in zip(self.projections, trace.inputs, gradients, strict=True):
            # the constant 0.1 that Eq. 17 appends to x only ever adds a constant vector
            projected = torch.addmm(BIAS_FACTOR * inner[:, -1], x, inner[:, :-1].T)
            term = (gradient @ outer.T) * projected
            features = term if features is None else features + term
        assert features is not None, "a network has at least one layer"
        return features
