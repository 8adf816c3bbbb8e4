"""The Gaussian-moment descriptor with its derivatives as kernels for the CPU, atom by atom in its cache."""

from __future__ import annotations

import importlib.util
import logging
import os
from functools import cache

from ubmd.data.batch import AtomicBatch

__all__ = ["SWITCH", "usable"]

log = logging.getLogger(__name__)

SWITCH = "UBMD_KERNELS"
"""Environment variable that turns the kernels off with the value 0, to compare with plain PyTorch."""
MOST_RADIAL = 8
"""Radial functions, which fill one vector."""


def usable(batch: AtomicBatch, n_basis: int) -> bool:
    """Whether the kernels can describe a batch; elsewhere PyTorch's own operations do."""
    return batch.positions.device.type == "cpu" and n_basis <= MOST_RADIAL and _found(os.environ.get(SWITCH, "1"))


@cache
def _found(switch: str) -> bool:
    """Whether kernels are wanted and can be compiled; says once which it is."""
    if switch == "0":
        log.info("%s=0: the descriptor is computed by PyTorch's operations instead of compiled kernels", SWITCH)
        return False
    if importlib.util.find_spec("numba") is None:
        log.warning("numba is not installed: the descriptor takes PyTorch's operations, which are slower on a CPU")
        return False
    log.debug("the descriptor is computed by compiled kernels")
    return True
