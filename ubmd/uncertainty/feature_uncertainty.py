"""Calibrated uncertainty of structures and atoms from gradient features."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ubmd.data.batch import AtomicBatch
from ubmd.errors import InputError
from ubmd.models.gmnn import AtomicOutput
from ubmd.models.readout import Readout, ReadoutTrace
from ubmd.uncertainty.base import FeaturesFactory
from ubmd.uncertainty.posterior import Posterior, gram_matrix

__all__ = ["FeatureUncertainty"]


class FeatureUncertainty(nn.Module):
    """Posterior uncertainties of the energy per atom and of the atomic forces (Eqs. 4, 20, 21, 28).

    One pass computes the atoms' features; a structure's features are their mean, so structures of
    different sizes compare. Holds no reference to the model.

    Args:
        features: makes the features of a network, e.g.
            :class:`~ubmd.uncertainty.features.SketchedGradients` or a partial of it.
        model: the model whose uncertainty it will be; gives layer sizes, dtype and device.
        regularisation: lambda of both posteriors.
        seed: of the features.
    """

    atomic_scale: Tensor
    total_scale: Tensor

    def __init__(self, features: FeaturesFactory, model: nn.Module, *, regularisation: float = 0.01, seed: int = 0):
        super().__init__()
        self.features = features(layer_sizes=_readout(model).layer_sizes, seed=seed)
        self.n_features = int(self.features.n_features)  # pyright: ignore[reportArgumentType]
        self.atomic = Posterior(self.n_features, regularisation)
        self.total = Posterior(self.n_features, regularisation)
        self.register_buffer("atomic_scale", torch.ones(()))
        self.register_buffer("total_scale", torch.ones(()))
        self.to(_readout(model).weights[0])

    @torch.no_grad()
    def fit(self, model: nn.Module, batches: Iterable[AtomicBatch]) -> None:
        """Conditions both posteriors on the training structures and sets the conformal factors to 1."""
        size, device = self.n_features, self.atomic_scale.device
        atomic = torch.zeros(size, size, dtype=torch.float64, device=device)
        total = torch.zeros_like(atomic)
        n_atoms = n_systems = 0
        for batch in batches:
            features = self.atomic_features(model, self._trace(model, batch))
            atomic += gram_matrix(features)
            total += gram_matrix(_mean_atoms(features, batch))
            n_atoms += len(features)
            n_systems += batch.n_systems
        self.atomic.fit_gram(atomic, n_atoms)
        self.total.fit_gram(total, n_systems)
        self.atomic_scale.fill_(1.0)
        self.total_scale.fill_(1.0)

    def forward(
        self, model: nn.Module, output: AtomicOutput, vectors: Tensor, batch: AtomicBatch
    ) -> tuple[Tensor, Tensor]:
        """Calibrated uncertainties, see :class:`~ubmd.uncertainty.base.Uncertainty`.

        Returns:
            of the energy per atom [n_systems], eV/atom, and of the atomic forces [n_atoms], eV/Å.

        Raises:
            RuntimeError: before :meth:`fit`.
        """
        features = self.atomic_features(model, output.trace)
        total = self.total_scale * self.total(_mean_atoms(features, batch))
        return total, self.atomic_scale * self.atomic(features)

    def atomic_features(self, model: nn.Module, trace: ReadoutTrace) -> Tensor:
        """phi_i [n_atoms, n_features] from a pass of the model's readout (Eq. 20)."""
        return self.features(_readout(model), trace)

    @torch.no_grad()
    def total_features(self, model: nn.Module, batch: AtomicBatch) -> Tensor:
        """phi(S) [n_systems, n_features], neither rescaled nor whitened, for batch selection (Eq. 21)."""
        return _mean_atoms(self.atomic_features(model, self._trace(model, batch)), batch)

    @staticmethod
    def _trace(model: nn.Module, batch: AtomicBatch) -> ReadoutTrace:
        output: AtomicOutput = model(batch.vectors(), batch)
        return output.trace


def _readout(model: nn.Module) -> Readout:
    readout = getattr(model, "readout", None)
    if not isinstance(readout, Readout):
        raise InputError(f"gradient features need a model with a readout; {type(model).__name__} has none")
    return readout


def _mean_atoms(features: Tensor, batch: AtomicBatch) -> Tensor:
    """Mean of per-atom features [n_atoms, d] over each structure, [n_systems, d]."""
    return batch.sum_atoms(features) / batch.n_atoms[:, None]
