"""The system under study: where it starts, what it is made of and how its motion is followed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from ubmd.data.electronic import charge_and_unpaired
from ubmd.data.elements import species_numbers
from ubmd.data.inherit import descendant, fixed_atoms
from ubmd.data.io import check_species, check_structure, read_structures
from ubmd.data.perturb import check_displacement, perturb
from ubmd.errors import InputError
from ubmd.observables.base import CollectiveVariable, values_of
from ubmd.observables.cell import Volume
from ubmd.observables.states import States, check_states
from ubmd.systems.conformers import conformers
from ubmd.systems.normal_modes import LabelForces, displaced, normal_modes
from ubmd.systems.relaxation import Relaxation

__all__ = ["System"]

HOTTEST = 10_000.0
"""K; bonds are gone long before."""


@dataclass(frozen=True)
class System:
    """A system to learn a potential for.

    Args:
        structure: the initial structure, or the path of a file that ASE reads (its first frame is taken); None with
            ``smiles``.
        species: chemical symbols that the model shall know; None takes those of the structure.
        variables: collective variables by name. Those with a range span the space whose coverage is followed; of
            the others the lowest and the highest value are. A crystal's ``volume``, of as many atoms as
            ``structure`` has, is one of them unless another one has that name.
        states: by name, the ranges ``[low, high)`` of variables that make a state, such as a crystal's phase; changes
            of state are followed. A gap between two of them keeps jitter at a border from counting as changes.
        relax: finds the nearest minimum of the reference before the run; None takes the structure as it is.
        initial: structures that a run starts from, or the path of their file; those with labels keep them. The
            first round's walkers start from them too. None perturbs ``structure``.
        max_volume: those of ``initial`` with a larger volume are left out, Å³.
        n_initial: number of structures that a run starts from: randomly perturbed ones, or of ``initial``, drawn at
            random where there are more. None: 8 perturbed ones, or all of ``initial``.
        displacement: half-width of the perturbation of each coordinate, Å (Eq. 32).
        strain: half-width of the perturbation of the cell (Eqs. 33, 34); 0 keeps it.
        smiles: a molecule instead of ``structure``. Its conformers (:func:`~ubmd.systems.conformers.conformers`) are
            perturbed in turn, those of the lowest energies if there are more of them than structures to start from.
        normal_modes: temperature, K, of displacements along the modes of the structure in place of ``displacement``
            (:mod:`ubmd.systems.normal_modes`); a Hessian takes six labels for each atom, and each conformer or cell has
            its own. None: uniform displacements.
        strain_grid: relative changes of a crystal's three lengths, such as -0.04, 0.0 and 0.04: ``structure`` is
            perturbed in each of these cells in turn.

    Volumes of structures with another number of atoms than ``structure``, such as supercells, are scaled to that
    number.
    """

    structure: Atoms | str | None = None
    species: Sequence[str] | None = None
    variables: Mapping[str, CollectiveVariable] = field(default_factory=dict)
    states: States = field(default_factory=dict)
    relax: Relaxation | None = None
    initial: Sequence[Atoms] | str | None = None
    max_volume: float | None = None
    n_initial: int | None = None
    displacement: float = 0.02
    strain: float = 0.0
    smiles: str | None = None
    strain_grid: Sequence[float] | None = None
    normal_modes: float | None = None

    def __post_init__(self) -> None:
        self._check_origin()
        if self.smiles is not None:
            object.__setattr__(self, "structure", conformers(self.smiles)[0])
        if isinstance(self.structure, str | Path):
            object.__setattr__(self, "structure", read_structures(self.structure, index="0")[0])
        check_structure(self.atoms, "system.structure")
        fixed_atoms(self.atoms, "system.structure")
        charge_and_unpaired(self.atoms)
        if self.species is None:
            object.__setattr__(self, "species", [chemical_symbols[z] for z in sorted(set(self.atoms.numbers))])
        species_numbers(self.symbols)
        check_species([self.atoms], self.symbols, "system.structure")
        if self.n_initial is not None and self.n_initial < 2:
            raise InputError(
                f"system.n_initial={self.n_initial} leaves nothing to train on or to calibrate with; use at least 2"
            )
        check_displacement(self.displacement)
        if self.normal_modes is not None and not 0 < self.normal_modes <= HOTTEST:
            raise InputError(
                f"system.normal_modes={self.normal_modes} must be a temperature above 0, up to {HOTTEST:g} K, or null"
            )
        if self.normal_modes is not None and self.initial is not None:
            raise InputError(
                f"system.normal_modes={self.normal_modes:g} makes the structures to start from, and system.initial is "
                "given too; leave one of them out (null)"
            )
        if not 0 <= self.strain < 1 / 6:  # the eigenvalues of I + 2 eps stay positive for entries of eps below 1/6
            raise InputError(f"strain={self.strain} must be at least 0 and below 1/6; use a small number such as 0.02")
        for name in ("max_volume", "strain", "strain_grid"):
            if getattr(self, name) and not self.periodic:
                raise InputError(
                    f"system.{name}={getattr(self, name)} needs a structure that is periodic in three directions"
                )
        if self.periodic:
            volume = {"volume": Volume(n_atoms=len(self.atoms))}
            object.__setattr__(self, "variables", volume | dict(self.variables))
        _check_variables(self.variables, self.atoms, "system.structure")
        check_states(self.states, self.variables)
        if self.initial is not None:
            object.__setattr__(self, "initial", self._initial())
        if self.strain_grid is not None:
            self._check_strain_grid()

    @property
    def atoms(self) -> Atoms:
        """The initial structure."""
        return self.structure  # pyright: ignore[reportReturnType]

    @property
    def symbols(self) -> list[str]:
        """Chemical symbols of the species."""
        return list(self.species or ())

    @property
    def periodic(self) -> bool:
        """True if the structure is periodic in all three directions."""
        return bool(self.atoms.pbc.all())

    @property
    def given(self) -> list[Atoms]:
        """The structures of ``initial``; none without."""
        return list(self.initial or ())  # pyright: ignore[reportReturnType]

    @property
    def n_start(self) -> int:
        """Number of structures that a run starts from."""
        if self.initial is None:
            return self.n_initial or max(8, len(self.strain_grid or ()))
        return min(self.n_initial or len(self.given), len(self.given))

    def initial_structures(
        self, rng: np.random.Generator, reads: Collection[str] = (), forces: LabelForces | None = None
    ) -> list[Atoms]:
        """The structures that a run starts from: of ``initial`` in random order, or perturbed ones.

        Args:
            rng: the random stream.
            reads: names of what a reference reads of a structure besides the usual, for perturbed ones to have.
            forces: by the reference, which ``normal_modes`` needs.
        """
        if self.initial is not None:
            # in the order of a file, the first walkers might all start from its smallest cells
            return [self.given[i].copy() for i in rng.permutation(len(self.given))[: self.n_start]]
        starts = self.starts[: self.n_start]
        moved = islice(cycle(starts), self.n_start)
        if self.normal_modes is None:
            displacement = self.displacement
        else:
            moved, displacement = self._along_modes(starts, rng, reads, forces), 0.0
        amount = {"displacement": displacement, "strain": self.strain}
        return [copy for atoms in moved for copy in perturb(atoms, 1, **amount, rng=rng, reads=reads)]

    def _along_modes(
        self, starts: Sequence[Atoms], rng: np.random.Generator, reads: Collection[str], forces: LabelForces | None
    ) -> Iterator[Atoms]:
        """Structures in turn, each displaced along its modes."""
        assert self.normal_modes is not None
        assert forces is not None, "normal modes need forces"
        modes = [normal_modes(atoms, forces(displaced(atoms, reads))) for atoms in starts]
        for atoms, own in islice(cycle(zip(starts, modes, strict=True)), self.n_start):
            copy = descendant(atoms, reads)
            copy.positions += own.displacement(self.normal_modes, rng)
            yield copy

    @property
    def starts(self) -> list[Atoms]:
        """What is perturbed: the structure, its conformers or its cells."""
        if self.smiles is not None:
            return conformers(self.smiles)
        return [_scaled(self.atoms, 1 + change) for change in self.strain_grid or (0.0,)]

    def _check_origin(self) -> None:
        """Refuses other than one thing that says where a run starts."""
        if self.smiles is None and self.structure is None:
            raise InputError(
                "system.structure is missing: give it as system.structure=FILE, a molecule as system.smiles=SMILES, or "
                "choose another system=OPTION"
            )
        if self.smiles is None:
            return
        for name in ("structure", "relax", "initial"):
            if getattr(self, name) is not None:
                raise InputError(
                    f"system.smiles={self.smiles} makes the structures to start from, and system.{name} is given too; "
                    "leave one of them out (null)"
                )

    def _check_strain_grid(self) -> None:
        grid = list(self.strain_grid or ())
        if not grid or not all(-0.5 <= change <= 0.5 for change in grid):
            raise InputError(f"system.strain_grid={grid} must be changes of lengths from -0.5 to 0.5, or null")
        if self.initial is not None or fixed_atoms(self.atoms, "system.structure").any():
            other = "system.initial says where to start" if self.initial is not None else "it would move fixed atoms"
            raise InputError(f"system.strain_grid={grid} cannot be, as {other}; use null")
        if self.n_start < len(grid):
            raise InputError(
                f"system.n_initial={self.n_initial} leaves out some of system.strain_grid={grid}; raise it"
            )

    def _initial(self) -> list[Atoms]:
        """The structures given as ``initial``, checked, without those of too large a volume."""
        given = self.initial
        found = read_structures(given) if isinstance(given, str | Path) else list(given or ())
        check_species(found, self.symbols, "system.initial")
        first = found[0] if found else self.atoms
        for number, atoms in enumerate(found):
            if not np.array_equal(atoms.numbers, first.numbers) or not np.array_equal(atoms.pbc, self.atoms.pbc):
                raise InputError(
                    f"structure {number} of system.initial is of other atoms, in another order or periodic along other "
                    "directions; start from structures of one system"
                )
            _check_same_kind(atoms, first, f"structure {number} of system.initial", "structure 0")
        if np.array_equal(first.numbers, self.atoms.numbers):
            _check_same_kind(first, self.atoms, "structure 0 of system.initial", "system.structure")
        _check_variables(self.variables, first, "structure 0 of system.initial")
        kept = found
        if self.max_volume is not None:
            volumes = values_of({"volume": Volume(n_atoms=len(self.atoms))}, found)["volume"]
            kept = [atoms for atoms, volume in zip(found, volumes, strict=True) if volume <= self.max_volume]
        if len(kept) < 2:
            limit = "" if self.max_volume is None else f" of at most system.max_volume={self.max_volume} Å³"
            raise InputError(f"system.initial has {len(kept)} structures{limit}; at least 2 are needed")
        return kept


def _scaled(atoms: Atoms, factor: float) -> Atoms:
    """A copy with all of its lengths times a factor."""
    copy = atoms.copy()
    if factor != 1:
        copy.set_cell(np.asarray(copy.cell) * factor, scale_atoms=True)
    return copy


def _check_same_kind(atoms: Atoms, other: Atoms, what: str, which: str) -> None:
    """Refuses structures of the same atoms that differ in charge, spin or what is fixed: one data set is of one system.

    Raises:
        InputError: naming both.
    """
    (charge, unpaired), (charge_before, unpaired_before) = charge_and_unpaired(atoms), charge_and_unpaired(other)
    if (charge, unpaired) != (charge_before, unpaired_before):
        raise InputError(
            f"{what} has the charge {charge:g} and {unpaired:g} unpaired electrons, {which} the charge "
            f"{charge_before:g} and {unpaired_before:g}; one potential is of one state, so state the same for all"
        )
    fixed, before = fixed_atoms(atoms, what), fixed_atoms(other, which)
    if not np.array_equal(fixed, before):
        raise InputError(
            f"{what} fixes {fixed.sum()} atoms, others than the {before.sum()} of {which}; give all of them the same "
            "constraint"
        )


def _check_variables(variables: Mapping[str, CollectiveVariable], atoms: Atoms, what: str) -> None:
    """Refuses names that no column can have, and variables that the structure does not have."""
    for name, variable in variables.items():
        if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
            raise InputError(f"system.variables.{name} must be named by letters, digits and underscores")
        try:
            values_of({name: variable}, [atoms])
        except InputError as error:
            raise InputError(f"system.variables.{name}: {error} ({what})") from None
