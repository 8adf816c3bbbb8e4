"""A trained potential in torch-sim, as a ``ModelInterface``: many systems in one batch, biased or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor

from ubmd.bias.biased import BiasedPotential
from ubmd.data.batch import AtomicBatch
from ubmd.dynamics.skin import outran_skin
from ubmd.errors import InputError
from ubmd.interfaces.ase import torch_device
from ubmd.uncertainty.checkpoint import load_potential
from ubmd.uncertainty.potential import UncertainPotential

try:
    from torch_sim.models.interface import ModelInterface  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ImportError("torch-sim is not installed: pip install torch-sim-atomistic") from error

__all__ = ["TorchSimModel"]


class TorchSimModel(ModelInterface):
    """A model for torch-sim's integrators and optimisers, in the precision that the potential was trained in.

    Its outputs are ``energy`` [n_systems] eV, ``forces`` [n_atoms, 3] eV/Å, for periodic systems ``stress``
    [n_systems, 3, 3] eV/Å³ (positive under tension, as in ASE), and with a bias or ``uncertainties`` also
    ``uncertainty`` [n_systems] eV/atom and ``atomic_uncertainty`` [n_atoms] eV/Å. Neighbours are listed again where an
    atom or the cell has moved further than ``skin`` allows.

    torch-sim gives a model no memory and swaps systems as they finish, so that the strengths of a bias are plain
    factors (``rescale=False`` of :class:`~ubmd.bias.biased.BiasedPotential`): E - tau u is then an energy like others,
    which all integrators conserve.

    Args:
        potential: a file written by ``ubmd``, what ``load_potential`` made of one, or a ``BiasedPotential``, which is
            taken with its bias.
        device: where to compute.
        skin: Å.
        tau: factor of the uncertainty of the energy per atom in the biased energy, in atoms.
        tau_stress: the same in the stress; that of one energy if equal to ``tau``.
        species_weights: factors of the bias force on atoms of a chemical symbol, 1 where not given.
        uncertainties: also compute those of an unbiased potential.
        allow: packages whose models and uncertainties the file may name, see ``load_potential``.

    Raises:
        InputError: if the file, the device or an option is of no use; on evaluation, for systems with other elements
            or periodic along some directions only.
    """

    def __init__(
        self,
        potential: str | Path | UncertainPotential,
        *,
        device: torch.device | str = "cpu",
        skin: float = 0.5,
        tau: float = 0.0,
        tau_stress: float = 0.0,
        species_weights: Mapping[str, float] | None = None,
        uncertainties: bool = False,
        allow: str | Sequence[str] = (),
    ):
        super().__init__()
        if not 0 <= skin < torch.inf:
            raise InputError(f"skin must be zero or a positive length in Å, got {skin}")
        self._device = torch_device(device)
        if not isinstance(potential, UncertainPotential):
            potential = load_potential(potential, device=self._device, allow=allow)
        if not isinstance(potential, BiasedPotential):
            potential = BiasedPotential(
                *(potential.potential, potential.uncertainty, tau, tau_stress),
                species_weights=species_weights,
                rescale=False,
            )
        elif tau or tau_stress or species_weights:
            raise InputError("tau, tau_stress and species_weights are those of the biased potential; leave them out")
        if potential.biased and (potential.rescale or potential.every > 1):
            raise InputError("bias: torch-sim gives a potential no memory; use rescale=False and every=1")
        self.potential = potential.to(self._device)
        self._dtype = next(potential.model.parameters()).dtype
        self._compute_stress = self._compute_forces = True
        self._skin, self._uncertainties = skin, uncertainties
        self._listed: _Listed | None = None

    def forward(self, state: Any, **_: Any) -> dict[str, Tensor]:
        """Predicts the systems of a ``SimState``, or of a mapping with its fields."""
        batch = self._batch(state if isinstance(state, Mapping) else vars(state))
        crystal = bool(batch.pbc.all())
        if self.potential.biased or self._uncertainties:
            found = self.potential(batch, stress=crystal)
        else:
            found = self.potential.potential(batch, stress=crystal)
        out = {"energy": found.energy.to(self._dtype), "forces": found.forces}
        if found.stress is not None and crystal:
            out["stress"] = found.stress
        if found.uncertainty is not None:
            out |= {"uncertainty": found.uncertainty, "atomic_uncertainty": found.atomic_uncertainty}
        return out

    def _batch(self, state: Mapping[str, Any]) -> AtomicBatch:
        """The systems with neighbours, listed anew only where needed."""
        positions, numbers = state["positions"].to(self._dtype), state["atomic_numbers"].to(torch.int64)
        cell = state["cell"].to(self._dtype).transpose(1, 2)  # torch-sim has lattice vectors in columns
        system_idx = state.get("system_idx")
        system_idx = torch.zeros_like(numbers) if system_idx is None else system_idx
        pbc = torch.as_tensor(state["pbc"], device=positions.device).expand(len(cell), 3)
        if pbc.any() and not pbc.all():
            raise InputError("pbc: systems of torch-sim must be periodic in three directions or in none")
        listed = self._listed
        if listed is not None and listed.same(numbers, system_idx, pbc):
            batch = listed.batch.replace(positions=positions, cell=cell if bool(pbc.all()) else listed.batch.cell)
            if not bool(outran_skin(listed.at(batch), self.potential.cutoff, self._skin)):
                return batch
        self._check_elements(numbers)
        none = torch.zeros(len(numbers), 1, device=positions.device)
        batch = AtomicBatch(
            positions=positions,
            numbers=numbers,
            cell=cell if bool(pbc.all()) else torch.zeros_like(cell),
            pbc=pbc,
            system_idx=system_idx,
            n_atoms=torch.bincount(system_idx, minlength=len(cell)),
            neighbours=none.long(),
            mask=none.bool(),
        ).with_neighbours(self.potential.cutoff + self._skin)
        self._listed = _Listed(batch, positions.clone(), batch.cell.clone())
        return batch

    def _check_elements(self, numbers: Tensor) -> None:
        known = self.potential.species
        foreign = sorted(set(numbers.tolist()) - set(known))
        if foreign:
            symbols = ", ".join(chemical_symbols[z] for z in known)
            raise InputError(
                f"a system contains {chemical_symbols[foreign[0]]}, which the potential was not trained on (it knows "
                f"{symbols}); remove it or train a potential with it"
            )


@dataclass(frozen=True)
class _Listed:
    """Neighbours, and where they were listed."""

    batch: AtomicBatch
    listed_positions: Tensor
    listed_cell: Tensor

    def same(self, numbers: Tensor, system_idx: Tensor, pbc: Tensor) -> bool:
        """Whether these are the systems, as far as they do not move."""
        before = self.batch
        return all(
            torch.equal(*pair)
            for pair in ((before.numbers, numbers), (before.system_idx, system_idx), (before.pbc, pbc))
        )

    def at(self, batch: AtomicBatch) -> _Listed:
        """The same list for the present positions and cells."""
        return _Listed(batch, self.listed_positions, self.listed_cell)
