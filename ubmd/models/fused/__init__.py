"""The Gaussian-moment descriptor with its derivatives as kernels for the CPU, atom by atom in its cache."""

from __future__ import annotations

import importlib
import logging
import os
from functools import cache

import torch
from torch import Tensor

from ubmd.data.batch import AtomicBatch

__all__ = ["SWITCH", "usable"]

log = logging.getLogger(__name__)

SWITCH = "UBMD_KERNELS"
"""Environment variable that turns the kernels off with the value 0, to compare with plain PyTorch."""
MOST_RADIAL = 8
"""Radial functions, which fill one vector."""


def usable(batch: AtomicBatch, beta: Tensor) -> bool:
    """Whether the kernels can describe a batch; elsewhere PyTorch's own operations do.

    Args:
        batch: the structures.
        beta: [n_species, n_species * n_gauss, n_basis] coefficients of the radial functions.
    """
    on_cpu = batch.positions.device.type == beta.device.type == "cpu"
    right = batch.positions.dtype == beta.dtype in (torch.float32, torch.float64) and beta.shape[2] <= MOST_RADIAL
    return on_cpu and right and not torch.is_autocast_enabled("cpu") and _found(os.environ.get(SWITCH, "1"))


@cache
def _found(switch: str) -> bool:
    """Whether kernels are wanted and can be compiled; says once which it is."""
    if switch == "0":
        log.info("%s=0: the descriptor is computed by PyTorch's operations instead of compiled kernels", SWITCH)
        return False
    try:
        importlib.import_module("ubmd.models.fused.functions")
    except ImportError as error:  # without Numba, or with a NumPy that it does not know yet
        log.warning("the descriptor is computed by PyTorch's operations, slower than by Numba's kernels: %s", error)
        return False
    log.debug("the descriptor is computed by compiled kernels")
    return True
