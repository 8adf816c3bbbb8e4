"""Random numbers that are a function of a walker's seed and step, whatever else runs or restarts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ubmd.errors import InputError

__all__ = ["BLOCK", "MOMENTA_STREAM", "START_STREAM", "WalkerNoise", "checked_seeds", "stream"]

BLOCK = 64
"""Steps whose numbers are drawn at once. Part of what a stream is: changing it changes every run."""

MOMENTA_STREAM = 0
_STEP_STREAM = 1
START_STREAM = 2


def stream(seed: int, *purpose: int) -> np.random.Generator:
    """The generator that a walker uses for one purpose; purposes are statistically independent."""
    return np.random.default_rng(np.random.SeedSequence([seed, *purpose]))


def checked_seeds(seeds: Sequence[int] | np.ndarray | Tensor, n_walkers: int) -> np.ndarray:
    """Seeds as [n_walkers] int64.

    Raises:
        InputError: if their number is wrong, one is negative or two are equal.
    """
    values = np.asarray(seeds.cpu() if isinstance(seeds, Tensor) else seeds)
    if values.shape != (n_walkers,) or values.dtype.kind not in "iu" or (values < 0).any():
        raise InputError(f"seeds must be {n_walkers} non-negative integers, one a walker, got {values.tolist()}")
    if values.max(initial=0) > np.iinfo(np.int64).max:
        raise InputError(f"seeds must fit into 63 bits, got {values.max()}")
    if len(np.unique(values)) != n_walkers:
        raise InputError(f"seeds must differ, or walkers share their random numbers, got {values.tolist()}")
    return values.astype(np.int64)


class WalkerNoise:
    """Two standard normal vectors for each atom and step.

    Steps ``BLOCK * b ... BLOCK * (b + 1) - 1`` of a walker use block b of its stream, drawn from a generator
    seeded by (seed, b). The numbers are therefore a function of seed and step alone, and a restart needs
    nothing else. Drawing (on the CPU, in float64) and copying to the device happen once a block.

    Args:
        seed: [n_walkers].
        step: [n_walkers] steps completed so far; walkers may differ.
        n_atoms: [n_walkers].
        dtype: of the numbers handed out.
        device: where they are handed out.
    """

    def __init__(self, seed: Tensor, step: Tensor, n_atoms: Tensor, *, dtype: torch.dtype, device: torch.device | str):
        self._seeds: list[int] = seed.tolist()
        self._steps: list[int] = step.tolist()
        self._n_atoms: list[int] = n_atoms.tolist()
        self._dtype, self._device = dtype, device
        self._blocks: list[tuple[int, np.ndarray]] = [(-1, np.zeros(0))] * len(self._seeds)
        self._window: tuple[Tensor, ...] = ()
        self._used = 0

    def next(self) -> Tensor:
        """[n_atoms, 2, 3] for every walker's next step; the first vector is ASE's xi, the second its eta."""
        if self._used == len(self._window):
            self._refill()
        self._used += 1
        return self._window[self._used - 1]

    def _refill(self) -> None:
        """Draws up to the nearest end of a walker's block."""
        self._steps = [step + self._used for step in self._steps]
        length = min(BLOCK - step % BLOCK for step in self._steps)
        parts = []
        for walker, step in enumerate(self._steps):
            first = step % BLOCK
            parts.append(self._block(walker, step // BLOCK)[first : first + length])
        numbers = torch.as_tensor(np.concatenate(parts, axis=1), dtype=self._dtype).to(self._device)
        self._window, self._used = numbers.unbind(0), 0

    def _block(self, walker: int, index: int) -> np.ndarray:
        """[BLOCK, n_atoms, 2, 3] of one walker; kept until the walker leaves the block."""
        if self._blocks[walker][0] != index:
            shape = (BLOCK, self._n_atoms[walker], 2, 3)
            drawn = stream(self._seeds[walker], _STEP_STREAM, index).standard_normal(shape)
            self._blocks[walker] = (index, drawn)
        return self._blocks[walker][1]
