"""The one place that differentiates: forces (Eq. 15), stress (Eq. 16) and gradients of an uncertainty."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from ubmd.data.batch import AtomicBatch
from ubmd.models.base import (
    AtomicOutput,
    EnsembleOutput,
    Explicit,
    Known,
    by_pair_vectors,
    explicit_output,
    repulsion_of,
)

__all__ = [
    "Leaf",
    "Memory",
    "Potential",
    "Prediction",
    "Strained",
    "WalkerPotential",
    "differentiate",
    "differentiate_members",
    "energies_and_gradients",
]

Memory = dict[str, Tensor]
"""What a potential remembers of each walker between steps; the first axis counts walkers."""


@dataclass(frozen=True)
class Prediction:
    """What a potential says about a batch; a biased potential's energy, forces and stress are the biased ones.

    Of a bias that acts at every n-th step only (:class:`~ubmd.dynamics.respa.SlowPotential`), forces and stress have n
    times as much.
    """

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


@dataclass(frozen=True)
class Strained:
    """Positions and a strain of everything, the leaves of a model that computes its own edge vectors."""

    positions: Tensor
    """[n_atoms, 3] Å."""
    strain: Tensor
    """[n_systems, 3, 3], zero."""

    @classmethod
    def of(cls, batch: AtomicBatch) -> Strained:
        """Leaves for the structures of a batch."""
        return cls(batch.positions.detach().requires_grad_(), torch.zeros_like(batch.cell).requires_grad_())

    def applied(self, batch: AtomicBatch) -> AtomicBatch:
        """The batch with r -> (1 + eps) r of positions and cells, eps symmetric: the same values, differentiable."""
        strain = 0.5 * (self.strain + self.strain.transpose(1, 2))
        moved = torch.einsum("na,nab->nb", self.positions, strain[batch.system_idx])
        return batch.replace(positions=self.positions + moved, cell=batch.cell + batch.cell @ strain)


Leaf = Tensor | Strained | Explicit
"""What a model's output is differentiated by: pair vectors [n_atoms, k, 3] Å, positions and strain, or features of
which the model itself knows the derivatives."""


def differentiate(
    values: Tensor, leaf: Leaf, batch: AtomicBatch, *, create_graph: bool = False, retain_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """Derivatives of one scalar a structure with respect to positions and strain, in one reverse pass.

    Where everything geometric enters through the pair vectors, dv/dr_i collects the pairs that atom i is
    part of, and the strain derivative of r -> (1 + eps) r is sum_ij dv/dr_ij (x) r_ij, symmetrised.

    Args:
        values: [n_systems], each depending on its own structure alone.
        leaf: what ``values`` was computed from.
        batch: the structures.
        create_graph: keep the result differentiable (training).
        retain_graph: keep the graph for another reverse pass.

    Returns:
        gradient [n_atoms, 3] and strain derivative [n_systems, 3, 3].
    """
    retain_graph = retain_graph or create_graph
    if isinstance(leaf, Strained):
        leaves = (leaf.positions, leaf.strain)
        gradient, strain = torch.autograd.grad(
            values.sum(), leaves, create_graph=create_graph, retain_graph=retain_graph, materialize_grads=True
        )
        return gradient, strain
    if not isinstance(leaf, Tensor):
        (by_features,) = torch.autograd.grad(
            values.sum(), leaf.features, create_graph=create_graph, retain_graph=retain_graph
        )
        with torch.set_grad_enabled(create_graph):
            return leaf.pull(by_features)
    (pair,) = torch.autograd.grad(values.sum(), leaf, create_graph=create_graph, retain_graph=retain_graph)
    vectors = leaf if create_graph else leaf.detach()
    virial = batch.sum_atoms(torch.einsum("nka,nkb->nab", pair, vectors))
    return _gradient(pair, batch), 0.5 * (virial + virial.transpose(1, 2))


def energies_and_gradients(
    output: AtomicOutput, leaf: Leaf, batch: AtomicBatch, *, followed: Tensor | None = None, create_graph: bool = False
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Energies of the structures, with their derivatives and those of another scalar by positions and strain.

    Frees the graph unless ``create_graph``.

    Args:
        output: of the model.
        leaf: what it was computed from.
        batch: the structures.
        followed: [n_systems], each computed from the output for its own structure.
        create_graph: keep the energies' derivatives differentiable (training).

    Returns:
        energies [n_systems] eV, float64, and the derivatives of the energies and, if there is one, of ``followed``, as
        :func:`differentiate` has them.
    """
    energy, found = _graph_gradients(output, leaf, batch, followed, create_graph)
    if output.known is not None:
        gradient, strain = found[0]
        found[0] = gradient + output.known.gradient, strain + output.known.strain
    return energy, found


def _graph_gradients(
    output: AtomicOutput, leaf: Leaf, batch: AtomicBatch, followed: Tensor | None, create_graph: bool
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """As :func:`energies_and_gradients`, without the derivatives that need no graph."""
    if isinstance(leaf, Tensor | Strained):
        with torch.enable_grad():
            energy = batch.sum_atoms(output.energies.double())
            found = [] if followed is None else [differentiate(followed, leaf, batch, retain_graph=True)]
            return energy, [differentiate(energy, leaf, batch, create_graph=create_graph), *found]
    # float64 sum: a total energy of 10^4 eV would lose meV in float32
    energy = batch.sum_atoms(output.energies.double())
    with torch.set_grad_enabled(create_graph):
        slopes = leaf.slopes()
        if followed is None:
            return energy, [leaf.pull(slopes)]
        (by_features,) = torch.autograd.grad(followed, leaf.features, torch.ones_like(followed))
        gradients, strains = leaf.pull(torch.stack([slopes, by_features]))  # one pass over the neighbours for both
    return energy, list(zip(gradients, strains, strict=True))


def differentiate_members(
    output: EnsembleOutput, batch: AtomicBatch, *, create_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """Energies and gradients of all members of an ensemble, in one reverse pass.

    Keeps the graph of ``output`` for further passes. The energies are differentiable by what ``output`` was computed
    from, once; their derivatives are known already and cost no further pass.

    Args:
        output: of the ensemble, computed with gradients.
        batch: the structures.
        create_graph: keep the gradients differentiable.

    Returns:
        energies [n_systems, n_members] eV, float64, without the members' common part, and gradients by positions
        [n_members, n_atoms, 3] eV/Å.
    """
    with torch.enable_grad():
        members = output.members.sum()
    slopes = torch.autograd.grad(
        members, output.copies, retain_graph=True, create_graph=create_graph, materialize_grads=True
    )
    # zero, with the derivatives that are known
    known = [(g - g.detach()) * slope.detach() for g, slope in zip(output.geometry, slopes, strict=True)]
    energies = output.members.detach().double()
    if len(slopes) == 1:
        energies = batch.sum_atoms((energies + known[0].sum((2, 3))).T)
        return energies, _gradient(slopes[0], batch)
    energies = batch.sum_atoms((energies + known[0].sum(2)).T) + known[1].sum((2, 3)).T
    return energies, slopes[0]


def _gradient(pair: Tensor, batch: AtomicBatch) -> Tensor:
    """Derivatives by positions [..., n_atoms, 3] from those by pair vectors [..., n_atoms, k, 3]."""
    received = torch.zeros_like(batch.positions).expand(*pair.shape[:-3], *batch.positions.shape)
    return pair.sum(-2) - received.index_add(-2, batch.neighbours.flatten(), pair.flatten(-3, -2))


def _with_known(output: AtomicOutput, known: Known) -> AtomicOutput:
    """The output with a part of the energies that all members of an ensemble share."""
    with torch.enable_grad():
        changes = {"energies": output.energies + known.energies, "known": known}
    if isinstance(output, EnsembleOutput):
        changes["offset"] = output.offset + known.energies
    return replace(output, **changes)


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

    @property
    def unbiased(self) -> Potential:
        """Itself; a biased potential has the one below its bias here."""
        return self

    def atoms(self, batch: AtomicBatch, *, differentiable: bool = True) -> tuple[AtomicOutput, Leaf]:
        """The model's output with what it can be differentiated by.

        Args:
            batch: the structures.
            differentiable: whether more than energies will be differentiated; a model that knows the derivatives of
                its energies keeps no graph otherwise.
        """
        output, leaf = self._model_output(batch, differentiable)
        known = repulsion_of(self.model, batch)
        return (output if known is None else _with_known(output, known)), leaf

    def _model_output(self, batch: AtomicBatch, differentiable: bool) -> tuple[AtomicOutput, Leaf]:
        with torch.set_grad_enabled(differentiable):
            explicit = explicit_output(self.model, batch)
        if explicit is not None:
            return explicit
        with torch.enable_grad():
            if by_pair_vectors(self.model):
                vectors = batch.vectors().detach().requires_grad_()
                return self.model(vectors, batch), vectors
            leaf = Strained.of(batch)
            return self.model(leaf.applied(batch)), leaf

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
        output, leaf = self.atoms(batch, differentiable=training)
        with torch.set_grad_enabled(training):
            energy, ((gradient, strain),) = energies_and_gradients(output, leaf, batch, create_graph=training)
        return Prediction(
            energy=energy if training else energy.detach(),
            forces=-gradient,
            stress=batch.per_volume(strain) if stress else None,
            memory=memory,
        )
