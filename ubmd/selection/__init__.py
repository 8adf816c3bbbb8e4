"""Batch selection: which candidates to label next."""

from __future__ import annotations

from ubmd.selection.base import Pool, Selection
from ubmd.selection.max_det import MaxDet, max_det

__all__ = ["MaxDet", "Pool", "Selection", "max_det"]
