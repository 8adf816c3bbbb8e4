"""Calibrated uncertainty of structures and atoms from the features of a network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from ubmd.data.batch import AtomicBatch
from ubmd.errors import InputError
from ubmd.models.base import AtomicOutput, atomic_output, layer_sizes
from ubmd.models.potential import Leaf
from ubmd.models.scale_shift import worn
from ubmd.uncertainty.base import FeaturesFactory, Scales
from ubmd.uncertainty.distance import Distance
from ubmd.uncertainty.posterior import Posterior

__all__ = ["DistanceUncertainty", "Estimator", "FeatureUncertainty", "FromFeatures"]


class Estimator(Protocol):
    """How far features are from those of the training structures."""

    def fit_chunks(self, chunks: Iterable[Tensor]) -> None:
        """Conditions on training features, given in parts [n, n_features]; forgets the earlier ones."""
        ...

    def __call__(self, features: Tensor) -> Tensor:
        """Uncertainties [n] of features [n, n_features]."""
        ...


class FromFeatures(Scales):
    """What uncertainties from the features of a network have in common.

    One pass computes the atoms' features; a structure's features are their mean, so structures of
    different sizes compare (Eq. 21). Holds no reference to the model. A subclass sets ``atomic`` and
    ``total``, the :class:`Estimator` of atoms and of structures.

    Args:
        features: makes the features of a network, e.g.
            :class:`~ubmd.uncertainty.features.SketchedGradients` or a partial of it.
        model: the model whose uncertainty it will be; gives the sizes of layers and features, dtype and device.
        seed: of the features.

    Raises:
        InputError: for a model without the features that are needed.
    """

    atomic: Estimator
    total: Estimator

    def __init__(self, features: FeaturesFactory, model: nn.Module, seed: int):
        super().__init__()
        shown = layer_sizes(model)
        width = int(getattr(model, "n_features", 0))
        if not shown and not width:
            raise InputError(f"{_lacking(model)} no features (n_features), which this uncertainty needs; {_REMEDY}")
        self.features = features(layer_sizes=shown or [(width, 1)], seed=seed)
        if self.features.needs_layers and not shown:
            raise InputError(
                f"{_lacking(model)} no layers (layer_sizes), of which gradient features are made; use the last "
                f"layer's features, or {_REMEDY}"
            )
        self.n_features = int(self.features.n_features)  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def fit(self, model: nn.Module, batches: Iterable[AtomicBatch]) -> None:
        """Conditions on the atoms and structures of the training set and sets the conformal factors to 1."""
        means: list[Tensor] = []

        def atoms() -> Iterator[Tensor]:
            for batch in batches:
                features = self.features(atomic_output(model, batch))
                means.append(_mean_atoms(features, batch))
                yield features

        self.atomic.fit_chunks(atoms())
        self.total.fit_chunks(means)
        self.reset_scales()

    def forward(self, model: nn.Module, output: AtomicOutput, leaf: Leaf, batch: AtomicBatch) -> tuple[Tensor, Tensor]:
        """Calibrated uncertainties, see :class:`~ubmd.uncertainty.base.Uncertainty`.

        Returns:
            of the energy per atom [n_systems], eV/atom, and of the atomic forces [n_atoms], eV/Å.

        Raises:
            RuntimeError: before :meth:`fit`.
        """
        features: Tensor = self.features(output)
        return self.calibrated(self.total(_mean_atoms(features, batch)), self.atomic(features), batch)

    @torch.no_grad()
    def total_features(self, model: nn.Module, batch: AtomicBatch) -> Tensor:
        """phi(S) [n_systems, n_features], neither rescaled nor whitened, for batch selection (Eq. 21)."""
        return _mean_atoms(self.features(atomic_output(model, batch)), batch)


class FeatureUncertainty(FromFeatures):
    """Posterior uncertainties of the energy per atom and of the atomic forces (Eqs. 4, 20, 21, 28).

    Args:
        features: makes the features of a network, e.g.
            :class:`~ubmd.uncertainty.features.SketchedGradients` or a partial of it.
        model: the model whose uncertainty it will be; gives layer sizes, dtype and device.
        regularisation: lambda of both posteriors.
        seed: of the features.
    """

    def __init__(self, features: FeaturesFactory, model: nn.Module, *, regularisation: float = 0.01, seed: int = 0):
        super().__init__(features, model, seed)
        self.atomic = Posterior(self.n_features, regularisation)
        self.total = Posterior(self.n_features, regularisation)
        self.to(next(model.parameters()))


class DistanceUncertainty(FromFeatures):
    """Uncertainties from the distance to the nearest training features (Eqs. 3, 20, 21, 28).

    Structures are compared with all training structures, atoms with a representative subset of the
    training atoms.

    Args:
        features: makes the features of a network, e.g.
            :class:`~ubmd.uncertainty.features.SketchedGradients` or a partial of it.
        model: the model whose uncertainty it will be; gives layer sizes, dtype and device.
        max_points: largest number of training atoms kept, see :class:`~ubmd.uncertainty.distance.Distance`;
            None keeps all.
        seed: of the features.
    """

    def __init__(self, features: FeaturesFactory, model: nn.Module, *, max_points: int | None = 1000, seed: int = 0):
        super().__init__(features, model, seed)
        self.atomic = Distance(self.n_features, max_points)
        self.total = Distance(self.n_features)
        self.to(next(model.parameters()))


_REMEDY = "choose another uncertainty or a model that has them (for an ensemble uncertainty=ensemble)"


def _lacking(model: nn.Module) -> str:
    return f"the model {type(worn(model)).__name__} shows"


def _mean_atoms(features: Tensor, batch: AtomicBatch) -> Tensor:
    """Mean of per-atom features [n_atoms, d] over each structure, [n_systems, d]."""
    return batch.sum_atoms(features) / batch.n_atoms[:, None]
