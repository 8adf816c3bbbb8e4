"""How learning rates change over a fit."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from ubmd.errors import InputError

__all__ = ["LinearDecay", "schedule"]

LENGTHS = ("total_iters", "total_steps", "T_max")
"""What PyTorch's schedulers call the number of their steps."""


class LinearDecay(LambdaLR):
    """Decay to zero in a closed form, so that a fit that continues has the same rates to the last bit.

    Args:
        optimizer: whose learning rates decay, each from its own value.
        total_iters: steps until they are zero.
    """

    def __init__(self, optimizer: Optimizer, total_iters: int):
        super().__init__(optimizer, lambda step: max(1 - step / total_iters, 0.0))


def schedule(make: Callable[..., LRScheduler], optimizer: Optimizer, steps: int) -> LRScheduler:
    """A scheduler over a fit of so many steps, which it is told unless it has been given a length of its own.

    Args:
        make: a scheduler class of PyTorch, or one completed in part; takes the optimizer.
        optimizer: whose learning rates change.
        steps: optimisation steps of the fit.

    Raises:
        InputError: the scheduler refuses its options.
    """
    given = getattr(make, "keywords", {})
    names = [name for name in LENGTHS if name in inspect.signature(make).parameters and given.get(name) is None]
    try:
        return make(optimizer, **dict.fromkeys(names[:1], steps))
    except (TypeError, ValueError) as error:
        raise InputError(f"scheduler: {error}") from error
