"""References by system, where one method cannot label all systems of a run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from ubmd.data.labels import SYSTEM
from ubmd.errors import InputError
from ubmd.reference.base import Label, Plain, Reference, class_path

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["BySystem"]


class BySystem(Reference):
    """Labels each structure with the reference of the system that its ``info["system"]`` names.

    One potential learns all labels, so their energies must go together: the same method, elements with the same
    energy in every system.

    Args:
        references: by name of the system.

    Raises:
        InputError: there is none.
    """

    def __init__(self, references: Mapping[str, Reference]) -> None:
        if not references:
            raise InputError(
                "reference.references is empty: give one to each system, as +reference@reference.references.NAME=OPTION"
            )
        self.references = dict(references)
        self.reads = tuple(dict.fromkeys([SYSTEM, *(name for part in references.values() for name in part.reads)]))
        self.has_stress = any(part.has_stress for part in references.values())
        self.identified = all(part.identified for part in references.values())

    def fingerprint(self) -> dict[str, Plain]:
        parts = {name: part.fingerprint() for name, part in self.references.items()}
        return {"class": class_path(self), "references": parts}

    def versions(self) -> dict[str, str]:
        return {package: v for part in self.references.values() for package, v in part.versions().items()}

    def compute(self, atoms: Atoms) -> Label:
        return self._of(atoms).compute(atoms)

    def check_atoms(self, atoms: Atoms) -> None:
        self._of(atoms).check_atoms(atoms)

    def check(self) -> None:
        for part in self.references.values():
            part.check()

    def check_systems(self, systems: Collection[str]) -> None:
        """Refuses a run with a system that has no reference, or a reference of no system.

        Raises:
            InputError: naming it.
        """
        if lacking := [name for name in systems if name not in self.references]:
            what = f"the system {lacking[0]}" if lacking[0] else "a run of one system (choose another reference)"
            raise InputError(f"reference.references has none for {what}")
        if strange := [name for name in self.references if name not in systems]:
            raise InputError(f"reference.references.{strange[0]} is of no system; there are {', '.join(systems)}")

    def _of(self, atoms: Atoms) -> Reference:
        name = atoms.info.get(SYSTEM)
        if not isinstance(name, str) or name not in self.references:
            known = ", ".join(self.references)
            raise InputError(f"its info names {SYSTEM}={name}, which is none of those with a reference ({known})")
        return self.references[name]
