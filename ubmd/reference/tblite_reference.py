"""GFN-xTB through tblite: a quantum reference that needs no other program.

GFN2-xTB: C. Bannwarth, S. Ehlert, S. Grimme, J. Chem. Theory Comput. 15, 1652 (2019),
https://doi.org/10.1021/acs.jctc.8b01176. Periodic systems are computed at the Γ point only: energies of
different supercells do not compare, so keep to one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ubmd.errors import InputError
from ubmd.reference.ase_reference import ASEReference
from ubmd.reference.base import Label, Plain, Reference, class_path

if TYPE_CHECKING:
    from ase import Atoms

METHODS = ("GFN2-xTB", "GFN1-xTB", "IPEA1-xTB")


class TBLiteReference(Reference):
    """Energies, forces and, where the structure is periodic in three directions, stress of an xTB method.

    A self-consistent field that does not converge is a failure of its structure. Every label is a
    calculation of its own on a fixed number of threads, so that it does not depend on what came before.

    Args:
        method: GFN2-xTB, GFN1-xTB or IPEA1-xTB.
        charge: total charge, e; None takes the sum of the initial charges of the structure.
        multiplicity: spin multiplicity; None takes that of the initial magnetic moments of the structure.
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
        charge: float | None = None,
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

    def compute(self, atoms: Atoms) -> Label:
        """Label one structure, which is left as it is.

        Raises:
            ReferenceError: the self-consistent field did not converge, or tblite refused the structure.
            InputError: tblite is not installed.
        """
        TBLite, threadpool_limits = _modules()
        with threadpool_limits(limits=self.threads):
            return ASEReference(TBLite(**self._parameters, verbosity=0)).compute(atoms)


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
