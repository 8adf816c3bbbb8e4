"""Atomic energies E_i = c (rho y + mu) (Eq. 10): scales and shifts that any model can wear."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import Parameter, signature

import torch
from torch import Tensor, nn

from ubmd.data.batch import AtomicBatch
from ubmd.data.elements import species_numbers
from ubmd.errors import InputError
from ubmd.models.base import AtomicOutput, by_pair_vectors, layer_sizes, parameter_groups

__all__ = [
    "ScaleShift",
    "ShiftedModel",
    "make_model",
    "regress_atomic_energies",
    "worn",
]


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
    return solution, _rms((energy - composition @ solution) / n_atoms)


def _rms(per_atom: Tensor) -> float:
    """Root mean square of energies per atom, eV/atom, at least 1 meV."""
    return per_atom.square().mean().sqrt().clamp(min=1e-3).item()


class ShiftedModel(nn.Module):
    """A model E_i = c (rho y + mu) (Eq. 10) whose shifts mu are float64 in every precision of the rest.

    c mu may be 10^5 eV, where float32 tells apart no energies closer than 10 meV and Adam's steps are lost. A
    conversion to another dtype leaves the shifts as they are.
    """

    index: Tensor
    """[120] place of an atomic number among the species; -1 for an element that is not known."""
    species: Tensor
    """[n_species] atomic numbers, ascending."""
    energy_unit: Tensor
    shift: nn.Parameter
    scale: nn.Parameter

    def _know(self, numbers: Sequence[int]) -> None:
        """Registers the tables of the species with these atomic numbers."""
        index = torch.full((120,), -1)
        index[torch.tensor(numbers)] = torch.arange(len(numbers))
        self.register_buffer("species", torch.tensor(numbers))
        self.register_buffer("index", index, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ShiftedModel:
        shift = self.shift.detach()
        super()._apply(fn, recurse)  # pyright: ignore[reportArgumentType]
        self.shift.data = shift.to(self.shift.device)
        return self

    def shifts(self) -> Tensor:
        """Energies c mu of the species [..., n_species], eV, float64."""
        return self.energy_unit.double() * self.shift

    @torch.no_grad()
    def fit_scale_shift(self, energy: Tensor, composition: Tensor, given: Tensor | None = None) -> None:
        """Sets shifts mu (of all members) and the constant c from labelled energies (Eq. 10).

        Least squares of the energies on the compositions gives atomic energies; the residual's RMSE
        per atom gives c. What given energies leave is mostly the same for all atoms, that of their bonds: the network
        begins with it, if it can, and c is the RMSE of the rest.

        Args:
            energy: [m] eV.
            composition: [m, n_species] number of atoms of each species, in the model's order.
            given: [n_species] atomic energies that are known instead, eV.
        """
        if given is None:
            solution, unit = regress_atomic_energies(energy, composition)
        else:
            solution, composition = given.double().cpu(), composition.double().cpu()
            left = (energy.double().cpu() - composition @ solution) / composition.sum(1)
            unit = _rms(left - left.mean())
            if not self.begin_at(left.mean().item() / unit):
                unit = _rms(left)
        self.energy_unit.fill_(unit)
        self.give_shift(solution)
        self.scale.fill_(1.0)

    def begin_at(self, output: float) -> bool:
        """Makes outputs y begin at ``output``, which may be large, and says whether it could."""
        return False

    @torch.no_grad()
    def give_shift(self, atomic: Tensor) -> None:
        """Sets the shifts (of all members) so that atomic energies c mu are those given [n_species], eV."""
        self.shift.copy_(atomic.double().cpu() / self.energy_unit.double().cpu())  # by c as it is stored, rounded

    @torch.no_grad()
    def correct_shift(self, missing: Tensor, composition: Tensor) -> None:
        """Adds to the shifts (of all members) what energies lack, by least squares over the compositions.

        Unlike :meth:`fit_scale_shift` it leaves the energy unit alone, in which weights that are trained already
        express themselves.

        Args:
            missing: [m] eV.
            composition: [m, n_species].
        """
        energies, _ = regress_atomic_energies(missing, composition)
        self.shift.add_((energies / self.energy_unit.double().cpu()).to(self.shift))

    def composition(self, batch: AtomicBatch) -> Tensor:
        """[n_systems, n_species] number of atoms of each species."""
        return batch.sum_atoms(nn.functional.one_hot(self.index[batch.numbers], len(self.species)))


class ScaleShift(ShiftedModel):
    """Any model with scales and shifts: its energies are the y of Eq. 10, best of order 1 at first.

    Those of a ``pretrained`` model are in eV already, and only shifts have the unit c: E_i = rho y + c mu.

    Args:
        model: the model.
        species: chemical symbols that it knows.

    Raises:
        InputError: for unknown or repeated species, or a model without a cutoff.
    """

    def __init__(self, model: nn.Module, species: Sequence[str]):
        super().__init__()
        numbers = species_numbers(species)
        cutoff = getattr(model, "cutoff", None)
        if not isinstance(cutoff, int | float) or not 0 < cutoff < float("inf"):
            raise InputError(f"model.cutoff={cutoff} of a {type(model).__name__} must be a length in Å; give it one")
        self.cutoff = float(cutoff)
        self.by_pair_vectors = by_pair_vectors(model)
        self.n_features = int(getattr(model, "n_features", 0))
        self.layer_sizes = layer_sizes(model)
        self.pretrained = bool(getattr(model, "pretrained", False))
        self._know(numbers)
        self.scale = nn.Parameter(torch.ones(len(numbers)))
        self.shift = nn.Parameter(torch.zeros(len(numbers), dtype=torch.float64))
        self.register_buffer("energy_unit", torch.ones(()))
        self.model = model

    @property
    def repulsion(self) -> nn.Module | None:
        """That of the model, whose energies have neither scale nor shift."""
        return getattr(self.model, "repulsion", None)

    def forward(self, *geometry: Tensor | AtomicBatch) -> AtomicOutput:
        """The model's output, called as it is, with energies in eV."""
        output: AtomicOutput = self.model(*geometry)
        batch = geometry[-1]
        assert isinstance(batch, AtomicBatch)
        species = self.index[batch.numbers]
        scale = self.scale[species] if self.pretrained else self.energy_unit * self.scale[species]
        energies = scale * output.energies
        return replace(output, energies=energies.double() + self.shifts()[species])

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The model's groups, and those of shifts and scales."""
        return {**parameter_groups(self.model), "shift": [self.shift], "scale": [self.scale]}


def worn(model: nn.Module) -> nn.Module:
    """The model below its scales and shifts, if it was given them."""
    return model.model if isinstance(model, ScaleShift) else model


def make_model(factory: Callable[..., nn.Module], *, species: Sequence[str], seed: int = 0) -> nn.Module:
    """A model that knows its species and has atomic energies, whatever ``factory`` makes.

    Args:
        factory: a class, or a partial of one; ``species`` and ``seed`` are handed to it if it takes them.
        species: chemical symbols.
        seed: of the initial weights; torch's generator is seeded by it while the model is made, and left as it was.

    Raises:
        InputError: if what is made is no model.
    """
    parameters = signature(factory).parameters
    every = any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())
    given = {"species": list(species), "seed": seed}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # that of the CPU alone
        model = factory(**{name: value for name, value in given.items() if every or name in parameters})
    if not isinstance(model, nn.Module):
        raise InputError(f"model._target_ makes a {type(model).__name__}, which is no torch.nn.Module; name a class")
    return model if hasattr(model, "fit_scale_shift") else ScaleShift(model, species)
