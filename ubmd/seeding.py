"""Random streams that depend on the root seed, the round and the purpose, never on history."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

__all__ = ["Stage", "stage_rng", "stage_seed"]


class Stage(IntEnum):
    """What a random stream is for; the values are part of the streams, so they never change."""

    PERTURB = 0
    SPLIT = 1
    WEIGHTS = 2
    SHUFFLE = 3
    SKETCH = 4
    WALKERS = 5
    SELECT = 6


def stage_rng(seed: int, round_index: int, stage: Stage, *extra: int) -> np.random.Generator:
    """NumPy generator of ``SeedSequence([seed, round, stage, ...])``."""
    return np.random.default_rng(np.random.SeedSequence([seed, round_index, int(stage), *extra]))


def stage_seed(seed: int, round_index: int, stage: Stage, *extra: int) -> int:
    """A 63-bit seed of the same stream, for torch generators."""
    sequence = np.random.SeedSequence([seed, round_index, int(stage), *extra])
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)
