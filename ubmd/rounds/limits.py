"""When a run of active learning ends."""

from __future__ import annotations

from collections.abc import Sequence

from ase import Atoms
from omegaconf import DictConfig

__all__ = ["is_finished", "is_last"]


def is_finished(cfg: DictConfig, last: int, before: Sequence[Atoms], now: Sequence[Atoms]) -> bool:
    """True if round ``last`` was trained on a full data set, was the last one allowed, or acquired nothing.

    Args:
        cfg: the configuration with its ``learning``.
        last: the last finished round; -1 if there is none.
        before: the structures that it was trained on.
        now: those with what it acquired.
    """
    if last < 0:
        return False
    return is_last(cfg, last, len(before)) or len(now) == len(before)


def is_last(cfg: DictConfig, index: int, n_structures: int) -> bool:
    """Whether a round, trained on so many structures, ends the run, so that it acquires nothing."""
    limit = cfg.learning.max_rounds
    return n_structures >= cfg.learning.max_structures or (limit is not None and index + 1 >= limit)
