"""The fully connected network that maps a representation to an atomic output (Eq. 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["Readout", "ReadoutTrace"]

SILU_SCALE = 1.6765
"""Gives SiLU a unit second moment for a standard normal input."""
BIAS_FACTOR = 0.1


@dataclass(frozen=True)
class ReadoutTrace:
    """What a forward pass leaves behind, enough for gradients with respect to the parameters (Eq. 17)."""

    inputs: tuple[Tensor, ...]
    """Per layer x^(l) / sqrt(d_l), [n, d_l]."""
    preactivations: tuple[Tensor, ...]
    """Per layer z^(l+1), [n, d_(l+1)]; the last one is the network's output."""
    weights: tuple[Tensor, ...]
    """Per layer W, [d_(l+1), d_l]."""

    @property
    def output(self) -> Tensor:
        """[n] the scalar output z^(L)."""
        return self.preactivations[-1].squeeze(-1)

    @property
    def biases(self) -> tuple[float, ...]:
        """Per layer the factor of the biases."""
        return (BIAS_FACTOR,) * len(self.weights)

    def output_gradients(self) -> list[Tensor]:
        """Per layer dz^(L)/dz^(l+1) [n, d_(l+1)], as an explicit, differentiable computation (Eq. 18)."""
        return self._gradients

    def input_gradients(self) -> Tensor:
        """[n, d_0] derivatives of the output by the representation, differentiable."""
        weight = self.weights[0]
        return self._gradients[0] @ (weight * weight.shape[1] ** -0.5)

    @cached_property
    def _gradients(self) -> list[Tensor]:
        # both features and forces follow from them
        gradient = torch.ones_like(self.preactivations[-1])
        gradients = [gradient]
        for layer in range(len(self.weights) - 1, 0, -1):
            z = self.preactivations[layer - 1]
            sigmoid = torch.sigmoid(z)
            slope = SILU_SCALE * sigmoid * (1 + z * (1 - sigmoid))
            weight = self.weights[layer] * self.weights[layer].shape[1] ** -0.5
            gradient = (gradient @ weight) * slope
            gradients.append(gradient)
        return gradients[::-1]


class Readout(nn.Module):
    """Multilayer perceptron in neural-tangent parameterisation with scaled SiLU (Eq. 9).

    Layer l computes z = 0.1 b + W x / sqrt(d); W starts standard normal, b zero.

    Args:
        n_inputs: d_0, width of the representation.
        hidden: widths of the hidden layers.
        generator: source of the initial weights; None uses torch's global one.
    """

    def __init__(self, n_inputs: int, hidden: Sequence[int], *, generator: torch.Generator | None = None):
        super().__init__()
        widths = (n_inputs, *hidden, 1)
        pairs = list(pairwise(widths))
        self.weights = nn.ParameterList(torch.randn(o, i, generator=generator) for i, o in pairs)
        self.biases = nn.ParameterList(torch.zeros(o) for _, o in pairs)

    @property
    def layer_sizes(self) -> list[tuple[int, int]]:
        """(d_l, d_(l+1)) of every layer."""
        return [(w.shape[1], w.shape[0]) for w in self.weights]

    def forward(self, x: Tensor) -> ReadoutTrace:
        """Representation [n, d_0] to the trace of the pass; its ``output`` is y [n]."""
        inputs, preactivations = [], []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            if preactivations:
                x = SILU_SCALE * nn.functional.silu(preactivations[-1])
            x = x * weight.shape[1] ** -0.5
            inputs.append(x)
            preactivations.append(torch.addmm(BIAS_FACTOR * bias, x, weight.T))
        return ReadoutTrace(tuple(inputs), tuple(preactivations), tuple(self.weights))
