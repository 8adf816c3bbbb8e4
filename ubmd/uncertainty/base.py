"""What the rest of the package asks of an uncertainty, whichever way it is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor, nn

from ubmd.data.batch import AtomicBatch
from ubmd.models.gmnn import AtomicOutput
from ubmd.models.readout import Readout, ReadoutTrace

__all__ = ["Features", "FeaturesFactory", "Uncertainty"]


class Features(Protocol):
    """A feature vector for each atom, differentiable with respect to the pair vectors through the trace."""

    n_features: int

    def __call__(self, readout: Readout, trace: ReadoutTrace) -> Tensor:
        """phi_i [n_atoms, n_features]; a structure's features are the mean over its atoms (Eq. 21)."""
        ...


class FeaturesFactory(Protocol):
    """Makes the features of a network: a class of features, or one that a config has partly filled in."""

    def __call__(self, *, layer_sizes: Sequence[tuple[int, int]], seed: int) -> nn.Module:
        """A module of :class:`Features` for layers (d_l, d_(l+1)), its random numbers drawn from ``seed``."""
        ...


class Uncertainty(Protocol):
    """Uncertainty of a structure and of its atoms, from one pass of the model.

    Everything is differentiable with respect to ``vectors``, so that a bias can follow the gradient of
    the first value. The scales are conformal factors: tensors of shape [], 1 until calibrated.
    """

    atomic_scale: Tensor
    total_scale: Tensor

    def fit(self, model: nn.Module, batches: Iterable[AtomicBatch]) -> None:
        """Learns what is known from the training structures; sets both scales back to 1."""
        ...

    def __call__(
        self, model: nn.Module, output: AtomicOutput, vectors: Tensor, batch: AtomicBatch
    ) -> tuple[Tensor, Tensor]:
        """Calibrated uncertainties.

        Args:
            model: the model that made ``output``.
            output: its output for ``batch``.
            vectors: [n_atoms, k, 3] Å, the pair vectors that ``output`` was computed from; an
                uncertainty made of the forces of several models differentiates by them.
            batch: the structures.

        Returns:
            of the energy per atom [n_systems], eV/atom, and of the atomic forces [n_atoms], eV/Å.
        """
        ...
