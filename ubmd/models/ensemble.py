"""An ensemble of Gaussian-moment neural networks as one module (Eqs. 22 and 23 start from it)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ubmd.data.batch import AtomicBatch
from ubmd.errors import InputError
from ubmd.models.gmnn import GMNN, AtomicOutput, ShiftedModel
from ubmd.models.readout import BIAS_FACTOR, SILU_SCALE, ReadoutTrace

__all__ = ["Ensemble", "EnsembleOutput", "StackedReadout", "member_seed"]

MOST_MEMBERS = 100


@dataclass(frozen=True)
class EnsembleOutput(AtomicOutput):
    """What all members say about each atom; ``energies`` is their mean and ``trace`` is empty."""

    offset: Tensor
    """[n_atoms] eV, float64, the part of the atomic energy that the members share: unit times mean shift. Kept
    apart because the members differ by meV where it may be a thousand eV."""
    members: Tensor
    """[n_members, n_atoms] eV, the members' atomic energies without ``offset``."""
    vectors: Tensor
    """[n_members, n_atoms, k, 3] Å, a copy of the pair vectors for each member: one reverse pass from the sum
    of ``members`` gives the derivatives of every member apart."""


def member_seed(seed: int, member: int) -> int:
    """Seed of a member's initial weights: independent streams for the members of all ensembles."""
    return int(np.random.SeedSequence([seed, member]).generate_state(1, np.uint64)[0] >> 1)


class StackedReadout(nn.Module):
    """The readouts of several networks, each parameter stacked along a first axis [n_members, ...].

    Args:
        members: the networks.
    """

    def __init__(self, members: Sequence[GMNN]):
        super().__init__()
        readouts = [m.readout for m in members]
        n_layers = len(readouts[0].weights)
        self.weights = nn.ParameterList(_stack([r.weights[k] for r in readouts]) for k in range(n_layers))
        self.biases = nn.ParameterList(_stack([r.biases[k] for r in readouts]) for k in range(n_layers))

    def forward(self, x: Tensor) -> Tensor:
        """Representations [n_members, n, d_0], a set of atoms for each network, to outputs [n_members, n] (Eq. 9)."""
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if layer:
                x = SILU_SCALE * nn.functional.silu(x)
            x = torch.baddbmm(BIAS_FACTOR * bias[:, None], x * weight.shape[2] ** -0.5, weight.transpose(1, 2))
        return x.squeeze(-1)


class Ensemble(ShiftedModel):
    """Several networks that differ in their initial weights and the order of their training data.

    A batch without ``member`` is predicted by all of them: atomic energies, hence forces and stress, are the
    means, and the output is an :class:`EnsembleOutput`. In a batch with ``member`` each structure is predicted
    by that member alone. That is how the ensemble is trained: the mini-batches of the members, each in its own
    order, come as one batch, and since no parameter is shared, the loss summed over it has for each member the
    gradient of the member's own loss. Adam treats every number by itself, so a step equals a step of each
    member alone.

    Parameters are named as in the network, with the member as their first axis.

    Args:
        species: chemical symbols that the model knows.
        member: makes a network, e.g. a partial of :class:`~ubmd.models.gmnn.GMNN`.
        n_members: number of networks.
        seed: of the initial weights.

    Raises:
        InputError: for fewer than two members, or very many.
    """

    def __init__(self, species: Sequence[str], member: Callable[..., GMNN], n_members: int = 3, seed: int = 0):
        super().__init__()
        if n_members < 2:
            raise InputError(f"model.n_members={n_members} must be at least 2; use model=gmnn for one network")
        if n_members > MOST_MEMBERS:
            raise InputError(f"model.n_members={n_members} must be at most {MOST_MEMBERS}")
        members = [member(species=species, seed=member_seed(seed, j)) for j in range(n_members)]
        first = members[0]
        self.n_members = n_members
        self.cutoff = first.cutoff
        self.register_buffer("species", first.species)
        self.register_buffer("index", first.index, persistent=False)
        self.register_buffer("energy_unit", first.energy_unit)
        self.moments, self.contractions = first.moments, first.contractions
        self.beta = _stack([m.beta for m in members])
        self.readout = StackedReadout(members)
        self.scale = _stack([m.scale for m in members])
        self.shift = _stack([m.shift for m in members])

    def member_state(self, member: int) -> dict[str, Tensor]:
        """The ``state_dict`` of one member as a network of its own."""
        names = {name for name, _ in self.named_parameters()}
        return {k: v[member] if k in names else v for k, v in self.state_dict().items()}

    def forward(self, vectors: Tensor, batch: AtomicBatch) -> AtomicOutput:
        """Atomic energies from pair vectors [n_atoms, k, 3] Å, of all members or of the one of each structure."""
        species = self.index[batch.numbers]
        others = species[batch.neighbours]
        trace = ReadoutTrace((), ())
        if batch.member is not None:
            owner = batch.member[batch.system_idx]
            representation = self._representation(vectors, species, others, owner)
            outputs = self._grouped_readout(representation, owner)
            energies = self.energy_unit * self.scale[owner, species] * outputs
            return AtomicOutput(energies.double() + self.shifts()[owner, species], trace)
        m, n = self.n_members, len(species)
        copies = vectors.expand(m, *vectors.shape)
        owner = torch.arange(m, device=species.device).repeat_interleave(n)
        representation = self._representation(copies.flatten(0, 1), species.repeat(m), others.repeat(m, 1), owner)
        outputs = self.readout(representation.view(m, n, -1))
        shifts = self.shifts()
        common = shifts.mean(0)
        apart = (shifts - common).to(outputs)  # small, so that the members' precision is enough
        members = self.energy_unit * self.scale[:, species] * outputs + apart[:, species]
        offset = common[species]
        return EnsembleOutput(offset + members.mean(0), trace, offset, members, copies)

    def _representation(self, vectors: Tensor, species: Tensor, others: Tensor, owner: Tensor) -> Tensor:
        """Invariants [n, n_features] of atoms [n] by the radial functions of the members [n] that own them."""
        beta = self.beta.flatten(0, 1).index_select(0, owner * len(self.species) + species)
        return self.contractions(self.moments(vectors, others, beta))

    def _grouped_readout(self, representation: Tensor, owner: Tensor) -> Tensor:
        """Outputs [n] of atoms by the members [n] that own them, in one product padded to the largest group."""
        counts = torch.bincount(owner, minlength=self.n_members)
        order = torch.argsort(owner, stable=True)
        rank = torch.empty_like(owner)
        rank[order] = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner[order]]
        width = int(counts.max())
        slot = owner * width + rank
        padded = representation.new_zeros(self.n_members * width, representation.shape[1])
        padded = padded.index_copy(0, slot, representation)
        return self.readout(padded.view(self.n_members, width, -1)).flatten()[slot]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by role, as :class:`~ubmd.training.module.LearningRates` names them."""
        return {
            "readout": list(self.readout.parameters()),
            "representation": [self.beta],
            "shift": [self.shift],
            "scale": [self.scale],
        }


def _stack(parameters: Sequence[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.stack([p.detach() for p in parameters]))
