"""The fully connected network that maps a representation to an atomic output (Eq. 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ubmd.errors import InputError

__all__ = ["Readout", "ReadoutTrace", "ScaledSiLU", "with_silu_scale"]

SILU_SCALE = 1.6765324703310907
"""Gives SiLU a unit second moment for a standard normal input."""
EARLIER_SILU_SCALE = 1.6765
"""The same, rounded: that of weights which do not say with which they were fitted."""
BIAS_FACTOR = 0.1


def _slope(z: Tensor, scale: float) -> Tensor:
    """Derivative of the scaled SiLU, differentiable as often as one likes."""
    sigmoid = torch.sigmoid(z)
    return scale * sigmoid * (1 + z * (1 - sigmoid))


class ScaledSiLU(nn.Module):
    """A network whose SiLU is multiplied by a number that is kept with its weights.

    Attributes:
        silu_scale: the number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.silu_scale = SILU_SCALE

    def get_extra_state(self) -> Tensor:
        """``silu_scale``, float64 whatever the precision of the weights is, as part of ``state_dict``."""
        return torch.tensor(self.silu_scale, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restores what :meth:`get_extra_state` gave.

        Raises:
            InputError: for a number that is not positive.
        """
        if not float(state) > 0:
            raise InputError(f"the scale of SiLU is {float(state)}, it must be positive")
        self.silu_scale = float(state)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:  # pyright: ignore
        with_silu_scale(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *others)


def with_silu_scale(state: dict[str, Any], prefix: str) -> None:
    """Adds to the state of a :class:`ScaledSiLU` that an earlier version wrote what it was multiplied by then."""
    if f"{prefix}weights.0" in state:
        state.setdefault(f"{prefix}_extra_state", torch.tensor(EARLIER_SILU_SCALE, dtype=torch.float64))


class _Activation(torch.autograd.Function):
    """c silu(z) and c silu'(z) and, with the same sigmoid, their derivatives, once: half the passes of autograd's."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, c: float) -> tuple[Tensor, Tensor]:
        sigmoid = torch.sigmoid(z)
        silu = z * sigmoid
        slope = torch.addcmul(sigmoid + silu, sigmoid, silu, value=-1)
        ctx.save_for_backward(sigmoid, silu, slope)
        ctx.factor = c
        return c * silu, c * slope

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        sigmoid, silu, slope = ctx.saved_tensors
        by_value, by_slope = gradients
        # silu'' = (1 - sigmoid) (sigmoid (1 - silu) + silu')
        curvature = torch.addcmul(sigmoid + slope, sigmoid, silu, value=-1)
        curvature = torch.addcmul(curvature, curvature, sigmoid, value=-1)
        return torch.addcmul(by_value * slope, by_slope, curvature).mul_(ctx.factor), None


@dataclass(frozen=True)
class ReadoutTrace:
    """What a forward pass leaves behind, enough for gradients with respect to the parameters (Eq. 17)."""

    inputs: tuple[Tensor, ...]
    """Per layer x^(l) / sqrt(d_l), [n, d_l]."""
    preactivations: tuple[Tensor, ...]
    """Per layer z^(l+1), [n, d_(l+1)]; the last one is the network's output."""
    weights: tuple[Tensor, ...]
    """Per layer W, [d_(l+1), d_l]; columns of zeros may follow in the first one."""
    slopes: tuple[Tensor, ...] = ()
    """Per hidden layer dx^(l+1)/dz^(l+1), [n, d_(l+1)], where they are known already."""
    silu_scale: float = SILU_SCALE

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
        """[n, d_0] derivatives of the output by the representation, differentiable; zeros follow if they do there."""
        weight = self.weights[0]
        return (self._gradients[0] * self.inputs[0].shape[1] ** -0.5) @ weight

    @cached_property
    def _gradients(self) -> list[Tensor]:
        # both features and forces follow from them
        slopes = self.slopes or [_slope(z, self.silu_scale) * z.shape[1] ** -0.5 for z in self.preactivations[:-1]]
        gradients = [torch.ones_like(self.preactivations[-1])]
        for slope, weight in zip(slopes[::-1], self.weights[:0:-1], strict=True):
            gradients.append((gradients[-1] @ weight) * slope)
        return gradients[::-1]


class Readout(ScaledSiLU):
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

    def forward(self, x: Tensor, *, explicit: bool = False) -> ReadoutTrace:
        """Representation [n, d_0], which zeros may follow, to the trace of the pass; its ``output`` is y [n].

        With ``explicit`` the gradients that the trace computes, and all else, can be differentiated once, faster.
        """
        d_0, weights, biases = self.weights[0].shape[1], [*self.weights], [*self.biases]
        if x.shape[1] > d_0:
            weights[0] = nn.functional.pad(weights[0], (0, x.shape[1] - d_0))
        x = x * d_0**-0.5
        inputs, slopes = [x[:, :d_0]], []
        preactivations = [torch.addmm(biases[0], x, weights[0].T, beta=BIAS_FACTOR)]
        for weight, bias in zip(weights[1:], biases[1:], strict=True):
            factor = self.silu_scale * weight.shape[1] ** -0.5
            if explicit:
                x, slope = _Activation.apply(preactivations[-1], factor)  # pyright: ignore
                slopes.append(slope)
            else:
                x = factor * nn.functional.silu(preactivations[-1])
            inputs.append(x)
            preactivations.append(torch.addmm(bias, x, weight.T, beta=BIAS_FACTOR))
        return ReadoutTrace(tuple(inputs), tuple(preactivations), tuple(weights), tuple(slopes), self.silu_scale)
