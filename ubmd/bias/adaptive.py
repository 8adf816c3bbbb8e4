"""Weights of the bias for each chemical species that follow from the forces met, instead of being given."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ubmd.bias.biased import STEPS, BiasedPotential
from ubmd.bias.quantity import BiasQuantity
from ubmd.data.batch import AtomicBatch
from ubmd.models.potential import Memory, Potential
from ubmd.uncertainty.base import Uncertainty

__all__ = ["SpeciesBalancedBias"]

MEANS = "bias_species_means"


class SpeciesBalancedBias(BiasedPotential):
    """A biased potential whose bias force is, for every species, the same fraction of its own forces.

    Eq. 8 makes the bias tau_0 times as strong as the forces of all atoms together; within a walker the atoms
    of a species may get far more than that, and others less. Here Eq. 8 holds species by species: the atoms
    of species Z have the strength tau_t w_Z with

        w_Z = (rms F_Z / rms grad_Z u) / (rms F / rms grad u),

    where the mean squares are running means over about the last ``window`` evaluations of the walker. Hence
    sum_Z |w_Z grad_Z u|² = |grad u|² on average: the weights distribute the bias and leave its size alone.

    Why forces: in the canonical ensemble <F_i²> = k_B T <d²E/dr_i²>, so that a constant bias force f displaces
    an atom of mean curvature k by f / k = (f / rms F) sqrt(k_B T / k). The ratio f / rms F, the same for all
    species here, is the displacement in units of the atom's thermal one: stiff and soft species are strained
    alike. Whether light atoms are thereby damped depends on the uncertainty, not on a rule.

    ``memory`` holds ``bias_species_means`` [walkers, 2, elements + 1] besides what
    :class:`~ubmd.bias.biased.BiasedPotential` keeps.

    Args:
        potential: the unbiased potential.
        uncertainty: a fitted uncertainty of its model.
        tau: biasing strength tau_0 of the forces, without unit.
        tau_stress: same for the stress, which has no weights.
        window: N of Eq. 8 and horizon of the running means, in evaluations.
        species_weights: further factors by chemical symbol, 1 where not given.
        quantity: u, the uncertainty that is followed; by default that of the energy per atom.
        every: steps of molecular dynamics from one evaluation of bias and uncertainty to the next.
    """

    def __init__(
        self,
        potential: Potential,
        uncertainty: Uncertainty,
        tau: float = 0.25,
        tau_stress: float = 0.0,
        window: int = 100,
        species_weights: Mapping[str, float] | None = None,
        quantity: BiasQuantity | None = None,
        every: int = 1,
    ):
        super().__init__(
            potential, uncertainty, tau, tau_stress, window, species_weights, quantity=quantity, every=every
        )

    def _atom_weights(
        self, forces: Tensor, slope: Tensor, memory: Memory | None, batch: AtomicBatch
    ) -> tuple[Tensor, Memory | None]:
        assert memory is not None, "with Eq. 8 there is always a memory"
        walkers, elements = batch.n_systems, len(self.weights)
        squares = torch.stack([forces, slope], dim=1).double().square().sum(2)
        species = batch.system_idx * elements + batch.numbers
        summed = squares.new_zeros(walkers * elements, 2).index_add(0, species, squares)
        summed = summed.view(walkers, elements, 2).transpose(1, 2)
        means = memory.get(MEANS, torch.zeros_like(summed))
        # the plain mean at first, which forgets exponentially from the end of the window on
        share = 1 / memory[STEPS].clamp(max=self.window)
        means = means + share[:, None, None] * (summed - means)
        total = means.sum(2)
        # numbers of atoms cancel, so sums do as well as root mean squares
        weights = _ratio(means[:, 0], means[:, 1]) / _ratio(total[:, 0], total[:, 1])[:, None]
        weights = torch.where(means[:, 1] == 0, 0.0, weights)
        chosen = weights[batch.system_idx, batch.numbers] * self.weights[batch.numbers]
        return chosen, memory | {MEANS: means.contiguous()}


def _ratio(force: Tensor, gradient: Tensor) -> Tensor:
    return (force / gradient).sqrt()
