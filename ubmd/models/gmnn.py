"""The Gaussian-moment neural network (Eqs. 9-13)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ubmd.data.batch import AtomicBatch
from ubmd.data.elements import species_numbers
from ubmd.errors import InputError
from ubmd.models import fused
from ubmd.models.base import AtomicOutput
from ubmd.models.contractions import InvariantContractions
from ubmd.models.gmnn_stack import GMNNStack
from ubmd.models.moments import GaussianMoments
from ubmd.models.radial import GaussianBasis
from ubmd.models.readout import BIAS_FACTOR, Readout, ReadoutTrace
from ubmd.models.scale_shift import ShiftedModel
from ubmd.models.zbl import ZBL

__all__ = ["GMNN"]

MOST_RADIAL = 64
"""Radial functions or Gaussians; the number of invariants grows with the third power of the former."""
LARGEST_CUTOFF = 20.0
"""Å; a sphere of this radius holds some thousand atoms."""
WIDEST = 16384
"""Neurons of a layer; the number of weights grows with the second power."""

MANY = 512
"""Atoms from which on the faster products of padded features save more than a padded copy of the weights costs."""


@dataclass(frozen=True)
class ExplicitFeatures:
    """Invariant features of atoms, as :class:`~ubmd.models.base.Explicit`."""

    features: Tensor
    """[n_atoms, n_features], possibly with zeros behind them."""
    pull: Callable[[Tensor], tuple[Tensor, Tensor]]
    trace: ReadoutTrace
    scale: Tensor
    """[n_atoms] c rho, eV."""

    def slopes(self) -> Tensor:
        """Derivatives of the atomic energies, eV, as wide as ``features``."""
        return self.scale[:, None] * self.trace.input_gradients()


class GMNN(ShiftedModel):
    """Atomic energies from Gaussian moments and a neural network.

    Args:
        species: chemical symbols that the model knows.
        cutoff: r_c, Å.
        n_basis: number of radial functions per pair of species (s in Eq. 12).
        n_gauss: number of Gaussians that they are made of (s' in Eq. 12).
        l_max: highest rank of the moments, up to 3.
        hidden: widths of the hidden layers.
        r_min: centre of the first Gaussian, Å.
        seed: of the initial weights.
        repulsion: ``"zbl"`` adds the repulsion of nuclei (:class:`~ubmd.models.zbl.ZBL`), and the network learns what
            is left; None: the network alone.
        repulsion_cutoff: where it ends for two atoms, as a share of the sum of their covalent radii.

    Raises:
        InputError: for sizes that no model has, for unknown or repeated species, and for a repulsion that cannot be.
    """

    by_pair_vectors = True
    n_members = 1

    def __init__(
        self,
        species: Sequence[str],
        cutoff: float = 5.0,
        n_basis: int = 7,
        n_gauss: int = 9,
        l_max: int = 3,
        hidden: Sequence[int] = (512, 512),
        r_min: float = 0.5,
        seed: int = 0,
        repulsion: Literal["zbl"] | None = None,
        repulsion_cutoff: float = 0.7,
    ):
        super().__init__()
        if not 0 <= r_min < cutoff <= LARGEST_CUTOFF:
            raise InputError(
                f"model.cutoff={cutoff} Å must be larger than model.r_min={r_min} Å, that not negative, and at most "
                f"{LARGEST_CUTOFF:g} Å"
            )
        if not 1 <= n_basis <= MOST_RADIAL or not 1 <= n_gauss <= MOST_RADIAL:
            raise InputError(f"model.n_basis={n_basis} and model.n_gauss={n_gauss} must be between 1 and {MOST_RADIAL}")
        if l_max not in range(4):
            raise InputError(f"model.l_max={l_max} must be 0, 1, 2 or 3")
        if not hidden or not all(1 <= width <= WIDEST for width in hidden):
            raise InputError(f"model.hidden={list(hidden)} must be one width or more, each from 1 to {WIDEST}")
        numbers = species_numbers(species)
        n_species = len(numbers)
        generator = torch.Generator().manual_seed(seed)
        self.cutoff = float(cutoff)
        self._know(numbers)
        self.moments = GaussianMoments(GaussianBasis(n_gauss, cutoff, r_min), l_max)
        beta = 2 * torch.rand(n_species, n_species * n_gauss, n_basis, generator=generator) - 1
        self.beta = nn.Parameter(beta)
        self.contractions = InvariantContractions(n_basis, l_max)
        self.readout = Readout(self.contractions.n_features, hidden, generator=generator)
        self.scale = nn.Parameter(torch.ones(n_species))
        self.shift = nn.Parameter(torch.zeros(n_species, dtype=torch.float64))
        self.register_buffer("energy_unit", torch.ones(()))
        self.repulsion = None if repulsion is None else ZBL(species, repulsion_cutoff, self.cutoff)

    @classmethod
    def stack(cls, members: Sequence[GMNN]) -> GMNNStack:
        """Networks of the same sizes as one module."""
        return GMNNStack(members)

    @property
    def layer_sizes(self) -> list[tuple[int, int]]:
        """(d_l, d_(l+1)) of every layer of the readout."""
        return self.readout.layer_sizes

    @property
    def n_features(self) -> int:
        """Width of the features, the last layer's inputs."""
        return self.layer_sizes[-1][0]

    def representation(self, vectors: Tensor, batch: AtomicBatch) -> Tensor:
        """Invariant features G [n_atoms, n_features] from pair vectors [n_atoms, k, 3] Å."""
        species = self.index[batch.numbers]
        others = species[batch.neighbours]
        beta = self.beta.index_select(0, species)
        return self.contractions(self.moments(vectors, others, beta))

    def forward(self, vectors: Tensor, batch: AtomicBatch) -> AtomicOutput:
        """Atomic energies E_i = c (rho y + mu) (Eq. 10) from pair vectors [n_atoms, k, 3] Å."""
        return self._output(self.readout(self.representation(vectors, batch)), batch)

    def explicit(self, batch: AtomicBatch) -> tuple[AtomicOutput, ExplicitFeatures] | None:
        """The same by compiled kernels, where there are some for such a batch, see :mod:`ubmd.models.fused`."""
        if not fused.usable(batch, self.beta):
            return None
        from ubmd.models.fused.functions import Described  # takes a while, and is not always there

        species = self.index[batch.numbers]
        described = Described(batch, species, self.beta, self.moments.gaussians, self.moments.l_max)
        features = described.features
        if len(species) < MANY:
            features = features[:, : self.contractions.n_features]
        trace = self.readout(features, explicit=True)
        scale = self.energy_unit * self.scale[species]
        return self._output(trace, batch), ExplicitFeatures(features, described.pull, trace, scale)

    def _output(self, trace: ReadoutTrace, batch: AtomicBatch) -> AtomicOutput:
        species = self.index[batch.numbers]
        energies = self.energy_unit * self.scale[species] * trace.output
        return AtomicOutput(energies.double() + self.shifts()[species], trace.inputs[-1], trace)

    @torch.no_grad()
    def begin_at(self, output: float) -> bool:
        """Outputs y begin at ``output``, by the bias of the last layer."""
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
