"""Sharpness-aware minimisation (Foret et al. 2021, https://arxiv.org/abs/2010.01412)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["at_worst_neighbour"]


@contextmanager
def at_worst_neighbour(parameters: Iterable[nn.Parameter], radius: float) -> Iterator[None]:
    """Moves parameters w to w + radius g / |g| while the block runs, and puts them back bit by bit.

    To first order this is the point of the highest loss within ``radius`` of w. A minimiser that takes
    the gradient computed there prefers flat minima to sharp ones.

    Args:
        parameters: with their gradients g; one without a gradient stays. |g| is the norm over all of them.
        radius: rho in the paper, in the unit of the parameters.
    """
    moved = [p for p in parameters if p.grad is not None]
    kept = [p.detach().clone() for p in moved]
    gradients = [p.grad for p in moved if p.grad is not None]
    with torch.no_grad():
        norm = torch.nn.utils.get_total_norm(gradients)
        # without a slope there is no worst direction
        step = torch.where(norm > 0, radius / norm, 0.0)
        for parameter, gradient in zip(moved, gradients, strict=True):
            parameter.add_(gradient * step)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(moved, kept, strict=True):
                parameter.copy_(value)
