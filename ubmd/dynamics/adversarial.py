"""Adversarial attacks: climbing to where the potential is uncertain and the structure still likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from ase import Atoms
from torch import Tensor

from ubmd.bias.biased import BiasedPotential
from ubmd.bias.quantity import BiasQuantity, TotalUncertainty
from ubmd.data.batch import AtomicBatch
from ubmd.data.perturb import check_displacement, perturb
from ubmd.dynamics.explore import Explorer
from ubmd.dynamics.noise import START_STREAM, stream
from ubmd.dynamics.settings import check_temperature
from ubmd.dynamics.state import WalkerState
from ubmd.errors import InputError
from ubmd.models.potential import Potential, Prediction
from ubmd.uncertainty.base import Uncertainty
from ubmd.units import KB

__all__ = ["AdamDescent", "AdversarialExploration", "AdversarialPotential", "LogUncertainty"]

MEAN = "adam_mean"
SQUARE = "adam_square"


@dataclass(frozen=True)
class LogUncertainty:
    """ln u of another quantity, without unit."""

    quantity: BiasQuantity

    def __call__(self, total: Tensor, atomic: Tensor, batch: AtomicBatch, /) -> Tensor:
        u = self.quantity(total, atomic, batch)
        # certain to the last digit: nothing to follow rather than an infinite slope
        return u.clamp(min=torch.finfo(u.dtype).tiny).log()


class AdversarialPotential(BiasedPotential):
    """E - k_B T ln u, whose minima are the maxima of u exp(-E / k_B T); itself a potential.

    That product, uncertainty times Boltzmann weight, is what an adversarial attack maximises (Schwalbe-Koda,
    Tan and Gomez-Bombarelli, Nat. Commun. 12, 5104 (2021), the paper's Ref. 35). Its logarithm has the same
    maxima and does not underflow far from them. The weight's normalisation by the training structures' energies
    is a constant factor, hence without effect on forces.

    Args:
        potential: the unbiased potential.
        uncertainty: a fitted uncertainty of its model.
        temperature: T, K; the higher, the less likely a structure may be.
        quantity: u; by default the uncertainty of the energy per atom.

    Raises:
        InputError: for a temperature that is not positive.
    """

    def __init__(
        self,
        potential: Potential,
        uncertainty: Uncertainty,
        temperature: float = 1200.0,
        quantity: BiasQuantity | None = None,
    ):
        check_temperature(temperature)
        log = LogUncertainty(quantity or TotalUncertainty())
        strength = KB * temperature
        super().__init__(potential, uncertainty, strength, tau_stress=strength, rescale=False, quantity=log)

    @property
    def acts_on_cell(self) -> None:
        """Its stress is part of it, not an option: in a cell that stays, atoms alone are attacked."""


@dataclass(frozen=True)
class AdamDescent:
    """Descends a potential by Adam (Kingma and Ba, 2015), one update of the positions a step.

    The moments are in the walkers' ``memory``: ``adam_mean`` and ``adam_square`` [walkers, n, 3].

    Args:
        learning_rate: about the distance that an atom moves in a step, Å.
        betas: decay of the running means of the gradient and its square.
        eps: gradients well below it give smaller steps, eV/Å.

    Raises:
        InputError: if a value is out of range.
    """

    learning_rate: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    needs_stress: ClassVar[bool] = False

    def __post_init__(self) -> None:
        # a YAML list must not look like another setting than a tuple
        object.__setattr__(self, "betas", tuple(self.betas))
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate must be positive, got {self.learning_rate} Å")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas must be two numbers from 0 to 1, got {list(self.betas)}")

    def prepare(self, state: WalkerState) -> AdamDescent:
        """Itself: nothing depends on the set of walkers."""
        return self

    def first_half(self, state: WalkerState, noise: Tensor) -> WalkerState:
        """Moves the positions down the potential; ``noise`` is not used."""
        gradient = -state.forces.view(state.n_walkers, -1, 3)
        zeros = torch.zeros_like(gradient)
        first, second = self.betas
        mean = first * state.memory.get(MEAN, zeros) + (1 - first) * gradient
        square = second * state.memory.get(SQUARE, zeros) + (1 - second) * gradient.square()
        count = (state.step + 1).to(gradient.dtype)[:, None, None]
        change = (mean / (1 - first**count)) / ((square / (1 - second**count)).sqrt() + self.eps)
        positions = state.batch.positions - self.learning_rate * change.reshape(-1, 3)
        return state.replace(
            batch=state.batch.replace(positions=positions), memory=state.memory | {MEAN: mean, SQUARE: square}
        )

    def second_half(self, state: WalkerState, prediction: Prediction, noise: Tensor) -> WalkerState:
        """Takes over the prediction; ``noise`` is not used."""
        moments = {key: state.memory[key] for key in (MEAN, SQUARE)}
        state = state.observed(prediction, step=state.step + 1)
        return state.replace(memory=state.memory | moments)


@dataclass(frozen=True, kw_only=True)
class AdversarialExploration(Explorer):
    """Explores by descending the (biased) potential from randomly shifted structures.

    With :class:`AdversarialPotential` these are adversarial attacks; with
    :class:`~ubmd.bias.biased.BiasedPotential` they climb the uncertainty at the price of energy, E - tau u.
    A step is an update of the positions; a walker above the threshold stops as in molecular dynamics. There is
    no temperature.

    Args:
        integrator: how to descend.
        displacement: half-width of the uniform shift of each starting coordinate, Å: an attack starts beside a
            labelled structure, where the uncertainty is not at its minimum.
    """

    integrator: AdamDescent
    displacement: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_displacement(self.displacement)

    def begin(self, structures: Sequence[Atoms], seeds: Sequence[int]) -> tuple[Sequence[Atoms], AdamDescent]:
        shifted = [
            perturb(atoms, 1, displacement=self.displacement, rng=stream(seed, START_STREAM))[0]
            for atoms, seed in zip(structures, seeds, strict=True)
        ]
        return shifted, self.integrator
