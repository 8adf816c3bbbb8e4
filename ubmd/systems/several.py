"""Several systems that one potential is learnt for; a run of a single one is the case of a system without a name."""

from __future__ import annotations

import heapq
import math
import re
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from numpy.typing import NDArray

from ubmd.data.io import read_structures
from ubmd.data.labels import SYSTEM
from ubmd.errors import InputError
from ubmd.observables.base import CollectiveVariable
from ubmd.observables.states import States
from ubmd.seeding import Stage, stage_rng, stage_seed
from ubmd.systems.normal_modes import LabelForces
from ubmd.systems.relaxation import Relaxation
from ubmd.systems.system import System

__all__ = ["Systems", "dealt", "of_system"]

Source = Atoms | str
"""Of a system: its structure, or the file of it."""


@dataclass(frozen=True)
class Systems:
    """Systems to learn one potential for, each with walkers, variables and errors of its own.

    Args:
        structures: files by the name of their system, ``{water: a.xyz, salt: b.cif}``, or a list of files, whose
            systems are named after them. A file of several frames, which must be of the same atoms, gives structures to
            start from. Or a single file, of which all frames of the same atoms make a system: it has the name that they
            state as ``system``, or that of their formula.
        parts: systems by name that have more options than a structure, such as variables.
        weights: by name, shares of the walkers; 1 for those that are not named.
        by_uncertainty: from the second round on shares are weights times the highest uncertainty that a walker of the
            system met in the round before, averaged over its walkers.
        dynamics: by name, other dynamics than the run's. Such a system has as many walkers as they say, and no weight.
        species: chemical symbols that the model shall know; None takes those of all systems.
        relax: of ``structures``, see :class:`~ubmd.systems.system.System`.
        n_initial: structures that each of ``structures`` starts from, see :class:`~ubmd.systems.system.System`.
        displacement: half-width of the perturbation of each coordinate, Å.
        strain: half-width of the perturbation of crystals' cells.
        normal_modes: temperature of displacements along modes instead, see :class:`~ubmd.systems.system.System`.

    Raises:
        InputError: for names that are none or taken twice, for structures that are no system, and for options of what
            is no system.
    """

    structures: Mapping[str, Source] | Sequence[str] | str | None = None
    parts: Mapping[str, System] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    by_uncertainty: bool = False
    dynamics: Mapping[str, object] = field(default_factory=dict)
    species: Sequence[str] | None = None
    relax: Relaxation | None = None
    n_initial: int | None = None
    displacement: float = 0.02
    strain: float = 0.0
    normal_modes: float | None = None

    def __post_init__(self) -> None:
        found = {name: self._part(name, frames) for name, frames in _by_name(self.structures).items()}
        if taken := sorted(found.keys() & self.parts.keys()):
            raise InputError(f"system.parts.{taken[0]} has the name of one of system.structures; rename one of them")
        parts = {**found, **self.parts}
        if not parts:
            raise InputError("system.structures is missing: give files, such as system.structures=[a.xyz,b.cif]")
        for name in parts:
            if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) and list(parts) != [""]:
                raise InputError(f"system.parts.{name} must be named by letters, digits and underscores")
        symbols = self.species or sorted({s for p in parts.values() for s in p.symbols}, key=atomic_numbers.__getitem__)
        for name, part in parts.items():
            if unknown := [symbol for symbol in part.symbols if symbol not in symbols]:
                raise InputError(f"system {name} contains {unknown[0]}, which is not in system.species={list(symbols)}")
        for option in ("weights", "dynamics"):
            if strange := [name for name in getattr(self, option) if name not in parts]:
                raise InputError(f"system.{option}.{strange[0]} is of no system; there are {', '.join(parts)}")
        for name, weight in self.weights.items():
            if not 0 < weight < math.inf:
                raise InputError(f"system.weights.{name}={weight} must be a positive number")
            if name in self.dynamics:
                raise InputError(
                    f"system.weights.{name}: a system with dynamics of its own has as many walkers as these say; set "
                    f"system.dynamics.{name}.n_walkers, or leave one of the two out"
                )
        object.__setattr__(self, "structures", None)
        object.__setattr__(self, "parts", parts)
        object.__setattr__(self, "species", list(symbols))

    @classmethod
    def of(cls, system: System | Systems) -> Systems:
        """A single system as the case of one without a name, whose run is what it is alone."""
        return system if isinstance(system, Systems) else cls(parts={"": system}, species=system.symbols)

    @property
    def named(self) -> bool:
        """Whether there are several systems, or one that has a name."""
        return "" not in self.parts

    @property
    def symbols(self) -> list[str]:
        """Chemical symbols of the species of all."""
        return list(self.species or ())

    @property
    def n_start(self) -> int:
        """Number of structures that a run starts from."""
        return sum(system.n_start for system in self.parts.values())

    @property
    def given(self) -> list[Atoms]:
        """The structures that systems were given to start from."""
        return [atoms for system in self.parts.values() for atoms in system.given]

    def seed(self, name: str, seed: int) -> int:
        """The root seed of a system in a run of a root seed: its own, whatever other systems there are."""
        return stage_seed(seed, 0, Stage.SYSTEM, zlib.crc32(name.encode())) if name else seed

    def initial_structures(
        self, seed: int, reads: Collection[str] = (), forces: LabelForces | None = None
    ) -> list[Atoms]:
        """The structures that a run starts from, system by system; ``info`` says whose they are.

        Args:
            seed: root seed of the run.
            reads: names of what a reference reads of a structure besides the usual.
            forces: by the reference, which normal modes need.
        """
        out = []
        for name, system in self.parts.items():

            def named(moved: Sequence[Atoms], name: str = name) -> list[NDArray[np.float64]]:
                assert forces is not None
                return forces(of_system(name, moved))

            rng = stage_rng(self.seed(name, seed), 0, Stage.PERTURB)
            out += of_system(name, system.initial_structures(rng, reads, named))
        return out

    def name_of(self, atoms: Atoms) -> str | None:
        """The system of a structure: that which ``info`` states, or the only one of its composition; None if untold."""
        if not self.named:
            return ""
        stated = atoms.info.get(SYSTEM)
        if isinstance(stated, str) and stated in self.parts:
            return stated
        alike = [name for name, system in self.parts.items() if _composition(system.atoms) == _composition(atoms)]
        return alike[0] if len(alike) == 1 else None

    def only(self, name: str) -> Systems:
        """One of the systems, with its name."""
        return Systems(parts={name: self.parts[name]}, species=self.species)

    def own(self, name: str, structures: Iterable[Atoms]) -> list[Atoms]:
        """Those of the structures that are a system's."""
        return [atoms for atoms in structures if self.name_of(atoms) == name]

    def followed(self, name: str) -> tuple[dict[str, CollectiveVariable], States]:
        """A system's variables and states, with its name before those of the variables."""
        system = self.parts[name]
        prefix = f"{name}_" if name else ""
        variables = {prefix + key: variable for key, variable in system.variables.items()}
        states = {
            state: {prefix + key: bounds for key, bounds in ranges.items()} for state, ranges in system.states.items()
        }
        return variables, states

    def with_structures(self, structures: Mapping[str, Atoms]) -> Systems:
        """The same with other structures of some systems."""
        changed = {name: replace(self.parts[name], structure=atoms) for name, atoms in structures.items()}
        return replace(self, parts={**self.parts, **changed})

    def _part(self, name: str, frames: Sequence[Atoms]) -> System:
        """A system of a structure, or of several to start from."""
        try:
            return System(
                frames[0],
                relax=self.relax,
                initial=frames if len(frames) > 1 else None,
                n_initial=self.n_initial,
                displacement=self.displacement,
                strain=self.strain if frames[0].pbc.all() else 0.0,
                normal_modes=self.normal_modes if len(frames) == 1 else None,
            )
        except InputError as error:
            raise InputError(f"system.structures: {name}: {error}") from error


def of_system(name: str, structures: Sequence[Atoms]) -> list[Atoms]:
    """The structures, whose ``info`` now says which system they are of; nothing is said of a system without a name."""
    for atoms in structures if name else ():
        atoms.info[SYSTEM] = name
    return list(structures)


def dealt(n: int, weights: Mapping[str, float], least: Mapping[str, int]) -> dict[str, int]:
    """``n`` walkers dealt over systems in proportion to weights, each system at least some of them.

    Those above the least number go one by one to the system that lacks most of its share: that of the largest weight /
    (2 walkers + 1), Sainte-Laguë's rule; of equal ones the first.

    Args:
        n: number of walkers.
        weights: by system.
        least: by system, at least 1.

    Raises:
        InputError: there are too few walkers.
    """
    counts = {name: least[name] for name in weights}
    left = n - sum(counts.values())
    if left < 0:
        raise InputError(
            f"dynamics.n_walkers={n} is too few for {len(counts)} systems, which need at least {n - left} (each "
            "one, and as many as dynamics.groups or a list of temperatures or pressures has); raise it"
        )
    places = {name: place for place, name in enumerate(weights)}
    queue = [(-weight / (2 * counts[name] + 1), places[name], name) for name, weight in weights.items()]
    heapq.heapify(queue)
    for _ in range(left if queue else 0):
        name = queue[0][2]
        counts[name] += 1
        heapq.heapreplace(queue, (-weights[name] / (2 * counts[name] + 1), places[name], name))
    return counts


def _by_name(structures: Mapping[str, Source] | Sequence[str] | str | None) -> dict[str, list[Atoms]]:
    """Frames by the name of their system."""
    if structures is None:
        return {}
    if isinstance(structures, str | Path):
        return _of_one_file(structures)
    if not isinstance(structures, Mapping):
        named: dict[str, str] = {}
        for file in structures:
            name = re.sub(r"\W", "_", Path(file).name.split(".")[0], flags=re.ASCII)
            if name in named:
                raise InputError(
                    f"system.structures: {named[name]} and {file} would both be named {name}; name systems yourself, "
                    "such as system.structures={a: " + f"{named[name]}, b: {file}" + "}"
                )
            named[name] = file
        structures = named
    return {name: [given] if isinstance(given, Atoms) else read_structures(given) for name, given in structures.items()}


def _of_one_file(file: str | Path) -> dict[str, list[Atoms]]:
    """The frames of a file by system: that which they state, or that of their atoms."""
    found: dict[str, list[Atoms]] = {}
    names: dict[tuple[bytes, bytes], str] = {}
    for atoms in read_structures(file):
        if (name := atoms.info.get(SYSTEM)) is None:
            kind = atoms.numbers.tobytes(), atoms.pbc.tobytes()
            formula = atoms.get_chemical_formula()
            taken = sum(other.partition("_")[0] == formula for other in names.values())
            name = names.setdefault(kind, formula if not taken else f"{formula}_{taken + 1}")
        found.setdefault(str(name), []).append(atoms)
    return found


def _composition(atoms: Atoms) -> tuple[tuple[int, ...], tuple[int, ...], tuple[bool, ...]]:
    """What tells systems apart: elements, how many of each (of a crystal in a formula unit), and periodicity."""
    elements, counts = np.unique(atoms.numbers, return_counts=True)
    unit = reduce(math.gcd, counts.tolist()) if atoms.pbc.all() else 1
    return tuple(elements.tolist()), tuple((counts // unit).tolist()), tuple(atoms.pbc.tolist())
