"""A small model with a fitted uncertainty, structures, and finite differences, for the tests of biases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from ubmd.data.batch import AtomicBatch, collate
from ubmd.models.gmnn import GMNN
from ubmd.models.potential import Potential
from ubmd.uncertainty import FeatureUncertainty, SketchedGradients

CUTOFF = 4.0

Parts = tuple[Potential, FeatureUncertainty]


def molecules(count: int, seed: int, amplitude: float = 0.1) -> list[Atoms]:
    rng = np.random.default_rng(seed)
    base = np.array([[0, 0, 0], [1.2, 0.1, 0], [-0.6, 0.9, 0.1], [-0.5, -0.9, 0.3], [1.8, 1.1, 0.9]])
    return [Atoms("COHHH", positions=base + amplitude * rng.normal(size=(5, 3))) for _ in range(count)]


def crystals(count: int, seed: int) -> list[Atoms]:
    rng = np.random.default_rng(seed)
    cell = np.array([[2.9, 0.0, 0.0], [0.7, 3.1, 0.0], [-0.4, 0.5, 3.4]])
    points = np.array([[0.0, 0.0, 0.0], [0.45, 0.55, 0.4], [0.1, 0.5, 0.8]]) @ cell
    return [Atoms("COH", positions=points + 0.1 * rng.normal(size=(3, 3)), cell=cell, pbc=True) for _ in range(count)]


def batch_of(structures: list[Atoms]) -> AtomicBatch:
    # the list reaches beyond the cutoff, so that small displacements do not change it
    return collate(structures, CUTOFF + 0.5, dtype=torch.float64)


def fitted_parts(**options: Any) -> Parts:
    model = GMNN(["H", "C", "O"], cutoff=CUTOFF, n_basis=3, hidden=(16, 16), seed=2, **options).double()
    uncertainty = FeatureUncertainty(partial(SketchedGradients, n_projections=32), model, seed=1)
    uncertainty.fit(model, [batch_of(molecules(6, 10)), batch_of(crystals(6, 11))])
    uncertainty.total_scale.fill_(1.7)
    uncertainty.atomic_scale.fill_(0.6)
    return Potential(model), uncertainty


def difference_gradient(function: Callable[[AtomicBatch], Tensor], batch: AtomicBatch) -> np.ndarray:
    """d/dr [n_atoms, 3] of a function [n_systems] of a batch of one structure, fourth order."""
    step, out = 1e-4, np.zeros(tuple(batch.positions.shape))
    for index in np.ndindex(out.shape):
        shift = torch.zeros_like(batch.positions)
        shift[index] = step
        for k, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
            out[index] += weight * function(batch.replace(positions=batch.positions + k * shift)).item() / (12 * step)
    return out


def difference_strain(function: Callable[[AtomicBatch], Tensor], batch: AtomicBatch) -> np.ndarray:
    """d/deps [3, 3] for a symmetric strain of a batch of one structure, fourth order."""
    step, out = 1e-4, np.zeros((3, 3))
    for a, b in np.ndindex(3, 3):
        for k, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
            deform = torch.eye(3, dtype=torch.float64)
            deform[a, b] += 0.5 * k * step
            deform[b, a] += 0.5 * k * step
            moved = batch.replace(positions=batch.positions @ deform, cell=batch.cell @ deform)
            out[a, b] += weight * function(moved).item() / (12 * step)
    return out
