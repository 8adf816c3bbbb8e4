"""A trained potential as an ASE calculator: energy, forces, stress, uncertainties and, optionally a bias."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator, PropertyNotImplementedError, all_changes
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from ubmd.bias.biased import BiasedPotential
from ubmd.data.batch import AtomicBatch, collate
from ubmd.data.inherit import free_atoms
from ubmd.data.io import check_structure
from ubmd.errors import InputError
from ubmd.models.potential import Memory, Prediction
from ubmd.uncertainty.checkpoint import load_potential
from ubmd.uncertainty.potential import UncertainPotential

__all__ = ["UBMDCalculator", "check_elements", "torch_device"]

_UNCERTAINTIES = ("uncertainty", "atomic_uncertainty")


class UBMDCalculator(Calculator):
    """ASE calculator of a trained potential; without ``tau`` and ``tau_stress`` the potential is unbiased.

    Beside ASE's own results there are, from ``calc.get_property(name, atoms)``,

    - ``uncertainty``: calibrated uncertainty of the energy per atom, eV/atom;
    - ``atomic_uncertainty`` [n_atoms]: calibrated uncertainty of the force on each atom, eV/Å.

    Those of the structure evaluated last are also the attributes ``calc.uncertainty`` and
    ``calc.atomic_uncertainty``, None where they were not computed. They are not in ``results``, as ASE's writers,
    ``SinglePointCalculator`` and ``export_properties`` accept ASE's names alone.

    An unbiased calculator computes them when one of them is asked for, together with everything else, so
    ask for them first where both they and forces are needed. ``stress`` (eV/Å³, Voigt order, ASE's sign)
    exists for structures that are periodic in three directions. Everything is computed in the precision
    that the potential was trained in.

    A biased calculator returns the biased energy, forces and stress (Eqs. 5-8), and uncertainties with them.
    Its windows (Eq. 8) advance once for each configuration that differs from the one evaluated before,
    whoever asks: an MD step, a line search or a finite difference. So give each trajectory a calculator of
    its own (``load_potential`` once, and a calculator of the result for each). There is no bias until a
    window is full, and windows start afresh when elements, their order or the periodicity change. Atoms that
    constraints fix (``FixAtoms``) neither are biased nor count in the windows. With
    windows or species weights the biased forces are not the derivative of the biased energy. The bias acts in every
    evaluation: there is no ``every``, as the calculator cannot know which step an integrator of ASE is at.

    Args:
        potential: a file written by ``ubmd`` (``RUN/rounds/000/model.ckpt``), what ``load_potential`` made of one, or
            a :class:`~ubmd.bias.biased.BiasedPotential`, which is taken with its bias.
        device: where to compute: ``cpu``, ``cuda``, ``cuda:1`` ..., or ``auto``.
        skin: Å that neighbour lists reach beyond the cutoff; they are used until an atom has moved by half
            of it, or elements, periodicity or cell change.
        tau: biasing strength of the forces, without unit.
        tau_stress: biasing strength of the stress, without unit.
        window: N of Eq. 8, in evaluations.
        species_weights: factors of the bias force on atoms of a chemical symbol, 1 where not given.
        rescale: apply Eq. 8; False takes the strengths as plain factors from the first evaluation.
        allow: packages whose models and uncertainties the file may name, see ``load_potential``.

    Raises:
        InputError: if the file, the device or an option is of no use; on evaluation, if a structure
            contains an element that the potential does not know or cannot be computed at all.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012
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
    ):
        super().__init__()
        if not 0 <= skin < np.inf:
            raise InputError(f"skin must be zero or a positive length in Å, got {skin}")
        device = torch_device(device)
        self._name = "the potential"
        if not isinstance(potential, UncertainPotential):
            self._name = str(potential)
            potential = load_potential(potential, device=device, allow=allow)
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

    def reset(self) -> None:
        """Forgets the results; the windows of a bias stay."""
        super().reset()
        self.uncertainty = self.atomic_uncertainty = None

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """A result by its name, as in ASE; besides, ``uncertainty`` and ``atomic_uncertainty``.

        Raises:
            InputError: if an uncertainty is asked for without a structure, and none was evaluated yet.
        """
        if name not in _UNCERTAINTIES:
            return super().get_property(name, atoms, allow_calculation)
        if atoms is None and self.atoms is None:
            raise InputError(f"no structure was evaluated yet; give one: get_property({name!r}, atoms)")
        if atoms is not None and self.check_state(atoms):
            self.reset()
        if getattr(self, name) is None and allow_calculation:
            self.calculate(atoms, [name], all_changes)
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
            PropertyNotImplementedError: for the stress of a structure that is not fully periodic.
        """
        super().calculate(atoms, list(properties), system_changes)
        atoms = self.atoms
        assert atoms is not None
        crystal = bool(atoms.pbc.all())
        if "stress" in properties and not crystal:
            # before anything is evaluated: a second pass over the same structure would advance the windows
            raise PropertyNotImplementedError("stress needs a structure that is periodic in three directions")
        self.uncertainty = self.atomic_uncertainty = None  # also if what follows fails
        batch = self._batch(atoms)
        if self.biased or any(name in _UNCERTAINTIES for name in properties):
            prediction = self._potential(batch, self._memory, stress=crystal)
        else:
            prediction = self._potential.potential(batch, self._memory, stress=crystal)
        if not np.isfinite(float(prediction.energy)):
            raise CalculationFailed(f"{self._name} predicts an energy of {float(prediction.energy)} eV")
        self._memory = prediction.memory
        self.results = _results(prediction)
        if prediction.uncertainty is not None and prediction.atomic_uncertainty is not None:
            self.uncertainty = float(prediction.uncertainty)
            self.atomic_uncertainty = prediction.atomic_uncertainty.cpu().double().numpy()

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
        if atoms.pbc.any() and not np.array_equal(np.asarray(self.atoms.cell), np.asarray(atoms.cell)):
            return False
        moved = np.square(atoms.positions - self.atoms.positions).sum(axis=1)
        return bool(moved.max(initial=0.0) <= (0.5 * skin) ** 2)


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
