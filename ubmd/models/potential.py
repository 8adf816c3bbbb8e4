"""The one place that differentiates: forces (Eq. 15), stress (Eq. 16) and gradients of an uncertainty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ubmd.data.batch import AtomicBatch
from ubmd.models.gmnn import AtomicOutput

__all__ = ["AtomicModel", "Memory", "Potential", "Prediction", "WalkerPotential", "differentiate"]

Memory = dict[str, Tensor]
"""What a potential remembers of each walker between steps; the first axis counts walkers."""


class AtomicModel(Protocol):
    """A model of atomic energies: pair vectors [n_atoms, k, 3] (Å) and species in, energies out."""

    cutoff: float

    def __call__(self, vectors: Tensor, batch: AtomicBatch) -> AtomicOutput: ...


@dataclass(frozen=True)
class Prediction:
    """What a potential says about a batch; a biased potential's energy, forces and stress are the biased ones."""

    energy: Tensor
    """[n_systems] eV, float64."""
    forces: Tensor
    """[n_atoms, 3] eV/Å."""
    stress: Tensor | None = None
    """[n_systems, 3, 3] eV/Å³, positive under tension; None unless asked for, NaN where not all is periodic."""
    uncertainty: Tensor | None = None
    """[n_systems] calibrated uncertainty of the energy per atom, eV/atom."""
    atomic_uncertainty: Tensor | None = None
    """[n_atoms] calibrated uncertainty of the force on an atom, eV/Å."""
    tau: Tensor | None = None
    """[n_systems] biasing strength in force (Eq. 8)."""
    bias_energy: Tensor | None = None
    """[n_systems] eV; what the bias added to ``energy``."""
    memory: Memory | None = None
    """To be handed back with the next step's batch."""


class WalkerPotential(Protocol):
    """What dynamics asks of a potential, biased or not."""

    @property
    def cutoff(self) -> float:
        """Å."""
        ...

    def __call__(self, batch: AtomicBatch, memory: Memory | None = None, /, *, stress: bool = False) -> Prediction: ...


def differentiate(
    values: Tensor, vectors: Tensor, batch: AtomicBatch, *, create_graph: bool = False, retain_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """Derivatives of one scalar a structure with respect to positions and strain, in one reverse pass.

    Everything geometric enters through the pair vectors, so dv/dr_i collects the pairs that atom i is
    part of, and the strain derivative of r -> (1 + eps) r is sum_ij dv/dr_ij (x) r_ij, symmetrised.

    Args:
        values: [n_systems], each depending on its own structure alone.
        vectors: [n_atoms, k, 3] Å, the leaf that ``values`` was computed from.
        batch: the structures.
        create_graph: keep the result differentiable (training).
        retain_graph: keep the graph for another reverse pass.

    Returns:
        gradient [n_atoms, 3] and strain derivative [n_systems, 3, 3].
    """
    (pair,) = torch.autograd.grad(
        values.sum(), vectors, create_graph=create_graph, retain_graph=retain_graph or create_graph
    )
    received = torch.zeros_like(batch.positions).index_add(0, batch.neighbours.flatten(), pair.flatten(0, 1))
    gradient = pair.sum(1) - received
    virial = batch.sum_atoms(torch.einsum("nka,nkb->nab", pair, vectors))
    return gradient, 0.5 * (virial + virial.transpose(1, 2))


class Potential(nn.Module):
    """Energies, forces and stress of a model of atomic energies.

    Args:
        model: the atomic model.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    @property
    def cutoff(self) -> float:
        return self.model.cutoff  # pyright: ignore[reportReturnType]

    def atoms(self, batch: AtomicBatch) -> tuple[AtomicOutput, Tensor]:
        """The model's output with the pair vectors that it can be differentiated by."""
        vectors = batch.vectors().detach().requires_grad_()
        return self.model(vectors, batch), vectors

    def forward(
        self, batch: AtomicBatch, memory: Memory | None = None, /, *, stress: bool = False, training: bool = False
    ) -> Prediction:
        """Predicts a batch.

        Args:
            batch: structures with neighbours within at least the model's cutoff.
            memory: passed through.
            stress: also predict the stress of periodic structures.
            training: keep the result differentiable with respect to the parameters.
        """
        with torch.enable_grad():
            output, vectors = self.atoms(batch)
            # float64 sum: a total energy of 10^4 eV would lose meV in float32
            energy = batch.sum_atoms(output.energies.double())
            gradient, strain = differentiate(energy, vectors, batch, create_graph=training)
        if not training:
            energy, gradient, strain = energy.detach(), gradient.detach(), strain.detach()
        return Prediction(
            energy=energy,
            forces=-gradient,
            stress=batch.per_volume(strain) if stress else None,
            memory=memory,
        )
