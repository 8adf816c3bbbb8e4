"""Batch selection: which candidates to label next."""

from __future__ import annotations

from ubmd.selection.base import Pool, Selection, check_selection, distinct
from ubmd.selection.distances import LCMD, MaxDist, lcmd
from ubmd.selection.max_det import MaxDet, max_det
from ubmd.selection.simple import MaxDiag, Random

__all__ = [
    "LCMD",
    "MaxDet",
    "MaxDiag",
    "MaxDist",
    "Pool",
    "Random",
    "Selection",
    "check_selection",
    "distinct",
    "lcmd",
    "max_det",
]
