"""A small MACE with weights of its own, built as its package does."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

NUMBERS = [1, 6, 8, 11, 14, 17, 29]


def small_mace(heads: int = 1, **options: Any) -> Any:
    """In float64."""
    from mace import modules  # pyright: ignore[reportMissingImports]
    from mace.modules.models import o3  # pyright: ignore[reportMissingImports]

    blocks = modules.interaction_classes
    shift = {1: {}, 2: {"heads": ["PBE", "R2SCAN"]}}[heads]
    settings = {
        "r_max": 4.0,
        "num_bessel": 5,
        "num_polynomial_cutoff": 5,
        "max_ell": 2,
        "interaction_cls": blocks["RealAgnosticResidualInteractionBlock"],
        "interaction_cls_first": blocks["RealAgnosticResidualInteractionBlock"],
        "num_interactions": 2,
        "num_elements": len(NUMBERS),
        "hidden_irreps": o3.Irreps("6x0e+6x1o"),
        "MLP_irreps": o3.Irreps("4x0e"),
        "atomic_energies": np.linspace(-13.0, -1100.0, heads * len(NUMBERS)).reshape(heads, -1),
        "avg_num_neighbors": 7.5,
        "atomic_numbers": NUMBERS,
        "correlation": 3,
        "gate": torch.nn.functional.silu,
        "atomic_inter_scale": [0.8, 1.1][:heads] if heads > 1 else 0.8,
        "atomic_inter_shift": [0.2, -0.1][:heads] if heads > 1 else 0.2,
        **shift,
        **options,
    }
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return modules.ScaleShiftMACE(**settings)
    finally:
        torch.set_default_dtype(before)
