"""The Gaussian-moment neural network (Eqs. 9-13)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ubmd.data.batch import AtomicBatch
from ubmd.data.elements import species_numbers
from ubmd.errors import InputError
from ubmd.models.contractions import InvariantContractions
from ubmd.models.moments import GaussianMoments
from ubmd.models.radial import GaussianBasis
from ubmd.models.readout import Readout, ReadoutTrace

__all__ = ["GMNN", "AtomicOutput", "ShiftedModel", "regress_atomic_energies"]

MOST_RADIAL = 64
"""Radial functions or Gaussians; the number of invariants grows with the third power of the former."""
LARGEST_CUTOFF = 20.0
"""Å; a sphere of this radius holds some thousand atoms."""
WIDEST = 16384
"""Neurons of a layer; the number of weights grows with the second power."""


@dataclass(frozen=True)
class AtomicOutput:
    """What a model says about each atom."""

    energies: Tensor
    """[n_atoms] eV, float64: a shift of 10^5 eV would leave nothing of what depends on the positions in float32."""
    trace: ReadoutTrace
    """The readout's pass, from which gradient features are made."""


def regress_atomic_energies(energy: Tensor, composition: Tensor) -> tuple[Tensor, float]:
    """Energies of the species by least squares, and what is left (Eq. 10).

    Args:
        energy: [m] eV.
        composition: [m, n_species] number of atoms of each species.

    Returns:
        atomic energies [n_species] eV, float64 on the CPU, and the RMSE per atom, eV/atom, at least 1 meV.
    """
    energy, composition = energy.double().cpu(), composition.double().cpu()
    n_atoms = composition.sum(1)
    # per-atom rows weight all sizes alike; the minimum-norm solution serves degenerate compositions
    solution = torch.linalg.lstsq(
        composition / n_atoms[:, None], (energy / n_atoms)[:, None], driver="gelsd"
    ).solution.squeeze(1)
    residual = (energy - composition @ solution) / n_atoms
    return solution, residual.square().mean().sqrt().clamp(min=1e-3).item()


class ShiftedModel(nn.Module):
    """A model E_i = c (rho y + mu) (Eq. 10) whose shifts mu are float64 in every precision of the rest.

    c mu may be 10^5 eV, where float32 tells apart no energies closer than 10 meV and Adam's steps are lost. A
    conversion to another dtype leaves the shifts as they are.
    """

    index: Tensor
    species: Tensor
    energy_unit: Tensor
    shift: nn.Parameter
    scale: nn.Parameter

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ShiftedModel:
        shift = self.shift.detach()
        super()._apply(fn, recurse)  # pyright: ignore[reportArgumentType]
        self.shift.data = shift.to(self.shift.device)
        return self

    def shifts(self) -> Tensor:
        """Energies c mu of the species [..., n_species], eV, float64."""
        return self.energy_unit.double() * self.shift

    @torch.no_grad()
    def fit_scale_shift(self, energy: Tensor, composition: Tensor) -> None:
        """Sets shifts mu (of all members) and the constant c from labelled energies (Eq. 10).

        Least squares of the energies on the compositions gives atomic energies; the residual's RMSE
        per atom gives c.

        Args:
            energy: [m] eV.
            composition: [m, n_species] number of atoms of each species, in the model's order.
        """
        solution, unit = regress_atomic_energies(energy, composition)
        self.energy_unit.fill_(unit)
        self.shift.copy_(solution / self.energy_unit.double().cpu())  # by c as it is stored, rounded
        self.scale.fill_(1.0)

    def composition(self, batch: AtomicBatch) -> Tensor:
        """[n_systems, n_species] number of atoms of each species."""
        return batch.sum_atoms(nn.functional.one_hot(self.index[batch.numbers], len(self.species)))


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

    Raises:
        InputError: for sizes that no model has, and for unknown or repeated species.
    """

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
        self.register_buffer("species", torch.tensor(numbers))
        index = torch.full((120,), -1)
        index[torch.tensor(numbers)] = torch.arange(n_species)
        self.register_buffer("index", index, persistent=False)
        self.moments = GaussianMoments(GaussianBasis(n_gauss, cutoff, r_min), l_max)
        beta = 2 * torch.rand(n_species, n_species * n_gauss, n_basis, generator=generator) - 1
        self.beta = nn.Parameter(beta)
        self.contractions = InvariantContractions(n_basis, l_max)
        self.readout = Readout(self.contractions.n_features, hidden, generator=generator)
        self.scale = nn.Parameter(torch.ones(n_species))
        self.shift = nn.Parameter(torch.zeros(n_species, dtype=torch.float64))
        self.register_buffer("energy_unit", torch.ones(()))

    def representation(self, vectors: Tensor, batch: AtomicBatch) -> Tensor:
        """Invariant features G [n_atoms, n_features] from pair vectors [n_atoms, k, 3] Å."""
        species = self.index[batch.numbers]
        others = species[batch.neighbours]
        beta = self.beta.index_select(0, species)
        return self.contractions(self.moments(vectors, others, beta))

    def forward(self, vectors: Tensor, batch: AtomicBatch) -> AtomicOutput:
        """Atomic energies E_i = c (rho y + mu) (Eq. 10) from pair vectors [n_atoms, k, 3] Å."""
        trace = self.readout(self.representation(vectors, batch))
        species = self.index[batch.numbers]
        energies = self.energy_unit * self.scale[species] * trace.output
        return AtomicOutput(energies.double() + self.shifts()[species], trace)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by role, as :class:`~ubmd.training.module.LearningRates` names them."""
        return {
            "readout": list(self.readout.parameters()),
            "representation": [self.beta],
            "shift": [self.shift],
            "scale": [self.scale],
        }
