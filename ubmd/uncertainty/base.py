"""What the rest of the package asks of an uncertainty, whichever way it is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from ubmd.data.batch import AtomicBatch
from ubmd.models.base import AtomicOutput
from ubmd.models.potential import Leaf

__all__ = ["N_ELEMENTS", "POOLED", "Features", "FeaturesFactory", "Scales", "Uncertainty"]

N_ELEMENTS = len(chemical_symbols)
"""Entries of a table by atomic number."""
POOLED = 0
"""Entry of such a table that belongs to no element: there it holds the value of all elements together."""


class Features(Protocol):
    """A feature vector for each atom, differentiable by what the model's output was computed from."""

    n_features: int
    needs_layers: bool
    """Whether it is made of the layers of a readout; otherwise the model's features are enough."""

    def __call__(self, output: AtomicOutput) -> Tensor:
        """phi_i [n_atoms, n_features]; a structure's features are the mean over its atoms (Eq. 21)."""
        ...


class FeaturesFactory(Protocol):
    """Makes the features of a network: a class of features, or one that a config has partly filled in."""

    def __call__(self, *, layer_sizes: Sequence[tuple[int, int]], seed: int) -> nn.Module:
        """A module of :class:`Features` for layers (d_l, d_(l+1)), its random numbers drawn from ``seed``.

        A model that shows features alone counts as one layer with these inputs.
        """
        ...


class Uncertainty(Protocol):
    """Uncertainty of a structure and of its atoms, from one pass of the model.

    Everything is differentiable with respect to ``leaf``, so that a bias can follow the gradient of
    either value. The scales are conformal factors, 1 until calibrated.
    """

    n_features: int
    """Width of ``total_features``; 0 where there are none and batch selection has only the uncertainties."""
    atomic_scale: Tensor
    """[119] by atomic number; entry 0 is the factor of all elements together."""
    total_scale: Tensor
    """[]."""

    def fit(self, model: nn.Module, batches: Iterable[AtomicBatch]) -> None:
        """Learns what is known from the training structures; sets all scales back to 1."""
        ...

    def __call__(self, model: nn.Module, output: AtomicOutput, leaf: Leaf, batch: AtomicBatch) -> tuple[Tensor, Tensor]:
        """Calibrated uncertainties.

        Args:
            model: the model that made ``output``.
            output: its output for ``batch``.
            leaf: what ``output`` was computed from and can be differentiated by.
            batch: the structures.

        Returns:
            of the energy per atom [n_systems], eV/atom, and of the atomic forces [n_atoms], eV/Å.
        """
        ...

    def total_features(self, model: nn.Module, batch: AtomicBatch) -> Tensor:
        """phi(S) [n_systems, n_features], as they come, for batch selection (Eq. 21)."""
        ...


class Scales(nn.Module):
    """The conformal factors of an uncertainty, saved with it."""

    atomic_scale: Tensor
    total_scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("atomic_scale", torch.ones(N_ELEMENTS))
        self.register_buffer("total_scale", torch.ones(()))

    @torch.no_grad()
    def reset_scales(self) -> None:
        """Back to uncalibrated."""
        self.atomic_scale.fill_(1.0)
        self.total_scale.fill_(1.0)

    def calibrated(self, total: Tensor, atomic: Tensor, batch: AtomicBatch) -> tuple[Tensor, Tensor]:
        """Uncertainties [n_systems] and [n_atoms] times their factors."""
        return self.total_scale * total, self.atomic_scale[batch.numbers] * atomic
