"""Disagreement of the members of an ensemble (Eqs. 22 and 23)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ubmd.data.batch import AtomicBatch
from ubmd.errors import InputError
from ubmd.models.base import AtomicOutput, EnsembleOutput, n_members
from ubmd.models.potential import Leaf, differentiate_members
from ubmd.models.scale_shift import worn
from ubmd.uncertainty.base import Scales

__all__ = ["EnsembleUncertainty"]


class EnsembleUncertainty(Scales):
    """Standard deviations of the members' energies and forces (Eqs. 22, 23, 28).

    The deviation of the energies is divided by the number of atoms, so that it compares with what it is
    calibrated by, |dE| / N_at, and with structures of other sizes.

    One reverse pass gives the derivatives of all members. From them follow the forces, and the gradient
    of the energies' deviation, which is a weighted mean of the members' forces and so costs nothing more. The
    gradient of the forces' deviation needs second derivatives and another pass.

    Args:
        model: the ensemble whose uncertainty it will be.
        seed: of nothing; uncertainties of all kinds are made alike.

    Raises:
        InputError: if the model is no ensemble.
    """

    n_features = 0

    def __init__(self, model: nn.Module, seed: int = 0):
        super().__init__()
        if n_members(model) == 1:
            raise InputError(f"uncertainty=ensemble needs model=ensemble, got a {type(worn(model)).__name__}")
        self.to(next(model.parameters()))

    def fit(self, model: nn.Module, batches: Iterable[AtomicBatch]) -> None:
        """Sets the conformal factors to 1; the members know the training structures already."""
        self.reset_scales()

    def forward(self, model: nn.Module, output: AtomicOutput, leaf: Leaf, batch: AtomicBatch) -> tuple[Tensor, Tensor]:
        """Calibrated uncertainties, see :class:`~ubmd.uncertainty.base.Uncertainty`.

        Keeps the graph of ``output`` for further reverse passes. The first value can be differentiated once.

        Returns:
            of the energy per atom [n_systems], eV/atom, and of the atomic forces [n_atoms], eV/Å.

        Raises:
            RuntimeError: if ``output`` was computed without gradients.
        """
        assert isinstance(output, EnsembleOutput)
        energies, gradients = differentiate_members(output, batch, create_graph=torch.is_grad_enabled())
        total = _deviation(energies, 1) / batch.n_atoms
        # the sign of a force does not matter; the root mean square over components is Eq. 23's factor 1/3
        atomic = _deviation(gradients, 0) * 3**-0.5
        return self.calibrated(total.to(gradients), atomic, batch)

    def total_features(self, model: nn.Module, batch: AtomicBatch) -> Tensor:
        """None of any structure: [n_systems, 0]."""
        return batch.positions.new_zeros(batch.n_systems, 0)


def _deviation(values: Tensor, members: int) -> Tensor:
    """Root of the mean squared deviation over the axis ``members``, of vectors over the last axis of three.

    Where all members agree the derivative is zero.
    """
    deviation = values - values.mean(members, keepdim=True)
    axes = (members,) if values.ndim == 2 else (members, -1)
    return torch.linalg.vector_norm(deviation, dim=axes) * values.shape[members] ** -0.5
