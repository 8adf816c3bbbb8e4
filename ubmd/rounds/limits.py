"""When a run of active learning ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ase import Atoms

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """How large a data set grows, and by what steps.

    Args:
        max_structures: labelled structures at which the run ends.
        max_rounds: or after this many rounds; None for no limit.
        batch_size: structures acquired in a round.
        warm_start: share of a fit's steps from the second round on, which starts from the last round's weights; None
            for fits that start afresh.
    """

    max_structures: int
    max_rounds: int | None
    batch_size: int
    warm_start: float | None

    def is_finished(self, last: int, before: Sequence[Atoms], now: Sequence[Atoms]) -> bool:
        """True if round ``last`` was trained on a full data set, was the last one allowed, or acquired nothing.

        Args:
            last: the last finished round; -1 if there is none.
            before: the structures that it was trained on.
            now: those with what it acquired.
        """
        if last < 0:
            return False
        return self.is_last(last, len(before)) or len(now) == len(before)

    def is_last(self, index: int, n_structures: int) -> bool:
        """Whether a round, trained on so many structures, ends the run, so that it acquires nothing."""
        limit = self.max_rounds
        return n_structures >= self.max_structures or (limit is not None and index + 1 >= limit)
