"""A potential with its uncertainty."""

from __future__ import annotations

import torch
from torch import nn

from ubmd.data.batch import AtomicBatch
from ubmd.errors import InputError
from ubmd.models.potential import Memory, Potential, Prediction, energies_and_gradients
from ubmd.uncertainty.base import Uncertainty

__all__ = ["UncertainPotential"]


class UncertainPotential(nn.Module):
    """A potential that says how uncertain it is; itself a potential.

    Args:
        potential: energies, forces and stress of a model.
        uncertainty: a fitted uncertainty of that model.
        every: steps of molecular dynamics from one evaluation of the uncertainty to the next.

    Raises:
        InputError: for an ``every`` below 1.
    """

    def __init__(self, potential: Potential, uncertainty: Uncertainty, every: int = 1):
        super().__init__()
        if not isinstance(every, int) or every < 1:
            raise InputError(f"bias.every must be a whole number of steps, at least 1, got {every!r}")
        self.potential = potential
        self.uncertainty = uncertainty
        self.every = every

    @property
    def model(self) -> nn.Module:
        """The model of atomic energies."""
        return self.potential.model

    @property
    def unbiased(self) -> Potential:
        """The potential alone, whatever bias there is."""
        return self.potential

    @property
    def cutoff(self) -> float:
        """Cutoff of the model, Å."""
        return self.potential.cutoff

    @property
    def species(self) -> list[int]:
        """Atomic numbers that the model knows."""
        return self.model.species.tolist()  # pyright: ignore[reportCallIssue]

    def between(self, batch: AtomicBatch, memory: Memory | None = None, /, *, stress: bool = False) -> Prediction:
        """The steps between two evaluations of the uncertainty: the potential alone, without any bias."""
        return self.potential(batch, memory, stress=stress)

    def forward(self, batch: AtomicBatch, memory: Memory | None = None, /, *, stress: bool = False) -> Prediction:
        """Predicts a batch, uncertainties included.

        Args:
            batch: structures with neighbours within at least the model's cutoff.
            memory: passed through.
            stress: also predict the stress of periodic structures.
        """
        output, leaf = self.potential.atoms(batch, differentiable=False)
        with torch.no_grad():
            uncertainty, atomic = self.uncertainty(self.model, output, leaf, batch)
            energy, ((gradient, strain),) = energies_and_gradients(output, leaf, batch)
        energy = energy.detach()
        return Prediction(
            energy=energy,
            forces=-gradient,
            stress=batch.per_volume(strain) if stress else None,
            uncertainty=uncertainty.detach(),
            atomic_uncertainty=atomic.detach(),
            tau=torch.zeros_like(uncertainty),
            bias_energy=torch.zeros_like(energy),
            memory=memory,
        )
