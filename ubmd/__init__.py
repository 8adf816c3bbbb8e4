"""Uncertainty-biased molecular dynamics and active learning of interatomic potentials."""

from __future__ import annotations

__version__ = "0.1.0"
