"""Uncertainty-biased potential: energy, forces and stress that drive towards the unknown (Eqs. 5-8)."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor

from ubmd.bias.quantity import BiasQuantity, TotalUncertainty
from ubmd.data.batch import AtomicBatch
from ubmd.errors import InputError
from ubmd.models.potential import Memory, Potential, Prediction, energies_and_gradients
from ubmd.uncertainty.base import Uncertainty
from ubmd.uncertainty.potential import UncertainPotential

__all__ = ["BiasedPotential"]

FORCE_WINDOW = "bias_force_window"
STRESS_WINDOW = "bias_stress_window"
STEPS = "bias_steps"


class BiasedPotential(UncertainPotential):
    """A potential minus a multiple of its uncertainty, E - tau u (Eq. 5); itself a potential.

    Biased forces are F + tau_t w_Z grad u (Eq. 6) and the biased stress is sigma - tau'_t (1/V) du/deps
    (Eq. 7). With ``rescale``, tau_t is tau times the ratio of the root sums of squares of forces and
    uncertainty gradients over a walker's last ``window`` evaluations, the present one included (Eq. 8),
    and likewise for the stress with its own window. Until the window is full there is no bias.

    With windows or species weights the biased forces are no longer the gradient of one function, so the
    biased energy, E - tau_t u, is a record of the bias and not a conserved quantity.

    Fixed atoms, which no force moves, are not biased, and neither their forces nor the uncertainty's gradient by
    their positions enter Eq. 8.

    With ``every`` = n the bias acts at every n-th step of molecular dynamics alone, as an impulse n times as large
    (r-RESPA, :class:`~ubmd.dynamics.respa.SlowPotential`): predicted forces and stress then hold n times the bias of
    Eqs. 6 and 7; energies and tau do not.

    What a walker's window holds is in the ``memory`` of a prediction, to be handed back with its next step:
    ``bias_force_window`` and ``bias_stress_window`` [walkers, 2, window] (squared norms of what is biased
    and of the uncertainty's gradient) and ``bias_steps`` [walkers].

    Args:
        potential: the unbiased potential.
        uncertainty: a fitted uncertainty of its model.
        tau: biasing strength tau_0 of the forces, without unit; 0 for none. Without ``rescale`` it
            is a plain factor, in atoms (or Å, if ``quantity`` is in eV/Å).
        tau_stress: same for the stress.
        window: N of Eq. 8, in evaluations; of ``window * every`` steps, then.
        species_weights: factors of the bias force on atoms of a chemical symbol, 1 where not given. They
            do not enter the window, the energy or the stress.
        rescale: apply Eq. 8; False uses ``tau`` and ``tau_stress`` as they are from the first step.
        quantity: u, the uncertainty that is followed; by default that of the energy per atom.
        every: steps of molecular dynamics from one evaluation of bias and uncertainty to the next.

    Raises:
        InputError: for a negative strength or weight, a window or ``every`` below 1, or an unknown chemical symbol.
    """

    weights: Tensor

    def __init__(
        self,
        potential: Potential,
        uncertainty: Uncertainty,
        tau: float = 0.25,
        tau_stress: float = 0.0,
        window: int = 100,
        species_weights: Mapping[str, float] | None = None,
        rescale: bool = True,
        quantity: BiasQuantity | None = None,
        every: int = 1,
    ):
        super().__init__(potential, uncertainty, every)
        if not isinstance(window, int) or window < 1:
            raise InputError(f"bias.window must be a whole number of steps, at least 1, got {window!r}")
        self.tau = _strength("tau", tau)
        self.tau_stress = _strength("tau_stress", tau_stress)
        self.window = window
        self.rescale = rescale
        self.quantity: BiasQuantity = quantity or TotalUncertainty()
        self.register_buffer("weights", _weights(species_weights or {}), persistent=False)

    @property
    def biased(self) -> bool:
        """Whether energy, forces and stress differ from the potential's own."""
        return self.tau > 0 or self.tau_stress > 0

    @property
    def acts_on_cell(self) -> str | None:
        """The option by which this bias acts on the cell, if it does."""
        return f"bias.tau_stress={self.tau_stress:g}" if self.tau_stress > 0 else None

    def forward(self, batch: AtomicBatch, memory: Memory | None = None, /, *, stress: bool = False) -> Prediction:
        """Predicts a batch of walkers.

        Args:
            batch: one structure a walker, with neighbours within at least the model's cutoff.
            memory: what the last prediction for the same walkers returned, in the same order; None or
                empty at the first step. Left as it is.
            stress: also predict the stress of periodic structures. A ``tau_stress`` with a window implies it.

        Raises:
            ValueError: if ``memory`` belongs to other walkers or another window.
        """
        wanted = stress or (self.rescale and self.tau_stress > 0)
        if not self.biased:
            return super().forward(batch, memory, stress=wanted)
        with torch.enable_grad():
            output, leaf = self.potential.atoms(batch)
            uncertainty, atomic = self.uncertainty(self.model, output, leaf, batch)
            followed = self.quantity(uncertainty, atomic, batch)
            energy, ((gradient, strain), (slope, strain_slope)) = energies_and_gradients(
                output, leaf, batch, followed=followed
            )
        plain = Prediction(
            energy=energy.detach(),
            forces=-gradient,
            stress=batch.per_volume(strain) if wanted else None,
            uncertainty=uncertainty.detach(),
            atomic_uncertainty=atomic.detach(),
            tau=torch.zeros_like(uncertainty),
            bias_energy=torch.zeros_like(energy),
            memory=memory,
        )
        return self._add_bias(plain, followed.detach().double(), strain, slope, strain_slope, batch)

    def _add_bias(
        self,
        plain: Prediction,
        followed: Tensor,
        strain: Tensor,
        slope: Tensor,
        strain_slope: Tensor,
        batch: AtomicBatch,
    ) -> Prediction:
        """Applies Eqs. 5-8 to an unbiased prediction.

        Args:
            plain: the unbiased prediction, with the walkers' memory so far.
            followed: [n_systems] float64, u.
            strain: [n_systems, 3, 3] eV, dE/deps.
            slope: [n_atoms, 3] du/dr.
            strain_slope: [n_systems, 3, 3] du/deps.
            batch: the walkers.
        """
        memory = self._memory(plain.memory, batch)
        forces, stress, bias_energy = plain.forces, plain.stress, plain.bias_energy
        tau = plain.tau
        if self.tau > 0:
            moving, slope = batch.of_free_atoms(forces), batch.of_free_atoms(slope)
            squares = batch.sum_atoms(torch.stack([_square(moving), _square(slope)], dim=1))
            tau, memory = self._rescaled(self.tau, FORCE_WINDOW, squares, memory)
            weights, memory = self._atom_weights(moving, slope, memory, batch)
            strength = tau[batch.system_idx] * weights
            # zero means unbiased, whatever the gradient is (0 * inf is not zero)
            force = torch.where(strength[:, None] == 0, 0.0, strength[:, None] * slope)
            forces = forces + self.every * force.to(forces)
            bias_energy = -tau * followed
            tau = tau.to(slope)
        if stress is not None and self.tau_stress > 0:
            squares = torch.stack([_square(stress), _square(strain_slope / batch.volume[:, None, None])], dim=1)
            tau_stress, memory = self._rescaled(self.tau_stress, STRESS_WINDOW, squares, memory)
            strength = self.every * tau_stress[:, None, None]
            change = torch.where(strength == 0, 0.0, strength * strain_slope).to(strain)
            stress = (strain - change) / batch.volume[:, None, None]
        return replace(
            plain,
            energy=plain.energy if bias_energy is None else plain.energy + bias_energy,
            forces=forces,
            stress=stress,
            tau=tau,
            bias_energy=bias_energy,
            memory=memory,
        )

    def _atom_weights(
        self, forces: Tensor, slope: Tensor, memory: Memory | None, batch: AtomicBatch
    ) -> tuple[Tensor, Memory | None]:
        """Factors of tau_t for each atom [n_atoms] float64, and the memory; here those of the species alone.

        ``forces`` and ``slope`` (du/dr) [n_atoms, 3] are zero on fixed atoms.
        """
        return self.weights[batch.numbers], memory

    def _memory(self, memory: Memory | None, batch: AtomicBatch) -> Memory | None:
        """The memory with this step counted; new windows if it has none. None if nothing needs one."""
        if not self.rescale:
            return memory
        walkers = batch.n_systems
        windows = [FORCE_WINDOW] * (self.tau > 0) + [STRESS_WINDOW] * (self.tau_stress > 0)
        device = batch.positions.device
        memory = memory or {}
        if STEPS not in memory:
            # float64: squares of tiny gradients must not underflow, nor their sum depend on its order much
            empty = torch.zeros(walkers, 2, self.window, dtype=torch.float64, device=device)
            steps = torch.zeros(walkers, dtype=torch.int64, device=device)
            memory = memory | {STEPS: steps} | dict.fromkeys(windows, empty)
        expected = {STEPS: (walkers,)} | dict.fromkeys(windows, (walkers, 2, self.window))
        found = {name: tuple(memory[name].shape) if name in memory else None for name in expected}
        if found != expected:
            raise ValueError(f"memory of other walkers or another window: expected {expected}, got {found}")
        return memory | {STEPS: memory[STEPS] + 1}

    def _rescaled(self, tau: float, name: str, squares: Tensor, memory: Memory | None) -> tuple[Tensor, Memory | None]:
        """tau_t (Eq. 8) [n_systems] float64 and the memory with this step's squared norms [n_systems, 2]."""
        if memory is None or not self.rescale:
            return torch.full_like(squares[:, 0], tau), memory
        window = torch.cat([memory[name][:, :, 1:], squares[:, :, None]], dim=2)
        force, gradient = window.sum(2).unbind(1)
        # where the uncertainty is flat there is nothing to follow: no bias rather than an infinite one
        ratio = torch.where(gradient == 0, 0.0, (force / gradient).sqrt())
        full = memory[STEPS] >= self.window
        return torch.where(full, tau * ratio, 0.0), memory | {name: window}


def _square(values: Tensor) -> Tensor:
    """Squared norm over all but the first axis, float64."""
    return values.double().square().flatten(1).sum(1)


def _weights(species_weights: Mapping[str, float]) -> Tensor:
    """Weights by atomic number [n_elements + 1], 1 where none is given."""
    weights = torch.ones(len(chemical_symbols), dtype=torch.float64)
    for symbol, value in species_weights.items():
        if symbol not in atomic_numbers:
            # a YAML key may be anything: No (nobelium) unquoted is a boolean
            name = str(symbol)
            close = difflib.get_close_matches(name.capitalize(), chemical_symbols[1:], 1, 0.0)
            raise InputError(f"bias.species_weights names {name!r}, which is no element; did you mean {close[0]!r}?")
        weights[atomic_numbers[symbol]] = _strength(f"species_weights.{symbol}", value)
    return weights


def _strength(name: str, value: float) -> float:
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise InputError(f"bias.{name} must be zero or a positive number, got {value!r}")
    return float(value)
