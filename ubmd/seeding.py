"""Random streams that depend on the root seed, the round and the purpose, never on history."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from ubmd.errors import InputError

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
    SYSTEM = 7


def stage_rng(seed: int, round_index: int, stage: Stage, *extra: int) -> np.random.Generator:
    """NumPy generator of ``SeedSequence([seed, round, stage, ...])``."""
    return np.random.default_rng(_sequence(seed, round_index, stage, *extra))


def stage_seed(seed: int, round_index: int, stage: Stage, *extra: int) -> int:
    """A 63-bit seed of the same stream, for torch generators."""
    return int(_sequence(seed, round_index, stage, *extra).generate_state(1, np.uint64)[0] >> 1)


def _sequence(seed: int, round_index: int, stage: Stage, *extra: int) -> np.random.SeedSequence:
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed={seed} must be zero or a positive whole number")
    return np.random.SeedSequence([seed, round_index, int(stage), *extra])
