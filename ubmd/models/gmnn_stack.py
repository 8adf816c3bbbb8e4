"""Several Gaussian-moment neural networks as one module, faster than one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ubmd.data.batch import AtomicBatch
from ubmd.models.base import AtomicOutput, EnsembleOutput
from ubmd.models.readout import BIAS_FACTOR, ScaledSiLU
from ubmd.models.scale_shift import ShiftedModel

__all__ = ["GMNNStack", "StackedReadout"]


class StackedReadout(ScaledSiLU):
    """The readouts of several networks, each parameter stacked along a first axis [n_members, ...].

    Args:
        members: the networks, :class:`~ubmd.models.gmnn.GMNN`.
    """

    def __init__(self, members: Sequence[Any]):
        super().__init__()
        readouts = [m.readout for m in members]
        self.silu_scale = readouts[0].silu_scale
        n_layers = len(readouts[0].weights)
        self.weights = nn.ParameterList(_stack([r.weights[k] for r in readouts]) for k in range(n_layers))
        self.biases = nn.ParameterList(_stack([r.biases[k] for r in readouts]) for k in range(n_layers))

    def forward(self, x: Tensor) -> Tensor:
        """Representations [n_members, n, d_0], a set of atoms for each network, to outputs [n_members, n] (Eq. 9)."""
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if layer:
                x = self.silu_scale * nn.functional.silu(x)
            x = torch.baddbmm(BIAS_FACTOR * bias[:, None], x * weight.shape[2] ** -0.5, weight.transpose(1, 2))
        return x.squeeze(-1)


class GMNNStack(ShiftedModel):
    """Networks of the same sizes, each parameter stacked along a first axis [n_members, ...].

    Atoms of all members lie in one flat batch, each with the radial functions of the member that owns it.

    Args:
        members: the networks, :class:`~ubmd.models.gmnn.GMNN`.
    """

    def __init__(self, members: Sequence[Any]):
        super().__init__()
        first = members[0]
        self.n_members = len(members)
        self.register_buffer("species", first.species)
        self.register_buffer("index", first.index, persistent=False)
        self.register_buffer("energy_unit", first.energy_unit)
        self.moments, self.contractions = first.moments, first.contractions
        self.repulsion = first.repulsion
        self.beta = _stack([m.beta for m in members])
        self.readout = StackedReadout(members)
        self.scale = _stack([m.scale for m in members])
        self.shift = _stack([m.shift for m in members])

    def forward(self, vectors: Tensor, batch: AtomicBatch) -> AtomicOutput:
        """Atomic energies from pair vectors [n_atoms, k, 3] Å, of all members or of the one of each structure."""
        species = self.index[batch.numbers]
        others = species[batch.neighbours]
        if batch.member is not None:
            owner = batch.member[batch.system_idx]
            representation = self._representation(vectors, species, others, owner)
            outputs = self._grouped_readout(representation, owner)
            energies = self.energy_unit * self.scale[owner, species] * outputs
            return AtomicOutput(energies.double() + self.shifts()[owner, species])
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
        return EnsembleOutput(
            offset + members.mean(0), offset=offset, members=members, geometry=(vectors,), copies=(copies,)
        )

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

    @torch.no_grad()
    def begin_at(self, output: float) -> bool:
        """Outputs y of all members begin at ``output``, by the bias of the last layer."""
        self.readout.biases[-1].fill_(output / BIAS_FACTOR)
        return True

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
