"""The matrix products of a plain step alone: what the linear-algebra library gives at their sizes bounds the step."""

from __future__ import annotations

import torch

from benchmarks.floors import Floors
from benchmarks.rows import Found, Row, Setting, median_ms

LAYERS = ((910, 512), (512, 512), (512, 1))
"""Of the paper's network."""
ATOMS, WALKERS = 22, (1, 8, 32)


def names(*, quick: bool) -> list[str]:
    """Of the rows of this group."""
    return [f"products_plain_{n}" for n in WALKERS]


def measure(setting: Setting, found: Found) -> None:
    """Adds the rows, in turn and several times, so that a slow moment of the machine hits them alike."""
    weights = [torch.randn(n_out, n_in, device=setting.device) for n_in, n_out in LAYERS[:-1]]
    flop = Floors(LAYERS, 0).plain * ATOMS
    for n in WALKERS:
        inputs = [torch.randn(ATOMS * n, w.shape[1], device=setting.device) for w in weights]
        slopes = [torch.randn(ATOMS * n, w.shape[0], device=setting.device) for w in weights]

        def step(inputs: list[torch.Tensor] = inputs, slopes: list[torch.Tensor] = slopes) -> None:
            for x, w in zip(inputs, weights, strict=True):
                torch.mm(x, w.T)
            for g, w in zip(slopes, weights, strict=True):
                torch.mm(g, w)

        ms = median_ms(step, repeats=200 // n + 50, warm=20, device=setting.device) / n
        details = {"walkers": n, "atoms": ATOMS}
        found.rows.append(Row(f"products_plain_{n}", ms, "walker step", flop, setting.threads, details))
