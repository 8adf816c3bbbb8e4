"""Well-tempered metadynamics: hills of energy where a walker has been, in a few collective variables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor, nn

from ubmd.data.batch import AtomicBatch
from ubmd.errors import InputError
from ubmd.models.potential import Memory, Potential, Prediction, WalkerPotential
from ubmd.observables.base import CollectiveVariable, Structures, derivatives
from ubmd.schema import MAY_BE_INFINITE
from ubmd.uncertainty.base import Uncertainty
from ubmd.uncertainty.potential import UncertainPotential
from ubmd.units import KB

__all__ = ["Metadynamics", "hills"]

CENTRES = "metadynamics_centres"
HEIGHTS = "metadynamics_heights"
COUNT = "metadynamics_count"
EVALUATIONS = "metadynamics_evaluations"


def hills(values: Tensor, centres: Tensor, heights: Tensor, widths: Tensor, periods: Tensor) -> tuple[Tensor, Tensor]:
    """V(s) = sum_k h_k exp(-|(s - s_k) / sigma|² / 2), with the nearest image of a periodic variable.

    Args:
        values: [..., d] points s.
        centres: [..., k, d].
        heights: [..., k] eV; 0 for a hill that is not there.
        widths: [d] sigma.
        periods: [d], infinite where there is none.

    Returns:
        V [...] eV and dV/ds [..., d].
    """
    distance = values[..., None, :] - centres
    turns = torch.round(distance / periods)  # x / inf is 0
    reduced = (distance - torch.where(turns == 0, 0.0, turns * periods)) / widths
    energies = heights * torch.exp(-0.5 * reduced.square().sum(-1))
    return energies.sum(-1), -(energies[..., None, :] @ reduced).squeeze(-2) / widths


class Metadynamics(nn.Module):
    """A potential plus the hills that its walkers have left behind; itself a potential.

    Every ``stride`` evaluations a Gaussian is added at a walker's present variables, for all evaluations
    thereafter. It is ``height`` exp(-V / (k_B dT)) high with dT = (``bias_factor`` - 1) ``temperature``, so
    that V converges to -(1 - 1 / ``bias_factor``) F (Barducci, Bussi and Parrinello, Phys. Rev. Lett. 100,
    020603 (2008), the paper's Ref. 29): the free energy is F = -gamma / (gamma - 1) V up to a constant.

    ``memory`` holds ``metadynamics_centres`` [walkers, capacity, d] and ``metadynamics_heights``
    [walkers, capacity] (eV, 0 where there is no hill yet), ``metadynamics_count`` and
    ``metadynamics_evaluations`` [walkers]. A hill that no longer fits is left out: the bias then stays.

    Args:
        potential: below the hills; with an ``uncertainty`` the unbiased potential of a model.
        uncertainty: predicted besides, for rules on when to stop; None takes the potential's own, if any.
        variables: collective variables by name, each with the width of its hills.
        temperature: of the walkers, K.
        height: of the first hill, eV.
        stride: evaluations of a walker between hills.
        bias_factor: gamma, above 1; infinite (``inf``, in a YAML file ``.inf``) for hills of equal height.
        capacity: number of hills that a walker can hold.
        shared: hills count for all walkers of the batch, which then converge together (Raiteri et al., J. Phys.
            Chem. B 110, 3533 (2006)). Each holds all hills, so the capacity is that of all walkers; they must
            advance together, and what one walker does depends on the others.
        every: steps of molecular dynamics from one evaluation of the ``uncertainty`` to the next; hills, which cost
            little, act and are added at all steps alike.

    Raises:
        InputError: if a value is out of range, or there is an ``every`` without an ``uncertainty``.
    """

    widths: Tensor
    periods: Tensor

    def __init__(
        self,
        potential: Potential | WalkerPotential,
        uncertainty: Uncertainty | None = None,
        *,
        variables: Mapping[str, CollectiveVariable],
        temperature: float = 300.0,
        height: float = 0.05,
        stride: int = 50,
        bias_factor: Annotated[float, MAY_BE_INFINITE] = 10.0,
        capacity: int = 1000,
        shared: bool = False,
        every: int = 1,
    ):
        super().__init__()
        if not variables:
            raise InputError("bias.variables is empty: metadynamics needs a collective variable, see system.variables")
        if lacking := [name for name, variable in variables.items() if variable.width is None]:
            raise InputError(f"bias.variables.{lacking[0]}.width is missing: give the width of a hill")
        for name, value in (("stride", stride), ("capacity", capacity)):
            if not isinstance(value, int) or value < 1:
                raise InputError(f"bias.{name} must be a whole number, at least 1, got {value!r}")
        for name, value in (("temperature", temperature), ("height", height)):
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InputError(f"bias.{name} must be one positive number, got {value}")
        if not bias_factor > 1:
            raise InputError(f"bias.bias_factor must exceed 1 (inf for hills of equal height), got {bias_factor}")
        self.base = potential
        if uncertainty is not None:
            self.base = UncertainPotential(potential, uncertainty, every)  # pyright: ignore[reportArgumentType]
        elif every != 1:
            raise InputError(f"bias.every={every} needs an uncertainty; a potential that has one has its own every")
        self.variables = dict(variables)
        self.height, self.stride, self.capacity, self.shared = float(height), stride, capacity, shared
        self.bias_factor = float(bias_factor)
        self.tempering = KB * temperature * (bias_factor - 1)
        widths = [variable.width for variable in variables.values()]
        periods = [variable.period or math.inf for variable in variables.values()]
        self.register_buffer("widths", torch.tensor(widths, dtype=torch.float64), persistent=False)
        self.register_buffer("periods", torch.tensor(periods, dtype=torch.float64), persistent=False)

    @property
    def cutoff(self) -> float:
        """Cutoff of the potential below the hills, Å."""
        return self.base.cutoff

    @property
    def unbiased(self) -> WalkerPotential:
        """The potential below the hills, and below any other bias."""
        return getattr(self.base, "unbiased", self.base)

    @property
    def acts_on_cell(self) -> str | None:
        """The option by which this bias acts on the cell, if it does."""
        acting = [type(variable).__name__ for variable in self.variables.values() if variable.of_cell]
        return f"bias.variables with {acting[0]}" if acting else None

    @property
    def every(self) -> int:
        """Steps from one evaluation of the uncertainty to the next."""
        return getattr(self.base, "every", 1)

    def between(self, batch: AtomicBatch, memory: Memory | None = None, /, *, stress: bool = False) -> Prediction:
        """The steps between: as :meth:`forward`, without uncertainties."""
        return self._with_hills(self.base.between(batch, memory, stress=stress), batch)  # pyright: ignore

    def forward(self, batch: AtomicBatch, memory: Memory | None = None, /, *, stress: bool = False) -> Prediction:
        """Predicts a batch of walkers with the hills of their memory, then adds the new ones to it.

        Args:
            batch: one structure a walker.
            memory: what the last prediction for the same walkers returned, in the same order; None or
                empty at the first step. Left as it is.
            stress: also predict the stress of periodic structures, that of the hills included.

        Raises:
            InputError: at the first step, if the structures have no such variables.
            ValueError: if ``memory`` belongs to other walkers or other settings.
        """
        return self._with_hills(self.base(batch, memory, stress=stress), batch)

    def _with_hills(self, plain: Prediction, batch: AtomicBatch) -> Prediction:
        memory = self._memory(plain.memory, batch)
        centres, heights = memory[CENTRES], memory[HEIGHTS]
        with torch.enable_grad():
            values, leaves = derivatives(batch, self.variables.values())
        energy, slope = hills(values.detach(), centres, heights, self.widths, self.periods)
        gradient, strain = torch.autograd.grad(values, leaves, slope, materialize_grads=True)
        if plain.stress is not None:
            strain = 0.5 * (strain + strain.transpose(1, 2)) / batch.volume[:, None, None]
        return replace(
            plain,
            energy=plain.energy + energy,
            forces=plain.forces - gradient.to(plain.forces),
            stress=None if plain.stress is None else plain.stress + strain.to(plain.stress),
            bias_energy=energy if plain.bias_energy is None else plain.bias_energy + energy,
            memory=self._deposited(memory, values.detach(), energy),
        )

    def _memory(self, memory: Memory | None, batch: AtomicBatch) -> Memory:
        """The memory, with room for hills if it has none yet."""
        walkers, device, size = batch.n_systems, batch.positions.device, len(self.widths)
        memory = memory or {}
        if EVALUATIONS not in memory:
            self._check(batch)
            memory = memory | {
                CENTRES: torch.zeros(walkers, self.capacity, size, dtype=torch.float64, device=device),
                HEIGHTS: torch.zeros(walkers, self.capacity, dtype=torch.float64, device=device),
                COUNT: torch.zeros(walkers, dtype=torch.int64, device=device),
                EVALUATIONS: torch.zeros(walkers, dtype=torch.int64, device=device),
            }
        expected, found = (walkers, self.capacity, size), tuple(memory[CENTRES].shape)
        if found != expected:
            raise ValueError(f"memory of other walkers or settings: expected hills {expected}, got {found}")
        return memory

    def _check(self, batch: AtomicBatch) -> None:
        """Refuses walkers that have no such variables."""
        if batch.n_atoms.unique().numel() > 1:
            raise InputError("metadynamics needs walkers of the same number of atoms; start from structures alike")
        for variable in self.variables.values():
            variable.check(Structures.of_batch(batch))

    def _deposited(self, memory: Memory, values: Tensor, energy: Tensor) -> Memory:
        """The memory with this evaluation counted and, if it is due, a hill at ``values`` [walkers, d]."""
        evaluations, count = memory[EVALUATIONS], memory[COUNT]
        # the start, evaluation 0, leaves no hill
        due = (evaluations > 0) & (evaluations % self.stride == 0)
        heights = self.height * torch.exp(-energy / self.tempering)
        # a walker that is lost must not spoil the bias of those that it shares with
        sound = values.isfinite().all(1) & heights.isfinite() & due
        values, heights = torch.where(sound[:, None], values, 0.0), torch.where(sound, heights, 0.0)
        walkers = len(values)
        if self.shared:
            values, heights = values.expand(walkers, *values.shape), heights.expand(walkers, walkers)
        else:
            values, heights = values[:, None], heights[:, None]
        new = heights.shape[1]
        place = torch.arange(self.capacity, device=values.device) - count[:, None]
        here = due[:, None] & (place >= 0) & (place < new)
        place = place.clamp(0, new - 1)
        hill = values.gather(1, place[..., None].expand(-1, -1, values.shape[2]))
        return memory | {
            CENTRES: torch.where(here[..., None], hill, memory[CENTRES]),
            HEIGHTS: torch.where(here, heights.gather(1, place), memory[HEIGHTS]),
            COUNT: (count + new * due).clamp(max=self.capacity),
            EVALUATIONS: evaluations + 1,
        }
