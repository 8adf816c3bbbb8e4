"""Gradients by the parameters of any readout made of linear layers, such as an ``nn.Sequential`` of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ubmd.errors import InputError

__all__ = ["HeadTrace", "LinearHead", "linear_sizes", "trace_head"]


@dataclass(frozen=True)
class LinearHead:
    """A readout that is linear, however many matrices it is made of, as :class:`~ubmd.models.base.Layers`."""

    features: Tensor
    """[n_atoms, n_features] its input."""
    biases: tuple[float, ...] = (0.0,)

    @property
    def inputs(self) -> tuple[Tensor]:
        """The features, by which the output's derivative is taken."""
        return (self.features,)

    def output_gradients(self) -> list[Tensor]:
        """Ones [n_atoms, 1]."""
        return [torch.ones_like(self.features[:, :1])]


@dataclass(frozen=True)
class HeadTrace:
    """A pass of a head, as :class:`~ubmd.models.base.Layers`."""

    head: nn.Module
    x: Tensor
    """[n, d_0] what the head was given."""
    output: Tensor
    """[n] the scalar output."""
    inputs: tuple[Tensor, ...]
    """Per linear layer its input, [n, d_l]."""
    biases: tuple[float, ...]
    """Per linear layer 1, or 0 without biases."""

    def output_gradients(self) -> list[Tensor]:
        """Per layer the derivative of the output by z^(l+1), [n, d_(l+1)] (Eq. 18), by another pass of the head."""
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            # parameters may need no gradients: without a leaf there would be no graph
            x = self.x if differentiable and self.x.requires_grad else self.x.detach().requires_grad_()
            output, _, outputs = _pass(self.head, x)
            return list(torch.autograd.grad(output.sum(), outputs, create_graph=differentiable))


def linear_sizes(head: nn.Module) -> list[tuple[int, int]]:
    """(d_l, d_(l+1)) of the linear layers of a head, in their order: the model's ``layer_sizes``."""
    return [(layer.in_features, layer.out_features) for layer in _linear(head)]


def trace_head(head: nn.Module, x: Tensor) -> HeadTrace:
    """A pass of a head: ``output``, and all that sketched gradients need (``AtomicOutput.layers``).

    Args:
        head: its linear layers are ``nn.Linear``, called once each in their order; it treats the atoms one by one and
            has a single output.
        x: [n, d_0], what the head is given.

    Raises:
        InputError: for another kind of head.
    """
    output, inputs, _ = _pass(head, x)
    biases = tuple(0.0 if layer.bias is None else 1.0 for layer in _linear(head))
    return HeadTrace(head, x, output, tuple(inputs), biases)


def _linear(head: nn.Module) -> list[nn.Linear]:
    found = [module for module in head.modules() if isinstance(module, nn.Linear)]
    if not found:
        raise InputError(f"a {type(head).__name__} has no nn.Linear, of which a head is made")
    return found


def _pass(head: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Output [n] of a head for x [n, d_0], with inputs and outputs of its linear layers."""
    layers = _linear(head)
    inputs: dict[nn.Module, Tensor] = {}
    outputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> Tensor:
        inputs[module], outputs[module] = given[0], result
        return result.clone()  # what follows may act in place

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        output: Tensor = head(x)
    finally:
        for hook in hooks:
            hook.remove()
    if list(outputs) != layers:
        raise InputError(f"a {type(head).__name__} does not call its linear layers once each in their order")
    if output.shape not in ((len(x), 1), (len(x),)):
        raise InputError(f"a {type(head).__name__} must have one output an atom, not {tuple(output.shape)}")
    return output.flatten(), [inputs[layer] for layer in layers], [outputs[layer] for layer in layers]
