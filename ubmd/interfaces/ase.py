"""A trained potential as an ASE calculator: energy, forces, stress, uncertainties and, optionally a bias."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import (
    CalculationFailed,
    Calculator,
    Parameters,
    PropertyNotImplementedError,
    all_changes,
)
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray
from torch import Tensor

from ubmd.bias.biased import BiasedPotential
from ubmd.data.batch import AtomicBatch, collate
from ubmd.data.inherit import free_atoms
from ubmd.data.io import check_structure
from ubmd.errors import InputError
from ubmd.models.base import atomic_output
from ubmd.models.potential import Memory, Prediction
from ubmd.uncertainty.checkpoint import load_potential
from ubmd.uncertainty.potential import UncertainPotential

__all__ = ["UBMDCalculator", "check_elements", "torch_device"]

_BESIDES = ("uncertainty", "atomic_uncertainty", "bias_energy")
"""What ``get_property`` knows besides ASE's names."""
_ENERGIES = {"energy", "free_energy", "energies"}


class UBMDCalculator(Calculator):
    """ASE calculator of a trained potential; without ``tau`` and ``tau_stress`` the potential is unbiased.

    ASE's results are ``energy``, ``free_energy`` (the same), ``energies`` [n_atoms] that add up to it, ``forces`` and,
    as with ASE's own calculators, ``stress`` (eV/Å³, Voigt order, positive under tension) wherever the cell has three
    vectors, that of a slab included. Beside them there are, from ``calc.get_property(name, atoms)``,

    - ``uncertainty``: calibrated uncertainty of the energy per atom, eV/atom;
    - ``atomic_uncertainty`` [n_atoms]: calibrated uncertainty of the force on each atom, eV/Å;
    - ``bias_energy``: what the bias has added to ``energy``, eV.

    Those of the structure evaluated last are also the attributes ``calc.uncertainty``,
    ``calc.atomic_uncertainty`` and ``calc.bias_energy``, None where they were not computed. They are not in
    ``results``, as ASE's writers, ``SinglePointCalculator`` and ``export_properties`` accept ASE's names alone.

    An unbiased calculator computes no more than it is asked for: energies alone are one pass of the model, forces come
    with stress, and uncertainties with everything else, so ask for them first where both they and forces are needed.
    Charges and magnetic moments of the atoms do not enter, and nothing is computed again when they change.

    A biased calculator returns the biased energy, forces and stress (Eqs. 5-8), and uncertainties with them, but no
    ``energies``: a bias belongs to no single atom.
    Its windows (Eq. 8) advance once for each configuration that differs from the one evaluated before,
    whoever asks: an MD step, a line search or a finite difference. So give each trajectory a calculator of
    its own (``load_potential`` once, and a calculator of the result for each). There is no bias until a
    window is full, and windows start afresh when elements, their order or the periodicity change. Atoms that
    constraints fix (``FixAtoms``) neither are biased nor count in the windows. With
    windows or species weights the biased forces are not the derivative of the biased energy. The bias acts in every
    evaluation: there is no ``every``, as the calculator cannot know which step an integrator of ASE is at.

    Args:
        potential: a file written by ``ubmd`` (``RUN/rounds/000/model.ckpt``) or a run's folder, what
            ``load_potential`` made of one, or a :class:`~ubmd.bias.biased.BiasedPotential`, which is taken with its
            bias.
        device: where to compute: ``cpu``, ``cuda``, ``cuda:1`` ..., or ``auto``.
        skin: Å that neighbour lists reach beyond the cutoff; they are used until an atom has moved by half
            of it, or elements, periodicity or cell change.
        tau: biasing strength of the forces, without unit.
        tau_stress: biasing strength of the stress, without unit.
        window: N of Eq. 8, in evaluations.
        species_weights: factors of the bias force on atoms of a chemical symbol, 1 where not given.
        rescale: apply Eq. 8; False takes the strengths as plain factors from the first evaluation.
        allow: packages whose models and uncertainties the file may name, see ``load_potential``.
        dtype: precision to compute in, ``float32`` or ``float64``; by default the one that the potential was trained
            in. float64 is for what differentiates forces: phonons, tight optimisations, small energy drifts.

    Raises:
        InputError: if the file, the device or an option is of no use; on evaluation, if a structure
            contains an element that the potential does not know or cannot be computed at all.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012
    # neither enters the potential; without this, setting one would advance the windows of the bias
    ignored_changes = {"initial_charges", "initial_magmoms"}  # noqa: RUF012

    def __init__(
        self,
        potential: str | Path | UncertainPotential,
        *,
        device: torch.device | str = "cpu",
        skin: float = 0.5,
        tau: float = 0.0,
        tau_stress: float = 0.0,
        window: int = 100,
        species_weights: Mapping[str, float] | None = None,
        rescale: bool = True,
        allow: str | Sequence[str] = (),
        dtype: str | torch.dtype | None = None,
    ):
        super().__init__()
        if not 0 <= skin < np.inf:
            raise InputError(f"skin must be zero or a positive length in Å, got {skin}")
        device = torch_device(device)
        self._name, told = "the potential", {}
        if not isinstance(potential, UncertainPotential):
            self._name = told["potential"] = str(potential)
            potential = load_potential(potential, device=device, allow=allow)
        potential = _in_precision(potential, dtype)
        self._model = potential.model
        if not isinstance(potential, BiasedPotential):
            potential = BiasedPotential(
                potential.potential, potential.uncertainty, tau, tau_stress, window, species_weights, rescale
            )
        elif tau or tau_stress or species_weights:
            raise InputError("tau, tau_stress and species_weights are those of the biased potential; leave them out")
        elif potential.every > 1:
            raise InputError(f"bias.every={potential.every} is for walkers of ubmd; here the bias acts always: use 1")
        self._potential = potential.to(device)
        self._skin = skin
        self._listed: _Listed | None = None
        self._memory: Memory | None = None
        self.uncertainty: float | None = None
        self.atomic_uncertainty: NDArray[np.float64] | None = None
        self.bias_energy: float | None = None
        told["dtype"] = str(next(self._model.parameters()).dtype).removeprefix("torch.")
        if self._potential.biased:
            told |= {name: getattr(self._potential, name) for name in ("tau", "tau_stress", "window", "rescale")}
            told["species_weights"] = dict(species_weights or {})
        self.parameters = Parameters(told)  # what ASE's files keep of a calculator

    def _get_name(self) -> str:
        return "ubmd"

    def set(self, **options: Any) -> dict[str, Any]:
        """Refuses changes: options are given when the calculator is made."""
        if options:
            name = next(iter(options))
            raise InputError(f"{name} cannot be set any more; make another calculator: UBMDCalculator(..., {name}=...)")
        return {}

    def reset(self) -> None:
        """Forgets the results; the windows of a bias stay."""
        super().reset()
        self.uncertainty = self.atomic_uncertainty = self.bias_energy = None

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """A result by its name, as in ASE; besides, ``uncertainty``, ``atomic_uncertainty`` and ``bias_energy``.

        Raises:
            InputError: if one of these is asked for without a structure, and none was evaluated yet.
        """
        if name not in _BESIDES:
            return super().get_property(name, atoms, allow_calculation)
        if atoms is None and self.atoms is None:
            raise InputError(f"no structure was evaluated yet; give one: get_property({name!r}, atoms)")
        changes = [] if atoms is None else self.check_state(atoms)
        if changes:
            self.reset()
        if getattr(self, name) is None and allow_calculation:
            self.calculate(atoms, [name], changes)
        value = getattr(self, name)
        return value.copy() if isinstance(value, np.ndarray) else value

    @property
    def species(self) -> list[int]:
        """Atomic numbers that the model knows."""
        return self._potential.species

    @property
    def cutoff(self) -> float:
        """Cutoff of the model, Å."""
        return self._potential.cutoff

    @property
    def biased(self) -> bool:
        """Whether energy, forces and stress include a bias."""
        return self._potential.biased

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Iterable[str] = ("energy",),
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fills ``results``; called by ASE when something is asked for that is not there.

        Raises:
            InputError: for a structure that the potential cannot be applied to.
            CalculationFailed: if positions or the energy are no numbers.
            PropertyNotImplementedError: for the stress of a structure whose cell has fewer than three vectors, and
                for the energies of atoms under a bias.
        """
        wanted = set(properties)
        super().calculate(atoms, list(wanted), system_changes)
        atoms = self.atoms
        assert atoms is not None
        if system_changes:  # also if what follows fails
            self.results = {}
            self.uncertainty = self.atomic_uncertainty = self.bias_energy = None
        # before anything is evaluated: a second pass over the same structure would advance the windows
        self._refuse(wanted, atoms)
        batch = self._batch(atoms)
        new: dict[str, Any] = {}
        if "energies" in wanted or (wanted <= _ENERGIES and not self.biased):
            new |= self._energies(batch)
            if "energies" not in wanted:
                del new["energies"]
        if self.biased or not wanted <= _ENERGIES:
            new |= self._everything(batch, wanted, stress=atoms.cell.rank == 3)
        # what is known of the structure stays as it is, to the last digit
        self.results = {**new, **self.results}

    def _refuse(self, wanted: Iterable[str], atoms: Atoms) -> None:
        """Raises PropertyNotImplementedError for what a structure, or a bias, does not have."""
        if "stress" in wanted and atoms.cell.rank < 3:
            raise PropertyNotImplementedError("stress needs a structure whose cell has three vectors")
        if "energies" in wanted and self.biased:
            raise PropertyNotImplementedError(
                "energies: a bias belongs to no single atom; ask a calculator without tau and tau_stress"
            )

    def _energies(self, batch: AtomicBatch) -> dict[str, Any]:
        """The unbiased results that need no derivative."""
        with torch.no_grad():
            energies = atomic_output(self._model, batch).energies.double()
            energy = self._finite(batch.sum_atoms(energies))
        return {"energy": energy, "free_energy": energy, "energies": energies.cpu().numpy()}

    def _everything(self, batch: AtomicBatch, wanted: Iterable[str], *, stress: bool) -> dict[str, Any]:
        """Results with forces; uncertainties, where they are predicted, go to their attributes."""
        full = self.biased or any(name in _BESIDES for name in wanted)
        prediction = (self._potential if full else self._potential.potential)(batch, self._memory, stress=stress)
        self._finite(prediction.energy)
        self._memory = prediction.memory
        if prediction.uncertainty is not None and prediction.atomic_uncertainty is not None:
            self.uncertainty = float(prediction.uncertainty)
            self.atomic_uncertainty = prediction.atomic_uncertainty.cpu().double().numpy()
            self.bias_energy = 0.0 if prediction.bias_energy is None else float(prediction.bias_energy)
        return _results(prediction)

    def _finite(self, energy: Tensor) -> float:
        """The energy of the one structure; CalculationFailed if it is no number."""
        if not np.isfinite(float(energy)):
            raise CalculationFailed(f"{self._name} predicts an energy of {float(energy)} eV")
        return float(energy)

    def _batch(self, atoms: Atoms) -> AtomicBatch:
        """The structure with neighbours, listed anew only where needed."""
        finite = np.isfinite(atoms.positions).all(axis=1)
        if not finite.all():
            raise CalculationFailed(f"the position of atom {int(np.argmin(finite))} is not a number")
        listed = self._listed
        if listed is None or not listed.same_composition(atoms):
            check_structure(atoms, "the structure")
            check_elements(atoms, self._potential.species, "the structure", self._name)
            if self._potential.tau_stress > 0 and not atoms.pbc.all():
                raise InputError(
                    f"tau_stress={self._potential.tau_stress} needs a structure that is periodic in three "
                    "directions; set it to 0"
                )
            self._memory = listed = None
        if listed is None or not listed.valid(atoms, self._skin):
            reach = self._potential.cutoff + self._skin
            weights = self._potential.weights
            reference = next(self._model.parameters())
            batch = collate([atoms], reach, dtype=reference.dtype, device=weights.device)
            # labels that the structure carries are none of the model's business
            batch = batch.replace(energy=None, forces=None, stress=None)
            if atoms.cell.rank == 3:  # neighbours know what is periodic; this is about a stress
                cell = torch.as_tensor(np.asarray(atoms.cell)[None]).to(batch.positions)
                batch = batch.replace(cell=cell, pbc=torch.ones_like(batch.pbc))
            listed = self._listed = _Listed(batch, atoms.copy())
        positions = torch.as_tensor(atoms.positions).to(listed.batch.positions)
        free = torch.as_tensor(free_atoms(atoms), device=positions.device)
        return listed.batch.replace(positions=positions, fixed=None if bool(free.all()) else ~free)


@dataclass(frozen=True)
class _Listed:
    """Neighbours and the structure that they were listed for."""

    batch: AtomicBatch
    atoms: Atoms

    def same_composition(self, atoms: Atoms) -> bool:
        """Whether elements, their order and the periodicity are the same."""
        return np.array_equal(self.atoms.numbers, atoms.numbers) and np.array_equal(self.atoms.pbc, atoms.pbc)

    def valid(self, atoms: Atoms, skin: float) -> bool:
        """Whether the list holds all neighbours of a structure of the same composition."""
        if not np.array_equal(np.asarray(self.atoms.cell), np.asarray(atoms.cell)):
            return False
        moved = np.square(atoms.positions - self.atoms.positions).sum(axis=1)
        return bool(moved.max(initial=0.0) <= (0.5 * skin) ** 2)


def _in_precision(potential: UncertainPotential, dtype: str | torch.dtype | None) -> UncertainPotential:
    """The potential in another precision, the given one left as it is; shifts of energies are always float64."""
    if dtype is None:
        return potential
    name = str(dtype).removeprefix("torch.")
    if name not in ("float32", "float64"):
        raise InputError(f"dtype={dtype} must be float32 or float64")
    potential = copy.deepcopy(potential)
    for part in (potential.get_submodule("potential"), potential.get_submodule("uncertainty")):
        part.to(getattr(torch, name))
    return potential


def _results(prediction: Prediction) -> dict[str, float | NDArray[np.float64]]:
    """A prediction of one structure under ASE's names, in float64."""

    def array(values: torch.Tensor) -> NDArray[np.float64]:
        return values.cpu().double().numpy()

    energy = float(prediction.energy)
    results: dict[str, float | NDArray[np.float64]] = {
        "energy": energy,
        "free_energy": energy,
        "forces": array(prediction.forces),
    }
    if prediction.stress is not None:
        results["stress"] = full_3x3_to_voigt_6_stress(array(prediction.stress[0]))
    return results


def check_elements(atoms: Atoms, known: Iterable[int], what: str, potential: str | Path) -> None:
    """Refuses a structure with elements that a potential was not trained on.

    Args:
        atoms: the structure.
        known: atomic numbers that the potential knows.
        what: the structure's name in the message.
        potential: the potential's name in the message.

    Raises:
        InputError: naming the first foreign element.
    """
    known = set(known)
    foreign = sorted(set(atoms.numbers.tolist()) - known)
    if foreign:
        symbols = ", ".join(chemical_symbols[z] for z in sorted(known))
        raise InputError(
            f"{what} contains {chemical_symbols[foreign[0]]}, which {potential} was not trained on "
            f"(it knows {symbols}); remove it or train a potential with it"
        )


def torch_device(name: torch.device | str) -> torch.device:
    """The device of a name: ``cpu``, ``cuda``, ``cuda:1``, ...; ``auto`` takes a GPU if there is one.

    Raises:
        InputError: if there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device={name} is no device; use auto, cpu or cuda") from error
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    available = {
        "cpu": True,
        "cuda": (device.index or 0) < gpus,
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(device.type, False):
        raise InputError(f"device={name} is not available on this machine (GPUs: {gpus}); use device=cpu")
    return device
