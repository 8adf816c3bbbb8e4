"""GFN-xTB through tblite: a quantum reference that needs no other program.

GFN2-xTB: C. Bannwarth, S. Ehlert, S. Grimme, J. Chem. Theory Comput. 15, 1652 (2019),
https://doi.org/10.1021/acs.jctc.8b01176. Periodic systems are computed at the Γ point only: energies of
different supercells do not compare, so keep to one.
"""

from __future__ import annotations

from typing import Any

from ase import Atoms
from ase.calculators.calculator import CalculationFailed
from ase.calculators.calculator import InputError as RefusedError

from ubmd.data.electronic import ElectronicState, check_state_options, electronic_state, tell_radical
from ubmd.errors import InputError
from ubmd.reference.ase_reference import ASEReference
from ubmd.reference.base import Label, Plain, Reference, ReferenceError, UnfinishedError, class_path
from ubmd.reference.identity import versions_of

METHODS = ("GFN2-xTB", "GFN1-xTB", "IPEA1-xTB")


class TBLiteReference(Reference):
    """Energies, forces and, where the structure is periodic in three directions, stress of an xTB method.

    A self-consistent field that does not converge is a failure of its structure. Every label is a
    calculation of its own on a fixed number of threads, so that it does not depend on what came before.

    Args:
        method: GFN2-xTB, GFN1-xTB or IPEA1-xTB.
        charge: total charge, e; None takes that of the structure (:mod:`ubmd.data.electronic`).
        multiplicity: spin multiplicity; None takes that of the structure, or the lowest.
        accuracy: scales tblite's numerical thresholds; smaller is tighter.
        electronic_temperature: of the Fermi smearing, K.
        max_iterations: of the self-consistent field.
        threads: CPU threads of a label.

    Raises:
        InputError: tblite is not installed, or a value is impossible.
    """

    has_stress = True

    def __init__(
        self,
        method: str = "GFN2-xTB",
        *,
        charge: int | None = None,
        multiplicity: int | None = None,
        accuracy: float = 1.0,
        electronic_temperature: float = 300.0,
        max_iterations: int = 250,
        threads: int = 1,
    ) -> None:
        if method not in METHODS:
            raise InputError(f"reference.method={method} is not a method of tblite; use one of {', '.join(METHODS)}")
        positive = {
            "accuracy": accuracy,
            "electronic_temperature": electronic_temperature,
            "max_iterations": max_iterations,
            "threads": threads,
        }
        for name, value in positive.items():
            if not value > 0:
                raise InputError(f"reference.{name}={value} is not positive; give a positive value")
        check_state_options(charge, multiplicity)
        self.threads = threads
        self._parameters: dict[str, Any] = {
            "method": method,
            "charge": charge,
            "multiplicity": multiplicity,
            "accuracy": accuracy,
            "electronic_temperature": electronic_temperature,
            "max_iterations": max_iterations,
        }
        _modules()

    def fingerprint(self) -> dict[str, Plain]:
        """Class, method and parameters; the number of threads is none of them."""
        return {"class": class_path(self), **self._parameters}

    def versions(self) -> dict[str, str]:
        return versions_of("tblite")

    def check_atoms(self, atoms: Atoms) -> None:
        """Refuse a structure whose charge or spin cannot be.

        Raises:
            InputError: as :func:`ubmd.data.electronic.electronic_state`.
        """
        tell_radical(atoms, self._state(atoms), self._parameters["charge"])

    def compute(self, atoms: Atoms) -> Label:
        """Label one structure, which is left as it is.

        Raises:
            ReferenceError: the self-consistent field did not converge, or tblite refused the structure.
            InputError: tblite is not installed, or the structure's charge or spin cannot be.
        """
        TBLite, threadpool_limits = _modules()
        state = self._state(atoms)
        parameters = self._parameters | {"charge": state.charge, "multiplicity": state.multiplicity}
        structure = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        with threadpool_limits(limits=self.threads):
            try:
                return ASEReference(TBLite(**parameters, verbosity=0)).compute(structure)
            except UnfinishedError as error:
                # what the library refuses or does not converge is the structure's, whatever its class of errors
                if isinstance(error.__cause__, CalculationFailed | RefusedError):
                    raise ReferenceError(str(error)) from error
                raise

    def _state(self, atoms: Atoms) -> ElectronicState:
        return electronic_state(atoms, charge=self._parameters["charge"], multiplicity=self._parameters["multiplicity"])


def _modules() -> tuple[Any, Any]:
    """The ASE calculator of tblite, and what limits the threads of libraries that are loaded already."""
    try:
        from tblite.ase import TBLite
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        package = str(error.name).partition(".")[0]
        raise InputError(
            f"reference: GFN-xTB needs the package {package}, which is not installed; pip install 'ubmd[xtb]'"
        ) from error
    return TBLite, threadpool_limits
