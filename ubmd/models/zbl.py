"""Repulsion of atoms that come close, which no data tell of: the universal potential of Ziegler, Biersack and Littmark.

TorchScript reads :func:`pair_energy` too, and wants its annotations as they are (no ``from __future__ import
annotations``).
"""

from collections.abc import Sequence

import torch
from ase.data import chemical_symbols, covalent_radii
from torch import Tensor, nn

from ubmd.data.batch import AtomicBatch
from ubmd.errors import InputError
from ubmd.models.base import Known

__all__ = ["ZBL", "pair_energy"]

LAST_RADIUS = 96
"""Curium, the last element of which the covalent radius is known."""
LARGEST_SHARE = 2.0


def pair_energy(r: Tensor, z: Tensor, other: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """Screened repulsion V(r) of pairs of nuclei, with its slope.

    V(r) = k Z Z' / r phi(r / a) s(r), phi(x) = sum_n c_n exp(-d_n x), a = 0.46850 Å / (Z^0.23 + Z'^0.23), with the
    universal c and d of Ziegler, Biersack and Littmark (The Stopping and Range of Ions in Matter, 1985), as in LAMMPS'
    ``pair_style zbl``. s falls from 1 at half of ``outer`` to 0 there, s = 1 - t^3 (10 - 15 t + 6 t^2), so that V has
    two continuous derivatives.

    Args:
        r: [n] distances, Å.
        z: [n] atomic numbers, float64 for the best.
        other: [n] those of the other atoms.
        outer: [n] Å, where V ends.

    Returns:
        V [n] eV and dV/dr [n] eV/Å, zero from ``outer`` on.
    """
    per_length = (z**0.23 + other**0.23) / 0.46850
    x = r * per_length
    first, second = 0.18175 * torch.exp(-3.19980 * x), 0.50986 * torch.exp(-0.94229 * x)
    third, fourth = 0.28022 * torch.exp(-0.40290 * x), 0.02817 * torch.exp(-0.20162 * x)
    screening = first + second + third + fourth
    by_r = -per_length * (3.19980 * first + 0.94229 * second + 0.40290 * third + 0.20162 * fourth)
    t = torch.clamp(2.0 * r / outer - 1.0, 0.0, 1.0)
    switch = 1.0 - t * t * t * (10.0 - 15.0 * t + 6.0 * t * t)
    switch_by_r = -60.0 * t * t * (1.0 - t) * (1.0 - t) / outer
    coulomb = 14.399645 * z * other / r  # e^2 / (4 pi eps_0), eV Å
    return coulomb * screening * switch, coulomb * ((by_r - screening / r) * switch + screening * switch_by_r)


class ZBL(nn.Module):
    """The repulsion of all pairs of atoms in a batch, each ending at a share of the sum of their covalent radii.

    Bonds do not feel it with the usual share: triple bonds (N≡N, C≡O, C≡C) are 0.77 to 0.79 of the sum long, bonds of
    metals to oxygen at least 0.7, but for those of actinides. It has no parameters; where it acts, a model learns what
    is left.

    Args:
        species: chemical symbols that will occur.
        share: of the sum of two covalent radii (Cordero et al., Dalton Trans. 2008, 2832), where the repulsion ends.
        cutoff: of the model, Å, up to which batches have neighbours.

    Raises:
        InputError: for a share out of range, for one that reaches further than ``cutoff``, and for elements whose
            covalent radius is not known.
    """

    radii: Tensor

    def __init__(self, species: Sequence[str], share: float = 0.7, cutoff: float = float("inf")):
        super().__init__()
        if not 0 < share <= LARGEST_SHARE:
            raise InputError(
                f"model.repulsion_cutoff={share} must be a share of the sum of two covalent radii, above 0 and at most "
                f"{LARGEST_SHARE:g}"
            )
        numbers = [chemical_symbols.index(symbol) for symbol in species]
        if unknown := [z for z in numbers if z > LAST_RADIUS]:
            raise InputError(
                f"model.repulsion=zbl needs covalent radii, known up to {chemical_symbols[LAST_RADIUS]}, hence "
                f"not of {chemical_symbols[unknown[0]]}; leave it out (null)"
            )
        reach = [share * float(radius) for radius in covalent_radii]
        longest = 2 * max(reach[z] for z in numbers)
        if longest > cutoff:
            raise InputError(
                f"model.repulsion_cutoff={share} lets two atoms repel each other up to {longest:.2f} Å, beyond "
                f"model.cutoff={cutoff:g} Å; lower it"
            )
        self.share = float(share)
        self.register_buffer("radii", torch.tensor(reach, dtype=torch.float64), persistent=False)

    def extra_repr(self) -> str:
        return f"share={self.share:g}"

    def forward(self, batch: AtomicBatch) -> Known:
        """Energies, of each pair a half to each of its atoms, with their derivatives."""
        reach, vectors = self.radii[batch.numbers], batch.vectors().detach()
        outer = reach[:, None] + reach[batch.neighbours]
        # few pairs are as close as this, of all that lie within the cutoff of a model; mostly none
        first, column = (vectors.square().sum(2) < outer.square()).nonzero(as_tuple=True)
        energies = vectors.new_zeros(len(vectors), dtype=torch.float64)
        gradient, strain = torch.zeros_like(batch.positions), torch.zeros_like(batch.cell)
        if not len(first):
            return Known(energies, gradient, strain)
        second = batch.neighbours[first, column]
        vector = vectors[first, column].double()
        r = vector.square().sum(1).sqrt()
        z, other = batch.numbers[first].double(), batch.numbers[second].double()
        energy, slope = pair_energy(r, z, other, outer[first, column].double())
        pair = (0.5 * slope / r)[:, None] * vector
        by_strain = (pair[:, :, None] * vector[:, None]).to(strain)
        pair = pair.to(gradient)
        return Known(
            energies.index_add(0, first, 0.5 * energy),
            gradient.index_add(0, first, pair).index_add(0, second, -pair),
            strain.index_add(0, batch.system_idx[first], by_strain),
        )
